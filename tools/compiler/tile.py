"""Pass 'tile': cut each node into EXECUTE-sized pieces.

Output channels are cut into column tiles of ``cols``, pixels into rectangular regions, kernels and input blocks into what the
instruction's fields hold. Column tiles that share an accumulator bank and one STORE form a group. Regions are the outer loop
and groups the inner one, so that complete pixels of the output exist early and the next layer can start on them.
"""

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np

from celosia.rtl.isa import ExecuteInstruction, largest
from celosia.tools.compiler import depthwise
from celosia.tools.compiler.ir import Conv, ConvTranspose, Pool, Product, Rearrange
from celosia.tools.compiler.layout import View
from celosia.tools.compiler.phases import phases
from celosia.tools.compiler.pieces import Chunk, Column, Group, Region
from celosia.tools.compiler.product import Filling, fillings, pieces
from celosia.tools.compiler.rearrange import rearrange

__all__ = ["Chunk", "Column", "Group", "Region", "Tiling", "Work", "tile"]

MAX_KERNEL = largest(ExecuteInstruction, "kernel_y")
MAX_STRIDE = largest(ExecuteInstruction, "stride_y")
MAX_DILATION = largest(ExecuteInstruction, "dilation_y")
MAX_BLOCKS = largest(ExecuteInstruction, "blocks")
MAX_TILE = largest(ExecuteInstruction, "tile_rows")
SMALLEST_TILE = 16  # pixels; smaller ones meet the accumulators' read-modify-write pipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A node in pieces, or a phase of a transposed convolution, or one of several products with the ``filling`` it needs.

    ``source`` is None where the input is unfolded region by region, ``operand`` where nothing is combined.

    ``layer`` is the node's place in the graph.
    """

    layer: int
    node: object
    source: View | None
    dest: View
    operand: View | None
    regions: tuple
    groups: tuple
    filling: Filling | None = None

    def dump(self):
        first = self.regions[0]
        columns = [column for group in self.groups for column in group.columns]
        return (
            f"{self.node.name} ({self.node.operator}): {len(self.regions)} regions of up to {first.height}×{first.width}, "
            f"{len(columns)} column tiles in {len(self.groups)} groups, {columns[0].passes} passes"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiling:
    """The works of all nodes, in order."""

    layout: object
    works: tuple

    def dump(self):
        """Return the tiling as text."""
        return "\n".join(work.dump() for work in self.works)


def tile(layout, config, options):
    """Return the :class:`Tiling` of a :class:`~celosia.tools.compiler.layout.Layout`."""
    works = []
    for layer, node in enumerate(layout.graph.nodes):
        if isinstance(node, Product):
            works.extend(_product_works(layer, node, layout, config, options))
        else:
            works.extend(_tile_node(layer, *part, layout, config, options) for part in _parts(node, layout))
    return Tiling(layout=layout, works=tuple(works))


def _parts(node, layout):
    """Yield what a node is computed as, and the views of the pixels that each part writes and combines."""
    dest = layout.placements[node.output].view
    operand = layout.placements[node.combine.tensor].view if node.combine else None
    if not isinstance(node, ConvTranspose):
        yield node, dest, operand
        return
    for phase in phases(node, layout.graph.tensors[node.output]):
        yield phase.node, _phase_of(dest, phase, node.stride), _phase_of(operand, phase, node.stride) if operand else None


def _phase_of(view, phase, stride):
    """Return the pixels of a phase; an axis along which the map is repeated stays."""
    changes = {"start": view.start}
    if view.height > 1:
        changes |= {"height": phase.height, "row_step": view.row_step * stride[0]}
        changes["start"] += phase.y * view.row_step
    if view.width > 1:
        changes |= {"width": phase.width, "col_step": view.col_step * stride[1]}
        changes["start"] += phase.x * view.col_step
    return dataclasses.replace(view, **changes)


def _tile_node(layer, node, dest, operand, layout, config, options):
    if isinstance(node, Rearrange):
        return rearrange(layer, node, layout.placements, config)
    source = layout.placements[node.input].view
    unfold = layout.unfolds.get(node.output)
    if _is_pointwise(node) and layout.graph.tensors[node.output].matrix:
        tensor = layout.graph.tensors[node.input]
        dest, operand = _rows_of(dest, tensor), _rows_of(operand, tensor)
    if source is not None and _is_pointwise(node) and (source.height, source.width) == (dest.height, dest.width):
        # An operand that is repeated along one axis only does not become a column of pixels.
        same = operand is None or (operand.height, operand.width) in ((1, 1), (dest.height, dest.width))
        flat = source.flattened(), dest.flattened(), operand.flattened() if operand else dest
        if same and None not in flat:
            source, dest = flat[:2]
            operand = flat[2] if operand else None
    areas = [Region(y=0, x=0, height=dest.height, width=dest.width)]
    across = isinstance(node, Pool) and node.kind == "channels"
    tensor = layout.graph.tensors[node.input]
    kernel_filter = depthwise.choose(node, tensor, (dest.height, dest.width), config) if source else None
    if kernel_filter and not depthwise.in_different_banks(node, source, config):
        kernel_filter = None
    if kernel_filter:
        passes = kernel_filter.groups_y * kernel_filter.groups_x * node.stride[1]
        if isinstance(node, Pool):
            areas = _equal_divisors(node, layout.graph, dest)
    elif isinstance(node, Conv) or across:
        columns = _across_columns(node, tensor, config) if across else _conv_columns(node, tensor, unfold, config)
        passes = min(column.passes for column in columns)
    else:
        kernel = getattr(node, "kernel", (1, 1))
        passes = kernel[0] * kernel[1]
        if isinstance(node, Pool) and node.kind == "average":
            areas = _equal_divisors(node, layout.graph, dest)
    stride_y, stride_x = getattr(node, "stride", (1, 1))
    most = [1 if step > MAX_STRIDE else MAX_TILE for step in (stride_y, max(stride_x, dest.col_step))]
    if operand is not None and operand.width > 1 and operand.col_step != dest.col_step:
        most[1] = 1  # they have one step of columns
    entries = source.blocks if kernel_filter else 1
    regions = tuple(region for area in areas for region in _cut(area, passes, most, config, options, entries))
    pixels = max(region.pixels for region in regions)
    if kernel_filter:
        most = max(1, min(MAX_BLOCKS, config.acc_depth // pixels))
        groups = tuple(Group(columns=(column,)) for column in depthwise.columns(node, source, kernel_filter, most, config))
    elif isinstance(node, Conv) or across:
        groups = tuple(_group(columns, passes, pixels, config, options))
    else:
        groups = tuple(Group(columns=(column,)) for column in _channel_columns(node, source, pixels, config))
    return Work(layer=layer, node=node, source=source, dest=dest, operand=operand, regions=regions, groups=groups)


def _product_works(layer, node, layout, config, options):
    """Yield the works of a product of two tensors, one for each filling of weight tiles."""
    names = node.input, node.right, node.output
    left, right, dest = (layout.placements[name].view.flattened() for name in names)
    operand = layout.placements[node.combine.tensor].view.flattened() if node.combine else None
    zeros = [layout.graph.tensors[name].zero_point for name in (node.input, node.right)]
    for filling in fillings(node, right, config):
        pixel, channel = node.left_at.pixels[filling.number], node.left_at.channels[filling.number]
        start = left.start + pixel * left.row_step + channel // config.rows * left.block_step
        step = node.left_at.step * left.row_step
        source = dataclasses.replace(left, height=node.rows, row_step=step, start=start, blocks=filling.depth)
        pixel, channel = node.result_at.pixels[filling.number], node.result_at.channels[filling.number]
        made, combined = (_rows(view, pixel, node) for view in (dest, operand))
        columns = []
        for place, column in enumerate(filling.columns):
            out_block, slot = divmod(channel // config.cols + column, config.slots)
            chunks = tuple(_product_chunks(node, *zeros, place * filling.depth, filling.depth, config))
            columns.append(Column(chunks=chunks, out_block=out_block, slot=slot))
        passes = columns[0].passes
        area = Region(y=0, x=0, height=node.rows, width=1)
        regions = tuple(_cut(area, passes, (MAX_TILE, MAX_TILE), config, options))
        groups = tuple(_group(columns, passes, max(region.pixels for region in regions), config, options))
        yield Work(
            layer=layer, node=node, source=source, dest=made, operand=combined, regions=regions, groups=groups, filling=filling
        )


def _rows(view, pixel, node):
    """Return the rows of one product's result, the first at ``pixel``; an operand of one pixel is the same for all."""
    if view is None or view.height == 1:
        return view
    step = node.result_at.step * view.row_step
    return dataclasses.replace(view, height=node.rows, row_step=step, start=view.start + pixel * view.row_step)


