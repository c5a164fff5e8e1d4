"""Tables of an operation's result, computed by ONNX Runtime itself for every possible operand."""

from functools import lru_cache

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from celosia.tools.compiler.importer import session_options
from celosia.tools.compiler.legalise import MOVES
from celosia.tools.ops.family import Refused

__all__ = ["concat_table", "index_map", "pair_table", "place_table", "rising_table", "unary_table"]

BYTES = np.arange(256, dtype=np.uint8)


def _run(nodes, constants, header, feed, *outputs):
    """Run a tiny model and return its outputs; ``feed`` maps names to arrays.

    Raises
    ------
    Refused
        If ONNX Runtime cannot compute the nodes with operands of these shapes.
    """
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    graph = helper.make_graph(nodes, "reference", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], constants)
    model = onnx.ModelProto()
    model.CopyFrom(header)
    model.graph.CopyFrom(graph)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
        return session.run(list(outputs), feed)
    except Exception:
        raise Refused("ONNX Runtime does not compute it value by value: what it makes of each of them stays unknown.") from None


def unary_table(operation, features):
    """Return the int8 ``[256]`` results of an element-wise operation; the index is the int8 operand's bits.

    For a float maximum or movement, what the operation does to one element.
    """
    graph = features.graph
    unsigned_in = features.value(operation.inputs[0]).unsigned
    operand = BYTES ^ 0x80 if unsigned_in else BYTES.view(np.int8)
    left_out = (*MOVES, "GlobalMaxPool", "MaxPool", "ReduceMax") if operation.form != "Unary" else ()
    copies = _without(operation.nodes, left_out)
    names = {name for node in copies for name in node.input}
    constants = [graph.constants[name] for name in names if name in graph.constants]
    (result,) = _run(copies, constants, graph.header, {operation.inputs[0]: operand}, operation.output)
    return _int8(result).reshape(256)  # a constant of one element may have added dimensions


def rising_table(operation, features):
    """Return :func:`unary_table` of an operation that takes a maximum first, where the largest integer is the largest number.

    Raises
    ------
    Refused
        If a scale is negative.
    """
    table = unary_table(operation, features)
    if not operation.operands["x_scale"].item() > 0 or (np.diff(table[np.arange(-128, 128)].astype(int)) < 0).any():
        raise Refused("The largest integer must be the largest number: scales must be positive.")
    return table


def _without(nodes, left_out):
    """Return copies of the nodes less those of the operators ``left_out``, whose readers get what these read."""
    renamed, copies = {}, []
    for node in nodes:
        if node.op_type in left_out:
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copies.append(copy)
    return copies


def index_map(operation, features):
    """Return which element of its input each element of the output is, counted in ONNX order, and −1 where Pad adds a constant.

    ONNX Runtime itself moves the numbers of the elements: float32 holds them exactly.

    Raises
    ------
    Refused
        If the result is not made of elements of the input, or there are too many of them.
    """
    graph = features.graph
    size = features.value(operation.inputs[0]).shape
    count = int(np.prod(size))
    copies = _without(operation.nodes, ("QuantizeLinear", "DequantizeLinear"))
    for node in copies:
        if node.op_type == "Pad" and len(node.input) > 2:  # it adds zeros, and the elements count from one
            node.input[:] = [*node.input[:2], "", *node.input[3:]]
        for attribute in node.attribute:
            if node.op_type == "Pad" and attribute.name == "value":
                attribute.f = 0.0
    names = {name for node in copies for name in node.input}
    constants = [graph.constants[name] for name in names if name in graph.constants]
    numbers = (np.arange(count, dtype=np.float32) + 1).reshape(size)
    last = copies[-1].output
    output = operation.output if operation.output in last else last[0]
    (result,) = _run(copies, constants, graph.header, {operation.inputs[0]: numbers}, output)
    places = result.astype(np.int64) - 1
    if count >= 1 << 24 or (places + 1 != result).any() or (places >= count).any():
        raise Refused("The result must be made of elements of the tensor, at most 16,777,215.")
    return places


def concat_table(operation, name):
    """Return the int8 ``[256]`` results of ``QLinearConcat`` for its input ``name``; the index is the operand's int8 bits."""
    operands = operation.operands
    zeros = [operands.get(f"{prefix}_zero_point", np.int8(0)) for prefix in ("y", name)]
    scales = [operands[f"{prefix}_scale"].item() for prefix in ("y", name)]
    return _concat_table(zeros[0].dtype.name, *scales, *(zero.item() for zero in zeros))


@lru_cache(maxsize=256)
def _concat_table(dtype, y_scale, x_scale, y_zero, x_zero):
    dtype = np.dtype(dtype)
    operand = BYTES ^ 0x80 if dtype == np.uint8 else BYTES.view(np.int8)
    names = ("y_scale", "y_zero_point", "x_scale", "x_zero_point")
    constants = [
        numpy_helper.from_array(np.array(value, np.float32 if name.endswith("scale") else dtype), name)
        for name, value in zip(names, (y_scale, y_zero, x_scale, x_zero))
    ]
    inputs = [*names[:2], "x", *names[2:]]
    node = helper.make_node("QLinearConcat", inputs, ["y"], domain="com.microsoft", axis=0)
    return _int8(*_run([node], constants, _header(), {"x": operand}, "y"))


