"""What the array makes of the words an ``EXECUTE`` reads, as :mod:`celosia.rtl.isa` defines it: int64 ``[batch, entries, cols]``."""

import numpy as np

__all__ = ["array_sums", "depthwise_sums"]

EXACT_IN_FLOAT32 = 1024
"""Products of two int8 whose sum float32 holds exactly: 1024 * 2**14 = 2**24."""


def array_sums(instruction, words, weights):
    """Return the sums of an ``EXECUTE`` without ``depthwise``.

    Parameters
    ----------
    words : int8 ``[batch, blocks, pixels, taps, rows]``
    weights : int8 ``[batch or 1, blocks, taps, rows, cols]``
    """
    i = instruction
    batch, blocks, pixels, taps, rows = words.shape
    cols = weights.shape[-1]
    if i.max:
        products = np.matmul(words.transpose(0, 1, 3, 2, 4).astype(np.float32), weights.astype(np.float32))
        result = products.max(axis=2)  # [batch, blocks, pixels, cols]
        return (result if i.per_block else result.max(axis=1)).reshape(batch, -1, cols).astype(np.int64)
    if not i.per_block:
        words = words.transpose(0, 2, 1, 3, 4)[:, None]
    terms = rows * taps * (1 if i.per_block else blocks)
    words, weights = words.reshape(batch, -1, pixels, terms), weights.reshape(len(weights), -1, terms, cols)
    kind = np.float32 if terms <= EXACT_IN_FLOAT32 else np.float64
    return np.matmul(words.astype(kind), weights.astype(kind)).astype(np.int64).reshape(batch, -1, cols)


def depthwise_sums(config, instruction, words, weights):
    """Return the sums of an ``EXECUTE`` with ``depthwise``.

    Parameters
    ----------
    words : int8 ``[batch, blocks, taps, words, image rows, rows]``
        What each pass streams; words beyond the last are taken as zero.
    weights : int8 ``[batch or 1, blocks, taps, rows, cols]``
    """
    i, size = instruction, config.depthwise_taps
    used = config.depthwise_rows * size
    first = np.arange(i.tile_rows)[:, None] * (i.tile_cols * i.stride_x + i.gap) + np.arange(i.tile_cols) * i.stride_x
    first = first.reshape(-1)
    rest = slice(used, None)  # rows of the array that belong to no image row
    sums = np.matmul(words[..., first, 0, rest].astype(np.int64), weights[..., rest, :].astype(np.int64))
    channels = words[..., i.slot * config.cols : (i.slot + 1) * config.cols].astype(np.int64)
    channels = np.pad(channels, [(0, 0)] * 3 + [(0, size), (0, 0), (0, 0)])
    for row in range(used):
        stream, tap = divmod(row, size)
        sums += channels[..., first + tap, stream, :] * weights[..., row, None, :]
    if not i.per_block:  # [batch, blocks, taps, pixels, cols]
        sums = sums.reshape(len(sums), 1, -1, *sums.shape[3:])
    return (sums.max(axis=2) if i.max else sums.sum(axis=2)).reshape(len(sums), -1, sums.shape[-1])
