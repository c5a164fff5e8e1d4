"""Averages and sums of an ONNX model, and where their exact result is a tie as far as float32 arithmetic can tell.

ONNX Runtime computes AveragePool, ReduceMean and ReduceSum in float32: it adds the dequantised values, divides, divides by the output scale, adds the zero point and
rounds. Where the exact result lies halfway between two integers, or nearer to that than this arithmetic resolves, its error decides and
no integer rule reproduces it. That is common where the scales are equal or a power of two apart, and rare elsewhere.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from celosia.tools.ops.pooling import float_error
from celosia.tools.ops.reduction import reduced_axes

__all__ = ["Pool", "average_pools"]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """An AveragePool, ReduceMean or ReduceSum with its DequantizeLinear and QuantizeLinear, or a QLinearAveragePool.

    ``input`` and ``output`` are the quantised values, ``ratio`` is the input scale divided by the output scale;
    ``attributes`` are those of the ONNX node, with the
    ``axes`` of a reduction.
    """

    operator: str
    input: str
    output: str
    dtype: str
    ratio: float
    zero_points: tuple
    attributes: dict

    def is_tie(self, x, y):
        """Return where the exact average is a tie within the error of float32 and ``y`` is one of the two integers.

        Parameters
        ----------
        x, y : integer arrays ``[inferences, 1, channels, …]``
            The pool's input and output.
        """
        zero_point, output_zero_point = (zero - 128 if self.dtype == "uint8" else zero for zero in self.zero_points)
        x = x.astype(np.int64) - self.zero_points[0]
        sums, pixels, divisors = _reduced(self, x, y.shape) if "axes" in self.attributes else _windows(self, x, y.shape[3:])
        factor = self.ratio / divisors
        value = sums * factor
        error = float_error(sums, pixels, factor, zero_point, output_zero_point)
        tie = np.abs(value - np.floor(value) - 0.5) <= error
        return tie & (np.abs(y.astype(np.int64) - self.zero_points[1] - value) <= 0.5 + error)


def average_pools(model):
    """Return the :class:`Pool` tuple of an ONNX model, in its order."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    producers = {name: node for node in model.graph.node for name in node.output}
    readers = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        if node.op_type == "QLinearAveragePool":
            value, *before = node.input[:3]
            after, output = list(node.input[3:5]), node.output[0]
        elif node.op_type in ("AveragePool", "ReduceMean", "ReduceSum"):
            first = producers.get(node.input[0])
            lasts = readers.get(node.output[0], [])
            if first is None or first.op_type != "DequantizeLinear" or len(lasts) != 1 or lasts[0].op_type != "QuantizeLinear":
                continue
            value, *before = first.input
            after, output = list(lasts[0].input[1:]), lasts[0].output[0]
        else:
            continue
        scales = [constants.get(names[0]) for names in (before, after)]
        zeros = [constants.get(names[1]) if len(names) > 1 and names[1] else np.uint8(0) for names in (before, after)]
        if any(constant is None for constant in (*scales, *zeros)):
            continue
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type.startswith("Reduce"):
            given = node.input[1] if len(node.input) > 1 else ""
            if given and given not in constants:
                continue
            attributes["axes"] = constants[given].tolist() if given else attributes.get("axes")
        found.append(
            Pool(
                operator=node.op_type,
                input=value,
                output=output,
                dtype=np.asarray(zeros[1]).dtype.name,
                ratio=scales[0].item() / scales[1].item(),
                zero_points=tuple(np.asarray(zero).item() for zero in zeros),
                attributes=attributes,
            )
        )
    return tuple(found)


def _windows(pool, x, output):
    """Return of each window the sum (zero where outside), the number of pixels inside, and the divisor."""
    rank, size = len(output), x.shape[3:]
    kernel = pool.attributes["kernel_shape"]
    strides = pool.attributes.get("strides") or [1] * rank
    dilations = pool.attributes.get("dilations") or [1] * rank
    begins = _begins(pool, size, output, kernel, strides, dilations)
    reach = [(out - 1) * s + (k - 1) * d + 1 for out, s, k, d in zip(output, strides, kernel, dilations)]
    margins = [(begin, max(0, last - begin - length)) for begin, last, length in zip(begins, reach, size)]
    padded = np.pad(x, [(0, 0)] * 3 + margins)
    inside = np.pad(np.ones(size, np.int64), margins)
    sums, pixels = 0, 0
    for place in np.ndindex(*kernel):
        taps = tuple(slice(t * d, t * d + (out - 1) * s + 1, s) for t, d, s, out in zip(place, dilations, strides, output))
        sums = sums + padded[(..., *taps)]
        pixels = pixels + inside[taps]
    pixels = np.maximum(pixels, 1)
    divisors = np.full_like(pixels, np.prod(kernel)) if pool.attributes.get("count_include_pad") else pixels
    return sums, pixels, divisors


def _reduced(pool, x, shape):
    """Return of each result of a reduction the sum, the number of terms, and the divisor."""
    axes = reduced_axes(pool.attributes, None, x.ndim - 1)
    sums = x.sum(axis=tuple(axis + 1 for axis in axes)).reshape(shape)
    terms = int(np.prod([x.shape[axis + 1] for axis in axes]))
    return sums, terms, terms if pool.operator == "ReduceMean" else 1


def _begins(pool, size, output, kernel, strides, dilations):
    automatic = pool.attributes.get("auto_pad", b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        totals = [
            max(0, (out - 1) * stride + (extent - 1) * dilation + 1 - length)
            for out, stride, extent, dilation, length in zip(output, strides, kernel, dilations, size)
        ]
        return [total // 2 if automatic == b"SAME_UPPER" else -(-total // 2) for total in totals]
    return list((pool.attributes.get("pads") or [0] * 2 * len(output))[: len(output)])