def _product_chunks(node, left_zero, right_zero, tile, depth, config):
    """Yield what one column tile of a product sums up: the products, then what either zero point adds."""
    one = {"ky": 0, "kx": 0, "kernel_y": 1, "kernel_x": 1}
    for pad in (None, *pieces(-left_zero)):
        for block in range(0, depth, MAX_BLOCKS):
            blocks = min(MAX_BLOCKS, depth - block)
            yield Chunk(**one, block=block, blocks=blocks, weights=None, filled=tile + block, pad=pad)
    full, rest = divmod(node.length, config.rows)
    for weight in pieces(-right_zero):
        tiles = np.full((1, config.rows, config.cols), weight, np.int8)
        for block in range(0, full, MAX_BLOCKS):
            yield Chunk(**one, block=block, blocks=min(MAX_BLOCKS, full - block), weights=tiles, hold=True)
        if rest:
            part = np.where(np.arange(config.rows)[:, None] < rest, tiles, np.int8(0))
            yield Chunk(**one, block=full, blocks=1, weights=part)


def _rows_of(view, tensor):
    """Return a matrix's column of pixels as the rows and columns of the map it is computed from."""
    if view is None or view.width > 1 or view.height != tensor.height * tensor.width or view.height == tensor.height:
        return view
    steps = {"row_step": view.row_step * tensor.width, "col_step": view.row_step}
    return dataclasses.replace(view, height=tensor.height, width=tensor.width, **steps)


