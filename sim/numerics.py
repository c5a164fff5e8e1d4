"""Golden integer arithmetic: requantisation and residual addition, bit for bit as ONNX Runtime computes them.

One function per arithmetic step of the store unit; the RTL names the function it implements. Everything is vectorised and
broadcasts as numpy does. The reference, MLAS (``MlasRequantizeOutput``, ``MlasQLinearAdd``) works in float32, rounding
to nearest with ties to even; a float32 operation is its exact result rounded to 24 significant bits, which is
what the integers below do.
"""

import numpy as np

from celosia.rtl.isa import ADD_FRACTION

__all__ = [
    "ADD_LIMITS",
    "MANTISSA_BITS",
    "MAX_SHIFT",
    "add_operands",
    "add_residual",
    "add_table_float",
    "channel_params",
    "multiply",
    "requantize",
    "requantize_float",
    "round_shift",
    "round_significant",
    "solve_add",
    "sum_byte",
]  # fmt: skip

MANTISSA_BITS = 24
"""Significant bits of a float32."""

MAX_SHIFT = 63
"""The largest value of the ``shift`` field of :class:`celosia.rtl.isa.ChannelParams`."""

ADD_LIMITS = {"k_result": 1 << 27, "k_operand": 1 << 27, "k_zero": 1 << 39}
"""Bounds of the fields of :class:`celosia.rtl.isa.AddParams`: ``-limit <= k < limit``."""

_POWERS = np.int64(1) << np.arange(63, dtype=np.int64)


def round_shift(value, shift, odd=0):
    """Return ``value / 2**shift`` rounded to the nearest integer, ties to even; where ``odd`` is 1, to odd.

    ``value`` is int64 of either sign, ``shift`` 0…62.
    """
    quotient = value >> shift
    remainder = value - (quotient << shift)
    unit = np.int64(1) << shift
    return quotient + ((2 * remainder > unit) | ((2 * remainder == unit) & ((quotient ^ odd) & 1 == 1)))


def round_significant(magnitude):
    """Round int64 ``magnitude`` (0 … 2**61) to 24 significant bits, ties to even: what float32 can hold."""
    drop = np.maximum(np.searchsorted(_POWERS, magnitude, side="right") - MANTISSA_BITS, 0)
    return round_shift(magnitude, drop) << drop


def channel_params(scale):
    """Split float32 scales into the ``mantissa`` and ``shift`` of :class:`celosia.rtl.isa.ChannelParams`.

    ``scale`` is exactly ``mantissa * 2**-shift`` with ``2**23 <= mantissa < 2**24`` and ``shift`` 0…63. Scales below 2**-40 give
    ``(0, 0)``: their product with any int32 rounds to zero.

    Returns
    -------
    mantissa, shift : int64 arrays shaped like ``scale``

    Raises
    ------
    ValueError
        If a scale is negative, not finite, or 2**24 or more.
    """
    scale = np.asarray(scale, dtype=np.float32)
    bad = ~((scale >= 0) & (scale < 2.0**MANTISSA_BITS))
    if bad.any():
        raise ValueError(f"scale must be at least 0 and below 2**24, not {scale[bad].flat[0]!r}")
    fraction, exponent = np.frexp(scale.astype(np.float64))
    mantissa = (fraction * (1 << MANTISSA_BITS)).astype(np.int64)
    shift = MANTISSA_BITS - exponent.astype(np.int64)
    gone = (mantissa == 0) | (shift > MAX_SHIFT)
    return np.where(gone, 0, mantissa), np.where(gone, 0, shift)


def sum_byte(acc, bias, number):
    """Return byte ``number`` (0 the lowest) of the int32 ``acc + bias`` as int8: what ``STORE`` requantises with ``raw``."""
    return (_wrapped_sum(acc, bias) >> 8 * number).astype(np.int8)


