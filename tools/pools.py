"""Average pools with equal input and output scales, where ONNX Runtime's rounding of exact ties follows no integer rule."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["EqualScalePool", "equal_scale_pools", "is_tie"]


@dataclass(frozen=True, kw_only=True)
class EqualScalePool:
    """An AveragePool (with its DequantizeLinear and QuantizeLinear, or as one QLinearAveragePool).

    ``input`` and ``output`` are the quantised values; ``attributes`` those of the ONNX node.
    """

    input: str
    output: str
    dtype: str
    zero_point: int
    attributes: dict


def equal_scale_pools(model):
    """Return the :class:`EqualScalePool` tuple of an ONNX model, in its order."""
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
        elif node.op_type == "AveragePool":
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
        if any(constant is None for constant in (*scales, *zeros)) or scales[0].item() != scales[1].item():
            continue
        if np.asarray(zeros[0]).item() == np.asarray(zeros[1]).item():
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            dtype = np.asarray(zeros[1]).dtype.name
            zero_point = np.asarray(zeros[1]).item()
            found.append(EqualScalePool(input=value, output=output, dtype=dtype, zero_point=zero_point, attributes=attributes))
    return tuple(found)


def is_tie(pool, x, y):
    """Return where the exact average is halfway between two integers and ``y`` is the even one.

    Parameters
    ----------
    x, y : integer arrays ``[inferences, 1, channels, …]``
        The pool's input and output.
    """
    integers = x.astype(np.int64) - pool.zero_point
    windows, counts = _windows(pool, integers, y.shape[3:])
    tie = (2 * windows) % (2 * counts) == counts
    return tie & (_rounded(windows, counts) + pool.zero_point == y)


def _rounded(numerator, denominator):
    """Divide and round half to even, in integers."""
    quotient, remainder = np.divmod(numerator, denominator)
    return quotient + ((2 * remainder > denominator) | ((2 * remainder == denominator) & (quotient % 2 == 1)))


def _windows(pool, x, output):
    """Return the sum of each window over ``x`` (zero where outside), and the divisor of each output pixel."""
    rank = len(output)
    kernel = pool.attributes["kernel_shape"]
    strides = pool.attributes.get("strides") or [1] * rank
    dilations = pool.attributes.get("dilations") or [1] * rank
    begins = _begins(pool, x.shape[3:], output, kernel, strides, dilations)
    ends = [
        max(0, (size - 1) * stride + (extent - 1) * dilation + 1 - begin - length)
        for size, stride, extent, dilation, begin, length in zip(output, strides, kernel, dilations, begins, x.shape[3:])
    ]
    pads = list(pool.attributes.get("pads") or [0] * 2 * rank)
    margins = [(0, 0)] * 3 + list(zip(begins, ends))
    inside = np.pad(np.ones(x.shape[3:], np.int64), margins[3:])
    if pool.attributes.get("count_include_pad"):
        inside = np.pad(np.ones(x.shape[3:], np.int64), list(zip(pads[:rank], pads[rank:])), constant_values=1)
        missing = [
            (0, max(0, margin + length + end - size))
            for margin, length, end, size in zip(begins, x.shape[3:], ends, inside.shape)
        ]
        inside = np.pad(inside, missing)
    padded = np.pad(x, margins)
    sums, counts = 0, 0
    for place in np.ndindex(*kernel):
        slices = tuple(
            slice(tap * dilation, tap * dilation + (size - 1) * stride + 1, stride)
            for tap, dilation, size, stride in zip(place, dilations, output, strides)
        )
        sums = sums + padded[(..., *slices)]
        counts = counts + inside[slices]
    return sums, np.maximum(counts, 1)


def _begins(pool, size, output, kernel, strides, dilations):
    automatic = pool.attributes.get("auto_pad", b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        totals = [
            max(0, (out - 1) * stride + (extent - 1) * dilation + 1 - length)
            for out, stride, extent, dilation, length in zip(output, strides, kernel, dilations, size)
        ]
        return [total // 2 if automatic == b"SAME_UPPER" else -(-total // 2) for total in totals]
    return list((pool.attributes.get("pads") or [0] * 2 * len(output))[: len(output)])
