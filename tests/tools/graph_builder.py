"""Builds small quantised ONNX graphs, operator by operator, with scales that fit the values.

The builder carries real sample values along: each operator is evaluated in float by ONNX Runtime on the samples, and the
output's scale is chosen from what comes out, so that graphs neither saturate nor die away. Every operator exists in the QDQ form
and in the QOperator form.
"""

from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
MICROSOFT = "com.microsoft"


@dataclass(frozen=True, eq=False)
class Value:
    """A quantised tensor of the graph: its name, its scale and zero point by name and value, and its real sample values."""

    name: str
    parameters: tuple  # names of scale and zero point
    scale: np.float32
    zero_point: int
    sample: np.ndarray  # float32 [samples, ...]

    @property
    def shape(self):
        return (1, *self.sample.shape[1:])


class Builder:
    """Collects the nodes of one graph.

    Parameters
    ----------
    form : str
        ``"qdq"`` or ``"qoperator"``.
    unsigned : bool
        Activations are uint8 instead of int8; weights are int8 in any case.
    """

    def __init__(self, *, form, unsigned):
        self.form, self.unsigned = form, unsigned
        self.nodes, self.constants, self.inputs, self.outputs = [], {}, [], []
        self.samples = {}  # graph input → integer samples

    # Names and constants ---------------------------------------------------------------------------------------------

    @property
    def dtype(self):
        return np.uint8 if self.unsigned else np.int8

    @property
    def limits(self):
        return (0, 255) if self.unsigned else (-128, 127)

    def fresh(self, stem):
        return f"{stem}_{len(self.nodes) + len(self.constants)}"

    def constant(self, stem, value):
        name = self.fresh(stem)
        self.constants[name] = np.asarray(value)
        return name

    def node(self, operator, inputs, *, domain="", **attributes):
        name = self.fresh(operator)
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, domain=domain, **attributes))
        return f"{name}_out"

    # Quantisation ----------------------------------------------------------------------------------------------------

    def choose(self, rng, values):
        """Return a scale and a zero point for real ``values``: a zero point at either end or between, scales sometimes powers of two."""
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        spread = max(high - low, 1e-3)
        first, last = self.limits
        places = ["between", "between"]
        if high > 0.1 * spread:
            places.append("first")
        if low < -0.1 * spread:
            places.append("last")
        place = rng.choice(places)
        if place == "first":
            zero_point, scale = first, high / 255
        elif place == "last":
            zero_point, scale = last, -low / 255
        else:
            scale = spread / 255
            zero_point = int(np.clip(round(first - low / scale), first, last))
        scale *= rng.uniform(0.6, 1.3)
        if rng.random() < 0.25:
            scale = 2.0 ** round(np.log2(scale))
        return np.float32(scale), zero_point

    def value(self, name, real, scale, zero_point, parameters=None):
        """Return the :class:`Value` ``name``; ``real`` is rounded to what the quantised tensor can hold."""
        parameters = parameters or (self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point)))
        # A max-pooling window wholly in the padding gives the lowest float.
        integers = np.clip(np.rint(np.clip(real, -1e30, 1e30) / scale) + zero_point, *self.limits)
        return Value(name, parameters, scale, zero_point, ((integers - zero_point) * scale).astype(np.float32))

    def quantise(self, rng, name, real, like=None):
        """QuantizeLinear the float tensor ``name``; with ``like``, at that value's scale."""
        scale, zero_point = (like.scale, like.zero_point) if like else self.choose(rng, real)
        parameters = (
            like.parameters if like else (self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point)))
        )
        return self.value(self.node("QuantizeLinear", [name, *parameters]), real, scale, zero_point, parameters)

    def dequantise(self, value):
        return self.node("DequantizeLinear", [value.name, *value.parameters])

    def input(self, rng, shape, *, count, real=False):
        """Add a graph input of one inference's ``shape``; ``real`` makes it float with a QuantizeLinear behind it."""
        name = f"input{len(self.inputs)}"
        kind = TensorProto.FLOAT if real else (TensorProto.UINT8 if self.unsigned else TensorProto.INT8)
        self.inputs.append(helper.make_tensor_value_info(name, kind, [1, *shape]))
        sample = rng.normal(0, 1, (count, *shape)).astype(np.float32)
        scale, zero_point = self.choose(rng, sample)
        if real:
            self.samples[name] = sample
            parameters = (self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point)))
            return self.value(self.node("QuantizeLinear", [name, *parameters]), sample, scale, zero_point, parameters)
        integers = np.clip(np.rint(sample / scale) + zero_point, *self.limits).astype(self.dtype)
        # One sample with every value equally likely: it reaches both ends.
        integers[-1] = rng.integers(self.limits[0], self.limits[1] + 1, shape)
        self.samples[name] = integers
        return self.value(name, (integers.astype(np.float32) - zero_point) * scale, scale, zero_point)

    def output(self, value, *, real=False, softmax=False):
        name, kind = value.name, TensorProto.UINT8 if self.unsigned else TensorProto.INT8
        if real:
            name, kind = self.dequantise(value), TensorProto.FLOAT
            if softmax:
                name = self.node("Softmax", [name], axis=-1)
        self.outputs.append(helper.make_tensor_value_info(name, kind, list(value.shape)))

    # Operators -------------------------------------------------------------------------------------------------------

    def weights(self, rng, shape, axis, value, *, per_channel):
        """Add int8 weights with their scales along ``axis``, and the int32 bias scale; return names and the real weights."""
        channels = shape[axis]
        fan_in = np.prod(shape) / channels
        spread = 2.0 ** rng.uniform(-4, 0, channels if per_channel else 1)
        real = rng.normal(0, 1 / np.sqrt(fan_in), shape) * np.moveaxis(
            np.broadcast_to(spread, (*[1] * (len(shape) - 1), channels)), -1, axis
        )
        extent = np.abs(real).max(tuple(a for a in range(len(shape)) if a != axis)) if per_channel else np.abs(real).max()
        scale = np.asarray(np.maximum(extent, 1e-4) / 127, np.float32)
        expanded = np.moveaxis(np.broadcast_to(scale, (*[1] * (len(shape) - 1), channels)), -1, axis)
        integers = np.clip(np.rint(real / expanded), -127, 127).astype(np.int8)
        if rng.random() < 0.3:
            integers[tuple(rng.integers(0, size) for size in shape)] = -128
        names = [self.constant(f"weight_{stem}", array) for stem, array in (("q", integers), ("scale", scale))]
        names.append(self.constant("weight_zero", np.zeros_like(scale, np.int8)))
        return names, (integers * expanded).astype(np.float32), np.asarray(np.float32(value.scale) * scale, np.float32)

    def bias(self, rng, scale, channels):
        integers = np.rint(rng.normal(0, 0.3, channels) / scale).clip(-(2**28), 2**28).astype(np.int32)
        return integers, (integers * scale).astype(np.float32)

    def weighted(self, rng, operator, value, weight_shape, axis, *, per_channel, bias, relu=None, attributes):
        """Conv, Gemm or MatMul with constant weights."""
        names, real, bias_scale = self.weights(rng, weight_shape, axis, value, per_channel=per_channel)
        integers, real_bias = self.bias(rng, bias_scale, weight_shape[axis]) if bias else (None, None)
        y = evaluate(operator, [value.sample, real] + ([real_bias] if bias else []), attributes)
        scale, zero_point = self.choose(rng, activate(y, relu) if self.form == "qdq" else y)
        if self.form == "qoperator":
            out = self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point))
            extra = [self.constant("bias", integers)] if bias else []
            if operator == "Gemm":
                inputs = [value.name, *value.parameters, *names, extra[0] if bias else "", *out]
                name = self.node("QGemm", inputs, domain=MICROSOFT, alpha=1.0, **attributes)
            else:
                name = self.node(f"QLinear{operator}", [value.name, *value.parameters, *names, *out, *extra], **attributes)
            return self.value(name, y, scale, zero_point, out)
        options = {"axis": axis} if per_channel else {}
        inputs = [self.dequantise(value), self.node("DequantizeLinear", names, **options)]
        if bias:
            parts = [self.constant("bias", integers), self.constant("bias_scale", bias_scale)]
            parts.append(self.constant("bias_zero", np.zeros_like(bias_scale, np.int32)))
            inputs.append(self.node("DequantizeLinear", parts, **({"axis": 0} if per_channel else {})))
        name = self.activation(self.node(operator, inputs, **attributes), relu)
        return self.requantise(name, activate(y, relu), scale, zero_point)

    def activation(self, name, relu):
        if relu is None:
            return name
        if relu == "relu":
            return self.node("Relu", [name])
        return self.node("Clip", [name, *(self.constant("limit", np.float32(limit)) for limit in relu)])

    def requantise(self, name, real, scale, zero_point):
        parameters = self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point))
        return self.value(self.node("QuantizeLinear", [name, *parameters]), real, scale, zero_point, parameters)

    def plain(self, rng, operator, value, *, inputs=(), attributes=None, rescale=False):
        """An operator that keeps the quantisation: on integers in QOperator form, between DQ and Q in QDQ form (``rescale``: a new scale)."""
        attributes = attributes or {}
        y = evaluate(operator, [value.sample, *(self.constants[name] for name in inputs)], attributes)
        if self.form == "qoperator":
            return self.value(
                self.node(operator, [value.name, *inputs], **attributes), y, value.scale, value.zero_point, value.parameters
            )
        return self.quantise(
            rng, self.node(operator, [self.dequantise(value), *inputs], **attributes), y, None if rescale else value
        )

    def pooled(self, rng, operator, value, attributes, *, same_scale=False):
        """AveragePool or GlobalAveragePool."""
        y = evaluate(operator, [value.sample], attributes)
        scale, zero_point = (value.scale, value.zero_point) if same_scale else self.choose(rng, y)
        if self.form == "qoperator":
            out = self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point))
            inputs = [value.name, *value.parameters, *out]
            name = self.node(f"QLinear{operator}", inputs, domain=MICROSOFT, channels_last=0, **attributes)
            return self.value(name, y, scale, zero_point, out)
        return self.requantise(self.node(operator, [self.dequantise(value)], **attributes), y, scale, zero_point)

    def add(self, rng, left, right, *, relu=None):
        y = left.sample + right.sample
        scale, zero_point = self.choose(rng, activate(y, relu) if self.form == "qdq" else y)
        if self.form == "qoperator":
            out = self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point))
            inputs = [left.name, *left.parameters, right.name, *right.parameters, *out]
            return self.value(self.node("QLinearAdd", inputs, domain=MICROSOFT), y, scale, zero_point, out)
        name = self.node("Add", [self.dequantise(left), self.dequantise(right)])
        return self.requantise(self.activation(name, relu), activate(y, relu), scale, zero_point)

    # The whole -------------------------------------------------------------------------------------------------------

    def model(self, name):
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs,
            [numpy_helper.from_array(array, key) for key, array in self.constants.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="celosia")


def activate(values, relu):
    if relu is None:
        return values
    return np.maximum(values, 0) if relu == "relu" else np.clip(values, *relu)


def evaluate(operator, arrays, attributes):
    """Run one float operator in ONNX Runtime and return its output."""
    names = [f"x{index}" for index in range(len(arrays))]
    types = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **attributes)], operator,
        [helper.make_tensor_value_info(name, kind, array.shape) for name, kind, array in zip(names, types, arrays)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, arrays)))[0]
