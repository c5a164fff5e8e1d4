"""Max and average pooling.

Golden: the maximum is exact. ``QLinearGlobalAveragePool`` requantises the integer sum with
``f32(x_scale / f32(y_scale * pixels))``. ``QLinearAveragePool`` adds dequantised float32 values, so its result
can depend on more than the sum where the average lies within a rounding error of a tie: :func:`near_ties` finds those sums.
"""

from fractions import Fraction

import numpy as np

from celosia.sim.numerics import channel_params
from celosia.tools.compiler import ir
from celosia.tools.ops.family import Family, Lowered, Refused, first_dimension_is_one, quantised_per_tensor
from celosia.tools.ops.reference import rising_table
from celosia.tools.ops.windows import padding

__all__ = ["FAMILIES", "average_scale", "float_error", "input_is_8_bit", "near_ties", "one_output", "remark"]


def pool_is_flat(operation, features):
    """Pooling must have one or two spatial dimensions.

    Pool over two dimensions, then over the third.
    """
    return len(features.value(operation.inputs[0]).shape) in (3, 4)


def one_output(operation, features):
    """The indices of the maxima must not be used.

    Take the largest elements without their places, or let the host do it.
    """
    return len(operation.outputs) == 1


def input_is_8_bit(operation, features):
    """The input must be quantised to int8 or uint8, with constant scales and zero points.

    Put a QuantizeLinear and a DequantizeLinear before it, as `celosia quantize` does.
    """
    return len(operation.inputs) == 1 and features.value(operation.inputs[0]).is_quantised


def channels_come_first(operation, features):
    """The channels must be the second dimension (NCHW).

    Export the model in NCHW, or with a Transpose before the pooling.
    """
    return not operation.attributes.get("channels_last", 0)


def float_error(total, count, factor, zero_point, output_zero_point):
    """Bound the error of ONNX Runtime's float32 average, in steps of the output.

    ``total`` is the sum of ``count`` values less the zero point, and ``factor`` what takes it to steps of the output. Each value
    carries one rounding of the dequantisation and at most ``count`` of the additions; division, requantisation and the zero
    point add three, ``factor`` itself one. The sum of magnitudes is bounded from ``total`` and the range of the values.
    """
    low, high = -128 - zero_point, 127 - zero_point
    # With total = positive - negative, negative is at most count * -low, and the magnitudes sum to total + 2 * negative.
    magnitude = np.minimum(np.abs(total) + 2 * count * min(-low, high), count * max(-low, high))
    result = np.abs(total) * factor
    return ((count + 2) * magnitude * factor + 4 * result + abs(output_zero_point) + 1) * 2.0**-24


def near_ties(count, factor, zero_point, output_zero_point):
    """Return the possible sums of ``count`` values at which the average is nearer to a tie than float32 arithmetic resolves.

    Sums whose average is far outside int8 are left out: they saturate either way.
    """
    factor = float(factor)
    total = np.arange(count * (-128 - zero_point), count * (127 - zero_point) + 1, dtype=np.int64)
    exact = total * factor
    distance = np.abs(exact - np.floor(exact) - 0.5)
    inside = np.abs(exact + output_zero_point + 0.5) < 130
    return total[inside & (distance <= float_error(total, count, factor, zero_point, output_zero_point))]


def average_scale(scale, output_scale, divisor):
    """Return the float32 factor of a sum over ``divisor`` pixels: the exact quotient, rounded once."""
    if not (scale > 0 and output_scale > 0 and np.isfinite([scale, output_scale]).all()):
        raise Refused("Scales must be positive and finite.")
    exact = Fraction(float(scale)) / (Fraction(float(output_scale)) * divisor)
    return _checked(np.float32(min(float(exact), 1e30)))


def _checked(factor):
    try:
        channel_params(factor)
    except ValueError as error:
        raise Refused(f"The scale of the average is out of range: {error}.") from None
    return factor


def _window(operation, view, shape):
    """Return kernel, stride, dilation and pads of a pooling operator."""
    tensor = view.tensor
    kernel = tuple(operation.attributes["kernel_shape"])
    kernel = (1,) * (2 - len(kernel)) + kernel
    out = ((1,) + tuple(shape[2:]))[-2:]
    size = (tensor.height + view.pads[0] + view.pads[2], tensor.width + view.pads[1] + view.pads[3])
    stride, dilation, pads = padding(operation, size, kernel, out)
    return kernel, stride, dilation, pads, out


def _node(operation, view, output, **fields):
    ones = np.ones(view.tensor.channels, np.float32)
    return ir.Pool(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=view.tensor.name,
        output=output.tensor.name,
        **{"scale": ones, **fields},
    )


