"""Lower each quantised operation to a node of the engine, or find the sentence why it runs on the host."""

from dataclasses import dataclass, replace

from celosia.tools.compiler import knobs
from celosia.tools.compiler.graph import Operation
from celosia.tools.compiler.reasons import refusal
from celosia.tools.ops import FORMS, Features, Lowered, Refused
from celosia.tools.ops.family import sentence, suggestion

__all__ = ["ADVICE", "Decision", "Quantised", "quantise"]

ADVICE = "ONNX Runtime computes it exactly between engine segments; to avoid that, use an operator of `celosia ops` in its place."
"""The suggestion where nobody has a better one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """Where an operation runs: on the engine as ``lowered`` says, or on the host for the ``reason``; ``suggestion`` says what to do."""

    operation: object
    lowered: Lowered | None = None
    reason: str = ""
    suggestion: str = ""

    @property
    def is_view(self):
        """Nothing is computed: readers find the elements in another tensor."""
        return self.lowered is not None and self.lowered.node is None

    def dump(self):
        if self.lowered is None:
            return f"host    {self.operation.name} ({self.operation.operator}): {self.reason}"
        if self.is_view:
            return f"view    {self.operation.name} ({self.operation.operator}): elements of {self.lowered.view.tensor.name}"
        return f"engine  {self.lowered.node.dump()}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantised:
    """A :class:`Decision` for each operation, in topological order, and every :class:`ir.Tensor` of the engine by name.

    ``constants`` are ``(ir.Tensor, int8 [channels, height, width])`` by name.
    """

    decisions: tuple
    tensors: dict
    constants: dict

    def dump(self):
        return "\n".join(decision.dump() for decision in self.decisions)


def quantise(graph, config=None):
    """Return the :class:`Quantised` form of an :class:`~celosia.tools.compiler.graph.OperationGraph`.

    What an engine of ``config`` was built without (``combine``, ``fill``, ``maximum``) runs on the host.
    """
    features = Features(graph=graph)
    decisions = []
    for operation in graph.operations:
        try:
            lowered = _lower(operation, features)
            if config is not None:
                _refuse_what_is_missing(lowered.node, config)
        except Refused as refusal:
            advice = refusal.suggestion or ADVICE
            decisions.append(Decision(operation=operation, reason=str(refusal), suggestion=advice))
            continue
        finally:
            decisions.extend(_further(lowered) for lowered in features.extra)
            features.extra.clear()
        if lowered.node and not lowered.view.is_plain:
            lowered = _apart(lowered)
            decisions.append(_further(lowered))
            lowered = replace(lowered, node=None)
        features.views[operation.output] = lowered.view
        decisions.append(Decision(operation=operation, lowered=lowered))
    moved = {lowered.view.tensor.name: lowered for lowered in features.moved.values()}
    decisions = [_in_order(decision, moved) for decision in decisions]
    views = (*features.views.values(), *(decision.lowered.view for decision in decisions if decision.lowered))
    tensors = features.inputs | {view.tensor.name: view.tensor for view in views}
    return Quantised(decisions=tuple(decisions), tensors=tensors, constants=features.constants)


def _refuse_what_is_missing(node, config):
    missing = knobs.built_without(node, config)
    if missing:
        knob, reason = missing
        raise Refused(f"{reason[0].upper()}{reason[1:]}.", knobs.ADVICE.format(knob))


def _apart(lowered):
    """Return the lowered operation with a tensor of another name: its elements lie in another order than those of the ONNX value."""
    old = lowered.view.tensor
    size = {"shape": (old.channels, old.height, old.width), "batched": True, "matrix": False}
    tensor = replace(old, name=f"{old.name} (in another order)", **size)
    return replace(lowered, view=replace(lowered.view, tensor=tensor), node=replace(lowered.node, output=tensor.name))


def _further(lowered):
    """Return the decision for a tensor that no operation of the model makes under this name."""
    node = lowered.node
    operation = Operation(
        name=node.name, operator=node.operator, form="Rearrange", inputs=node.inputs, outputs=(node.output,), sources=()
    )
    return Decision(operation=operation, lowered=lowered)


def _in_order(decision, moved):
    """Return the decision with the view replaced by a node, if an operation needs the value in plain order."""
    if decision.is_view and decision.operation.output in moved:
        return replace(decision, lowered=replace(moved[decision.operation.output], note=decision.lowered.note))
    return decision


def _lower(operation, features):
    family = FORMS.get(operation.form)
    values = [features.value(name) for name in (*operation.inputs, *operation.outputs) if name in features.graph.values]
    if family is None or any(value.dtype.kind == "f" for value in values):
        raise refusal(operation, values, features)
    if any(0 in value.shape for value in values):
        raise Refused("The engine computes tensors that have elements.", "Give every dimension a size of at least one.")
    for constraint in family.constraints:
        if not constraint(operation, features):
            raise Refused(sentence(constraint), suggestion(constraint))
    return family.lower(operation, features)
