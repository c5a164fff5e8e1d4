"""Which words an instruction touches: the address arithmetic of :mod:`celosia.rtl.isa` as numpy arrays.

The golden executor moves data with it; the compiler's verifier proves orderings with it.
"""

import numpy as np

from celosia.rtl.isa import Combine, ExecuteInstruction, Memory, Opcode, TransferInstruction, UnfoldInstruction, largest

__all__ = ["BYTE_MASK", "entry_bytes", "execute_reads", "fill_words", "store_words", "transfer_entries", "unfold_bytes", "unfold_words", "weight_tiles"]

ADDRESS_MASK = largest(ExecuteInstruction, "start")
BYTE_MASK = largest(UnfoldInstruction, "start")
LOCAL_MASK = largest(TransferInstruction, "local")
EXTERNAL_MASK = largest(TransferInstruction, "external")


def execute_reads(instruction, config):
    """Return the words an ``EXECUTE`` reads.

    Returns
    -------
    address : int32 ``[kernel_y, kernel_x, blocks, tile_rows, tile_cols]``, with ``depthwise`` ``[kernel_y, kernel_x, blocks, words, image rows]``
    inside : bool, same shape
        False where ``pad`` is used and nothing is read.
    """
    i = instruction
    ky = np.arange(i.kernel_y)[:, None, None, None, None]
    kx = np.arange(i.kernel_x)[:, None, None, None]
    block = np.arange(i.blocks)[:, None, None]
    if i.depthwise:
        ky = ky * config.depthwise_rows + np.arange(config.depthwise_rows)
        width = i.tile_cols * i.stride_x + i.gap
        word = np.arange(i.tile_rows * width + i.tail)[:, None]
        y = np.minimum(word // width, i.tile_rows - 1)
        step = word - y * width
    else:
        y = np.arange(i.tile_rows)[:, None]
        step = np.arange(i.tile_cols) * i.stride_x
    iy = i.y0 + y * i.stride_y + ky * i.dilation_y
    ix = i.x0 + step + kx * i.dilation_x
    address = (i.start + y * i.row_step + step + ky * i.ky_step + kx * i.dilation_x + block * i.block_step) & ADDRESS_MASK
    inside = (iy >= 0) & (iy < i.in_height) & (ix >= 0) & (ix < i.in_width)
    return address, np.broadcast_to(inside, address.shape)


def store_words(instruction):
    """Return ``(dest, operand)``: the words a ``STORE`` writes and reads, int32 ``[blocks, tile_rows, tile_cols]``; ``operand`` is
    None where nothing is combined."""
    i = instruction
    block, y, x = np.ogrid[: i.blocks, : i.tile_rows, : i.tile_cols]
    dest = (i.dest + block * i.block_step + y * i.row_step + x * i.col_step) & ADDRESS_MASK
    if i.combine == Combine.NONE:
        return dest, None
    step = 0 if i.operand_still else i.col_step
    return dest, (i.operand + block * i.operand_block_step + y * i.operand_row_step + x * step) & ADDRESS_MASK


def fill_words(instruction, config):
    """Return the words a ``FILL`` reads, int32 ``[tiles, rows]``."""
    i = instruction
    row = np.arange(i.tiles)[:, None] * config.rows + np.arange(i.rows)
    return (i.source + row * i.row_step & BYTE_MASK) // config.rows


def unfold_words(instruction):
    """Return the words an ``UNFOLD`` writes, int32 ``[tile_rows, groups, tile_cols]``."""
    i = instruction
    return i.dest + np.arange(i.tile_rows * i.groups * i.tile_cols).reshape(i.tile_rows, i.groups, i.tile_cols) & ADDRESS_MASK


def unfold_bytes(instruction):
    """Return the bytes an ``UNFOLD`` reads.

    Returns
    -------
    address : int32 ``[tile_rows, groups, streams, inside]``, in bytes, of the columns from ``left`` on
    exists : bool ``[tile_rows, groups, streams]``
        False for tap rows that are ``pad``: nothing is read.
    """
    i = instruction
    tap_row = np.arange(i.groups)[:, None] * i.streams + np.arange(i.streams)
    channel, ky = np.divmod(tap_row, i.kernel_y)
    y = np.arange(i.tile_rows)[:, None, None]
    offset = tap_row * i.row_step + channel * (i.channel_step - i.row_step)
    first = i.start + y * (offset[-1, -1] + i.tile_step) + offset
    iy = (i.y0 + y * i.stride_y + ky + (1 << 12) & (1 << 13) - 1) - (1 << 12)
    exists = (iy >= 0) & (iy < i.in_height) & (tap_row < (i.groups - 1) * i.streams + i.last_streams)
    return first[..., None] + np.arange(i.inside) & BYTE_MASK, exists


def weight_tiles(instruction):
    """Return the weight tiles an ``EXECUTE`` reads or a ``FILL`` writes, int32 ``[n]``."""
    i = instruction
    if i.opcode == Opcode.FILL:
        return i.weights + np.arange(i.tiles)
    return i.weights + np.arange(1 if i.hold else i.kernel_y * i.kernel_x * i.blocks)


def entry_bytes(config):
    """Return the bytes of an entry of each :class:`~celosia.rtl.isa.Memory` that a ``TRANSFER`` reaches."""
    return {Memory.ACTIVATIONS: config.rows, Memory.WEIGHTS: config.weight_rows * config.cols, Memory.PARAMS: 8 * config.lanes}


def transfer_entries(instruction, config):
    """Return ``(external, local)`` of a ``TRANSFER``: the byte in external memory and the entry of the engine's that belong together, int64
    ``[planes, rows, run]``."""
    i = instruction
    plane, row, entry = np.ogrid[: i.planes, : i.rows, : i.run]
    external = i.external + plane * i.external_plane_step + row * i.external_row_step + entry * entry_bytes(config)[i.memory]
    local = i.local + plane * i.local_plane_step + row * i.local_row_step + entry
    return external & EXTERNAL_MASK, local & LOCAL_MASK
