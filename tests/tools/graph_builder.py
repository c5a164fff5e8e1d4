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

    def weights(self, rng, shape, axis, value, *, per_channel, unsigned=False):
        """Add weights with their scales along ``axis``, and the int32 bias scale; return names and the real weights.

        They are int8 with a zero point of 0, or with ``unsigned`` uint8 with any zero point.
        """
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
        zero = np.zeros_like(scale, np.int8)
        if unsigned:
            zero = np.full_like(scale, rng.choice([0, 255, 127, 128, int(rng.integers(256))]), np.uint8)
            integers = np.clip(integers.astype(int) + int(zero.flat[0]), 0, 255).astype(np.uint8)
        names = [self.constant(f"weight_{stem}", array) for stem, array in (("q", integers), ("scale", scale), ("zero", zero))]
        integers = integers.astype(int) - int(zero.flat[0])
        return names, (integers * expanded).astype(np.float32), np.asarray(np.float32(value.scale) * scale, np.float32)

    def bias(self, rng, scale, channels):
        integers = np.rint(rng.normal(0, 0.3, channels) / scale).clip(-(2**28), 2**28).astype(np.int32)
        return integers, (integers * scale).astype(np.float32)

    def weighted(
        self, rng, operator, value, weight_shape, axis, *, per_channel, bias, relu=None, attributes, unsigned_weights=False
    ):
        """Conv, Gemm or MatMul with constant weights; uint8 ones only where ONNX Runtime multiplies them with uint8 activations."""
        unsigned = unsigned_weights and self.unsigned
        names, real, bias_scale = self.weights(rng, weight_shape, axis, value, per_channel=per_channel, unsigned=unsigned)
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

    def sandwich(self, rng, operator, values, *, constants=(), attributes=None, like=None):
        """Any float operator between DequantizeLinear and QuantizeLinear, with float or integer ``constants`` as further inputs."""
        attributes = attributes or {}
        names = ["" if array is None else self.constant("constant", array) for array in constants]
        arrays = [value.sample for value in values] + [
            np.zeros(0, np.float32) if array is None else np.asarray(array) for array in constants
        ]
        if operator in ("Reshape", "Expand"):  # all samples at once
            arrays[1] = np.array([len(arrays[0]), *arrays[1][1:]], np.int64)
        y = evaluate(operator, arrays, attributes)
        name = self.node(operator, [*(self.dequantise(value) for value in values), *names], **attributes)
        return self.quantise(rng, name, y, like)

    def pattern(self, rng, value, make, real):
        """Several float operators of one tensor: ``make(name) -> name`` adds them, ``real`` computes them."""
        return self.quantise(rng, make(self.dequantise(value)), real(value.sample).astype(np.float32))

    def with_constant(self, rng, operator, value, constant):
        """A binary operator of a tensor and a quantised or plain float constant."""
        constant = np.asarray(constant)
        y = evaluate(operator, [value.sample, constant], {})
        if rng.random() < 0.5:
            name = self.constant("constant", constant)
        else:
            scale = np.float32(max(np.abs(constant).max(), 1e-3) / 127)
            integers = np.asarray(np.rint(constant / scale).astype(np.int8))
            y = evaluate(operator, [value.sample, np.asarray(integers * scale, np.float32)], {})
            parts = [self.constant("constant", integers), self.constant("scale", scale), self.constant("zero", np.int8(0))]
            name = self.node("DequantizeLinear", parts)
        return self.quantise(rng, self.node(operator, [self.dequantise(value), name]), y)

    def quantised_binary(self, rng, operator, left, right, y):
        scale, zero_point = self.choose(rng, y)
        out = self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point))
        inputs = [left.name, *left.parameters, right.name, *right.parameters, *out]
        return self.value(self.node(operator, inputs, domain=MICROSOFT), y, scale, zero_point, out)

    def multiplied(self, rng, left, right):
        """MatMul of two computed tensors."""
        y = evaluate("MatMul", [left.sample, right.sample], {})
        if self.form == "qdq":
            return self.quantise(rng, self.node("MatMul", [self.dequantise(left), self.dequantise(right)]), y)
        scale, zero_point = self.choose(rng, y)
        out = self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point))
        inputs = [left.name, *left.parameters, right.name, *right.parameters, *out]
        return self.value(self.node("QLinearMatMul", inputs), y, scale, zero_point, out)

    def transposed_convolution(self, rng, value, shape, attributes, *, bias):
        """ConvTranspose in QDQ form; ``shape`` of the weights is [in, out / group, …]."""
        names, real, _ = self.weights(rng, shape, 0, value, per_channel=False)
        inputs, arrays = [self.dequantise(value), self.node("DequantizeLinear", names)], [value.sample, real]
        if bias:
            offset = rng.normal(0, 0.3, shape[1] * attributes["group"]).astype(np.float32)
            inputs.append(self.constant("bias", offset))
            arrays.append(offset)
        return self.quantise(
            rng, self.node("ConvTranspose", inputs, **attributes), evaluate("ConvTranspose", arrays, attributes)
        )

    def split(self, name, axis, sizes):
        parts = self.constant("sizes", np.array(sizes, np.int64))
        node = self.node("Split", [name, parts], axis=axis)
        self.nodes[-1].output.append(f"{node}_rest")
        return node, f"{node}_rest"

    @staticmethod
    def same_parameters(left, right):
        return left.scale == right.scale and left.zero_point == right.zero_point

    def add(self, rng, left, right, *, relu=None):
        y = left.sample + right.sample
        scale, zero_point = self.choose(rng, activate(y, relu) if self.form == "qdq" else y)
        if self.form == "qoperator":
            out = self.constant("scale", scale), self.constant("zero_point", self.dtype(zero_point))
            inputs = [left.name, *left.parameters, right.name, *right.parameters, *out]
            return self.value(self.node("QLinearAdd", inputs, domain=MICROSOFT), y, scale, zero_point, out)
        name = self.node("Add", [self.dequantise(left), self.dequantise(right)])
        return self.requantise(self.activation(name, relu), activate(y, relu), scale, zero_point)

    # Taking back -----------------------------------------------------------------------------------------------------

    def mark(self):
        return len(self.nodes), len(self.constants), len(self.inputs)

    def rollback(self, mark):
        """Forget the nodes, constants and graph inputs that were added since ``mark``."""
        nodes, constants, inputs = mark
        del self.nodes[nodes:]
        for name in list(self.constants)[constants:]:
            del self.constants[name]
        for value in self.inputs[inputs:]:
            del self.samples[value.name]
        del self.inputs[inputs:]

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
