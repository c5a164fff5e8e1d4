"""Convolution, and matrix products with constant weights as convolutions.

Golden: ``acc`` is exact, then :func:`celosia.sim.numerics.requantize` with ``scale = f32(f32(x_scale * w_scale) / y_scale)``
per channel, as ``MlasRequantizeOutput`` computes it.
"""

from dataclasses import replace

import numpy as np

from celosia.sim.numerics import channel_params
from celosia.tools.compiler import ir
from celosia.tools.ops.elements import map_size
from celosia.tools.ops.family import (
    OTHER_ZERO_POINT,
    Family,
    Lowered,
    Refused,
    View,
    first_dimension_is_one,
    quantised_per_tensor,
    read_zero_point,
    takes_channels_last,
)
from celosia.tools.ops.windows import padding, transposed_padding

__all__ = ["FAMILIES", "accumulator_bounds", "transposed"]


def weights_are_constant(operation, features):
    """Weights must be constant.

    Store them as an initializer, through a DequantizeLinear: what computes them has to be folded before.
    """
    return "w" in operation.operands


def weights_are_8_bit(operation, features):
    """Weights must be int8 or uint8, with a constant zero point.

    Quantise them with weight_type=QInt8, as `celosia quantize` does.
    """
    return operation.operands["w"].dtype in (np.int8, np.uint8)


def bias_is_constant(operation, features):
    """The bias must be constant, and so must scales and zero points.

    Store them as initializers; for a network that quantises while it runs, use `celosia quantize` on the float model instead.
    """
    return len(operation.inputs) == 1


def kernel_is_flat(operation, features):
    """The kernel must have one or two spatial dimensions.

    Take a three-dimensional convolution apart: one over two dimensions for each step of the third, and add them.
    """
    return operation.operands["w"].ndim in (3, 4)


def output_is_8_bit(operation, features):
    """The result must be quantised to int8 or uint8.

    Put a QuantizeLinear and a DequantizeLinear behind it, as `celosia quantize` does.
    """
    return "y_scale" in operation.operands and features.value(operation.output).is_quantised


def accumulator_bounds(weight, bias, zero_point):
    """Return per output channel the largest magnitude of any sum that forms there, in int64.

    ``weight`` is integer ``[out, …]``. Covers the bare products, as the array sums them; the bias with the zero point
    folded in; and the sum of both, for inputs −128…127.
    """
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    positive, negative = np.maximum(flat, 0).sum(1), np.minimum(flat, 0).sum(1)
    high, low = 127 * positive - 128 * negative, -128 * positive + 127 * negative
    folded = bias.astype(np.int64) - zero_point * flat.sum(1)
    return np.max(np.abs([low, high, folded, low + folded, high + folded]), axis=0)


def centred_weights(operation, *, axis):
    """Return the weights less their zero point, ``axis`` being that of the output channels: int8, or int16 where they are wider."""
    weight, zero_point = operation.operands["w"], operation.operands.get("w_zero_point")
    wide = weight.astype(np.int16)
    if zero_point is not None:
        shape = [1] * weight.ndim
        if zero_point.size > 1:
            shape[axis] = zero_point.size
        wide -= zero_point.astype(np.int16).reshape(shape)
    narrow = wide.astype(np.int8)
    return narrow if (narrow == wide).all() else wide


def requantisation_scales(operation, channels):
    """Return ``f32(f32(x_scale * w_scale) / y_scale)`` of each output channel."""
    operands = operation.operands
    x_scale, w_scale, y_scale = (operands[name].astype(np.float32) for name in ("x_scale", "w_scale", "y_scale"))
    alpha = np.float32(operation.attributes.get("alpha", 1.0))
    with np.errstate(all="ignore"):  # channel_params refuses what overflows
        product = (alpha * x_scale.reshape(-1)) * w_scale.reshape(-1)
        return checked_scale(np.broadcast_to((product / y_scale.reshape(-1)).astype(np.float32), (channels,)).copy())


def checked_scale(scale):
    """Return a scale that the requantiser can have."""
    try:
        channel_params(scale)
    except ValueError as error:
        raise Refused(f"A requantisation scale is out of range: {error}.") from None
    return scale


def _node(operation, view, output, weight, *, kind=ir.Conv, scale=None, **shape):
    """Return the :class:`ir.Conv` (or another ``kind``), with the checks that every product shares."""
    channels = len(weight)
    tensor = view.tensor
    if read_zero_point(operation, "x", tensor) != tensor.zero_point:
        raise Refused(*OTHER_ZERO_POINT)
    bias = _bias(operation, channels)
    bounds = accumulator_bounds(weight, bias, tensor.zero_point)
    if bounds.max() >= 1 << 31:
        raise Refused(
            f"The sum of output channel {int(bounds.argmax())} can reach {int(bounds.max()):,}, beyond 32-bit accumulators."
        )
    return kind(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=tensor.name,
        output=output.tensor.name,
        scale=requantisation_scales(operation, channels) if scale is None else scale,
        zero_point=output.tensor.zero_point,
        weight=np.ascontiguousarray(weight),
        bias=bias,
        **shape,
    )


