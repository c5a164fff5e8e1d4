"""Tables of an operation's result, computed by ONNX Runtime itself for every possible operand."""

from functools import lru_cache

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from celosia.tools.compiler.importer import session_options
from celosia.tools.compiler.legalise import MOVES
from celosia.tools.ops.family import Refused

__all__ = ["addition_table", "concat_table", "index_map", "unary_table"]

BYTES = np.arange(256, dtype=np.uint8)


def _run(nodes, constants, header, feed, output):
    """Run a tiny model; ``feed`` maps names to int8 or uint8 arrays."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    graph = helper.make_graph(nodes, "reference", inputs, [onnx.ValueInfoProto(name=output)], constants)
    model = onnx.ModelProto()
    model.CopyFrom(header)
    model.graph.CopyFrom(graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    return session.run([output], feed)[0]


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
    result = _run(copies, constants, graph.header, {operation.inputs[0]: operand}, operation.output)
    return _int8(result).reshape(256)  # a constant of one element may have added dimensions


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
    result = _run(copies, constants, graph.header, {operation.inputs[0]: numbers}, output)
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
    return _int8(_run([node], constants, _header(), {"x": operand}, "y"))


def addition_table(operation, features):
    """Return the int8 ``[256, 256]`` sums of ``QLinearAdd``, indexed by first and second operand plus 128."""
    operands = operation.operands
    names = ("a_scale", "a_zero_point", "b_scale", "b_zero_point", "y_scale", "y_zero_point")
    dtype = features.value(operation.output).dtype
    return _addition_table(dtype.name, *(operands[name].item() if name in operands else 0 for name in names))


@lru_cache(maxsize=256)
def _addition_table(dtype, *parameters):
    dtype = np.dtype(dtype)
    values = np.arange(256) - (0 if dtype == np.uint8 else 128)
    first = np.repeat(values.astype(dtype), 256)
    second = np.tile(values.astype(dtype), 256)
    names = ("a_scale", "a_zero_point", "b_scale", "b_zero_point", "y_scale", "y_zero_point")
    constants = [
        numpy_helper.from_array(np.array(value, np.float32 if name.endswith("scale") else dtype), name)
        for name, value in zip(names, parameters)
    ]
    node = helper.make_node("QLinearAdd", ["a", *names[:2], "b", *names[2:]], ["y"], domain="com.microsoft")
    result = _run([node], constants, _header(), {"a": first, "b": second}, "y")
    return _int8(result).reshape(256, 256)


def _header():
    header = onnx.ModelProto()
    header.ir_version = 8
    header.opset_import.extend([helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    return header


def _int8(array):
    """Return the engine's int8 of an int8 or uint8 array."""
    return (array ^ 0x80).view(np.int8) if array.dtype == np.uint8 else array
