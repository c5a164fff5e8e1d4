"""ConvInteger, MatMulInteger and dynamic quantisation against ONNX Runtime, and on the simulated RTL."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from celosia.tools.compiler.importer import session_options
from celosia.tools.program import EngineSegment, HostSegment
from celosia.tools.session import InferenceSession

TYPES = {np.int8: TensorProto.INT8, np.uint8: TensorProto.UINT8, np.float32: TensorProto.FLOAT}


def check(tmp_path, nodes, constants, feed, *, engine="test", on="golden", output="y", count=2):
    """Compare with ONNX Runtime, inference by inference; return the session."""
    inputs = [
        helper.make_tensor_value_info(name, TYPES[array.dtype.type], (len(array) // count, *array.shape[1:]))
        for name, array in feed.items()
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "integer", inputs, [helper.make_empty_tensor_value_info(output)], tensors)
    path = tmp_path / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    session = InferenceSession(path, engine, on)
    reference = onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    parts = [{name: np.split(array, count)[n] for name, array in feed.items()} for n in range(count)]
    wanted = np.concatenate([reference.run(None, part)[0] for part in parts])
    result = session.run(None, feed)[0]
    assert result.dtype == wanted.dtype and len(np.unique(wanted)) > 3
    assert np.array_equal(result, wanted), f"{(result != wanted).sum()} of {wanted.size} differ"
    return session


def engine_nodes(session):
    segments = [segment for segment in session.model.segments if isinstance(segment, EngineSegment)]
    return [layer.operator for segment in segments for layer in segment.program.layers]


def draw(rng, dtype, shape):
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)


CONVOLUTIONS = [
    ({}, (2, 5, 7, 6), (9, 5, 3, 3)),
    ({"pads": [1, 0, 2, 1], "strides": [2, 1]}, (2, 3, 9, 8), (6, 3, 3, 2)),
    ({"group": 4, "pads": [1, 1, 1, 1]}, (2, 4, 6, 6), (4, 1, 3, 3)),
    ({"auto_pad": "SAME_UPPER"}, (2, 2, 8, 8), (3, 2, 3, 2)),
    ({"dilations": [2, 1], "pads": [2, 0, 1, 1]}, (2, 2, 8, 8), (3, 2, 3, 3)),
]


@pytest.mark.parametrize("engine", ["test", "mac64"])
@pytest.mark.parametrize("weight_type, weight_zero", [(np.int8, None), (np.uint8, 131)])
@pytest.mark.parametrize("zero_point", [None, 0, 200])
@pytest.mark.parametrize("attributes, shape, weight", CONVOLUTIONS)
def test_convolution(tmp_path, engine, weight_type, weight_zero, zero_point, attributes, shape, weight):
    rng = np.random.default_rng(len(shape) + shape[1])
    constants = {"w": draw(rng, weight_type, weight)}
    names = ["x", "w"]
    if zero_point is not None or weight_zero is not None:
        constants["xz"] = np.uint8(zero_point or 0)
        names.append("xz")
    if weight_zero is not None:
        constants["wz"] = weight_type(weight_zero)
        names.append("wz")
    node = helper.make_node("ConvInteger", names, ["y"], name="conv", **attributes)
    session = check(tmp_path, [node], constants, {"x": draw(rng, np.uint8, shape)}, engine=engine)
    assert engine_nodes(session) == ["ConvInteger"] and len(session.model.segments) == 1


@pytest.mark.parametrize("attributes, shape, weight", CONVOLUTIONS)
def test_convolution_with_a_zero_point_computed_at_run_time(tmp_path, attributes, shape, weight):
    rng = np.random.default_rng(7)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="quantise"),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["sums"], name="conv", **attributes),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["scale"]),
        helper.make_node("Mul", ["real", "scale"], ["y"]),
    ]
    constants = {"w": draw(rng, np.int8, weight), "ws": np.float32(0.013)}
    feed = {"x": rng.normal(0.4, 1, shape).astype(np.float32)}
    session = check(tmp_path, nodes, constants, feed)
    assert engine_nodes(session) == ["ConvInteger"]
    named = [node[:2] for segment in session.model.segments if isinstance(segment, HostSegment) for node in segment.nodes]
    assert ("quantise", "DynamicQuantizeLinear") in named and ("conv (zero point)", "ConvInteger") in named


PRODUCTS = [((2, 5, 7), (7, 9)), ((2, 3, 4, 18), (18, 3)), ((2, 40), (40, 33))]


@pytest.mark.parametrize("engine", ["test", "mac64"])
@pytest.mark.parametrize("kind, zero_point", [(np.int8, -128), (np.uint8, 77), (np.uint8, None)])
@pytest.mark.parametrize("left, right", PRODUCTS)
def test_product_with_constant_weights(tmp_path, engine, kind, zero_point, left, right):
    rng = np.random.default_rng(3)
    constants = {"w": draw(rng, np.uint8, right), "wz": draw(rng, np.uint8, right[-1:])}
    names = ["x", "w", "", "wz"]
    if zero_point is not None:
        constants["xz"], names[2] = kind(zero_point), "xz"
    node = helper.make_node("MatMulInteger", names, ["y"], name="product")
    session = check(tmp_path, [node], constants, {"x": draw(rng, kind, left)}, engine=engine)
    assert engine_nodes(session) == ["MatMulInteger"] and len(session.model.segments) == 1


@pytest.mark.parametrize("left, right", [((2, 5, 7), (2, 7, 9)), ((2, 3, 4, 18), (2, 3, 18, 5))])
def test_product_of_two_tensors(tmp_path, left, right):
    rng = np.random.default_rng(4)
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"], name="product")
    feed = {"a": draw(rng, np.uint8, left), "b": draw(rng, np.int8, right)}
    session = check(tmp_path, [node], {"az": np.uint8(9), "bz": np.int8(-128)}, feed, engine="mac64")
    assert "MatMulInteger" in engine_nodes(session) and len(session.model.segments) == 1


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_dynamic_quantisation_pattern(tmp_path, bias, per_column):
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="quantise"),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["sums"], name="product"),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["scale"]),
        helper.make_node("Mul", ["real", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["y"]) if bias else helper.make_node("Identity", ["scaled"], ["y"]),
    ]
    constants = {
        "w": draw(rng, np.int8, (32, 20)),
        "wz": np.zeros(20, np.int8) if per_column else np.int8(3),
        "ws": rng.uniform(0.01, 0.02, 20 if per_column else ()).astype(np.float32),
        "b": rng.normal(0, 1, 20).astype(np.float32),
    }
    session = check(tmp_path, nodes, constants, {"x": rng.normal(0.3, 1, (12, 6, 32)).astype(np.float32)}, count=12)
    assert engine_nodes(session) == ["MatMulInteger"]


def test_zero_points_of_two_computed_tensors_at_run_time_are_the_hosts(tmp_path):
    rng = np.random.default_rng(6)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["a"], ["qa", "sa", "za"]),
        helper.make_node("DynamicQuantizeLinear", ["b"], ["qb", "sb", "zb"]),
        helper.make_node("MatMulInteger", ["qa", "qb", "za", "zb"], ["y"], name="product"),
    ]
    feed = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in (("a", (2, 4, 6)), ("b", (2, 6, 5)))}
    session = check(tmp_path, nodes, {}, feed)
    (segment,) = session.model.segments
    assert any("so must both if both operands are computed" in node[2] for node in segment.nodes if node[0] == "product")


@pytest.mark.parametrize("engine", ["test", "mac64"])
def test_rtl_writes_all_four_bytes(tmp_path, engine):
    rng = np.random.default_rng(8)
    node = helper.make_node("ConvInteger", ["x", "w", "xz"], ["y"], name="conv", pads=[1, 1, 1, 1])
    constants = {"w": draw(rng, np.int8, (10, 20, 3, 3)), "xz": np.uint8(250)}
    check(tmp_path, [node], constants, {"x": draw(rng, np.uint8, (2, 20, 5, 4))}, engine=engine, on="verilator")
