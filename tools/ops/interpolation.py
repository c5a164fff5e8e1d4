"""Linear interpolation: Resize and Upsample by whole factors as a depthwise transposed convolution of the map with its edges repeated.

The weights are multiples of one over the ``unit`` of an axis (the factor, or twice that), so what the engine adds up are integers, ``parts`` of
a step each. ONNX Runtime computes in float32, also where the operator's tensors are integers:

- Between DequantizeLinear and QuantizeLinear the quotient is rounded half to even. :func:`is_decided` holds it to the requantiser
  over all sums there are.
- On integers the sum is truncated toward zero, which is exact where the factors are powers of two. :func:`_truncated` does that for
  tensors without negative values in one convolution; else one for the values above zero and one for those below are added.
"""

from dataclasses import dataclass

import numpy as np

from celosia.rtl.isa import ADD_FRACTION
from celosia.sim.numerics import channel_params, requantize
from celosia.tools.compiler import ir
from celosia.tools.ops.convolution import checked_scale
from celosia.tools.ops.elements import Elements, rearranged
from celosia.tools.ops.elementwise import copy_node
from celosia.tools.ops.family import (
    OTHER_ZERO_POINT,
    Family,
    Lowered,
    Refused,
    View,
    first_dimension_is_one,
    quantised_per_tensor,
    read_zero_point,
)
from celosia.tools.ops.movement import input_is_8_bit

__all__ = ["FAMILIES", "Axis", "axis_of", "is_decided"]

MODES = (b"asymmetric", b"half_pixel", b"pytorch_half_pixel")
MOST_WEIGHT = 255
ROUNDING = 2.0**-24
"""The largest weight of the array; and the relative error of one float32 operation."""