def _is_pointwise(node):
    kernel = node.weight.shape[2:] if isinstance(node, Conv) else getattr(node, "kernel", (1, 1))
    return tuple(kernel) == (1, 1) and tuple(getattr(node, "stride", (1, 1))) == (1, 1) and not any(getattr(node, "pads", ()))


# Pixels ---------------------------------------------------------------------------------------------------------------


def _cut(area, passes, most, config, options, entries=1):
    """Cut an area into regions: few enough pixels for a bank, enough to hide the store of the tile before the last.

    ``most`` limits the region's height and width: a stride beyond the instruction's field only goes from one region to the next.
    ``entries`` is the number of accumulator entries that a pixel should have.
    """
    hide = options.store_latency / max(passes - config.beats, 0.5)
    depth = max(config.acc_depth // entries, min(area.width, config.acc_depth))
    low = min(-(-max(SMALLEST_TILE, config.load_cycles, round(hide)) // entries), depth)
    high = min(max(options.max_pixels, low), depth, MAX_TILE)
    want = min(max(area.pixels // options.min_tiles, low), high)
    if area.width <= want:
        height, width = want // area.width, area.width
    elif area.width <= high:
        height, width = 1, area.width
    else:
        height, width = 1, want
    height, width = _even(area.height, min(height, most[0])), _even(area.width, min(width, most[1]))
    for y in range(0, area.height, height):
        for x in range(0, area.width, width):
            yield Region(
                y=area.y + y,
                x=area.x + x,
                height=min(height, area.height - y),
                width=min(width, area.width - x),
                count=area.count,
            )


def _even(total, most):
    """Return the size of pieces no larger than ``most`` that are as equal as their least number allows."""
    pieces = -(-total // most)
    return -(-total // pieces)


def _equal_divisors(node, graph, dest):
    """Cut an average pool's output into areas whose windows hold equally many input pixels and so share one scale."""
    if len({np.float32(scale) for scale in node.scales.values()}) <= 1:
        return [Region(y=0, x=0, height=dest.height, width=dest.width, count=max(node.scales))]
    tensor = graph.tensors[node.input]
    spans = []
    for axis, (size, out) in enumerate(((tensor.height, dest.height), (tensor.width, dest.width))):
        taps = np.arange(node.kernel[axis]) * node.dilation[axis] - node.pads[axis]
        at = np.arange(out)[:, None] * node.stride[axis] + taps
        counts = ((at >= 0) & (at < size)).sum(1)
        starts = [0, *(np.flatnonzero(np.diff(counts)) + 1), out]
        spans.append([(int(a), int(b), int(counts[a])) for a, b in itertools.pairwise(starts)])
    return [
        Region(y=y0, x=x0, height=y1 - y0, width=x1 - x0, count=ny * nx) for y0, y1, ny in spans[0] for x0, x1, nx in spans[1]
    ]


# Channels -------------------------------------------------------------------------------------------------------------


def _packed_weights(node, tensor, unfold, config):
    """Return the weights as ``[kernel_y, kernel_x, blocks, rows, out]`` in the order in which the array meets them."""
    weight = np.ascontiguousarray(node.weight)
    out, _, kernel_y, kernel_x = weight.shape
    if node.group > 1:
        full = np.zeros((out, tensor.channels, kernel_y, kernel_x), weight.dtype)
        per_out, per_in = out // node.group, tensor.channels // node.group
        for group in range(node.group):
            o, c = group * per_out, group * per_in
            full[o : o + per_out, c : c + per_in] = weight[o : o + per_out]
        weight = full
    streams = config.rows
    if unfold and not unfold.matrix:
        streams = unfold.streams
        if unfold.fold_y:
            weight = weight.reshape(out, -1, 1, kernel_x)
        if unfold.fold_x:
            weight = weight.transpose(0, 1, 3, 2)[..., None]  # [out, tap row, kx, ky, 1]
    if weight.ndim == 4:
        weight = weight[:, :, None]  # [out, channel, 1, ky, kx]
    columns = config.rows // streams
    tap_rows = weight.shape[1]
    blocks = -(-tap_rows // streams)
    weight = np.pad(weight, [(0, 0), (0, blocks * streams - tap_rows), (0, columns - weight.shape[2]), (0, 0), (0, 0)])
    weight = weight.reshape(out, blocks, streams * columns, *weight.shape[3:])
    weight = np.pad(weight, [(0, 0), (0, 0), (0, config.rows - streams * columns), (0, 0), (0, 0)])
    return weight.transpose(3, 4, 1, 2, 0)


def _conv_columns(node, tensor, unfold, config):
    """One column tile per ``cols`` output channels; blocks in which all its weights are zero are left out at both ends.

    Weights beyond int8 are sums of int8 ones: what is left over gets chunks of its own, for the few tiles where there is any.
    """
    packed = _packed_weights(node, tensor, unfold, config)
    columns = []
    for number, first in enumerate(range(0, packed.shape[-1], config.cols)):
        weights = packed[..., first : first + config.cols]
        weights = np.pad(weights, [(0, 0)] * 4 + [(0, config.cols - weights.shape[-1])])
        used = np.flatnonzero(weights.any(axis=(0, 1, 3, 4)))
        low, high = (used[0], used[-1] + 1) if len(used) else (0, 1)
        part = np.clip(weights, -128, 127)
        chunks = list(_chunks(node, part, ((0, weights.shape[0]), (0, weights.shape[1]), (int(low), int(high)))))
        while (weights := weights - part).any():
            part = np.clip(weights, -128, 127)
            chunks += [chunk for box in _boxes(part.any(axis=(3, 4))) for chunk in _chunks(node, part, box)]
        columns.append(Column(chunks=tuple(chunks), out_block=number // config.slots, slot=number % config.slots))
    return columns


def _most_taps(node):
    """Return how many taps along each axis one EXECUTE can take: one where the dilation is beyond the instruction's field."""
    return tuple(1 if dilation > MAX_DILATION else MAX_KERNEL for dilation in getattr(node, "dilation", (1, 1)))


def _chunks(node, weights, box):
    """Yield the EXECUTE-sized pieces of a box of weight tiles ``[kernel_y, kernel_x, blocks, rows, cols]``."""
    limits = *_most_taps(node), MAX_BLOCKS
    starts = [range(low, high, limit) for (low, high), limit in zip(box, limits)]
    for ky, kx, block in itertools.product(*starts):
        sizes = [min(at + limit, high) - at for at, limit, (_, high) in zip((ky, kx, block), limits, box)]
        part = weights[ky : ky + sizes[0], kx : kx + sizes[1], block : block + sizes[2]]
        yield Chunk(
            ky=ky,
            kx=kx,
            kernel_y=sizes[0],
            kernel_x=sizes[1],
            block=block,
            blocks=sizes[2],
            weights=np.ascontiguousarray(part, np.int8).reshape(-1, *weights.shape[3:]),
        )


def _boxes(used, start=(0, 0, 0)):
    """Cut the True cells of a three-dimensional array into boxes ``(low, high)`` per axis that no empty plane crosses."""
    for axis in range(3):
        planes = np.flatnonzero(used.any(axis=tuple(other for other in range(3) if other != axis)))
        runs = np.split(planes, np.flatnonzero(np.diff(planes) > 1) + 1)
        if len(runs) > 1 or len(planes) < used.shape[axis]:
            found = []
            for run in runs:
                inner = used.take(range(run[0], run[-1] + 1), axis)
                found += _boxes(inner, tuple(at + int(run[0]) * (a == axis) for a, at in enumerate(start)))
            return found
    return [tuple((at, at + size) for at, size in zip(start, used.shape))]


def _across_columns(node, tensor, config):
    """The column of a maximum over channels: pass after pass, each channel alone meets a weight of one in column 0."""
    chunks = []
    taps = _most_taps(node)
    for row in range(min(config.rows, tensor.channels)):
        weights = np.zeros((1, config.rows, config.cols), np.int8)
        weights[0, row, 0] = 1
        blocks = -(-(tensor.channels - row) // config.rows)  # that have a channel at this row
        for ky, kx, block in itertools.product(*map(range, (0, 0, 0), (*node.kernel, blocks), (*taps, MAX_BLOCKS))):
            size = {"kernel_y": min(taps[0], node.kernel[0] - ky), "kernel_x": min(taps[1], node.kernel[1] - kx)}
            size["blocks"] = min(MAX_BLOCKS, blocks - block)
            chunks.append(Chunk(ky=ky, kx=kx, block=block, weights=weights, hold=True, **size))
    return [Column(chunks=tuple(chunks), out_block=0, slot=0)]


def _channel_columns(node, source, pixels, config):
    """Columns of a node that treats each channel by itself: an identity weight tile per slot, held for all passes."""
    (kernel_y, kernel_x), (taps_y, taps_x) = getattr(node, "kernel", (1, 1)), _most_taps(node)
    most = min(MAX_BLOCKS, config.acc_depth // pixels)
    columns = []
    for block in range(0, source.blocks, most):
        blocks = min(most, source.blocks - block)
        for slot in range(config.slots):
            identity = np.zeros((1, config.rows, config.cols), np.int8)
            identity[0, slot * config.cols + np.arange(config.cols), np.arange(config.cols)] = 1
            chunks = tuple(
                Chunk(
                    ky=ky,
                    kx=kx,
                    kernel_y=min(taps_y, kernel_y - ky),
                    kernel_x=min(taps_x, kernel_x - kx),
                    block=block,
                    blocks=blocks,
                    weights=identity,
                )
                for ky in range(0, kernel_y, taps_y)
                for kx in range(0, kernel_x, taps_x)
            )
            columns.append(Column(chunks=chunks, out_block=block, out_blocks=blocks, slot=slot, per_block=True))
    return columns


def _group(columns, passes, pixels, config, options):
    """Put as many column tiles into a bank as it takes to hide the store latency, slot by slot."""
    issue = passes * max(pixels, config.load_cycles)
    surplus = issue - pixels * config.beats
    size = len(columns) if surplus <= 0 else -(-options.store_latency // surplus)
    size = max(1, min(size, config.acc_depth // pixels, len(columns)))
    size = _even(len(columns), size)
    for first in range(0, len(columns), size):
        members = sorted(columns[first : first + size], key=lambda column: (column.slot, column.out_block))
        yield Group(columns=tuple(members))
