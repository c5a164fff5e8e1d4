"""Finds weighted operators that ONNX Runtime computes in float32 between DequantizeLinear and QuantizeLinear.

``QuantizeLinear(Relu or Clip(Conv(DequantizeLinear(x), DequantizeLinear(w), bias)))`` is one operation in integers, with or without the Relu
or Clip: they commute with the rounding of QuantizeLinear and limit the quantised result. The same goes for Gemm and MatMul, but only if
no float32 operation on the way rounds (:func:`is_exact`), which takes scales that are powers of two; and for ConvTranspose, of which ONNX
Runtime has no integer form, in any case.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from celosia.sim.numerics import channel_params, requantize
from celosia.tools.compiler.graph import Operation

__all__ = ["find", "is_exact"]

FORMS = {
    "Conv": "QLinearConv", "FusedConv": "QLinearConv", "FusedGemm": "QGemm", "Gemm": "QGemm", "MatMul": "QLinearMatMul",
    "ConvTranspose": "FloatConvTranspose",
}  # fmt: skip
"""Operators, and the form they take."""

EXACT = 1 << 24
"""Integers up to this one float32 holds exactly."""

MOST_CASES = 1 << 22


def find(quantize, producers, constants):
    """Return the :class:`Operation` that ends with the node ``quantize``, or None.

    Parameters
    ----------
    quantize : onnx.NodeProto
    producers : dict of value name to onnx.NodeProto
    constants : dict of name to onnx.TensorProto

    Returns
    -------
    Operation or None
        Operands as those of ``QLinearConv``. For ConvTranspose ``bias`` is real (float64) and ``w_axis`` the axis of the weights' scales.
        ``low`` and ``high`` are the real limits of the Relu or Clip.
    """
    clip = producers.get(quantize.input[0])
    main, limits = clip, {}
    if clip is not None and clip.op_type in ("Relu", "Clip"):
        main = producers.get(clip.input[0])
        limits = {name: bound for name, bound in zip(("low", "high"), clip.input[1:]) if bound}
    if main is None or main.op_type not in FORMS or not 2 <= len(main.input) <= 3:
        return None
    x, w, b = (*(producers.get(name) for name in main.input), None)[:3]
    if any(node is None or node.op_type != "DequantizeLinear" for node in (x, w)) or x.input[0] in constants:
        return None
    if b is not None and b.op_type != "DequantizeLinear":
        return None
    bias = main.input[2:] if b is None else b.input
    if any(name not in constants for name in (*x.input[1:], *w.input, *bias, *quantize.input[1:], *limits.values())):
        return None
    arrays = {name: numpy_helper.to_array(constants[name]) for name in (*x.input[1:], *w.input, *bias, *quantize.input[1:])}
    operands = {"w": arrays[w.input[0]], "w_axis": np.int64(_attributes(w).get("axis", 1))}
    for prefix, node in (("x", x), ("w", w), ("y", quantize)):
        operands |= {f"{prefix}_{part}": arrays[name] for part, name in zip(("scale", "zero_point"), node.input[1:])}
    if bias:
        values = [arrays[name].astype(np.float64) for name in bias]
        operands["bias"] = values[0] if b is None else (values[0] - sum(values[2:])) * values[1]
    operands |= {key: numpy_helper.to_array(constants[name]) for key, name in limits.items()}
    operands |= {"low": np.float32(0)} if clip.op_type == "Relu" else {}
    attributes = _attributes(main)
    if main.op_type != "ConvTranspose":
        operands = _integers(main.op_type, operands, attributes)
        if operands is None:
            return None
    return Operation(
        name=main.name,
        operator=main.op_type.removeprefix("Fused"),
        form=FORMS[main.op_type],
        inputs=(x.input[0],),
        outputs=(quantize.output[0],),
        operands=operands,
        attributes=attributes,
        nodes=tuple(node for node in (x, w, b, main, clip if clip is not main else None, quantize) if node is not None),
    )


def _attributes(node):
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _integers(operator, operands, attributes):
    """Return the operands with an integer ``bias`` and the limits of a fused activation, or None if float32 rounds somewhere."""
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    if operator.startswith("Fused"):
        activation, bounds = attributes.get("activation", b"").decode(), attributes.get("activation_params", [])
        if operands.keys() & {"low", "high"} or activation not in ("Relu", "Clip"):
            return None
        operands = operands | dict(zip(("low", "high"), [0.0] if activation == "Relu" else bounds))
        operands |= {name: np.float32(operands[name]) for name in ("low", "high") if name in operands}
    weight = operands["w"].astype(np.int64)
    axis = 0 if "Conv" in operator or attributes.get("transB", 0) else weight.ndim - 1
    per_channel = [size for size in (operands["w_scale"].size, operands.get("w_zero_point", np.zeros(1)).size) if size > 1]
    if per_channel and operands["w_axis"] % weight.ndim != axis:
        return None
    zero_point = operands.get("w_zero_point", np.int8(0)).astype(np.int64)
    shape = [1] * weight.ndim
    shape[axis] = -1
    weight = np.moveaxis(weight - zero_point.reshape(shape), axis, 0)
    unit = operands["x_scale"].astype(np.float64).reshape(-1) * operands["w_scale"].astype(np.float64).reshape(-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # of scales of zero nothing is exact
        bias = operands.get("bias", np.zeros(1)) / unit
    if operands["x_scale"].size > 1 or operands["y_scale"].size > 1 or not is_exact(operands, weight, bias, unit):
        return None
    return operands | ({"bias": bias.astype(np.int32)} if "bias" in operands else {})


def is_exact(operands, weight, bias, unit):
    """Whether float32 rounds nothing before the final division, and that division and rounding is the requantiser's.

    Parameters
    ----------
    operands : dict
        Scales and zero points.
    weight : int64 ``[out, …]``
        Less the zero point.
    bias : float64
        In steps of the sum.
    unit : float64
        The product of the scales of input and weights, for all or for each output channel.
    """
    scales = np.concatenate([np.asarray(operands[name], np.float64).reshape(-1) for name in ("x_scale", "w_scale")])
    if (np.frexp(scales)[0] != 0.5).any() or (bias != np.rint(bias)).any():
        return False
    zero_point = np.asarray(operands.get("x_zero_point", np.uint8(0)))
    low, high = np.iinfo(zero_point.dtype).min, np.iinfo(zero_point.dtype).max
    reach = max(int(zero_point) - low, high - int(zero_point))
    bound = np.abs(weight.reshape(len(weight), -1)).sum(1).max() * reach + np.abs(bias).max()
    return bound < EXACT and all(_divides_alike(one, operands["y_scale"].item(), int(bound)) for one in np.unique(unit))


def _divides_alike(unit, y_scale, bound):
    """Whether ``rint(f32(sum * unit) / y_scale)`` is what the requantiser makes of every sum up to ``bound`` that does not saturate."""
    if not 0 < y_scale < np.inf or not unit / y_scale < 1 << 24:  # no requantiser has such a scale
        return False
    if np.frexp(y_scale)[0] == 0.5:
        return True
    reach = min(bound, int(300 * y_scale / unit) + 1)
    if reach > MOST_CASES:
        return False
    total = np.arange(reach + 1)
    theirs = np.rint((total * unit).astype(np.float32) / np.float32(y_scale))
    ours = [requantize(total, 0, *channel_params(np.float32(unit / y_scale)), zero) for zero in (-128, 127)]
    return all((one == np.clip(theirs + zero, -128, 127)).all() for one, zero in zip(ours, (-128, 127)))