def lower_convolution(operation, features):
    """Lower ``QLinearConv``; a 1-D convolution is one of height 1."""
    name = operation.inputs[0]
    view = features.view(name)
    as_it_is = view.is_channels_last and takes_channels_last(operation)
    if not as_it_is or read_zero_point(operation, "x", view.tensor) != view.tensor.zero_point:
        view = features.map(name, "x", operation, padded=view.pad_value == view.tensor.zero_point)
    weight = centred_weights(operation, axis=0)
    if weight.ndim == 3:
        weight = weight[:, :, None, :]
    tensor = view.tensor
    shape = features.value(operation.output).shape
    height, width = ((1,) + tuple(shape[2:]))[-2:]
    group = operation.attributes.get("group", 1)
    _, *size = map_size(view.index.shape)
    size = (size[0] + view.pads[0] + view.pads[2], size[1] + view.pads[1] + view.pads[3])
    stride, dilation, pads = padding(operation, size, weight.shape[2:], (height, width))
    pads = tuple(inner + outer for inner, outer in zip(pads, view.pads))
    if tensor.channels != weight.shape[1] * group:  # channels side by side are taps of one channel
        channels = weight.shape[1]
        weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), 1, weight.shape[2], -1)
        stride, pads = (stride[0], stride[1] * channels), (pads[0], pads[1] * channels, pads[2], pads[3] * channels)
    output = features.output(operation, channels=len(weight), height=height, width=width)
    limits = _limits(operation, output.tensor)
    node = _node(operation, view, output, weight, stride=stride, dilation=dilation, pads=pads, group=group, **limits)
    return Lowered(node=node, view=output)


def lower_transposed(operation, features):
    """Lower ``ConvTranspose``; a 1-D one is one of height 1. ONNX Runtime adds up in float32, Celosia exactly."""
    view = features.map(operation.inputs[0], "x", operation, padded=False)
    shape = features.value(operation.output).shape
    height, width = ((1,) + tuple(shape[2:]))[-2:]
    fields, scale = transposed(operation, (view.tensor.height, view.tensor.width), (height, width))
    output = features.output(operation, channels=len(scale), height=height, width=width)
    bias = fields.pop("bias")
    if (np.abs(bias - np.rint(bias)) > 1e-6 * np.maximum(1, np.abs(bias))).any() or np.abs(bias).max() >= 1 << 31:
        raise Refused(
            "The bias must be quantised with the product of the scales of input and weights.",
            "Quantise it to int32 with that scale, as `celosia quantize` does.",
        )
    weight = fields.pop("weight")
    operation = replace(operation, operands=operation.operands | {"bias": np.rint(bias).astype(np.int32)})
    fields |= {"scale": checked_scale(scale.astype(np.float32)), **_limits(operation, output.tensor)}
    node = _node(operation, view, output, weight, kind=ir.ConvTranspose, **fields)
    return Lowered(node=node, view=output, note="half to even where ONNX Runtime's float32 additions decide a tie")


def transposed(operation, size, output):
    """Return the fields of an :class:`ir.ConvTranspose`, its ``bias`` real (float64), and what takes its sums to steps of the output.

    Parameters
    ----------
    size, output : tuple
        (height, width) of input and output.
    """
    operands, group = operation.operands, operation.attributes.get("group", 1)
    weight = centred_weights(operation, axis=int(operands["w_axis"]))
    if operands["w_scale"].size > 1 and operands["w_axis"] % weight.ndim != 1:
        raise Refused(
            "The weights of a transposed convolution must have one scale, or one for each output channel.",
            "Quantise them per tensor, or along axis 1.",
        )
    if weight.ndim == 3:
        weight = weight[:, :, None, :]
    weight = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
    weight = weight.reshape(-1, *weight.shape[2:])
    scales = np.resize(operands["w_scale"].astype(np.float64).reshape(-1), len(weight)) * operands["x_scale"].item()
    stride, dilation, pads = transposed_padding(operation, size, weight.shape[2:], output)
    if not ((scales > 0) & (scales < np.inf)).all():
        raise Refused("Scales must be positive and finite.")
    fields = {"weight": weight, "stride": stride, "dilation": dilation, "pads": pads, "group": group}
    fields["bias"] = np.resize(operands.get("bias", np.zeros(1)), len(weight)) / scales
    return fields, scales / operands["y_scale"].item()


