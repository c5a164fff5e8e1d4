"""Parts of nodes, for networks larger than the chip: what a part of a tensor is computed from, and the graph that computes it.

A :class:`Box` is a range of channels, rows and columns of a tensor. :func:`cut` goes backwards from the box of a section's result through its nodes,
halos included, and returns a graph of local tensors that the later passes lower like any other. Rows that padding stands for are those
outside the whole map: pads of the local nodes are shifted, and are negative where a local map holds more than a node needs.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from celosia.tools.compiler.ir import Conv, ConvTranspose, Copy, Graph, Pool, Product, Rearrange

__all__ = ["Box", "NotCut", "Part", "cut", "is_depthwise", "whole"]


class NotCut(Exception):
    """The section cannot be computed in parts of this shape."""


@dataclass(frozen=True)
class Box:
    """Ranges ``(first, last + 1)`` of channels, rows and columns."""

    channels: tuple
    rows: tuple
    columns: tuple

    @property
    def shape(self):
        return tuple(high - low for low, high in (self.channels, self.rows, self.columns))

    def meets(self, other):
        """Whether both hold an element."""
        pairs = zip((self.channels, self.rows, self.columns), (other.channels, other.rows, other.columns))
        return all(a[0] < b[1] and b[0] < a[1] for a, b in pairs)

    def hull(self, other):
        """Return the smallest box that holds both."""
        if other is None:
            return self
        pairs = zip((self.channels, self.rows, self.columns), (other.channels, other.rows, other.columns))
        return Box(*((min(a[0], b[0]), max(a[1], b[1])) for a, b in pairs))


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """``graph`` computes the part ``boxes[name]`` of each of its tensors ``name``.

    ``windows`` are local tensors that lie within another one: name → (name, rows and columns to skip).
    """

    graph: Graph
    boxes: dict
    windows: dict


def whole(tensor):
    """Return the box of all of a tensor."""
    return Box((0, tensor.channels), (0, tensor.height), (0, tensor.width))


def is_depthwise(node, tensor):
    """Whether a convolution of ``tensor`` has one filter for each channel."""
    return isinstance(node, Conv) and node.group == len(node.weight) == tensor.channels > 1


def needs(graph, node, box):
    """Return the box of each tensor that ``box`` of the node's output is computed from, as pairs of name and box."""
    out, source = graph.tensors[node.output], graph.tensors[node.input]
    found = []
    if isinstance(node, Rearrange):
        found += _rearranged(graph, node, box)
    elif isinstance(node, Product) or _reshapes(node, source, out):
        if box != whole(out):
            raise NotCut
        return [(name, whole(graph.tensors[name])) for name in node.inputs]
    else:
        found.append((node.input, _window(node, source, box)))
    if node.combine:
        operand = graph.tensors[node.combine.tensor]
        size = whole(operand)
        rows = box.rows if operand.height == out.height else size.rows
        columns = box.columns if operand.width == out.width else size.columns
        found.append((node.combine.tensor, Box(box.channels, rows, columns)))
    return found


