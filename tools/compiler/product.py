"""Products of two tensors, for passes 'layout' and 'tile'.

The load unit fills weight tiles with the right operand, the left one streams through the array as in a product with constants. For that the
rows of both must be pixels and their columns channels from a block's, or a column tile's, first one on. :func:`prepare` sees to it before
anything is placed:

====================  ==========================================================================================
transposed            a copy in which pixels and channels change places: the load unit unfolds every byte of a
                      pixel to a pixel of its own, an identity convolution joins them to whole words
between two blocks    a plain copy, :class:`~celosia.tools.compiler.ir.Rearrange`
====================  ==========================================================================================

The array sums ``Σ a·b``. What the zero points add, ``− zb·Σ a − za·Σ b``, are further passes: over the same words with constant weights of
``−zb``, and over padding of ``−za`` with the filled weights. ``K·za·zb`` is part of the bias.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from celosia.rtl.isa import ExecuteInstruction, FillInstruction, UnfoldInstruction, largest
from celosia.tools.compiler.ir import Conv, Copy, Matrices, Product, Rearrange, Tensor

__all__ = ["Fill", "Filling", "fillings", "folded_bias", "identity", "pieces", "places", "prepare"]

MAX_UNFOLDED = 1024
"""Pixels that are turned into channels: the weights that copy them grow with their square."""
MAX_GROUPS = largest(UnfoldInstruction, "groups")
MAX_EXTENT = largest(ExecuteInstruction, "in_height")
MAX_FILL = largest(FillInstruction, "tiles")
SHARE = 8
"""A buffer of filled tiles takes at most this part of the weight memory, unless a single column tile does."""


@dataclass(frozen=True, kw_only=True)
class Fill:
    """One FILL: ``rows`` (of a tile) × ``tiles`` from word ``source`` of the right operand on, to tile ``tile`` of its buffer.

    ``row_step`` words lie between a row and the next, be it of the same tile or not.
    """

    tile: int
    source: int
    row_step: int
    rows: int
    tiles: int
    slot: int


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What is filled at once: column tiles ``columns`` of product ``number``, ``tiles`` weight tiles of ``depth`` each."""

    number: int
    columns: range
    depth: int
    fills: tuple

    @property
    def tiles(self):
        return len(self.columns) * self.depth


def places(index, tensor):
    """Return the :class:`~celosia.tools.compiler.ir.Matrices` of ``index`` ``[products, rows, columns]``, elements of ``tensor``; None if there are none."""
    pixels = tensor.height * tensor.width
    channel, pixel = np.divmod(index, pixels)
    for transposed in (False, True):
        down, along = (pixel, channel) if not transposed else (pixel.swapaxes(1, 2), channel.swapaxes(1, 2))
        step = int(down[0, 1, 0] - down[0, 0, 0]) if down.shape[1] > 1 else 1
        rows, columns = np.arange(down.shape[1])[:, None], np.arange(down.shape[2])
        first, start = along[:, :1, :1], down[:, :1, :1]
        if step >= 0 and (along == first + columns).all() and (down == start + rows * step).all():
            return Matrices(
                pixels=tuple(map(int, start.ravel())), channels=tuple(map(int, first.ravel())), step=step, transposed=transposed
            )
    return None


# Before tensors are placed --------------------------------------------------------------------------------------------


def prepare(graph, config, keeps=lambda name: False):
    """Return the graph with copies of what its products cannot take where it lies; the names of the copies; and the tensors that are
    other ones read as dense bytes, by name. A result that ``keeps`` does not name and that is only moved is written where it goes."""
    graph = _write_in_place(graph, keeps)
    nodes, tensors, aliases, copies = [], dict(graph.tensors), {}, []
    for node in graph.nodes:
        if isinstance(node, Product):
            maker = _Maker(graph, tensors, aliases, config)
            node, behind = maker.prepare(node)
            nodes.extend([*maker.nodes, node, *behind])
            copies.extend(maker.copies)
        else:
            nodes.append(node)
    return graph.replace(nodes=tuple(nodes), tensors=tensors), copies, aliases


