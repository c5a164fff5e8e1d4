"""Tables of an operation's result, computed by ONNX Runtime itself for every possible operand."""

from functools import lru_cache

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from celosia.tools.compiler.importer import session_options

__all__ = ["addition_table", "unary_table"]

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
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    return session.run([output], feed)[0]


def unary_table(operation, features):
    """Return the int8 ``[256]`` results of an element-wise operation; the index is the int8 operand's bits.

    For a float maximum, what the operation does to one element.
    """
    graph = features.graph
    unsigned_in = features.value(operation.inputs[0]).unsigned
    operand = BYTES ^ 0x80 if unsigned_in else BYTES.view(np.int8)
    maxima = [node for node in operation.nodes if node.op_type in ("GlobalMaxPool", "MaxPool", "ReduceMax")]
    nodes = [node for node in operation.nodes if node not in maxima]
    renamed = {node.output[0]: node.input[0] for node in maxima}
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copies.append(copy)
    names = {name for node in copies for name in node.input}
    constants = [graph.constants[name] for name in names if name in graph.constants]
    result = _run(copies, constants, graph.header, {operation.inputs[0]: operand}, operation.output)
    return _int8(result)


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
    header = onnx.ModelProto()
    header.ir_version = 8
    header.opset_import.extend([helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    result = _run([node], constants, header, {"a": first, "b": second}, "y")
    return _int8(result).reshape(256, 256)


def _int8(array):
    """Return the engine's int8 of an int8 or uint8 array."""
    return (array ^ 0x80).view(np.int8) if array.dtype == np.uint8 else array