def _reshapes(node, source, out):
    """Whether the pixels of the output are not those of the input by position: a map that is read as a column of pixels."""
    if isinstance(node, Conv | Copy):
        sizes = [(source.height, source.width), (out.height, out.width)]
        kernel = node.weight.shape[2:] if isinstance(node, Conv) else (1, 1)
        steps = zip(*sizes, kernel, getattr(node, "stride", (1, 1)), getattr(node, "dilation", (1, 1)), range(2))
        pads = getattr(node, "pads", (0, 0, 0, 0))
        return any((a + pads[n] + pads[n + 2] - d * (k - 1) - 1) // s + 1 != b for a, b, k, s, d, n in steps)
    return False


def _window(node, source, box):
    all_of = whole(source)
    rows, columns = (
        _span(node, axis, span, size) for axis, span, size in ((0, box.rows, source.height), (1, box.columns, source.width))
    )
    if isinstance(node, Conv | ConvTranspose) and not is_depthwise(node, source):
        if node.group > 1 and box.channels != (0, len(node.weight) if isinstance(node, Conv) else box.channels[1]):
            raise NotCut
        return Box(all_of.channels, rows, columns)
    if isinstance(node, Pool) and node.kind == "channels":
        return Box(all_of.channels, rows, columns)
    return Box(box.channels, rows, columns)


def _span(node, axis, span, size):
    """Return the input rows or columns that those in ``span`` of the output need, at least one."""
    kernel = tuple(node.weight.shape[2:]) if hasattr(node, "weight") else getattr(node, "kernel", (1, 1))
    s, d = (getattr(node, name, (1, 1))[axis] for name in ("stride", "dilation"))
    k, p = kernel[axis], getattr(node, "pads", (0, 0))[axis]
    if isinstance(node, ConvTranspose):
        low, high = -(-(span[0] + p - (k - 1) * d) // s), (span[1] - 1 + p) // s + 1
    else:
        low, high = span[0] * s - p, (span[1] - 1) * s - p + (k - 1) * d + 1
    low, high = max(0, min(low, size - 1)), min(max(high, 1), size)
    return low, max(high, low + 1)


def _rearranged(graph, node, box):
    part, index = (array[tuple(slice(*span) for span in (box.channels, box.rows, box.columns))] for array in (node.part, node.index))
    for number, name in enumerate(node.tensors):
        tensor = graph.tensors[name]
        used = index[part == number]
        if not used.size:
            used = np.zeros(1, np.int64)
        rows = used // tensor.width % tensor.height
        yield name, dataclasses.replace(whole(tensor), rows=(int(rows.min()), int(rows.max()) + 1))


def cut(graph, nodes, box, *, rows=1, widen=lambda name, box: box):
    """Return the :class:`Part` that computes ``box`` of the result of ``nodes``, the last of them.

    ``widen`` says, of a tensor that comes from outside and the box needed of it, which box is there.

    Raises
    ------
    NotCut
        If it cannot be computed in such parts.
    """
    made = {node.output for node in nodes}
    boxes = {nodes[-1].output: box}
    wanted = {}
    for node in reversed(nodes):
        if node.output not in boxes:
            boxes[node.output] = whole(graph.tensors[node.output])
        for name, need in needs(graph, node, boxes[node.output]):
            wanted[node.output, name] = need if (node.output, name) not in wanted else need.hull(wanted[node.output, name])
            boxes[name] = need.hull(boxes.get(name))
    boxes = {name: found if name in made else widen(name, found) for name, found in boxes.items()}
    local = _Local(graph, boxes)
    made_nodes = tuple(local.node(node) for node in nodes)
    small = Graph(name=graph.name, tensors=local.tensors, nodes=made_nodes, inputs=(), outputs=(nodes[-1].output,))
    return Part(graph=small, boxes=boxes, windows=local.windows)


class _Local:
    """Makes local tensors and nodes."""

    def __init__(self, graph, boxes):
        self.graph, self.boxes, self.windows = graph, boxes, {}
        self.tensors = {name: self._sized(name, box) for name, box in boxes.items()}

    def _sized(self, name, box, alias=None):
        channels, height, width = box.shape
        return dataclasses.replace(self.graph.tensors[name], name=alias or name, channels=channels, height=height, width=width)

    def within(self, name, need):
        """Return the local tensor of exactly the box ``need``."""
        box = self.boxes[name]
        if box == need:
            return name
        if box.channels != need.channels:
            raise NotCut
        skip = need.rows[0] - box.rows[0], need.columns[0] - box.columns[0]
        alias = f"{name} {need.rows}{need.columns}"
        self.tensors[alias] = self._sized(name, need, alias)
        self.windows[alias] = name, skip
        return alias

    def node(self, node):
        box, source = self.boxes[node.output], self.boxes[node.input]
        found = dict(needs(self.graph, node, box))
        low, high = box.channels
        size = self.graph.tensors[node.output].channels
        changes = {}
        if node.combine:
            operand = self.within(node.combine.tensor, self._operand(node, box))
            changes["combine"] = dataclasses.replace(node.combine, tensor=operand)
        if (low, high) != (0, size):
            for name in ("scale", "bias", "weight"):
                value = getattr(node, name, None)
                if isinstance(value, np.ndarray) and value.ndim and len(value) == size:
                    changes[name] = value[low:high]
        if isinstance(node, Rearrange):
            changes |= self._rearranged(node, box)
        elif isinstance(node, Copy):
            changes["input"] = self.within(node.input, found[node.input])
        elif hasattr(node, "pads"):
            depthwise = is_depthwise(node, self.graph.tensors[node.input])
            if (depthwise or isinstance(node, Pool)) and source.channels != found[node.input].channels:
                raise NotCut
            if depthwise:
                changes["group"] = high - low
            transposed = isinstance(node, ConvTranspose)
            pads = list(node.pads)
            for axis, (to, of) in enumerate(((box.rows, source.rows), (box.columns, source.columns))):
                step = node.stride[axis]
                pads[axis] += to[0] - of[0] * step if transposed else of[0] - to[0] * step
                if box != whole(self.graph.tensors[node.output]):
                    pads[axis + 2] = 0 if not pads[axis] else pads[axis + 2]
            changes["pads"] = tuple(pads)
        return dataclasses.replace(node, **changes)

    def _operand(self, node, box):
        operand, out = (self.graph.tensors[name] for name in (node.combine.tensor, node.output))
        size = whole(operand)
        rows = box.rows if operand.height == out.height else size.rows
        columns = box.columns if operand.width == out.width else size.columns
        return Box(box.channels, rows, columns)

    def _rearranged(self, node, box):
        spans = tuple(slice(*span) for span in (box.channels, box.rows, box.columns))
        part, index = node.part[spans], node.index[spans].astype(np.int64)
        moved = index.copy()
        for number, name in enumerate(node.tensors):
            tensor, of = self.graph.tensors[name], self.boxes[name]
            channel, pixel = np.divmod(index, tensor.height * tensor.width)
            row, column = np.divmod(pixel, tensor.width)
            _, height, width = of.shape
            there = ((channel - of.channels[0]) * height + row - of.rows[0]) * width + column - of.columns[0]
            moved = np.where(part == number, there, moved)
        return {"part": part, "index": moved}
