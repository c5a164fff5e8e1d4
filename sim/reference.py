"""Interpreter of the intermediate representation in numpy: what the engine has to compute, before tiling and scheduling.

Accumulation is exact in int64 (a product of int8 matrices in float64 is exact below 2**53), arithmetic is that of
:mod:`celosia.sim.numerics`. Works on many inferences at once.
"""

import numpy as np

from celosia.sim.numerics import add_residual, channel_params, multiply, requantize
from celosia.tools.compiler import ir
from celosia.tools.compiler.ir import Op
from celosia.tools.ops.pooling import near_ties

__all__ = ["from_onnx", "run", "ties", "to_onnx", "transposed_sums"]


def run(graph, inputs, *, watch=None):
    """Run an :class:`ir.Graph`.

    Parameters
    ----------
    graph : ir.Graph
    inputs : dict
        int8 arrays ``[inferences, channels, height, width]`` by input name; see :func:`from_onnx`.
    watch : function, optional
        Called with each node and its output.

    Returns
    -------
    dict
        All tensors of the graph by name, in the same form.
    """
    values = dict(inputs) | {name: array[None] for name, array in graph.constants.items()}
    for node in graph.nodes:
        x, tensor, combine = values[node.input], graph.tensors[node.input], node.combine
        operand = values[combine.tensor] if combine else None
        if isinstance(node, ir.Conv):
            acc = _convolution(node, x, tensor.zero_point)
        elif isinstance(node, ir.ConvTranspose):
            out = graph.tensors[node.output]
            acc = transposed_sums(node, x.astype(np.float64) - tensor.zero_point, node.weight, (out.height, out.width))
            acc += node.bias.astype(np.int64)[:, None, None]
        elif isinstance(node, ir.Product):
            acc = _product(node, graph, x, values[node.right])
        elif isinstance(node, ir.Copy):
            acc = x + np.broadcast_to(node.bias, x.shape[1:2]).astype(np.int64)[:, None, None]
        if isinstance(node, ir.Pool):
            result = _pooling(node, x, tensor.zero_point)
        elif node.raw:
            result = acc.astype(np.int32)
        elif isinstance(node, ir.Rearrange):
            result = _rearranged(node, [values[name] for name in node.tensors])
        else:
            if combine and combine.op == Op.MUL:
                acc = multiply(acc, 0, operand, combine.zero_point)
            result = _requantize(node, acc, node.scale, late=bool(combine) and combine.op == Op.MUL)
        if node.table is not None:
            result = node.table[result.view(np.uint8)]
        if combine and combine.op == Op.ADD:
            factors = combine.k_result, combine.k_operand, combine.k_zero
            result = add_residual(result, operand, *factors, combine.low, combine.high)
        elif combine and combine.op in (Op.MIN, Op.MAX):
            result = (np.minimum if combine.op == Op.MIN else np.maximum)(result, operand).clip(combine.low, combine.high)
        made = graph.tensors[node.output]
        assert result.shape[1:] == (made.channels, made.height, made.width), (node.name, result.shape)
        values[node.output] = result
        if watch:
            watch(node, result)
    return values


def from_onnx(array, tensor):
    """Return an ONNX array (batch first) as int8 ``[inferences, channels, height, width]``."""
    array = (array ^ 0x80).view(np.int8) if array.dtype == np.uint8 else array
    if tensor.matrix:
        array = array.reshape(len(array), -1, tensor.channels).swapaxes(1, 2)
    return np.ascontiguousarray(array).reshape(len(array), tensor.channels, tensor.height, tensor.width)


def to_onnx(array, tensor):
    """The inverse of :func:`from_onnx`."""
    array = array.view(np.uint8) ^ 0x80 if tensor.unsigned else array
    if tensor.matrix:
        array = array.reshape(len(array), tensor.channels, -1).swapaxes(1, 2)
    return np.ascontiguousarray(array).reshape(len(array), *tensor.shape)


def _requantize(node, acc, scale, *, late=False):
    mantissa, shift = channel_params(np.broadcast_to(scale, (acc.shape[1],)))
    mantissa, shift = mantissa[:, None, None], shift[:, None, None]
    return requantize(acc, 0, mantissa, shift, node.zero_point, node.low, node.high, late=late)


def _rearranged(node, sources):
    result = np.broadcast_to(np.where(node.part < 0, node.index, 0), (len(sources[0]), *node.part.shape))
    result = result.clip(node.low, node.high).astype(np.int8)
    for part, x in enumerate(sources):
        mantissa, shift = channel_params(np.float32(node.scales[part]))
        taken = x.reshape(len(x), -1)[:, node.index[node.part == part]].astype(np.int64)
        result[:, node.part == part] = requantize(
            taken, -node.zeros[part], mantissa, shift, node.zero_point, node.low, node.high
        )
    return result