def multiply(acc, bias, operand, operand_zero):
    """Return ``(acc + bias) * (operand - operand_zero)``, what ``STORE`` requantises with ``MUL``: int32.

    The sum is taken modulo 2^18, as signed; ``operand`` and ``operand_zero`` are int8. So the product has 27 bits.
    """
    total = (_wrapped_sum(acc, bias) + (1 << 17) & (1 << 18) - 1) - (1 << 17)
    return (total * (np.asarray(operand, dtype=np.int64) - operand_zero)).astype(np.int32)


def requantize(acc, bias, mantissa, shift, zero_point, low=-128, high=127, *, late=False):
    """Requantise accumulators: ``clip(rint(f32(f32(acc + bias) * f32(scale))) + zero_point, low, high)`` in integers.

    The sum wraps to int32 as in MLAS, is rounded to 24 significant bits, multiplied, the product rounded to 24 significant
    bits, then at the binary point; all three half to even. With ``late`` the last one makes the sum with the zero point even, as
    QLinearMul does, which rounds after adding it.

    Parameters
    ----------
    acc, bias : int32
    mantissa, shift : of :func:`channel_params`; a ``mantissa`` that is not normalised (bit 23 clear) counts as zero
    zero_point, low, high : int8, ``low <= high``

    Returns
    -------
    int8 array of the broadcast shape
    """
    mantissa, shift = np.asarray(mantissa, dtype=np.int64), np.asarray(shift, dtype=np.int64)
    mantissa = mantissa * (mantissa >> MANTISSA_BITS - 1)
    total = _wrapped_sum(acc, bias)
    product = round_significant(round_significant(np.abs(total)) * mantissa)
    # The product is below 2**56: from shift 58 on it rounds to zero whatever the shift, and 2**63 would overflow.
    odd = np.asarray(zero_point, dtype=np.int64) & 1 if late else 0
    rounded = round_shift(product, np.minimum(shift, 60), odd)
    return np.clip(np.where(total < 0, -rounded, rounded) + zero_point, low, high).astype(np.int8)


def _wrapped_sum(acc, bias):
    return (np.asarray(acc, dtype=np.int64) + np.asarray(bias, dtype=np.int64)).astype(np.int32).astype(np.int64)


def requantize_float(acc, bias, scale, zero_point, low=-128, high=127):
    """The float32 arithmetic that :func:`requantize` must equal, in MLAS's order of operations; for tests."""
    with np.errstate(over="ignore"):
        total = (np.asarray(acc, dtype=np.int32) + np.asarray(bias, dtype=np.int32)).astype(np.int32)
    scaled = total.astype(np.float32) * np.asarray(scale, dtype=np.float32)
    zero_point = np.asarray(zero_point, dtype=np.int32)
    bounds = [(np.asarray(bound, dtype=np.int32) - zero_point).astype(np.float32) for bound in (low, high)]
    return (np.rint(np.clip(scaled, *bounds)).astype(np.int32) + zero_point).astype(np.int8)


def add_residual(result, operand, k_result, k_operand, k_zero, low=-128, high=127):
    """Residual addition: ``(result * k_result + operand * k_operand + k_zero) / 2**24``, half to even, clipped; int8.

    The constants are those of :class:`celosia.rtl.isa.AddParams`, within :data:`ADD_LIMITS`.
    """
    result, operand = np.asarray(result, dtype=np.int64), np.asarray(operand, dtype=np.int64)
    total = result * k_result + operand * k_operand + k_zero
    return np.clip(round_shift(total, np.int64(ADD_FRACTION)), low, high).astype(np.int8)


def add_operands():
    """Return all 65,536 operand pairs as int8 arrays ``result[256, 1]`` and ``operand[1, 256]``, −128 first."""
    values = np.arange(-128, 128, dtype=np.int8)
    return values[:, None], values[None, :]


