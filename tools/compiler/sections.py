"""How a network larger than the chip is cut: sections, and the parts that each is computed in.

A section is one node. Its parts are boxes of its result, each lowered by passes 'layout', 'tile' and 'schedule' as a graph of its own. Of the ways to cut
it the one with the least traffic is taken: weights that stay while features pass, or features that stay while weights pass.
"""

import dataclasses
import math
from dataclasses import dataclass

from celosia.tools.compiler.cut import Box, NotCut, cut, whole
from celosia.tools.compiler.layout import is_blocked_when_dense, lay_out
from celosia.tools.compiler.schedule import schedule
from celosia.tools.compiler.tile import tile
from celosia.tools.errors import DoesNotFit

__all__ = ["Lowered", "Plan", "lower", "plan"]

SLOTS = 3
"""Tiles of unfolded input at a time."""
MAX_PLANS = 12
"""Ways to cut a section that are compared."""
PART_CYCLES = 200
"""Cycles that a part costs beside its work."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowered:
    """A part and its schedule. ``reads`` and ``writes`` are the tensors that come from and go to external memory."""

    part: object
    schedule: object
    reads: tuple
    writes: tuple

    @property
    def placements(self):
        return self.schedule.tiling.layout.placements

    @property
    def words(self):
        return sum(self.schedule.buffers.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A section's nodes and its parts in order."""

    nodes: tuple
    parts: tuple


def lower(graph, nodes, box, config, options, *, outputs, columns_first):
    """Return the :class:`Lowered` part that computes ``box`` of the last node's result."""
    made = {node.output for node in nodes}
    dense = set(graph.inputs)
    part = cut(graph, nodes, box, widen=lambda name, need: _dense_rows(graph.tensors[name], need, config) if name in dense else need)
    if dense.intersection(of for of, _ in part.windows.values()):
        raise NotCut
    small = part.graph.replace(inputs=tuple(name for name in graph.inputs if name in part.boxes))
    planes = {}
    for name in small.inputs:
        tensor, height = graph.tensors[name], part.graph.tensors[name].height
        if height < tensor.height and not tensor.matrix:
            least, plane = (height + 1) * tensor.width + config.rows, tensor.height * tensor.width
            planes[name] = least + (plane - least) % config.rows
    layout = lay_out(small, config, options, windows=part.windows, planes=planes)
    found = schedule(tile(layout, config, options), config, options, slots=SLOTS, columns_first=columns_first)
    reads = tuple(name for name in part.boxes if name not in made)
    writes = tuple(name for name in part.boxes if name in made and name in outputs)
    return Lowered(part=part, schedule=found, reads=reads, writes=writes)


def _dense_rows(tensor, need, config):
    """Return the part of a dense tensor to fetch: rows from one on that begins with a word, as far as they are needed."""
    box = whole(tensor)
    if is_blocked_when_dense(tensor, config.rows):
        return dataclasses.replace(box, rows=need.rows)
    if tensor.matrix:
        return box
    step = config.rows // math.gcd(tensor.width, config.rows)
    return dataclasses.replace(box, rows=(need.rows[0] // step * step, need.rows[1]))


def plan(graph, config, options, outputs):
    """Return the :class:`Plan` of each section."""
    plans = []
    for node in graph.nodes:
        plans.append(_section(graph, (node,), config, options, outputs))
    return plans


def _grids(out, config):
    """Yield heights and channels of parts, the fewest parts first."""
    blocks = -(-out.channels // config.rows)
    rows = {-(-out.height // n) for n in range(1, out.height + 1)}
    chunks = {-(-blocks // n) * config.rows for n in range(1, blocks + 1)}
    sizes = [(height, min(chunk, out.channels)) for height in rows for chunk in chunks]
    return sorted(sizes, key=lambda size: (-(-out.height // size[0]) * -(-out.channels // size[1]), -size[0]))


def _boxes(out, height, chunk, channels_first):
    """Return the boxes of the parts, with ``channels_first`` all rows of some channels before the next ones."""
    channels = [(c, min(c + chunk, out.channels)) for c in range(0, out.channels, chunk)]
    rows = [(y, min(y + height, out.height)) for y in range(0, out.height, height)]
    if channels_first:
        return [Box(c, y, (0, out.width)) for c in channels for y in rows]
    return [Box(c, y, (0, out.width)) for y in rows for c in channels]


def _section(graph, nodes, config, options, outputs):
    """Return the plan with the least traffic among those whose parts take half of the activation memory, or else all of it."""
    out = graph.tensors[nodes[-1].output]
    found, least = [], None
    for height, chunk in _grids(out, config):
        boxes = _boxes(out, height, chunk, True)
        try:
            middle = lower(graph, nodes, boxes[len(boxes) // 2], config, options, outputs=outputs, columns_first=True)
        except NotCut:
            continue
        least = min(least or middle.words, middle.words)
        if middle.words > config.act_depth:
            continue
        roomy = middle.words <= config.act_depth // 2 or len(boxes) == 1
        found += [(not roomy, traffic, len(found), height, chunk, first) for first, traffic in _traffic(middle, out, height, chunk, config)]
        if sum(1 for one in found if not one[0]) >= MAX_PLANS:
            break
    for *_, height, chunk, channels_first in sorted(found):
        boxes = _boxes(out, height, chunk, channels_first)
        try:
            parts = [lower(graph, nodes, box, config, options, outputs=outputs, columns_first=True) for box in boxes]
        except NotCut:
            continue
        least = max(part.words for part in parts)
        if least <= config.act_depth:
            return Plan(nodes=nodes, parts=tuple(parts))
    what = f"for a part of layer {nodes[-1].name!r}"
    raise DoesNotFit("activation", (least or config.act_depth + 1) * config.rows, config.act_bytes, what)


def _traffic(lowered, out, height, chunk, config):
    """Yield the order of parts (channels first or rows first) and the cycles of transfers that it takes beside those of the results."""
    strips, chunks = -(-out.height // height), -(-out.channels // chunk)
    features = sum(lowered.schedule.buffers.get(name, 0) for name in lowered.reads) * config.rows * strips
    tiles = {id(step.weights): len(step.weights) for step in lowered.schedule.steps if step.weights is not None}
    size, stays = sum(tiles.values()), sum(tiles.values()) <= config.weight_tiles // 2
    weights = size * config.rows * config.cols * chunks
    parts = strips * chunks * PART_CYCLES
    again = 1 if strips == 1 or stays else strips
    yield True, (features * (1 if strips == 1 else chunks) + weights * again) // config.memory_bytes + parts
    if strips > 1 and chunks > 1:
        yield False, (features + weights * strips) // config.memory_bytes + parts
