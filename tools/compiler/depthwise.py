"""The array's depthwise mode in the compiler: which nodes use it, their weight tiles, and the words that a pass streams.

Kernel taps lie on the rows of the array and channels on its columns, see :class:`celosia.rtl.isa.ExecuteInstruction`. Convolutions with
one filter per channel run so, and sums over windows, whose taps are all one. The image rows of a map that are read in one cycle must
lie in different banks: pass 'layout' gives such maps an odd row step.
"""

import itertools

import numpy as np

from celosia.rtl.isa import ExecuteInstruction, largest
from celosia.tools.compiler.ir import Conv, Pool
from celosia.tools.compiler.pieces import Chunk, Column, Filter

__all__ = ["choose", "columns", "in_different_banks", "stream"]

MAX_GAP = largest(ExecuteInstruction, "gap")
MAX_GROUPS = largest(ExecuteInstruction, "kernel_y")
MAX_SLOTS = largest(ExecuteInstruction, "slot") + 1
MAX_STRIDE = largest(ExecuteInstruction, "stride_y")
MAX_DILATION = largest(ExecuteInstruction, "dilation_y")


def choose(node, tensor, size, config):
    """Return the :class:`Filter` of a node that reads ``tensor`` and makes ``size`` (height, width) pixels, or None where it cannot be
    computed in the depthwise mode, or not faster than without."""
    if not config.depthwise_rows or config.slots > MAX_SLOTS or (tensor.matrix and tensor.width == 1):
        return None
    if isinstance(node, Conv):
        if not node.group == len(node.weight) == tensor.channels > 1:
            return None
        kernel = node.weight.shape[2:]
    elif isinstance(node, Pool) and node.kind == "average":
        kernel = node.kernel
    else:
        return None
    if (kernel[1] > 1 and node.dilation[1] > 1) or (kernel[0] > 1 and node.dilation[0] > MAX_DILATION) or node.stride[1] > MAX_STRIDE:
        return None
    rows, most = config.depthwise_rows, min(config.depthwise_taps, node.stride[1] + MAX_GAP)
    groups_y, groups_x = -(-kernel[0] // rows), -(-kernel[1] // most)
    found = Filter(rows=rows, taps=-(-kernel[1] // groups_x), groups_y=groups_y, groups_x=groups_x)
    width = size[1] * node.stride[1] + max(0, found.taps - node.stride[1])
    return found if groups_y * groups_x * width * size[0] < kernel[0] * kernel[1] * size[0] * size[1] else None


def in_different_banks(node, view, config):
    """Return whether the image rows that are read in one cycle lie in different banks."""
    step = view.row_step * node.dilation[0]
    return view.height == 1 or all(row * step % config.act_banks for row in range(1, config.depthwise_rows))


def stream(kernel_filter, stride, x, width, extent):
    """Return ``gap`` and ``tail`` of a tile of ``width`` columns that starts at column ``x`` of a map with ``extent`` columns.

    The last pixel of a tile row needs ``taps - stride`` words more than come for it. Where they are padding, and the next tile row
    begins with as much padding, its words serve for both.
    """
    need = max(0, kernel_filter.taps - stride)
    for shared in range(need, 0, -1):
        gap = need - shared
        starts = [x + group * kernel_filter.taps for group in range(kernel_filter.groups_x)]
        if all(start + shared <= 0 and start + width * stride + gap >= extent for start in starts):
            return gap, shared
    return need, 0


def columns(node, source, kernel_filter, most, config):
    """Yield the columns of a node, each of at most ``most`` blocks."""
    for block in range(0, source.blocks, most):
        blocks = min(most, source.blocks - block)
        for slot in range(config.slots):
            if isinstance(node, Pool):
                chunks = _window(node.kernel, kernel_filter, block, blocks, config)
            else:
                channel = ((block + np.arange(blocks))[:, None] * config.slots + slot) * config.cols + np.arange(config.cols)
                chunks = _weighted(node.weight[:, 0], kernel_filter, channel, block, config)
            yield Column(
                chunks=tuple(chunks), out_block=block, out_blocks=blocks, slot=slot, per_block=True, filter=kernel_filter
            )


def _packed(taps, kernel_filter, config):
    """Return weights ``[..., kernel_y, kernel_x, cols]`` as tiles ``[groups_y, groups_x, ..., rows, cols]``."""
    f = kernel_filter
    *rest, height, width, cols = taps.shape
    plain = [(0, 0)] * len(rest)
    taps = np.pad(taps, [*plain, (0, f.groups_y * f.rows - height), (0, f.groups_x * f.taps - width), (0, 0)])
    taps = taps.reshape(*rest, f.groups_y, f.rows, f.groups_x, f.taps, cols)
    taps = np.moveaxis(taps, (-5, -3), (0, 1))
    taps = np.pad(taps, [(0, 0)] * (taps.ndim - 2) + [(0, config.depthwise_taps - f.taps), (0, 0)])
    taps = taps.reshape(*taps.shape[:-3], -1, cols)
    return np.pad(taps, [(0, 0)] * (taps.ndim - 2) + [(0, config.rows - taps.shape[-2]), (0, 0)])


def _weighted(weight, kernel_filter, channel, block, config):
    """Yield the chunks of a convolution with ``weight`` ``[channels, kernel_y, kernel_x]``; ``channel`` ``[blocks, cols]`` are those of the
    column. Weights beyond int8 are sums of int8 ones, in chunks one after the other."""
    weight = np.concatenate([weight, np.zeros_like(weight[:1])])  # the last one stands for channels that do not exist
    tiles = _packed(np.moveaxis(weight[np.minimum(channel, len(weight) - 1)], 1, -1), kernel_filter, config)
    first = True
    while first or tiles.any():
        part = np.clip(tiles, -128, 127)
        tiles = tiles - part
        for ky, kx in _spans(kernel_filter):
            weights = np.ascontiguousarray(part[ky : ky + MAX_GROUPS, kx : kx + MAX_GROUPS], np.int8)
            yield Chunk(
                ky=ky,
                kx=kx,
                kernel_y=weights.shape[0],
                kernel_x=weights.shape[1],
                block=block,
                blocks=len(channel),
                weights=weights.reshape(-1, config.rows, config.cols),
            )
        first = False


def _window(kernel, kernel_filter, block, blocks, config):
    """Yield the chunks of a sum over a window: groups with equally many taps share a tile of ones that is held."""
    f = kernel_filter
    spans = []
    for size, taps, groups in ((kernel[0], f.rows, f.groups_y), (kernel[1], f.taps, f.groups_x)):
        whole = size // taps
        spans.append([(at, min(MAX_GROUPS, whole - at), taps) for at in range(0, whole, MAX_GROUPS)])
        spans[-1] += [(whole, 1, size % taps)] if groups > whole else []
    single = Filter(rows=f.rows, taps=f.taps, groups_y=1, groups_x=1)
    for (ky, kernel_y, height), (kx, kernel_x, width) in itertools.product(*spans):
        ones = _packed(np.ones((height, width, config.cols), np.int8), single, config)
        yield Chunk(
            ky=ky,
            kx=kx,
            kernel_y=kernel_y,
            kernel_x=kernel_x,
            block=block,
            blocks=blocks,
            weights=ones.reshape(1, config.rows, config.cols),
            hold=True,
        )


def _spans(kernel_filter):
    return itertools.product(range(0, kernel_filter.groups_y, MAX_GROUPS), range(0, kernel_filter.groups_x, MAX_GROUPS))
