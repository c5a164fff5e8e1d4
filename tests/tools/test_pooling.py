"""Pooling and reductions of every form on the golden executor, and some on the simulated RTL: ONNX Runtime's integers."""

import dataclasses

import numpy as np
import pytest
from test_convolution import ROOMY, TEST, Graph, integers

from celosia.tools.check import check_outputs, summary
from celosia.tools.compiler.frontend import lower
from celosia.tools.compiler.pipeline import compile_frontend
from celosia.tools.errors import UnsupportedOperator
from celosia.tools.session import InferenceSession


def sandwich(rng, operator, dtype, *, same=False, others=(), scale=0.041, **attributes):
    """Return a :class:`Graph` of one operator between DequantizeLinear and QuantizeLinear, and its output."""
    graph, offset = Graph(), np.iinfo(dtype).min
    quantisation = [np.float32(0.0372), dtype(offset + rng.integers(60, 200))]
    after = quantisation if same else [np.float32(scale), dtype(offset + rng.integers(60, 200))]
    x = graph.node("DequantizeLinear", ["x", *quantisation])
    return graph, graph.node("QuantizeLinear", [graph.node(operator, [x, *others], **attributes), *after])


def check(path, x, *, engine=ROOMY, on="golden", most_ties=0.0):
    """Run on the engine alone and compare; return the part of the elements that are ties and differ."""
    session = InferenceSession(path, engine, on)
    assert not session.model.host_nodes, session.model.host_nodes
    elements, differences, ties = summary(check_outputs(session, path, {"x": x}, session.run(None, {"x": x})))
    assert differences == 0 and ties <= most_ties * elements, (elements, differences, ties)
    return ties / elements


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_maxima_are_the_hosts_where_the_engine_has_none(tmp_path, operator):
    rng = np.random.default_rng(3)
    graph, y = sandwich(rng, operator, np.int8, kernel_shape=[2, 2], strides=[2, 2])
    path = graph.save(tmp_path / "net.onnx", (1, 5, 8, 8), np.int8, [y])
    config = dataclasses.replace(ROOMY, name="without", maximum=0)
    session, x = InferenceSession(path, config, "golden"), integers(rng, (3, 5, 8, 8), np.int8)
    assert bool(session.model.host_nodes) == (operator == "MaxPool")
    assert summary(check_outputs(session, path, {"x": x}, session.run(None, {"x": x})))[1] == 0
    if operator == "MaxPool":
        reasons = [reason for _, _, where, reason, _ in lower(path, config).rows if where == "host"]
        assert "It takes a maximum over pixels, which this engine was built without (maximum = 0)." in reasons
        with pytest.raises(UnsupportedOperator, match=r"it takes a maximum over pixels, which this engine was built without \(maximum = 0\)"):
            compile_frontend(lower(path), config)


WINDOWS = {
    "stride": {"kernel_shape": [3, 2], "strides": [2, 1]},
    "pads": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 2, 1]},
    "ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    "ceil and pads": {"kernel_shape": [4, 3], "strides": [3, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    "a long stride": {"kernel_shape": [2, 2], "strides": [1, 16]},
    "same": {"kernel_shape": [2, 3], "auto_pad": "SAME_LOWER"},
    "one dimension": {"kernel_shape": [4], "strides": [3], "pads": [2, 1]},
}


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("include", [0, 1, None], ids=["exclude", "include", "max"])
def test_pooling(tmp_path, case, include):
    rng = np.random.default_rng([len(case), include or 0])
    dtype = [np.int8, np.uint8][len(case) % 2]
    attributes = WINDOWS[case] | ({} if include is None else {"count_include_pad": include})
    graph, y = sandwich(rng, "MaxPool" if include is None else "AveragePool", dtype, **attributes)
    shape = (1, 5, *(8, 19)[-len(attributes["kernel_shape"]) :])
    path = graph.save(tmp_path / "net.onnx", shape, dtype, [y])
    check(path, integers(rng, (6, *shape[1:]), dtype), most_ties=0.005)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_ties_of_equal_scales_go_to_even_after_the_zero_point(tmp_path, dtype):
    """What remains as ties are those that ONNX Runtime's rounding errors decide: a sixteenth where a quarter are ties."""
    rng = np.random.default_rng(7)
    graph, y = sandwich(rng, "AveragePool", dtype, same=True, kernel_shape=[2, 2], strides=[2, 2])
    path = graph.save(tmp_path / "net.onnx", (1, 8, 16, 16), dtype, [y])
    check(path, integers(rng, (8, 8, 16, 16), dtype), most_ties=0.06)
    graph, _ = sandwich(rng, "AveragePool", dtype, same=True, kernel_shape=[2, 2], strides=[2, 2])
    graph.constants[0].CopyFrom(type(graph.constants[0])(name="c0", data_type=1, float_data=[0.0625]))
    graph.constants[2].CopyFrom(type(graph.constants[2])(name="c2", data_type=1, float_data=[0.0625]))
    path = graph.save(tmp_path / "net.onnx", (1, 8, 16, 16), dtype, [y])
    assert check(path, integers(rng, (8, 8, 16, 16), dtype), most_ties=1) == 0  # no rounding errors, no difference