def pair_table(operation, features, names, repeated=(False, False)):
    """Return what an operation makes of every pair of operands.

    Parameters
    ----------
    names : pair of str
        The two operands: int8 or uint8 values of the graph, or constants.
    repeated : pair of bool
        Whether an operand has one number where the other has a run of them: QLinearAdd then rounds in another order.

    Returns
    -------
    table : int8 ``[256, 256]``
        Indexed by the first and the second operand's int8 value plus 128.
    real : float64 ``[256, 256]``
        The float result before QuantizeLinear in steps of the output, or an estimate of it.
    """
    feed = {}
    for axis, (name, again) in enumerate(zip(names, repeated)):
        every = _every(features.is_unsigned(name)).reshape((256, 1) if axis == 0 else (1, 256))
        feed[name] = every if again else np.broadcast_to(every, (256, 256)).copy()
    if repeated[0] == repeated[1]:
        feed = {name: array.ravel() for name, array in feed.items()}
    turned = repeated[1]  # the run is the last axis
    feed = {name: np.ascontiguousarray(array.T if turned else array) for name, array in feed.items()}
    return tuple(array.reshape(256, 256).T if turned else array.reshape(256, 256) for array in _results(operation, features.graph, feed))


def place_table(operation, features):
    """Return what an operation of one tensor and of constants makes of every value at every place.

    Returns
    -------
    table : int8 ``[256, *shape]``, −128 first
        The shape is that of the operand with size one along the axes in which all constants have it.
    real : float64, same shape
        As :func:`pair_table`.
    """
    name, graph = operation.inputs[0], features.graph
    shape = features.value(name).shape
    sizes = [dims for node in operation.nodes for dims in _constant_shapes(node, graph)]
    sizes = [(1,) * (len(shape) - len(dims)) + dims for dims in sizes]
    shape = tuple(size if any(dims[axis] > 1 for dims in sizes) else 1 for axis, size in enumerate(shape))
    every = _every(features.is_unsigned(name)).reshape(-1, *(1 for _ in shape))
    feed = {name: np.broadcast_to(every, (256, *shape)).copy()}
    return tuple(array.reshape(256, *shape) for array in _results(operation, graph, feed))


def _constant_shapes(node, graph):
    """Return the shapes of the constants that a float node computes with; of a DequantizeLinear, of what it dequantises."""
    names = {"DequantizeLinear": node.input[:1], "QuantizeLinear": ()}.get(node.op_type, node.input)
    return [tuple(graph.constants[name].dims) for name in names if name in graph.constants]


def _results(operation, graph, feed):
    """Return the int8 and the real results of an operation as flat arrays."""
    nodes = list(operation.nodes)
    names = {name for node in nodes for name in node.input} - set(feed)
    constants = [graph.constants[name] for name in names if name in graph.constants]
    last = nodes[-1]
    outputs = [operation.output] + ([last.input[0]] if last.op_type == "QuantizeLinear" else [])
    found = _run(nodes, constants, graph.header, feed, *outputs)
    table = _int8(found[0]).ravel()
    if len(found) == 1:
        return table, _estimate(operation, feed)
    scale = numpy_helper.to_array(graph.constants[last.input[1]]).item()
    return table, found[1].astype(np.float64).ravel() / scale


def _estimate(operation, feed):
    """Return the real result of ``QLinearAdd`` or ``QLinearMul``, of others zeros."""
    node, operands = operation.nodes[-1], operation.operands
    real = {}
    for prefix, name in (("a", node.input[0]), ("b", node.input[3] if len(node.input) > 3 else "")):
        if name not in feed or f"{prefix}_scale" not in operands:
            return np.zeros(np.broadcast_shapes(*(array.shape for array in feed.values()))).ravel()
        zero_point = operands.get(f"{prefix}_zero_point", np.zeros(()))
        real[prefix] = (feed[name].astype(np.float64) - zero_point.item()) * operands[f"{prefix}_scale"].item()
    joined = real["a"] * real["b"] if node.op_type == "QLinearMul" else real["a"] + real["b"]
    return (joined / operands["y_scale"].item()).ravel()


def _every(unsigned):
    """Return all values of uint8 or int8, the lowest first."""
    return BYTES if unsigned else np.arange(-128, 128, dtype=np.int8)


def _header():
    header = onnx.ModelProto()
    header.ir_version = 8
    header.opset_import.extend([helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    return header


def _int8(array):
    """Return the engine's int8 of an int8 or uint8 array."""
    return (array ^ 0x80).view(np.int8) if array.dtype == np.uint8 else array