def _write_in_place(graph, keeps):
    """Return the graph without the rearrangements of results that the products can make as they are wanted: heads side by side."""
    nodes, tensors = list(graph.nodes), dict(graph.tensors)
    for node in graph.nodes:
        if not isinstance(node, Product) or node.combine or node.output in graph.outputs or keeps(node.output):
            continue
        readers = [reader for reader in nodes if node.output in reader.inputs]
        moved = readers[0] if len(readers) == 1 else None
        if not isinstance(moved, Rearrange) or moved.more or not moved.keeps_values or moved.part.any():
            continue
        tensor, made = tensors[node.output], tensors[moved.output]
        if made.elements != tensor.elements or (np.bincount(moved.index.ravel(), minlength=tensor.elements) != 1).any():
            continue
        wanted = np.argsort(moved.index.ravel())[node.result_at.elements(node.rows, node.columns, tensor)]
        result_at = places(wanted, made)
        if result_at is None or result_at.transposed:
            continue
        column = np.empty(made.elements, int)
        column[wanted] = np.arange(node.columns)
        column = column.reshape(made.channels, -1)[:, 0]
        changes = {"output": moved.output, "result_at": result_at, "scale": node.scale[column], "bias": node.bias[column]}
        nodes[nodes.index(node)] = dataclasses.replace(node, fused=(*node.fused, node.output), **changes)
        nodes.remove(moved)
        del tensors[node.output]
    return graph.replace(nodes=tuple(nodes), tensors=tensors)