def add_table_float(result_scale, result_zero, operand_scale, operand_zero, scale, zero, *, unsigned=False):
    """Model MLAS's float32 ``QLinearAdd`` for all operand pairs, as it runs on x86 with AVX2.

    Contractions to fused multiply-add are part of the model: the constant is ``zero - fma(ratio_a, zero_a, ratio_b * zero_b)`` and
    the sum ``fma(a, ratio_a, fma(b, ratio_b, constant))``. All scales are float32. Zero points are in the int8 domain; for
    uint8 tensors (``unsigned``) the arithmetic runs on the bytes themselves, and so rounds differently.

    Returns
    -------
    int8 ``[256, 256]``, indexed ``[result + 128, operand + 128]``
    """
    offset = 128 if unsigned else 0
    a, b = (values.astype(np.float32) + offset for values in add_operands())
    a_zero, b_zero, zero = (np.float32(point + offset) for point in (result_zero, operand_zero, zero))
    a_ratio, b_ratio = (np.float32(numerator) / np.float32(scale) for numerator in (result_scale, operand_scale))
    constant = zero - _fma(a_ratio, a_zero, b_ratio * b_zero)
    total = _fma(a, a_ratio, _fma(b, b_ratio, constant))
    return (np.clip(np.rint(total), offset - 128, offset + 127) - offset).astype(np.int8)


def _fma(x, y, z):
    """Float32 fused multiply-add; the product of two float32 is exact in float64."""
    return (x.astype(np.float64) * y + z).astype(np.float32)


def solve_add(table, result_ratio, operand_ratio, *, operand=None, low=-128, high=127, reach=32):
    """Find the constants with which :func:`add_residual` reproduces ``table`` in every case.

    The real-valued ratios are tried first, with every offset of up to ``reach`` units of ``k_result`` and ``k_operand`` around
    them: each pair leaves an interval of exact ``k_zero``, and the widest wins.

    Parameters
    ----------
    table : int8 ``[256, n]``, indexed ``[result + 128, number of the operand]``, already clipped to ``[low, high]``
    result_ratio, operand_ratio : float
        The quotients of the operands' scales by that of the sum; negative for what is subtracted.
    operand : int8 ``[n]``, optional
        The operand's values; all 256, −128 first, unless given.

    Returns
    -------
    (k_result, k_operand, k_zero), or None if no constants within reach and :data:`ADD_LIMITS` are exact
    """
    one = 1 << ADD_FRACTION
    if max(abs(result_ratio), abs(operand_ratio)) * one >= ADD_LIMITS["k_result"] - reach:
        return None
    k_result, k_operand = (round(ratio * one) for ratio in (result_ratio, operand_ratio))
    result, every = (values.astype(np.int64) for values in add_operands())
    operand = every if operand is None else np.asarray(operand, dtype=np.int64)[None, :]
    target = np.asarray(table, dtype=np.int64)
    product = result * k_result + operand * k_operand
    # The sum must lie in [target - 1/2, target + 1/2]; the ends round to the even neighbour and so belong to even targets only.
    odd = target & 1
    least = np.where(target > low, (2 * target - 1) * (one // 2) + odd, -(1 << 50)) - product
    most = np.where(target < high, (2 * target + 1) * (one // 2) - odd, 1 << 50) - product
    delta = np.arange(-reach, reach + 1)
    span = 512 * reach  # how much two cases can move against each other within reach
    k_low = _extreme(np.maximum, least, least >= least.max() - span, result, operand, delta)
    k_high = _extreme(np.minimum, most, most <= most.min() + span, result, operand, delta)
    width = k_high - k_low
    if width.max() < 0:
        return None
    i, j = np.unravel_index(np.argmax(width), width.shape)
    constants = k_result + int(delta[i]), k_operand + int(delta[j]), int(k_low[i, j] + width[i, j] // 2)
    if not -ADD_LIMITS["k_zero"] <= constants[2] < ADD_LIMITS["k_zero"]:
        return None
    assert np.array_equal(add_residual(result, operand, *constants, low, high), target)
    return constants


def _extreme(pick, bound, chosen, result, operand, delta):
    """Return the tightest of the chosen bounds on ``k_zero`` for each pair of offsets to ``k_result`` and ``k_operand``."""
    rows, cols = np.nonzero(chosen)
    best = None
    for value, r, o in zip(bound[chosen], result[rows, 0], operand[0, cols]):
        moved = value - r * delta[:, None] - o * delta[None, :]
        best = moved if best is None else pick(best, moved)
    return best
