"""ConvInteger and MatMulInteger, whose results are 32-bit sums, for pass 'legalise'.

As operations they get scales of one. A zero point that is computed at run time is none of the engine's business: it takes the middle of
the type instead (which is zero in its int8), so that padding adds nothing, and an operation on the host follows that takes
``(zero point − middle) · Σ weights`` off each sum, where the sum of the weights is a constant for each place.
"""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from celosia.tools.compiler.graph import Operation, Value
from celosia.tools.compiler.importer import session_options

__all__ = ["FUSIONS", "INTEGER", "split"]

INTEGER = ("ConvInteger", "MatMulInteger")
FUSIONS = ("MatMulIntegerToFloatFusion", "DynamicQuantizeMatMulFusion")
"""Rewrites of ONNX Runtime that hide the integers; with and without them it computes the same numbers."""

_ONE = np.float32(1)


def split(operation, values, constants):
    """Return what an integer product is computed as; ``values`` and ``constants`` get the new ones.

    Parameters
    ----------
    operation : Operation
    values : dict of name to Value
    constants : dict of name to onnx.TensorProto

    Returns
    -------
    tuple of Operation
        The first makes the sums, a second one takes off what a computed zero point adds.
    """
    node = operation.nodes[0]
    operands = operation.operands | dict.fromkeys(("x_scale", "w_scale", "y_scale"), _ONE)
    computed = [position for position, name in enumerate(node.input) if name and name not in constants]
    if computed == [0, 1] and operation.form == "MatMulInteger":
        return (replace(operation, form="ProductInteger", operands=operands),)
    value = values[node.input[0]] if 0 in computed else None
    if computed != [0, 2] or values[node.input[2]].shape not in ((), (1,)) or len(value.shape) < 2 or operands["w"].ndim < 2:
        return (replace(operation, operands=operands),)
    middle = np.array(128 if value.unsigned else 0, value.dtype)
    name = node.output[0]
    raw = f"{name} (sums)"

    def constant(text, array):
        made = f"{name} ({text})"
        constants[made] = numpy_helper.from_array(array, made)
        return made

    sums = onnx.NodeProto()
    sums.CopyFrom(node)
    sums.output[0] = raw
    sums.input[2] = constant("middle", middle)
    values[raw] = Value(name=raw, dtype=np.dtype(np.int32), shape=values[name].shape)
    steps = [f"{name} ({text})" for text in ("zero point", "offset", "surplus")]
    weights = constant("sum of weights", _weight_sums(operation, value))
    nodes = (
        helper.make_node("Cast", [node.input[2]], [steps[0]], to=TensorProto.INT32),
        helper.make_node("Sub", [steps[0], constant("middle as int32", middle.astype(np.int32))], [steps[1]]),
        helper.make_node("Mul", [steps[1], weights], [steps[2]]),
        helper.make_node("Sub", [raw, steps[2]], [name]),
    )
    first = replace(
        operation, inputs=(node.input[0],), outputs=(raw,), operands=operands | {"x_zero_point": middle}, nodes=(sums,)
    )
    second = Operation(
        name=f"{operation.name} (zero point)", operator=operation.operator, form="ZeroPoint", inputs=(raw, node.input[2]),
        outputs=(name,), nodes=nodes,
    )  # fmt: skip
    return first, second


def _weight_sums(operation, value):
    """Return int32, broadcast to the result: the sum of the weights that meet the input, not its padding."""
    weight, zero_point = operation.operands["w"], operation.operands.get("w_zero_point", np.int8(0))
    if operation.form == "MatMulInteger":
        return (weight.astype(np.int32) - zero_point.astype(np.int32)).sum(axis=-2, keepdims=True, dtype=np.int32)
    node = onnx.NodeProto()
    node.CopyFrom(operation.nodes[0])
    node.input[:] = ["ones", "w", "zero", *(["w_zero_point"] if "w_zero_point" in operation.operands else [])]
    arrays = {"w": weight, "zero": np.uint8(0), "w_zero_point": zero_point}
    graph = helper.make_graph(
        [node], "sums", [helper.make_tensor_value_info("ones", TensorProto.UINT8, value.shape)],
        [helper.make_empty_tensor_value_info(node.output[0])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    return session.run(None, {"ones": np.ones(value.shape, np.uint8)})[0]