REDUCTIONS = [
    (operator, axes, keepdims)
    for operator in ("ReduceMax", "ReduceMean", "ReduceSum")
    for axes in ([2, 3], [-1], [2], [1])
    for keepdims in (0, 1)
] + [("ReduceMean", [1, 2, 3], 1), ("ReduceMax", [1, 3], 0), ("ReduceMax", [0, 1, 2, 3], 1), ("ReduceSum", [0, 1, 2, 3], 0), ("GlobalMaxPool", None, 1)]


@pytest.mark.parametrize(("operator", "axes", "keepdims"), REDUCTIONS)
def test_reductions(tmp_path, operator, axes, keepdims):
    rng = np.random.default_rng(len(operator) + 7 * keepdims)
    dtype = [np.int8, np.uint8][keepdims]
    others, attributes = [], {}
    if operator == "ReduceSum":
        others, attributes = [np.array(axes)], {"keepdims": keepdims}
    elif axes:
        attributes = {"axes": axes, "keepdims": keepdims}
    facts = {"same": operator == "ReduceMax" and keepdims == 0, "scale": 0.3 if operator == "ReduceSum" else 0.041}
    graph, y = sandwich(rng, operator, dtype, others=others, **facts, **attributes)
    path = graph.save(tmp_path / "net.onnx", (1, 7, 6, 9), dtype, [y])
    check(path, integers(rng, (10, 7, 6, 9), dtype), most_ties=0.005)


def test_reductions_of_a_matrix(tmp_path):
    rng = np.random.default_rng(8)
    for axes in ([1], [2]):
        graph = Graph()
        w = integers(rng, (12, 6), np.int8)
        y = graph.node("QLinearMatMul", ["x", np.float32(0.02), np.int8(9), w, np.float32(0.01), np.int8(0), np.float32(0.05), np.int8(3)])
        y = graph.node("DequantizeLinear", [y, np.float32(0.05), np.int8(3)])
        y = graph.node("QuantizeLinear", [graph.node("ReduceMean", [y], axes=axes, keepdims=0), np.float32(0.0217), np.int8(1)])
        check(graph.save(tmp_path / "net.onnx", (1, 5, 12), np.int8, [y]), integers(rng, (8, 5, 12), np.int8))


def test_on_the_simulated_engine(tmp_path):
    rng = np.random.default_rng(9)
    for operator, attributes in (
        ("ReduceMax", {"axes": [1]}),
        ("ReduceMax", {"axes": [1, 2]}),
        ("ReduceMean", {"axes": [1], "keepdims": 0}),
        ("ReduceMax", {"axes": [2]}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 17], "pads": [1, 1, 0, 1], "ceil_mode": 1}),
    ):
        graph, y = sandwich(rng, operator, np.int8, **attributes)
        path = graph.save(tmp_path / "net.onnx", (1, 6, 5, 19), np.int8, [y])
        check(path, integers(rng, (2, 6, 5, 19), np.int8), engine=TEST, on="verilator", most_ties=0.005)
