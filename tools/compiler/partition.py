"""Divide the operations into segments that run on the engine and on the host in turn.

A host operation runs as early as its operands allow, and so does an engine operation: there are as few segments as that order
gives. Views are the engine's business where the engine reads them, and are computed on the host where the host does.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from celosia.tools.compiler import ir
from celosia.tools.compiler.graph import references
from celosia.tools.ops.elements import rearranged
from celosia.tools.ops.family import Lowered
from celosia.tools.program import HostSegment

__all__ = ["Partition", "host_reason", "partition"]

FOLLOWS = "It follows the node that reads it: see there."


def host_reason(decision):
    """Return ``(reason, suggestion)`` of an operation that runs on the host; the engine may refuse it or only not need it."""
    if decision.lowered is None:
        return decision.reason, decision.suggestion
    if decision.is_view:
        return "It only moves elements, and the host reads them.", FOLLOWS
    return "Its result lies on the engine in another order than the host, which reads it, needs.", FOLLOWS


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """``segments`` in execution order, and the names of the operations that run on each side."""

    segments: tuple
    engine: frozenset  # operation outputs
    host: frozenset

    def dump(self):
        return "\n\n".join(_dump(segment) for segment in self.segments)


def partition(graph, quantised):
    """Return the :class:`Partition` of a graph.

    Parameters
    ----------
    graph : OperationGraph
    quantised : Quantised

    Returns
    -------
    Partition
        Its segments are :class:`~celosia.tools.program.HostSegment` and :class:`~celosia.tools.compiler.ir.Graph`.
    """
    host, engine = _needed(graph, quantised.decisions)
    done, segments = set(graph.inputs) | set(_constant(graph)) | set(quantised.constants), []
    while host or engine:
        progress = False
        for side, make in ((host, _host_segment), (engine, _engine_segment)):
            ready = _ready(side, done)
            if ready:
                side[:] = [item for item in side if item not in ready]
                done |= {name for item in ready for name in item.operation.outputs}
                segments.append((make, ready))
                progress = True
        assert progress, "operations that wait for each other"
    # What the host makes as well, the engine has in an order of its own: only the engine wants that.
    both = {name for make, items in segments if make is _host_segment for item in items for name in item.operation.outputs}
    built = []
    for position, (make, items) in enumerate(segments):
        reads = {_engine_segment: set(), _host_segment: set(graph.outputs)}
        for reader, others in segments[position + 1 :]:
            reads[reader].update(name for item in others for name in _reads(item))
        wanted = reads[_engine_segment] | reads[_host_segment] - (both if make is _engine_segment else set())
        built.append(make(graph, items, wanted, position, quantised))
    return Partition(
        segments=tuple(built),
        engine=frozenset(i.operation.output for make, items in segments if make is _engine_segment for i in items),
        host=frozenset(i.operation.output for make, items in segments if make is _host_segment for i in items),
    )


def _dump(segment):
    if isinstance(segment, ir.Graph):
        return segment.dump()
    lines = [f"host: {', '.join(segment.inputs)} -> {', '.join(segment.outputs)}"]
    return "\n".join(lines + [f"  {name} ({operator}): {reason}" for name, operator, reason, _ in segment.nodes])


@dataclass(frozen=True)
class _Item:
    """An operation on the host, or on the engine if it has a node, which makes the tensor."""

    operation: object
    decision: object
    node: object = None
    tensor: object = None


def _reads(item):
    """Return the values that an item takes from outside of it."""
    return item.node.inputs if item.node else item.operation.inputs


def _needed(graph, decisions):
    """Return the items that the graph's outputs depend on, for host and engine, each in topological order."""
    by_output = {name: decision for decision in decisions for name in decision.operation.outputs}
    position = {id(decision): place for place, decision in enumerate(decisions)}
    readers = _readers(decisions)
    host, engine = {}, {}
    waiting = [(name, False) for name in graph.outputs]
    while waiting:
        name, for_engine = waiting.pop()
        decision = by_output.get(name)
        if decision is None or (not decision.operation.inputs and name not in graph.outputs):
            continue
        # A rearranged result leaves the engine in its own order and under its own name.
        made = None if for_engine else _leaving(decision, by_output, readers, graph)
        # What the engine reads of the engine lies as its readers expect; the host needs the plain order.
        on_engine = decision.lowered is not None and not decision.is_view and (for_engine or decision.lowered.view.is_plain)
        on_engine = on_engine or made is not None
        side = engine if on_engine else host
        place = position[id(decision)]
        if place not in side:
            lowered = made or decision.lowered
            node, tensor = (lowered.node, lowered.view.tensor) if on_engine else (None, None)
            side[place] = _Item(decision.operation, decision, node, tensor)
            waiting.extend((name, on_engine) for name in _reads(side[place]))
    return [host[place] for place in sorted(host)], [engine[place] for place in sorted(engine)]


