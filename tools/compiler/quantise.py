"""Lower each quantised operation to a node of the engine, or find the sentence why it runs on the host."""

from dataclasses import dataclass

from celosia.tools.ops import FORMS, Features, Lowered, Refused
from celosia.tools.ops.family import sentence

__all__ = ["Decision", "Quantised", "quantise"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """Where an operation runs: on the engine as ``lowered`` says, or on the host for the ``reason``."""

    operation: object
    lowered: Lowered | None = None
    reason: str = ""

    @property
    def is_view(self):
        """Nothing is computed: readers find the elements in another tensor."""
        return self.lowered is not None and self.lowered.node is None


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantised:
    """A :class:`Decision` for each operation, in topological order, and every :class:`ir.Tensor` of the engine by name."""

    decisions: tuple
    tensors: dict


def quantise(graph):
    """Return the :class:`Quantised` form of an :class:`~celosia.tools.compiler.graph.OperationGraph`."""
    features = Features(graph=graph)
    decisions = []
    for operation in graph.operations:
        try:
            lowered = _lower(operation, features)
        except Refused as refusal:
            decisions.append(Decision(operation=operation, reason=str(refusal)))
            continue
        features.views[operation.output] = lowered.view
        decisions.append(Decision(operation=operation, lowered=lowered))
    tensors = {view.tensor.name: view.tensor for view in features.views.values()}
    return Quantised(decisions=tuple(decisions), tensors=tensors)


def _lower(operation, features):
    family = FORMS.get(operation.form)
    if family is None:
        raise Refused(_why_not(operation, features))
    for constraint in family.constraints:
        if not constraint(operation, features):
            raise Refused(sentence(constraint))
    return family.lower(operation, features)


def _why_not(operation, features):
    """Return the sentence for an operation that no family takes."""
    operator = operation.operator.removeprefix("QLinear")
    types = [features.value(name).dtype for name in (*operation.inputs, *operation.outputs) if name in features.graph.values]
    if operation.form in ("QuantizeLinear", "DequantizeLinear"):
        return "Quantisation between float and integer tensors is done on the host."
    if any(dtype.kind == "f" for dtype in types):
        known = {name for family in FORMS.values() for name in family.operators}
        if operator in known:
            return f"ONNX Runtime computes this {operator} in floating point: its result is not quantised by the next node alone."
        return f"{operator} is computed in floating point."
    return f"The engine has no {operator}."
