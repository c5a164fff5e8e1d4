"""Operands for the requantiser's tests: seeded, adversarial, and the corners.

Every generator returns ``(acc, bias, scale)``: two int64 arrays within int32 and one float32 array, of the same length.
"""

import itertools

import numpy as np

__all__ = ["edge_pairs", "random_controls", "random_pairs", "tie_pairs"]

INT32 = -(1 << 31), (1 << 31) - 1
CORNERS = [0, 1, -1, 2, 3, 127, 128, -128, -129, 255, 256] + [
    sign * ((1 << power) + offset) for power in (23, 24, 25, 26, 30) for offset in (-3, -2, -1, 0, 1, 2, 3) for sign in (1, -1)
]  # fmt: skip


def random_pairs(rng, count):
    """All magnitudes of sums, biases up to 2**30, scales from 2**-45 to 2**23; a fifth of the scales are powers of two."""
    acc = rng.integers(*INT32, count, endpoint=True) >> rng.integers(0, 32, count)
    bias = rng.integers(-(1 << 30), 1 << 30, count, endpoint=True) >> rng.integers(0, 31, count)
    power = rng.random(count) < 0.2
    exponent = np.where(power, rng.integers(-45, 24, count), rng.uniform(-45, 23, count))
    return acc, bias, np.exp2(exponent).astype(np.float32)


def tie_pairs(rng, count):
    """Products at a tie or within a few units of the last place of one, by choice of the scale."""
    target = rng.integers(-300, 300, count) + 0.5
    total = np.rint(target * np.exp2(rng.uniform(-8, 36, count))).clip(*INT32)
    total = np.where(total == 0, np.sign(target), total)
    scale = np.abs(target / total).astype(np.float32)
    scale = (scale.view(np.int32) + rng.integers(-3, 4, count).astype(np.int32)).view(np.float32)
    bias = rng.integers(-(1 << 30), 1 << 30, count, endpoint=True) >> rng.integers(0, 31, count)
    acc = (total.astype(np.int64) - bias).clip(*INT32)
    return acc, bias, scale


def edge_pairs():
    """Every corner sum, split between accumulator and bias in two ways, with every corner scale."""
    totals = [*INT32, INT32[0] + 1, INT32[1] - 1, *CORNERS]
    scales = [0.0, 1e-45, 1e-40, 1.1754944e-38, 0.5, 0.75, 1.0, 1.5, 1.8660660, 255.0, 256.0, 511.99997, 2.0**23, 16777215.0]
    scales += [np.ldexp(m, e) for e in range(-45, 10) for m in (1.0, 1.0 + 2.0**-23, 2.0 - 2.0**-23)]
    cases = [(total - bias, bias, scale) for total, bias, scale in itertools.product(totals, (0, 1 << 30, -(1 << 30)), scales)]
    acc, bias, scale = (np.array(column) for column in zip(*cases))
    return acc.clip(*INT32).astype(np.int64), bias.astype(np.int64), scale.astype(np.float32)


def random_controls(rng, count):
    """Return zero points and bounds ``low <= high``, ``[count, 3]``; mostly no clipping, zero points often at an end."""
    controls = np.sort(rng.integers(-128, 128, (count, 3)), axis=1)[:, [1, 0, 2]]
    controls[:, 0] = np.where(rng.random(count) < 0.3, rng.choice([-128, 0, 127], count), rng.integers(-128, 128, count))
    controls[rng.random(count) < 0.7, 1:] = -128, 127
    return controls