def _windows(x, kernel, stride, dilation, pads, fill):
    """Return ``[inferences, channels, out height, out width, kernel height, kernel width]`` of the padded map."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    return windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _convolution(node, x, zero_point):
    """Return the exact sums, bias included."""
    windows = _windows(x, node.weight.shape[2:], node.stride, node.dilation, node.pads, zero_point)
    batch, _, height, width, *_ = windows.shape
    out, per_group = len(node.weight) // node.group, node.weight.shape[1]
    acc = np.empty((batch, len(node.weight), height, width), np.int64)
    for group in range(node.group):
        part = windows[:, group * per_group : (group + 1) * per_group].transpose(0, 2, 3, 1, 4, 5)
        part = part.reshape(batch * height * width, -1).astype(np.float64) - zero_point
        weight = node.weight[group * out : (group + 1) * out].reshape(out, -1).astype(np.float64)
        product = (part @ weight.T).astype(np.int64).reshape(batch, height, width, out)
        acc[:, group * out : (group + 1) * out] = product.transpose(0, 3, 1, 2)
    return acc + node.bias.astype(np.int64)[:, None, None]


def _product(node, graph, left, right):
    """Return the exact sums, bias included."""
    operands = []
    sides = (left, node.input, node.left_at, node.rows, node.length), (right, node.right, node.right_at, node.length, node.columns)
    for x, name, at, rows, columns in sides:
        elements = at.elements(rows, columns, graph.tensors[name])
        operands.append(x.reshape(len(x), -1)[:, elements].astype(np.float64) - graph.tensors[name].zero_point)
    made = graph.tensors[node.output]
    acc = np.empty((len(left), made.elements), np.int64)
    acc[:, node.result_at.elements(node.rows, node.columns, made)] = (operands[0] @ operands[1]).astype(np.int64)
    return acc.reshape(len(left), made.channels, made.height, made.width) + node.bias.astype(np.int64)[:, None, None]


def transposed_sums(node, x, weight, size):
    """Return the exact sums of a transposed convolution, int64 ``[inferences, out, *size]``.

    ``node`` gives group, stride, dilation and pads; ``x`` is float64, its zero point taken off.
    """
    (batch, channels, height, width), group = x.shape, node.group
    out = len(weight)
    kernel = weight.shape[2:]
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip((height, width), node.stride, kernel, node.dilation)]
    room = [max(length, pad + n) for length, pad, n in zip(full, node.pads, size)]
    acc = np.zeros((batch, group, out // group, *room))
    parts = x.reshape(batch, group, channels // group, height, width)
    weights = weight.reshape(group, out // group, channels // group, *kernel).astype(np.float64)
    for ky, kx in np.ndindex(*kernel):
        y, x0 = ky * node.dilation[0], kx * node.dilation[1]
        rows = slice(y, y + (height - 1) * node.stride[0] + 1, node.stride[0])
        columns = slice(x0, x0 + (width - 1) * node.stride[1] + 1, node.stride[1])
        acc[..., rows, columns] += np.einsum("bgchw,goc->bgohw", parts, weights[..., ky, kx])
    top, left = node.pads[:2]
    return acc[..., top : top + size[0], left : left + size[1]].reshape(batch, out, *size).astype(np.int64)


def ties(graph, node, x):
    """Return where an average lies so near to a tie that ONNX Runtime's float32 additions may round it either way.

    Parameters
    ----------
    graph : ir.Graph
    node : ir.Pool
    x : int8 ``[inferences, channels, height, width]``
        The input of ``node``.

    Returns
    -------
    bool array shaped like the output; all False for what ONNX Runtime sums in integers
    """
    zero_point = graph.tensors[node.input].zero_point
    made = graph.tensors[node.output]
    found = np.zeros((len(x), made.channels, made.height, made.width), bool)
    if node.kind == "average" and not node.operator.endswith("GlobalAveragePool"):
        total, count = _sums(node, x, zero_point)
        for n, scale in node.scales.items():
            here = near_ties(n, scale, zero_point, node.zero_point)
            found[:, :, count == n] = np.isin(total[:, :, count == n], here)
    return found


def _pooling(node, x, zero_point):
    if node.kind in ("max", "channels"):
        window = _windows(x, node.kernel, node.stride, node.dilation, node.pads, -128).max((4, 5))
        window = window.max(1, keepdims=True) if node.kind == "channels" else window
        return _requantize(node, window.astype(np.int64), node.scale)
    total, count = _sums(node, x, zero_point)
    result = np.empty(total.shape, np.int8)
    for n, scale in node.scales.items():
        acc = total[:, :, count == n] + node.biases.get(n, 0)
        result[:, :, count == n] = _requantize(node, acc[..., None], np.float32(scale))[..., 0]
    return result


def _sums(node, x, zero_point):
    """Return the sum of each window less the zero point, and how many of its pixels lie inside the map."""
    window = node.kernel, node.stride, node.dilation, node.pads
    total = _windows(x.astype(np.int64) - zero_point, *window, 0).sum((4, 5))
    count = _windows(np.ones((1, 1, *x.shape[2:]), np.int64), *window, 0).sum((4, 5))[0, 0]
    return total, count
