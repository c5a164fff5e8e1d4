"""Rewrites before quantisation compute the same function, and what comes out runs on the engine."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from celosia.tools.check import check_outputs, summary
from celosia.tools.quantizer import prepare, quantize, split
from celosia.tools.session import InferenceSession

X = np.random.default_rng(2).normal(0, 1, (20, 3, 8, 8)).astype(np.float32)
RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(0, 0.3, (6, 3, 3, 3))


def save(path, nodes, **constants):
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)


def run(model, x):
    data = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(data).run(None, {"x": x})[0]


def check(folder):
    """Prepare ``float.onnx``, compare in float, quantise, compare on the engine; return the operators before and on the host."""
    source = prepare(folder / "float.onnx")
    for x in X[:4]:
        np.testing.assert_allclose(run(source.model, x[None]), run(str(folder / "float.onnx"), x[None]), rtol=1e-4, atol=1e-5)
    quantize(source, split(source, {"x": X})[0], folder / "int8.onnx")
    session = InferenceSession(folder / "int8.onnx", "test", "golden")
    outputs = session.run(None, {"x": X})
    assert summary(check_outputs(session, folder / "int8.onnx", {"x": X}, outputs))[1] == 0
    exact = np.concatenate([run(source.model, x[None]) for x in X])
    assert ((outputs[0] - exact) ** 2).sum() < 0.003 * (exact**2).sum()
    return [node.op_type for node in source.model.graph.node], [operator for _, operator, _, _ in session.model.host_nodes]


def test_a_batch_normalisation_on_its_own_becomes_a_convolution(tmp_path):
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], "pool", **window),
        helper.make_node("BatchNormalization", ["p", "gamma", "beta", "mean", "var"], ["n"], "norm", epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w"], ["y"], "conv", kernel_shape=[3, 3]),
    ]
    constants = {"gamma": [1, -2, 0.5], "beta": [0.3, 0, -0.2], "mean": [0.1, -0.4, 0], "var": [0.5, 2, 1]}
    save(tmp_path / "float.onnx", nodes, w=WEIGHT, **constants)
    operators, host = check(tmp_path)
    assert operators == ["MaxPool", "Conv", "Relu", "Conv"]
    assert host == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize("function", ["silu", "gelu"])
def test_a_function_in_several_steps_is_one_table(tmp_path, function):
    steps = {
        "silu": [helper.make_node("Sigmoid", ["c"], ["s"], "s"), helper.make_node("Mul", ["c", "s"], ["a"], "a")],
        "gelu": [
            helper.make_node("Div", ["c", "root"], ["d"], "d"),
            helper.make_node("Erf", ["d"], ["e"], "e"),
            helper.make_node("Add", ["e", "one"], ["f"], "f"),
            helper.make_node("Mul", ["c", "f"], ["g"], "g"),
            helper.make_node("Mul", ["g", "half"], ["a"], "a"),
        ],
    }
    conv = helper.make_node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[3, 3])
    last = helper.make_node("GlobalAveragePool", ["a"], ["y"], "mean")
    save(tmp_path / "float.onnx", [conv, *steps[function], last], w=WEIGHT, root=2**0.5, one=1, half=0.5)
    _, host = check(tmp_path)
    assert host == ["QuantizeLinear", "DequantizeLinear"]
    small = onnx.load(tmp_path / "int8.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in small.graph.node) == 4


@pytest.mark.parametrize("operator", ["Elu", "HardSwish", "Tanh", "Softplus"])
def test_activations_between_pools_are_quantised(tmp_path, operator):
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[3, 3]),
        helper.make_node(operator, ["c"], ["a"], "act"),
        helper.make_node("MaxPool", ["a"], ["y"], "pool", **window),
    ]
    save(tmp_path / "float.onnx", nodes, w=WEIGHT)
    assert check(tmp_path)[1] == ["QuantizeLinear", "DequantizeLinear"]
