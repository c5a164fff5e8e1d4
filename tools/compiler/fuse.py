"""Move tables, clips and additions into the nodes that produce their operand, so that they cost no pass of their own.

The store unit requantises, looks up a table, then adds: a node takes a table if it has no addition yet, and an addition once.
"""

from dataclasses import replace

import numpy as np

from celosia.tools.compiler import ir

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
        target = _producer(nodes[:place], copy, needed, nodes) if isinstance(copy, ir.Copy) else None
        merged = _merge(nodes[target], copy) if target is not None else None
        if merged is None:
            place += 1
            continue
        nodes[target] = merged
        del nodes[place]
    alive = set(graph.inputs) | {node.output for node in nodes}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in alive}
    return graph.replace(nodes=tuple(nodes), tensors=tensors)


def _producer(earlier, copy, needed, nodes):
    """Return the place of the node whose output ``copy`` takes last, if that output exists for ``copy`` alone."""
    places = {node.output: place for place, node in enumerate(earlier)}
    found = [(places[name], name) for name in copy.inputs if name in places]
    if not found or len(set(copy.inputs)) != len(copy.inputs):
        return None
    place, name = max(found)
    uses = sum(name in node.inputs for node in nodes)
    return place if uses == 1 and name not in needed else None


def _merge(node, copy):
    """Return ``node`` with ``copy`` inside, or None where the store unit's order does not allow it."""
    if (copy.scale != 1).any() or copy.zero_point:
        return None
    changes = {
        "output": copy.output,
        "sources": node.sources + tuple(name for name in copy.sources if name not in node.sources),
        "fused": (*node.fused, node.output, *copy.fused),
    }
    add = copy.add
    if add is not None:
        if node.add is not None or copy.table is not None:
            return None
        if node.output != copy.input:  # the operand in memory is the copy's own input
            add = replace(add, tensor=copy.input, k_result=add.k_operand, k_operand=add.k_result)
        return replace(node, add=add, **changes)
    if copy.table is None:
        return replace(node, **changes) if (copy.low, copy.high) == (-128, 127) else None
    limits = _limits(copy.table)
    if node.add is not None:
        if limits is None:
            return None
        low, high = max(node.add.low, limits[0]), min(node.add.high, limits[1])
        return replace(node, add=replace(node.add, low=low, high=high), **changes) if low <= high else None
    if node.table is not None:
        return replace(node, table=copy.table[node.table.view(np.uint8)], **changes)
    if limits is not None and max(node.low, limits[0]) <= min(node.high, limits[1]):
        return replace(node, low=max(node.low, limits[0]), high=min(node.high, limits[1]), **changes)
    return replace(node, table=copy.table, **changes)


def _limits(table):
    """Return (low, high) if the table only clips, else None."""
    low, high = int(table.min()), int(table.max())
    return (low, high) if (np.clip(BYTES.view(np.int8), low, high) == table).all() else None