class _Maker:
    """Makes the copies of one product."""

    def __init__(self, graph, tensors, aliases, config):
        self.graph, self.tensors, self.aliases, self.config = graph, tensors, aliases, config
        self.nodes, self.copies = [], []

    def prepare(self, node):
        left = "left", node.input, node.left_at, node.rows, node.length, self.config.rows
        right = "right", node.right, node.right_at, node.length, node.columns, self.config.cols
        (left, left_at), (right, right_at) = (self._operand(node, *operand) for operand in (left, right))
        node = dataclasses.replace(node, input=left, left_at=left_at, right=right, right_at=right_at)
        if all(channel % self.config.cols == 0 for channel in node.result_at.channels):
            return node, ()
        return self._result(node)

    def _operand(self, node, side, name, at, rows, columns, unit):
        """Return tensor and places of an operand of which no row begins between multiples of ``unit`` channels."""
        if at.transposed and (turned := self._turned(node, name, at)) is not None:
            name, at = turned
        if at.transposed or any(channel % unit for channel in at.channels) or _is_large(self.tensors[name]):
            return self._plain(node, side, name, at, rows, columns)
        return name, at

    def _add(self, name, tensor, node):
        self.tensors[name] = tensor
        self.nodes.append(node)
        self.copies.append(name)
        return name

    def _turned(self, node, name, at):
        """Return the operand's tensor with bytes of words as pixels and pixels as channels, and its places; None if UNFOLD cannot make it."""
        tensor, rows = self.tensors[name], self.config.rows
        pixels = tensor.height * tensor.width
        is_input, blocks = name in self.graph.inputs, -(-tensor.channels // rows)
        is_matrix = pixels == 1 or (tensor.matrix and tensor.width == 1)
        if not is_matrix and (is_input or blocks > 1):
            return None
        groups = -(-pixels // min(self.config.unfold_streams, rows))
        width = tensor.channels if is_input else blocks * rows
        if pixels > MAX_UNFOLDED or groups > MAX_GROUPS or width > MAX_EXTENT or at.step != 1:
            return None
        alias, turned = f"{name} (bytes)", f"{name} (turned)"
        shape = {"height": 1, "width": width, "matrix": False, "shape": (pixels, width)}
        if turned not in self.tensors:
            unsigned = tensor.unsigned and is_input
            self.tensors[alias] = dataclasses.replace(tensor, name=alias, channels=pixels, unsigned=unsigned, **shape)
            self.aliases[alias] = name
            made = dataclasses.replace(tensor, name=turned, channels=pixels, unsigned=False, **shape)
            self._add(turned, made, identity(self.tensors[alias], turned, name=node.name, sources=node.sources))
        return turned, Matrices(pixels=at.channels, channels=at.pixels, step=1)

    def _plain(self, node, side, name, at, rows, columns):
        """Return a copy of the operand whose rows are the pixels of a matrix of ``columns`` channels."""
        count, tensor = len(at.pixels), self.tensors[name]
        copy = f"{node.output} ({side} operand)"
        elements = at.elements(rows, columns, tensor).reshape(1, count * rows, columns).transpose(2, 1, 0)
        shape = {"channels": columns, "height": count * rows, "width": 1, "matrix": True, "shape": (count * rows, columns)}
        made = dataclasses.replace(tensor, name=copy, unsigned=False, **shape)
        self._add(copy, made, _moved(node, tensor, copy, elements))
        pixels = tuple(range(0, count * rows, rows))
        return copy, Matrices(pixels=pixels, channels=(0,) * count, step=1)

    def _result(self, node):
        """Return the product with a plain result and the node that moves it where it is wanted."""
        tensor, count = self.tensors[node.output], len(node.result_at.pixels)
        plain = f"{node.output} (plain)"
        shape = {"channels": node.columns, "height": count * node.rows, "width": 1, "shape": (count * node.rows, node.columns)}
        self.tensors[plain] = Tensor(name=plain, matrix=True, scale=tensor.scale, zero_point=tensor.zero_point, **shape)
        self.copies.append(plain)
        wanted = node.result_at.elements(node.rows, node.columns, tensor)
        index = np.empty((tensor.channels, tensor.height, tensor.width), np.int64)
        at = np.arange(count * node.rows * node.columns).reshape(node.columns, count, node.rows).transpose(1, 2, 0)
        index.reshape(-1)[wanted] = at
        product = dataclasses.replace(
            node,
            output=plain,
            result_at=Matrices(pixels=tuple(range(0, count * node.rows, node.rows)), channels=(0,) * count, step=1),
            scale=node.scale[: node.columns],
            bias=node.bias[: node.columns],
            combine=None,
        )
        if node.combine is None:
            return product, (_moved(node, self.tensors[plain], node.output, index),)
        moved = f"{node.output} (moved)"
        self.tensors[moved] = dataclasses.replace(tensor, name=moved)
        self.copies.append(moved)
        identity = {"scale": np.ones(1, np.float32), "zero_point": 0, "low": -128, "high": 127, "table": None}
        facts = {field: getattr(node, field) for field in ("name", "operator", "sources", "output", "combine")}
        return product, (_moved(node, self.tensors[plain], moved, index), Copy(input=moved, **facts, **identity))


def _is_large(tensor):
    """Whether a map of several columns has too many pixels to be one of a single column."""
    return tensor.width > 1 and tensor.height * tensor.width > MAX_EXTENT


def _moved(node, tensor, output, index):
    return Rearrange(
        name=node.name,
        operator=node.operator,
        sources=node.sources,
        input=tensor.name,
        output=output,
        scale=np.ones(1, np.float32),
        zero_point=tensor.zero_point,
        part=np.zeros(index.shape, np.int64),
        index=index,
        scales=(np.float32(1),),
        zeros=(tensor.zero_point,),
    )


def identity(tensor, output, *, name=None, sources=()):
    """Return the convolution that copies ``tensor`` to ``output``, pixel by pixel; it is called like its output if not by ``name``."""
    return Conv(
        name=name or output,
        operator="Rearrange",
        sources=sources,
        input=tensor.name,
        output=output,
        scale=np.ones(1, np.float32),
        zero_point=tensor.zero_point,
        weight=np.eye(tensor.channels, dtype=np.int8)[:, :, None, None],
        bias=np.zeros(tensor.channels, np.int32),
    )


# Tiles ----------------------------------------------------------------------------------------------------------------


def fillings(node, view, config):
    """Yield the :class:`Filling` of each part of a product, ``view`` being where the right operand lies as a column of pixels."""
    depth = -(-node.length // config.rows)
    column_tiles = -(-node.columns // config.cols)
    most = max(1, config.weight_tiles // SHARE // depth)
    for number, (pixel, channel) in enumerate(zip(node.right_at.pixels, node.right_at.channels)):
        for first in range(0, column_tiles, most):
            columns = range(first, min(first + most, column_tiles))
            fills = []
            for place, column in enumerate(columns):
                tile = channel // config.cols + column
                start = view.start + pixel * view.row_step + tile // config.slots * view.block_step
                fills.extend(_fills(node, view, config, start, place * depth, tile % config.slots))
            yield Filling(number=number, columns=columns, depth=depth, fills=tuple(fills))


def _fills(node, view, config, start, tile, slot):
    """Yield the FILLs of one column tile: those of whole tiles, then the rest."""
    row_step = node.right_at.step * view.row_step
    full, rest = divmod(node.length, config.rows)
    parts = [(first, min(MAX_FILL, full - first), config.rows) for first in range(0, full, MAX_FILL)]
    parts += [(full, 1, rest)] if rest else []
    for first, tiles, rows in parts:
        yield Fill(
            tile=tile + first,
            source=start + first * config.rows * row_step,
            row_step=row_step,
            rows=rows,
            tiles=tiles,
            slot=slot,
        )


def pieces(value):
    """Return int8 numbers whose sum is ``value``, as few as it takes."""
    found = []
    while value:
        found.append(max(-128, min(127, value)))
        value -= found[-1]
    return found


def folded_bias(node, left, right):
    """Return the bias of each output channel with what both zero points add in common, int64."""
    return node.bias.astype(np.int64) + node.length * left.zero_point * right.zero_point
