"""Move tables, clips and combinations into the nodes that produce their operand, so that they cost no pass of their own.

The store unit multiplies, requantises, looks up a table, then adds or compares: a node takes a table if it has none of the last two
yet, and one operand in all. A product needs a pass of its own.
"""

from dataclasses import replace

import numpy as np

from celosia.tools.compiler import ir
from celosia.tools.compiler.ir import Op

__all__ = ["fuse"]

BYTES = np.arange(256, dtype=np.uint8)


def fuse(graph, *, keep=()):
    """Return the :class:`ir.Graph` with every ``Copy`` fused that can be.

    A value is fused away only if nothing else reads it and it is neither an output of the graph nor in ``keep``.
    """
    needed = set(keep) | set(graph.outputs)
    nodes = list(graph.nodes)
    place = 0
    while place < len(nodes):
        copy = nodes[place]
        target = _producer(graph, nodes[:place], copy, needed, nodes) if isinstance(copy, ir.Copy) else None
        merged = _merge(nodes[target], copy) if target is not None else None
        if merged is None:
            place += 1
            continue
        nodes[target] = merged
        del nodes[place]
    alive = set(graph.inputs) | set(graph.constants) | {node.output for node in nodes}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in alive}
    return graph.replace(nodes=tuple(nodes), tensors=tensors)


def _producer(graph, earlier, copy, needed, nodes):
    """Return the place of the node whose output ``copy`` takes last, if that output exists for ``copy`` alone."""
    places = {node.output: place for place, node in enumerate(earlier)}
    found = [(places[name], name) for name in copy.inputs if name in places]
    if not found or len(set(copy.inputs)) != len(copy.inputs):
        return None
    place, name = max(found)
    uses = sum(name in node.inputs for node in nodes)
    return place if uses == 1 and name not in needed and _size(graph.tensors[name]) == _size(graph.tensors[copy.output]) else None


def _size(tensor):
    return tensor.channels, tensor.height, tensor.width


def _merge(node, copy):
    """Return ``node`` with ``copy`` inside, or None where the store unit's order does not allow it."""
    if (np.asarray(copy.scale) != 1).any() or copy.zero_point or np.any(copy.bias) or (copy.low, copy.high) != (-128, 127):
        return None
    changes = {
        "output": copy.output,
        "sources": node.sources + tuple(name for name in copy.sources if name not in node.sources),
        "fused": (*node.fused, node.output, *copy.fused),
    }
    combine = copy.combine
    if combine is not None:
        if node.combine is not None or combine.op == Op.MUL or isinstance(node, ir.Rearrange):
            return None
        if copy.table is not None:
            if node.output != copy.input:
                return None
            changes["table"] = copy.table if node.table is None else copy.table[node.table.view(np.uint8)]
        if node.output != copy.input:  # the operand in memory is the copy's own input
            combine = replace(combine, tensor=copy.input, k_result=combine.k_operand, k_operand=combine.k_result)
        return replace(node, combine=combine, **changes)
    if copy.table is None:
        return replace(node, **changes)
    limits = _limits(copy.table)
    if node.combine is not None and node.combine.op != Op.MUL:
        if limits is None:
            return None
        low, high = max(node.combine.low, limits[0]), min(node.combine.high, limits[1])
        return replace(node, combine=replace(node.combine, low=low, high=high), **changes) if low <= high else None
    if node.table is not None:
        return replace(node, table=copy.table[node.table.view(np.uint8)], **changes)
    if limits is not None and max(node.low, limits[0]) <= min(node.high, limits[1]):
        return replace(node, low=max(node.low, limits[0]), high=min(node.high, limits[1]), **changes)
    return replace(node, table=copy.table, **changes)


def _limits(table):
    """Return (low, high) if the table only clips, else None."""
    low, high = int(table.min()), int(table.max())
    return (low, high) if (np.clip(BYTES.view(np.int8), low, high) == table).all() else None