def _limits(operation, tensor):
    """Return ``low`` and ``high`` of a node for the real limits of the Relu or Clip after it."""
    found = {}
    for name in {"low", "high"} & operation.operands.keys():
        steps = np.rint(np.float32(operation.operands[name].item()) / np.float32(operation.operands["y_scale"].item()))
        found[name] = int(np.clip(steps + tensor.zero_point, -128, 127))
    return found


def lower_product(operation, features):
    """Lower ``QGemm`` and ``QLinearMatMul``: the rows of the matrix are pixels, or one row is a whole feature map."""
    name = operation.inputs[0]
    view = features.rearrange(name) if features.view(name).is_padded else features.view(name)
    tensor, attributes, index = view.tensor, operation.attributes, view.index
    if attributes["x_transposed"] and index.ndim > 1:
        index = index.swapaxes(-1, -2)
    weight = _matrix(operation)
    length = weight.shape[1]
    rows = index.reshape(-1, length)
    pixels = tensor.height * tensor.width
    shape = features.value(operation.output).shape
    is_rows = rows.shape == (pixels, tensor.channels) and (rows == np.arange(tensor.elements).reshape(-1, pixels).T).all()
    if len(rows) == 1 and length == tensor.elements == len(np.unique(rows)):
        kernel = np.zeros((len(weight), length), weight.dtype)
        kernel[:, rows[0]] = weight
        kernel = kernel.reshape(len(weight), tensor.channels, tensor.height, tensor.width)
        output = features.output(operation, channels=len(weight), height=1, width=1)
    elif is_rows and (tensor.width == 1 or attributes["swapped"]):
        kernel = weight[:, :, None, None]
        size = {"channels": len(weight), "height": tensor.height, "width": tensor.width}
        made = features.tensor(operation.output, **size, matrix=not attributes["swapped"])
        order = np.arange(made.elements).reshape(len(weight), -1, shape[-1] if attributes["swapped"] else 1)
        order = order.swapaxes(0, 1) if attributes["swapped"] else order.transpose(1, 0, 2)
        output = View(tensor=made, index=order.reshape(shape))
    elif attributes["x_transposed"] or features.value(name).shape[-1] != length:
        raise Refused("The engine multiplies the channels of each pixel, or a whole map; this input is neither.")
    else:
        features.rearrange(name, matrix=True)
        return lower_product(operation, features)
    return Lowered(node=_node(operation, view, output, kernel, **_limits(operation, output.tensor)), view=output)


def _matrix(operation):
    """Return the weights ``[out, in]`` of a matrix product, less their zero point."""
    weight, transposed = operation.operands["w"], operation.attributes["w_transposed"]
    if weight.size != np.prod(weight.shape[-2:]):
        raise Refused(
            "The constant matrix must be the same for all of a batch.", "Split the product into one MatMul for each matrix."
        )
    if weight.ndim == 1:  # a row, or a column if it comes second
        transposed = True
    weight = centred_weights(operation, axis=-2 if transposed else -1).reshape(weight.shape[-2:])
    return np.atleast_2d(weight) if transposed else weight.T


def _bias(operation, channels):
    """Return the int32 bias of each output channel."""
    bias = operation.operands.get("bias")
    if bias is None:
        return np.zeros(channels, np.int32)
    if bias.ndim > 1 and operation.attributes.get("swapped"):
        bias = np.broadcast_to(bias, (channels, bias.shape[1])).T
    if bias.ndim > 1:
        if (bias != bias[:1]).any():
            raise Refused("The bias must be the same for every row.", "Add it with an Add of its own.")
        bias = bias[0]
    elif operation.attributes.get("swapped") and bias.size > 1:
        raise Refused("The bias must be the same for every row.", "Add it with an Add of its own.")
    return np.broadcast_to(bias.reshape(-1), (channels,)).astype(np.int32)


_COMMON = (weights_are_constant, bias_is_constant, weights_are_8_bit, quantised_per_tensor, output_is_8_bit)

FAMILIES = (
    Family(
        name="Convolution",
        operators=("Conv", "QLinearConv"),
        forms=("QLinearConv",),
        constraints=(*_COMMON, kernel_is_flat, first_dimension_is_one),
        lower=lower_convolution,
    ),
    Family(
        name="Transposed convolution",
        operators=("ConvTranspose",),
        forms=("FloatConvTranspose",),
        constraints=(weights_are_8_bit, quantised_per_tensor, kernel_is_flat, first_dimension_is_one),
        lower=lower_transposed,
    ),
    Family(
        name="Matrix product with constant weights",
        operators=("Gemm", "MatMul", "QLinearMatMul", "QGemm"),
        forms=("QGemm", "QLinearMatMul"),
        constraints=_COMMON,
        lower=lower_product,
    ),
)