EXACT = 1 << 24
LESS = 1 - 2.0**-20
"""Integers up to the first one float32 holds exactly; the second makes a quotient that is a tie round toward zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Axis:
    """One axis of the transposed convolution: integer ``taps`` in units of ``1 / unit``; it reads ``before`` further pixels at the
    beginning and ``after`` at the end, and its first ``pad`` results are left out."""

    taps: np.ndarray
    unit: int
    before: int
    after: int
    pad: int


def axis_of(factor, *, centred):
    """Return the :class:`Axis` that enlarges by ``factor``; ``centred`` aligns the centres of the pixels, not their corners."""
    if factor == 1:
        return Axis(taps=np.ones(1, np.int64), unit=1, before=0, after=0, pad=0)
    place = np.arange(-factor, 2 * factor)  # of a result, from the pixel that the tap multiplies
    distance = np.abs(2 * place + 1 - factor if centred else 2 * place)
    weight = np.maximum(2 * factor - distance, 0)
    common = np.gcd.reduce([*weight, 2 * factor])
    weight, unit = weight // common, 2 * factor // common
    if not centred:
        return Axis(taps=weight[1 : 2 * factor], unit=unit, before=0, after=1, pad=factor - 1)
    first = int(np.flatnonzero(weight)[0])  # the zeros behind the last one let every phase begin at the same pixel
    return Axis(taps=weight[first:], unit=unit, before=1, after=1, pad=2 * factor - first)


def _factors(operation, features):
    """Return how many times higher and wider the map becomes, or None where :func:`linear_by_whole_factors` does not hold."""
    shapes = [features.value(name).shape for name in (operation.inputs[0], operation.output)]
    attributes, operands = operation.attributes, operation.operands
    if [len(shape) for shape in shapes] != [4, 4] or shapes[0][:2] != shapes[1][:2] or attributes.get("antialias"):
        return None
    if attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch" or _mode(operation) not in MODES:
        return None
    factors = [after // before for before, after in zip(*shapes)]
    stated = operands.get("input_2" if _has_region(operation) else "input_1", attributes.get("scales"))
    if stated is not None and len(stated):
        axes = attributes.get("axes", range(len(stated)))
        if any(np.float32(scale) != factors[axis] for scale, axis in zip(stated, axes)):
            return None
    whole = all(after == before * factor for before, after, factor in zip(*shapes, factors))
    return tuple(factors[2:]) if whole and max(factors) > 1 else None


def _has_region(operation):
    """Whether the second operand is the region of interest, as it is from version 11 of Resize on."""
    (node,) = (node for node in operation.nodes if node.op_type in ("Resize", "Upsample"))
    return len(node.input) > 2


def _mode(operation):
    default = b"half_pixel" if operation.operator == "Resize" and _has_region(operation) else b"asymmetric"
    return operation.attributes.get("coordinate_transformation_mode", default)


def linear_by_whole_factors(operation, features):
    """Linear Resize and Upsample must enlarge height and width of a map [1, C, H, W] by whole factors, with coordinates half_pixel,
    pytorch_half_pixel or asymmetric, and without antialiasing.

    Export the model with such a factor, and align_corners=False.
    """
    return _factors(operation, features) is not None


def lower_interpolation(operation, features):
    """Lower a linear ``Resize``: the map with its edges repeated, then a transposed convolution."""
    factors = _factors(operation, features)
    axes = [axis_of(factor, centred=_mode(operation) != b"asymmetric") for factor in factors]
    weight = np.outer(*(axis.taps for axis in axes))
    if weight.max() > MOST_WEIGHT:
        raise Refused(
            f"The weights of this interpolation have {int(weight.max()).bit_length()} bits; 8 is the most.", "Enlarge twice."
        )
    parts = axes[0].unit * axes[1].unit
    quantised = "x_scale" in operation.operands
    if not quantised and parts & (parts - 1):
        raise Refused(
            "Resize of integers truncates what float32 makes of the sum, which is exact only where the factors are powers of two.",
            "Enlarge by 2, 4 or 8, or put a DequantizeLinear before the Resize and a QuantizeLinear behind it.",
        )
    view = features.view(operation.inputs[0])
    if view.is_padded:
        view = features.rearrange(operation.inputs[0])
    zero_point = view.tensor.zero_point
    if read_zero_point(operation, "x", view.tensor) != zero_point:
        raise Refused(*OTHER_ZERO_POINT)
    channels, height, width = features.value(operation.output).shape[1:]
    output = features.output(operation, channels=channels, height=height, width=width)
    if quantised:
        x_scale, y_scale = (np.float32(operation.operands[f"{name}_scale"].item()) for name in "xy")
        sizes = [height // factors[0], width // factors[1]]
        error = sum(_place_error(size) for size, axis in zip(sizes, axes) if axis.unit & (axis.unit - 1))
        if not is_decided(x_scale, y_scale, zero_point, output.tensor.zero_point, parts, error):
            raise Refused(
                "Some interpolated values are so near to halfway between two integers that the error of ONNX Runtime's float32 sums decides.",
                "Quantise input and result of the Resize with one scale that is a power of two, or resize the integers themselves.",
            )
    edged = _edged(operation, features, view, axes)
    common = {
        "name": operation.name, "operator": operation.operator, "sources": operation.sources, "input": edged.name,
        "weight": np.broadcast_to(weight.astype(np.int8 if weight.max() < 128 else np.int16), (channels, 1, *weight.shape)).copy(),
        "stride": factors, "pads": (axes[0].pad, axes[1].pad, 0, 0), "group": channels,
    }  # fmt: skip
    if quantised:
        numbers = _numbers(channels, 0, np.float64(x_scale) / np.float64(y_scale) / parts)
        node = ir.ConvTranspose(output=output.tensor.name, zero_point=output.tensor.zero_point, **numbers, **common)
        return Lowered(node=node, view=output)
    return _truncated(operation, features, output, common, parts, zero_point)


def _truncated(operation, features, output, common, parts, zero_point):
    """Lower the interpolation of integers. A sum of ``parts · n + r`` becomes ``n``: less half of ``parts`` it is at most a tie,
    which a scale slightly below ``1 / parts`` takes away."""
    channels, tensor = output.tensor.channels, output.tensor
    half, raw = parts // 2 - 1, parts * zero_point
    scale = LESS / parts
    if tensor.unsigned:
        numbers = _numbers(channels, raw + 128 * parts - half, scale)
        return Lowered(node=ir.ConvTranspose(output=tensor.name, zero_point=-128, **numbers, **common), view=output)
    above, below = (features.temporary(f"{operation.output} ({sign} zero)", tensor) for sign in ("above", "below"))
    features.before(
        ir.ConvTranspose(output=above.name, zero_point=0, low=0, **_numbers(channels, raw - half, scale), **common), above
    )
    features.before(
        ir.ConvTranspose(output=below.name, zero_point=0, high=0, **_numbers(channels, raw + half, scale), **common), below
    )
    one = 1 << ADD_FRACTION
    both = ir.Combine(tensor=below.name, k_result=one, k_operand=one)
    source = View(tensor=above, index=output.index)
    return Lowered(node=copy_node(operation, source, tensor, combine=both), view=output)


def _numbers(channels, bias, scale):
    return {"bias": np.full(channels, bias, np.int32), "scale": checked_scale(np.full(channels, scale, np.float32))}


def _edged(operation, features, view, axes):
    """Return the tensor of the map with its outermost pixels repeated where the convolution reads beyond them."""
    pads = [(axis.before, axis.after) for axis in axes]
    index = np.pad(view.index, ((0, 0), (0, 0), *pads), mode="edge")
    elements = Elements(tensors=(view.tensor,), part=np.zeros(index.shape, int), index=index)
    if view.tensor.name in features.inputs and not elements.is_cheap:
        raise Refused("What comes from the host is rearranged there.")
    if not elements.is_bounded(matrix=False):
        raise Refused("The map is too large: repeating its edges would copy too many words.", "Enlarge a smaller map.")
    tensor, places, node = rearranged(elements, operation, f"{operation.output} (edges)")
    features.extra.append(Lowered(node=node, view=View(tensor=tensor, index=places)))
    return tensor


def _place_error(size):
    """Return by how many steps of the input float32 coordinates along an axis of ``size`` pixels can move the result."""
    return 255 * 2.0 ** (int(size).bit_length() - 23)


def is_decided(x_scale, y_scale, x_zero, y_zero, parts, error=0.0):
    """Whether the requantiser rounds every sum as ONNX Runtime does, whatever the order of its float32 operations.

    Parameters
    ----------
    x_scale, y_scale : float32
    x_zero, y_zero : int
        In the int8 domain.
    parts : int
        What the weights of a result add up to.
    error : float
        Of the weights, in steps of the input.
    """
    low, high = -128 - x_zero, 127 - x_zero
    total = np.arange(low * parts, high * parts + 1)
    value = total * (np.float64(x_scale) / np.float64(y_scale)) / parts
    with np.errstate(all="ignore"):
        ours = requantize(total, 0, *channel_params(checked_scale(np.float32(x_scale / np.float64(y_scale) / parts))), y_zero)
    mantissa = int(np.frexp(x_scale)[0] * EXACT)
    mantissa //= max(1, mantissa & -mantissa)
    if not error and mantissa * np.abs(total).max() < EXACT:  # nothing is rounded but the quotient
        theirs = np.rint((total * (np.float64(x_scale) / parts)).astype(np.float32) / np.float32(y_scale))
        return bool((np.clip(theirs + y_zero, -128, 127) == ours).all())
    # Of all pixels that give a sum, those at both ends of the range have the largest terms. Every term is rounded as it is dequantised,
    # multiplied and added three times, and the quotient once more.
    share = (total / parts - low) / (high - low)
    terms = (share * abs(high) + (1 - share) * abs(low)) * (x_scale / np.float64(y_scale))
    unsure = 1.001 * ROUNDING * (5 * terms + np.abs(value)) + error * (x_scale / np.float64(y_scale))
    inside = np.abs(value + y_zero + 0.5) < 129
    near = np.abs(value - np.floor(value) - 0.5) <= unsure
    return not (near & inside).any() and bool((np.clip(np.rint(value) + y_zero, -128, 127) == ours).all())


FAMILIES = (
    Family(
        name="Linear interpolation",
        operators=("Resize", "Upsample"),
        forms=("Interpolation",),
        constraints=(input_is_8_bit, first_dimension_is_one, quantised_per_tensor, linear_by_whole_factors),
        lower=lower_interpolation,
    ),
)