def lower_max(operation, features):
    """Lower ``MaxPool``; between scales that differ, a table requantises the maximum."""
    name = operation.inputs[0]
    view = features.map(name, "x", operation, padded=features.view(name).pad_value == -128)
    tensor = view.tensor
    kernel, stride, dilation, pads, (height, width) = _window(operation, view, features.value(operation.output).shape)
    if view.is_padded:
        pads = tuple(inner + outer for inner, outer in zip(pads, view.pads))
    output = features.output(operation, channels=tensor.channels, height=height, width=width)
    table = rising_table(operation, features) if operation.form == "FloatMaxPool" else None
    if table is not None and 0 in _counts(tensor, kernel, stride, dilation, pads, (height, width)):
        raise Refused("Between different scales no window of MaxPool may lie wholly in the padding.")
    window = {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}
    return Lowered(node=_node(operation, view, output, kind="max", zero_point=0, table=table, **window), view=output)


def lower_average(operation, features):
    """Lower ``QLinearAveragePool``: one scale for each number of pixels a window can have."""
    view = features.map(operation.inputs[0], "x", operation, padded=False)
    tensor = view.tensor
    kernel, stride, dilation, pads, (height, width) = _window(operation, view, features.value(operation.output).shape)
    output = features.output(operation, channels=tensor.channels, height=height, width=width)
    include = operation.attributes.get("count_include_pad", 0)
    x_scale, y_scale = (operation.operands[name].item() for name in ("x_scale", "y_scale"))
    counts = sorted(_counts(tensor, kernel, stride, dilation, pads, (height, width)) - {0})
    divisors = {count: kernel[0] * kernel[1] if include else count for count in counts}
    scales = {count: average_scale(x_scale, y_scale, divisor) for count, divisor in divisors.items()}
    zero_point = output.tensor.zero_point
    loose = sum(len(near_ties(count, scales[count], tensor.zero_point, zero_point)) for count in counts)
    folded = _folded(zero_point, x_scale, y_scale, divisors) if operation.form == "QLinearAveragePool" else None
    facts = {"zero_point": zero_point} if folded is None else {"zero_point": 0, "biases": folded}
    window = {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}
    node = _node(operation, view, output, kind="average", scales=scales, **facts, **window)
    return Lowered(node=node, view=output, note=remark(loose))


def _folded(zero_point, x_scale, y_scale, divisors):
    """Return the output's zero point in steps of the sum for each number of pixels, or None where that is no integer.

    ``QLinearAveragePool`` adds the zero point before it rounds: a tie goes to the even one of the final integers.
    """
    found = {}
    for count, divisor in divisors.items():
        exact = zero_point * divisor * Fraction(float(y_scale)) / Fraction(float(x_scale))
        if exact.denominator != 1 or abs(exact) > 1 << 24:
            return None
        found[count] = int(exact)
    return found


def lower_global(operation, features):
    """Lower ``QLinearGlobalAveragePool``."""
    view = features.map(operation.inputs[0], "x", operation, padded=False)
    tensor = view.tensor
    output = features.output(operation, channels=tensor.channels, height=1, width=1)
    x_scale, y_scale = (np.float32(operation.operands[name].item()) for name in ("x_scale", "y_scale"))
    count = tensor.height * tensor.width
    with np.errstate(all="ignore"):
        scale = _checked(np.float32(x_scale / np.float32(y_scale * np.float32(count))))
    window = {"kernel": (tensor.height, tensor.width), "scales": {count: scale}}
    return Lowered(node=_node(operation, view, output, kind="average", zero_point=output.tensor.zero_point, **window), view=output)


def _counts(tensor, kernel, stride, dilation, pads, out):
    """Return the numbers of pixels that windows have inside the map."""
    inside = []
    for axis, size in enumerate((tensor.height, tensor.width)):
        start = np.arange(out[axis])[:, None] * stride[axis] - pads[axis]
        position = start + np.arange(kernel[axis])[None, :] * dilation[axis]
        inside.append({int(n) for n in ((position >= 0) & (position < size)).sum(1)})
    return {rows * columns for rows in inside[0] for columns in inside[1]}


def remark(loose):
    """Return the note of a node of which ``loose`` sums are :func:`near_ties`."""
    if not loose:
        return ""
    return f"half to even at {loose} sums where ONNX Runtime's float32 additions round either way"


FAMILIES = (
    Family(
        name="Max pooling",
        operators=("MaxPool",),
        forms=("MaxPool", "FloatMaxPool"),
        constraints=(one_output, input_is_8_bit, quantised_per_tensor, pool_is_flat, first_dimension_is_one),
        lower=lower_max,
    ),
    Family(
        name="Average pooling",
        operators=("AveragePool", "QLinearAveragePool"),
        forms=("FloatPool", "QLinearAveragePool"),
        constraints=(input_is_8_bit, quantised_per_tensor, pool_is_flat, channels_come_first, first_dimension_is_one),
        lower=lower_average,
    ),
    Family(
        name="Global average pooling",
        operators=("GlobalAveragePool", "QLinearGlobalAveragePool"),
        forms=("QLinearGlobalAveragePool",),
        constraints=(input_is_8_bit, quantised_per_tensor, pool_is_flat, channels_come_first, first_dimension_is_one),
        lower=lower_global,
    ),
)
