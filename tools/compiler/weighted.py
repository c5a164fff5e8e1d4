"""Finds weighted operators that ONNX Runtime computes in float32 between DequantizeLinear and QuantizeLinear.

``QuantizeLinear(Relu or Clip(ConvTranspose(DequantizeLinear(x), DequantizeLinear(w), bias)))`` is one operation in integers, with or without
the Relu or Clip: they commute with the rounding of QuantizeLinear and limit the quantised result.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from celosia.tools.compiler.graph import Operation

__all__ = ["find"]

FORMS = {"ConvTranspose": "FloatConvTranspose"}
"""Operators, and the form they take."""


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
        Operands as those of ``QLinearConv``, but ``bias`` is real (float64) and ``w_axis`` the axis of the weights' scales; ``low`` and
        ``high`` are the real limits of the Relu or Clip.
    """
    clip = producers.get(quantize.input[0])
    main, limits = clip, {}
    if clip is not None and clip.op_type in ("Relu", "Clip"):
        main = producers.get(clip.input[0])
        bounds = ["", *clip.input[1:]] if clip.op_type == "Clip" else []
        limits = {name: bound for name, bound in zip(("", "low", "high"), bounds) if bound}
    if main is None or main.op_type not in FORMS:
        return None
    dequantize = [producers.get(name) for name in main.input]
    x, w, b = (*dequantize, None)[:3]
    if any(node is None or node.op_type != "DequantizeLinear" for node in (x, w)) or x.input[0] in constants:
        return None
    bias = main.input[2:3] if b is None else b.input
    if b is not None and b.op_type != "DequantizeLinear":
        return None
    if any(name not in constants for name in (*x.input[1:], *w.input, *bias, *quantize.input[1:], *limits.values())):
        return None
    arrays = {name: numpy_helper.to_array(constants[name]) for name in (*x.input[1:], *w.input, *bias, *quantize.input[1:])}
    operands = {"w": arrays[w.input[0]], "w_axis": np.int64(_axis(w))}
    for prefix, node in (("x", x), ("w", w), ("y", quantize)):
        operands |= {f"{prefix}_{part}": arrays[name] for part, name in zip(("scale", "zero_point"), node.input[1:])}
    if bias:
        values = [arrays[name].astype(np.float64) for name in bias]
        operands["bias"] = values[0] if b is None else (values[0] - sum(values[2:])) * values[1]
    operands |= {key: numpy_helper.to_array(constants[name]) for key, name in limits.items()}
    if clip.op_type == "Relu":
        operands["low"] = np.float32(0)
    nodes = [node for node in (x, w, b, main, clip if clip is not main else None, quantize) if node is not None]
    return Operation(
        name=main.name,
        operator=main.op_type,
        form=FORMS[main.op_type],
        inputs=(x.input[0],),
        outputs=(quantize.output[0],),
        operands=operands,
        attributes={attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in main.attribute},
        nodes=tuple(nodes),
    )


def _axis(dequantize):
    return next((attribute.i for attribute in dequantize.attribute if attribute.name == "axis"), 1)
