"""Builds quantised networks layer by layer, with random weights and scales that fit the values without running anything.

Weights are normally distributed int8 numbers. Every tensor carries mean and variance of its real values, as they follow from the layers in front
of it for random weights: a sum of ``n`` products of weights ``q`` of mean zero with values of second moment ``m`` has the variance
``m · Σ q²``. The scale of each output channel's weights is chosen so that this variance is one, and the scale of the result so that a few
standard deviations use the range of int8: no layer saturates, and none dies away, however deep the network.

Graphs have the form that TensorFlow Lite's int8 networks take in ONNX: QDQ, int8 activations with zero points, symmetric weights with
a scale for each output channel of a convolution and one for all of a fully connected layer, int32 biases.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Builder", "Value"]

REACH = 4.0
"""Standard deviations that the range of a tensor holds to either side of its mean."""

RELU6 = 6.0
SIX = 2.0
"""Standard deviation in front of a ReLU6, so that some values reach its upper end."""


@dataclass(frozen=True, eq=False)
class Value:
    """A quantised tensor: ``[channels, height, width]`` or ``[rows, columns]`` or ``[features]`` without the batch, and the moments of its real values."""

    name: str
    shape: tuple
    scale: np.float32
    zero_point: int
    mean: float
    variance: float

    @property
    def moment(self):
        """The mean of the squares."""
        return self.mean**2 + self.variance


class Builder:
    """Collects the nodes of one network; each method adds a layer and returns its :class:`Value`.

    Parameters
    ----------
    name : str
        Of the graph.
    seed : int
        Of the weights.

    Members
    -------
    macs : int
        Multiply-accumulates of all convolutions and products so far, taps in the padding included, as they are published.
    """

    def __init__(self, name, seed=0):
        self.name = name
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.inputs, self.outputs = [], {}, [], []
        self.macs = 0

    # Layers -----------------------------------------------------------------------------------------------------------

    def input(self, *shape, symmetric=False):
        """Add a graph input: an image in 0…1, or with ``symmetric`` features in −1…1; every value equally likely."""
        scale, zero_point = (np.float32(2 / 255), 0) if symmetric else (np.float32(1 / 255), -128)
        value = self._value("input", shape, scale, zero_point, 0.0 if symmetric else 0.5, (255 * scale) ** 2 / 12)
        self.inputs.append(helper.make_tensor_value_info(value.name, TensorProto.INT8, [1, *shape]))
        return value

    def conv(self, x, channels, kernel, *, stride=1, padding="same", group=1, activation=None):
        """Add a convolution with bias.

        Parameters
        ----------
        x : Value
        channels : int
            Of the result.
        kernel, stride : int or (height, width)
        padding : str, int or 4 ints
            ``"same"`` as TensorFlow does, more of it at the bottom and right; a number for all sides; or (top, left, bottom, right).
        group : int
        activation : None, "relu" or "relu6"
        """
        kernel, stride = _pair(kernel), _pair(stride)
        pads, size = _geometry(x.shape[1:], kernel, stride, padding)
        shape = (channels, x.shape[0] // group, *kernel)
        real, deviation = self._weighted(x, shape, 0, activation, per_channel=True)
        attributes = {"kernel_shape": kernel, "strides": stride, "pads": pads, "group": group, "dilations": (1, 1)}
        self.macs += int(np.prod(shape)) * size[0] * size[1]
        return self._finish("Conv", real, (channels, *size), 0.0, deviation**2, activation, **attributes)

    def dense(self, x, features, *, activation=None):
        """Add a fully connected layer with bias; of a matrix, a product with constant weights, without one."""
        matrix = len(x.shape) > 1
        shape = (x.shape[-1], features) if matrix else (features, x.shape[-1])
        real, deviation = self._weighted(x, shape, int(matrix), activation, per_channel=False)
        self.macs += int(np.prod(x.shape)) * features
        attributes = {} if matrix else {"transB": 1}
        result = (*x.shape[:-1], features)
        return self._finish("MatMul" if matrix else "Gemm", real, result, 0.0, deviation**2, activation, **attributes)

    def add(self, left, right, *, activation=None):
        """Add two tensors, taken as independent."""
        real = [self._real(left), self._real(right)]
        mean, variance = left.mean + right.mean, left.variance + right.variance
        return self._finish("Add", real, left.shape, mean, variance, activation)

    def max_pool(self, x, kernel, *, stride, padding):
        """Add a max pooling; scale and zero point stay."""
        pads, size = _geometry(x.shape[1:], _pair(kernel), _pair(stride), padding)
        attributes = {"kernel_shape": _pair(kernel), "strides": _pair(stride), "pads": pads}
        return self._keep("MaxPool", x, (x.shape[0], *size), [], **attributes)

    def global_average(self, x):
        """Add a global average pooling and take the channels as features; scale and zero point stay."""
        pooled = self._keep("GlobalAveragePool", x, (x.shape[0], 1, 1), [])
        return self._keep("Reshape", pooled, (x.shape[0],), [self._constant("shape", np.array([1, x.shape[0]], np.int64))])

    def output(self, x):
        """Make ``x`` a graph output."""
        self.outputs.append(helper.make_tensor_value_info(x.name, TensorProto.INT8, [1, *x.shape]))

    # The whole --------------------------------------------------------------------------------------------------------

    def model(self):
        """Return the :class:`onnx.ModelProto`."""
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="celosia")

    def feed(self, count=1, seed=0):
        """Return int8 inputs ``[count, …]`` by name, every value equally likely."""
        rng = np.random.default_rng(seed)
        shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]] for value in self.inputs}
        return {name: rng.integers(-128, 128, (count, *shape)).astype(np.int8) for name, shape in shapes.items()}

    # Parts ------------------------------------------------------------------------------------------------------------

    def _weighted(self, x, shape, axis, activation, *, per_channel):
        """Add weights and bias; return the names of the real operands and the standard deviation of the result."""
        others = tuple(place for place in range(len(shape)) if place != axis)
        weight = np.clip(np.rint(self.rng.normal(0, 40, shape)), -127, 127)
        fan_in = weight.size // weight.shape[axis]
        if fan_in > 64:  # without a constant part of the input, so that deep networks keep differing from pixel to pixel
            weight = np.clip(np.rint(weight - weight.mean(others, keepdims=True)), -127, 127)
        moment = x.variance if fan_in > 64 else x.moment
        squares = (weight**2).sum(others)
        squares = np.maximum(squares if per_channel else squares.mean(), 1)
        deviation = SIX if activation == "relu6" else 1.0
        scale = np.asarray(deviation / np.sqrt(squares * moment), np.float32)
        names = [self._constant("weight", weight.astype(np.int8)), self._constant("weight_scale", scale)]
        names.append(self._constant("weight_zero", np.zeros_like(scale, np.int8)))
        options = {"axis": axis} if per_channel else {}
        real = [self._real(x), self._node("DequantizeLinear", names, **options)]
        if len(x.shape) == 2:
            return real, deviation
        scale = np.asarray(x.scale * scale, np.float32)
        bias = np.rint(self.rng.normal(0, 0.1 * deviation, shape[axis]) / scale).astype(np.int32)
        names = [self._constant("bias", bias), self._constant("bias_scale", scale)]
        names.append(self._constant("bias_zero", np.zeros_like(scale, np.int32)))
        return [*real, self._node("DequantizeLinear", names, **({"axis": 0} if per_channel else {}))], deviation

    def _finish(self, operator, real, shape, mean, variance, activation, **attributes):
        """Add the operator, its activation and QuantizeLinear; ``mean`` and ``variance`` are those in front of the activation."""
        name = self._node(operator, real, **attributes)
        deviation = np.sqrt(variance)
        low, high = mean - REACH * deviation * self.rng.uniform(0.9, 1.1), mean + REACH * deviation * self.rng.uniform(0.9, 1.1)
        if activation:
            low, high = 0.0, RELU6 if activation == "relu6" else high
            limits = [] if activation == "relu" else [self._constant("limit", np.float32(limit)) for limit in (low, high)]
            name = self._node("Clip" if limits else "Relu", [name, *limits])
            mean, variance = _rectified(mean, variance)
        scale = np.float32((high - low) / 255)
        return self._quantise(name, shape, scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)), mean, variance)

    def _keep(self, operator, x, shape, more, **attributes):
        name = self._node(operator, [self._real(x), *more], **attributes)
        return self._quantise(name, shape, x.scale, x.zero_point, x.mean, x.variance)

    def _quantise(self, real, shape, scale, zero_point, mean, variance):
        value = self._value(f"t{len(self.nodes)}", shape, scale, zero_point, mean, variance)
        self.nodes.append(helper.make_node("QuantizeLinear", [real, *self._parameters(value)], [value.name], name=f"q_{value.name}"))
        return value

    def _value(self, name, shape, scale, zero_point, mean, variance):
        value = Value(name, tuple(shape), scale, zero_point, float(mean), float(variance))
        for parameter, array in zip(self._parameters(value), (np.float32(scale), np.int8(zero_point))):
            self.constants[parameter] = np.asarray(array)
        return value

    @staticmethod
    def _parameters(value):
        return f"{value.name}_scale", f"{value.name}_zero"

    def _real(self, value):
        return self._node("DequantizeLinear", [value.name, *self._parameters(value)])

    def _constant(self, stem, array):
        name = f"{stem}{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def _node(self, operator, inputs, **attributes):
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def _geometry(size, kernel, stride, padding):
    """Return the pads (top, left, bottom, right) and the result's size."""
    if padding == "same":
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride)]
        padding = (*(t // 2 for t in total), *(t - t // 2 for t in total))
    elif isinstance(padding, int):
        padding = (padding,) * 4
    return tuple(padding), tuple((n + padding[a] + padding[a + 2] - kernel[a]) // stride[a] + 1 for a, n in enumerate(size))


def _rectified(mean, variance):
    """Return mean and variance of ``max(x, 0)`` for a normally distributed ``x``."""
    from math import erf, exp, pi, sqrt

    deviation = sqrt(variance)
    part = 0.5 * (1 + erf(mean / deviation / sqrt(2)))
    density = deviation * exp(-(mean**2) / (2 * variance)) / sqrt(2 * pi)
    first = mean * part + density
    return first, (mean**2 + variance) * part + mean * density - first**2
