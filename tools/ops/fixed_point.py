"""Constants of the store unit that reproduce a table of ONNX Runtime's results: found by search, proved on every entry.

Each function takes ``table``, the int8 results, and ``real``, the same before rounding and saturation in steps of the output (without its zero
point); ``real`` only tells where to search. All operands and results are in the int8 domain.
"""

import numpy as np

from celosia.rtl.isa import Combine
from celosia.sim.numerics import MANTISSA_BITS, channel_params, multiply, requantize, solve_add

__all__ = ["IDENTITY", "solve_affine", "solve_choice", "solve_product", "solve_rescale", "solve_sum"]

VALUES = np.arange(-128, 128)

IDENTITY = np.arange(256, dtype=np.uint8).view(np.int8)
"""The table that changes nothing; index = the value's bits."""

EVERY = np.ones(256, bool)

ULPS = 64
"""Neighbours of a float32 scale to try on either side."""

LINEAR = 0.05
"""Steps by which results may leave a plane and still be float32 sums."""


def solve_sum(table, real, operand):
    """Return ``(k_result, k_operand, k_zero)`` of :func:`~celosia.sim.numerics.add_residual`, or None; clip to the ends of the table.

    ``table`` and ``real`` are ``[256, n]``: −128 first, and the values ``operand`` (int8 ``[n]``).
    """
    inside = _unsaturated(table, real)
    a, b = np.broadcast_arrays(VALUES[:, None], operand[None, :])
    known = np.stack([a[inside], b[inside], np.ones(inside.sum())], axis=1).astype(np.float64)
    if np.linalg.matrix_rank(known) < (3 if np.ptp(operand) else 2):
        return None
    plane = np.linalg.lstsq(known, real[inside], rcond=None)[0]
    if np.abs(known @ plane - real[inside]).max() > LINEAR:
        return None
    return solve_add(table, *plane[:2], operand=operand, low=int(table.min()), high=int(table.max()))


def solve_product(table, real, operand, zeros, zero_point):
    """Return the float32 scale with which :func:`~celosia.sim.numerics.multiply` and requantisation give the table, or None.

    ``zeros`` are the zero points of the two operands.
    """
    factors = multiply(VALUES[:, None], -zeros[0], operand[None, :], zeros[1])
    inside = _unsaturated(table, real) & (factors != 0)
    if not inside.any():
        return np.float32(0) if (table == zero_point).all() else None
    first = np.float32((real[inside] * factors[inside]).sum() / np.square(factors[inside], dtype=np.float64).sum())
    if not first > 0 or np.abs(factors[inside] * np.float64(first) - real[inside]).max() > LINEAR:
        return None
    for scale in _neighbours(first):
        mantissa, shift = channel_params(scale)
        got = requantize(factors, 0, mantissa, shift, zero_point, int(table.min()), int(table.max()), late=True)
        if np.array_equal(got, table):
            return scale
    return None


def solve_choice(table, op):
    """Return int8 ``(first [256], second [n])`` such that the table is the smaller (larger) of their entries, or None; −128 first."""
    low = op == Combine.MIN
    first, second = (table.max(1), table.max(0)) if low else (table.min(1), table.min(0))
    chosen = (np.minimum if low else np.maximum)(first[:, None], second[None, :])
    return (first, second) if np.array_equal(chosen, table) else None


def solve_rescale(table, ratio, zero, zero_point):
    """Return the float32 scale with which requantising ``value - zero`` gives the table ``[256]``, or None; ``ratio`` is about that scale."""
    for scale in _neighbours(np.float32(ratio)):
        mantissa, shift = channel_params(scale)
        if np.array_equal(requantize(VALUES, -zero, mantissa, shift, zero_point, int(table.min()), int(table.max())), table):
            return scale
    return None


def solve_affine(table, real, zero_point, *, exact=EVERY, below=EVERY, high=127):
    """Return ``(weight, bias, scale)`` with which requantising ``value * weight + bias`` gives the table ``[256]``, or None.

    ``exact`` marks the entries that must be equal, ``below`` those at which the result must be at most the table's.
    """
    table, real = np.asarray(table, np.int64), np.asarray(real, np.float64)
    inside = exact & (table > -128) & (table < 127)
    if np.ptp(table[exact]) == 0:
        slope, start = 0.0, float(table[exact][0]) - zero_point
    elif inside.sum() < 2:
        return None
    else:
        slope, start = np.polyfit(VALUES[inside], real[inside], 1)
        if np.abs(VALUES[inside] * slope + start - real[inside]).max() > LINEAR:
            return None
    if abs(slope) < 1e-9:
        weights, scales = np.zeros(1, np.int64), np.ones(1, np.float32)
    else:
        weights = np.arange(127, 0, -1)
        scales = np.float32(abs(slope) / weights)
        weights = weights if slope > 0 else -weights
    # The nearest bias, and those of a little more or less offset.
    bias = np.rint(start / scales.astype(np.float64))[:, None] + np.arange(-2, 3)
    fits = (np.abs(bias) < 1 << 30) & (scales[:, None] < 1 << 20)
    weight, scale = (np.broadcast_to(array[:, None], bias.shape)[fits] for array in (weights, scales))
    bias = bias[fits].astype(np.int64)
    for first in range(0, len(weight), 80):
        part = slice(first, first + 80)
        mantissa, shift = channel_params(scale[part])
        sums = VALUES * weight[part, None]
        got = requantize(sums, bias[part, None], mantissa[:, None], shift[:, None], zero_point, -128, high)
        good = ((~exact | (got == table)) & (~below | (got <= table))).all(axis=1)
        if good.any():
            place = first + int(np.argmax(good))
            return int(weight[place]), int(bias[place]), np.float32(scale[place])
    return None


def _unsaturated(table, real):
    """Return the entries in which the result is the rounded real value, for sure."""
    return (table > table.min()) & (table < table.max()) & np.isfinite(real)


def _neighbours(value):
    """Return ``value`` and the float32 around it, the nearest first, as far as the requantiser can have them."""
    bits = np.float32(value).view(np.int32)
    offsets = np.array([0, *(sign * n for n in range(1, ULPS + 1) for sign in (1, -1))])
    found = (bits + offsets).astype(np.int32).view(np.float32)
    return found[(found >= 0) & (found < 1 << MANTISSA_BITS)]