def _readers(decisions):
    """Return how many nodes of the engine, other values and host operations read each tensor."""
    count = {}
    for decision in decisions:
        lowered = decision.lowered
        names = decision.operation.inputs if lowered is None else lowered.node.inputs if lowered.node else (lowered.view.tensor.name,)
        for name in names:
            count[name] = count.get(name, 0) + 1
    return count


def _leaving(decision, by_output, readers, graph):
    """Return the :class:`Lowered` that gives elements of an engine's tensor the order the host expects; None where the host can do it.

    A copy, which fusing makes free, if only the name changes and nothing else becomes of the tensor; else a rearrangement, unless
    it takes the array apart.
    """
    if not decision.is_view:
        return None
    view, operation = decision.lowered.view, decision.operation
    root = by_output.get(view.tensor.name)
    passing = view.tensor.name in graph.inputs and operation.output in graph.outputs  # nobody else would do it
    if not passing and (root is None or root.lowered is None or root.is_view):
        return None
    if passing or not view.is_plain or readers[view.tensor.name] > 1 or view.tensor.name in graph.outputs:
        elements = view.elements
        if not elements.is_cheap:
            return None
        matrix = elements.is_better_as_matrix
        tensor, index, node = rearranged(elements, operation, operation.output, matrix=matrix)
        return Lowered(view=replace(view, tensor=tensor, index=index), node=node)
    shape = graph.values[operation.output].shape
    batched = shape[:1] == (1,)
    tensor = replace(view.tensor, name=operation.output, shape=tuple(shape[batched:]), batched=batched)
    node = ir.Copy(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=view.tensor.name,
        output=operation.output,
        scale=np.ones(view.tensor.channels, np.float32),
        zero_point=0,
    )
    return Lowered(view=replace(view, tensor=tensor), node=node)


def _constant(graph):
    """Return the operations that read no tensor by output: each host segment that reads one computes it again.

    ONNX Runtime must see them next to their readers, for it chooses its float kernels by what is constant.
    """
    return {name: operation for operation in graph.operations if not operation.inputs for name in operation.outputs}


def _ready(items, done):
    """Return the items that can run now, one after the other."""
    have, ready = set(done), []
    for item in items:
        if all(name in have for name in _reads(item)):
            have.update(item.operation.outputs)
            ready.append(item)
    return ready


def _engine_segment(graph, items, wanted, position, quantised):
    made = [item.operation.output for item in items]
    read = dict.fromkeys(name for item in items for name in item.node.inputs if name not in made)
    inputs = tuple(name for name in read if name not in quantised.constants)
    constants = {name: quantised.constants[name] for name in read if name in quantised.constants}
    return ir.Graph(
        name=f"{graph.file}#{position}",
        tensors={name: quantised.tensors[name] for name in inputs}
        | {name: tensor for name, (tensor, _) in constants.items()}
        | {item.operation.output: item.tensor for item in items},
        nodes=tuple(item.node for item in items),
        inputs=inputs,
        outputs=tuple(name for name in made if name in wanted),
        constants={name: array for name, (_, array) in constants.items()},
    )


def _host_segment(graph, items, wanted, position, quantised):
    """Return a model of the items' ONNX nodes, each once."""
    constant = _constant(graph)
    found = {}

    def include(operation):
        for node in operation.nodes:
            if node.output[0] not in found:
                for name in references(node):
                    if name in constant:
                        include(constant[name])
                found[node.output[0]] = node

    for item in items:
        include(item.operation)
    nodes = list(found.values())
    names = {name for node in nodes for name in references(node)}
    produced = {name for node in nodes for name in node.output}
    inputs = [name for name in graph.values if name in names and name not in produced and name not in graph.constants]
    outputs = [name for item in items for name in item.operation.outputs if name in wanted]
    model = onnx.ModelProto()
    model.CopyFrom(graph.header)
    model.graph.CopyFrom(
        helper.make_graph(
            nodes,
            f"host{position}",
            [_describe(graph.values[name]) for name in inputs],
            [_describe(graph.values[name]) for name in outputs],
            [tensor for name, tensor in graph.constants.items() if name in names],
        )
    )
    return HostSegment(
        onnx=model.SerializeToString(),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        nodes=tuple((item.operation.name, item.operation.operator, *host_reason(item.decision)) for item in items),
    )


def _describe(value):
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
