"""Models that an exporter would hardly write: the integers are ONNX Runtime's all the same, on the engine or on the host."""

import numpy as np
import pytest
from test_convolution import TEST, Graph, integers

from celosia.tools.check import check_outputs, summary
from celosia.tools.session import InferenceSession

SCALE, ZERO, OTHER_ZERO = np.float32(0.05), np.int8(3), np.int8(5)
AFTER = np.float32(0.07), np.int8(-7)
X = (1, 4, 6, 5)


def check(path, x):
    """Run on the golden executor and compare; return the operators on the host."""
    session = InferenceSession(path, TEST, "golden")
    elements, differences, _ = summary(check_outputs(session, path, {"x": x}, session.run(None, {"x": x})))
    assert elements and not differences
    return [operator for _, operator, *_ in session.model.host_nodes]


def sandwich(graph, operator, before, after, *others, axis=None, **attributes):
    axes = {} if axis is None else {"axis": axis}
    y = graph.node(operator, [graph.node("DequantizeLinear", ["x", *before], **axes), *others], **attributes)
    return graph.node("QuantizeLinear", [y, *after])


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("ReduceMean", {"axes": [2, 3]}), ("ReduceMean", {"axes": [1]}), ("AveragePool", {"kernel_shape": [2, 2]})],
)
def test_a_tensor_read_with_two_zero_points(tmp_path, operator, attributes):
    graph, rng = Graph(), np.random.default_rng(0)
    first = sandwich(graph, "AveragePool", (SCALE, ZERO), AFTER, kernel_shape=[3, 2])
    second = sandwich(graph, operator, (SCALE, OTHER_ZERO), AFTER, **attributes)
    path = graph.save(tmp_path / "net.onnx", X, np.int8, [first, second])
    assert operator in check(path, integers(rng, (4, *X[1:]), np.int8))


@pytest.mark.parametrize("operator", ["MaxPool", "ReduceMax"])
@pytest.mark.parametrize("after", [AFTER, (-SCALE, np.int8(-7))])
def test_the_largest_number_of_a_negative_scale_is_the_smallest_integer(tmp_path, operator, after):
    graph, rng = Graph(), np.random.default_rng(1)
    attributes = {"kernel_shape": [2, 2]} if operator == "MaxPool" else {"axes": [2, 3]}
    path = graph.save(tmp_path / "net.onnx", X, np.int8, [sandwich(graph, operator, (-SCALE, ZERO), after, **attributes)])
    check(path, integers(rng, (4, *X[1:]), np.int8))


@pytest.mark.parametrize(("shape", "axis"), [(X, 1), ((256, 3), 0)])
def test_activations_with_a_scale_for_each_channel_are_the_hosts(tmp_path, shape, axis):
    graph, rng = Graph(), np.random.default_rng(2)
    scales = np.linspace(0.01, 0.3, shape[axis]).astype(np.float32)
    y = sandwich(graph, "Tanh", (scales, np.zeros(len(scales), np.int8)), AFTER, axis=axis)
    path = graph.save(tmp_path / "net.onnx", shape, np.int8, [y])
    assert "Tanh" in check(path, integers(rng, (shape[0] * 3, *shape[1:]), np.int8))


def test_a_scale_of_zero_is_the_hosts(tmp_path):
    graph, rng = Graph(), np.random.default_rng(3)
    y = sandwich(graph, "AveragePool", (np.float32(0), ZERO), AFTER, kernel_shape=[2, 2])
    assert "AveragePool" in check(graph.save(tmp_path / "net.onnx", X, np.int8, [y]), integers(rng, X, np.int8))


def test_outputs_that_depend_on_no_input(tmp_path):
    graph, rng = Graph(), np.random.default_rng(4)
    y = sandwich(graph, "Tanh", (SCALE, ZERO), AFTER)
    outputs = [y, graph.node("Shape", [y]), graph.node("Identity", [np.arange(4, dtype=np.int8)])]
    path = graph.save(tmp_path / "net.onnx", X, np.int8, outputs)
    assert check(path, integers(rng, (2, *X[1:]), np.int8)) == ["Shape", "Identity"]


def test_a_number_as_the_input(tmp_path):
    graph, rng = Graph(), np.random.default_rng(5)
    path = graph.save(tmp_path / "net.onnx", (), np.int8, [sandwich(graph, "Tanh", (SCALE, ZERO), AFTER)])
    assert not check(path, integers(rng, (7,), np.int8))


def test_a_tensor_read_as_a_map_and_as_rows(tmp_path):
    """Three operations in turn want the input, and then a result, in one order and in the other."""
    graph, rng = Graph(), np.random.default_rng(6)
    weights = "DequantizeLinear", [integers(rng, (5, 4, 1, 1), np.int8), np.float32(0.01), np.int8(0)]
    outputs = [sandwich(graph, "Conv", (SCALE, ZERO), AFTER, graph.node(*weights))]
    x = graph.node("DequantizeLinear", ["x", SCALE, ZERO])
    product = graph.node("QuantizeLinear", [graph.node("MatMul", [x, x]), np.float32(0.4), ZERO])
    outputs += [product, sandwich(graph, "Conv", (SCALE, ZERO), AFTER, graph.node(*weights))]
    real = graph.node("DequantizeLinear", [product, np.float32(0.4), ZERO])
    outputs.append(graph.node("QuantizeLinear", [graph.node("ReduceMean", [real], axes=[2]), *AFTER]))
    outputs.append(graph.node("QuantizeLinear", [graph.node("MatMul", [real, x]), np.float32(9), ZERO]))
    path = graph.save(tmp_path / "net.onnx", (1, 4, 6, 6), np.int8, outputs)
    assert not check(path, integers(rng, (3, 4, 6, 6), np.int8))


def test_a_result_without_elements_is_the_hosts(tmp_path):
    graph, rng = Graph(), np.random.default_rng(7)
    y = graph.node("MaxPool", ["x"], kernel_shape=[2, 2], dilations=[7, 7], pads=[1, 1, 1, 1])
    outputs = [y, sandwich(graph, "Tanh", (SCALE, ZERO), AFTER)]
    assert check(graph.save(tmp_path / "net.onnx", X, np.int8, outputs), integers(rng, X, np.int8)) == ["MaxPool"]


@pytest.mark.parametrize("scale", [0.0, 2.0**-40, np.inf, np.nan, -0.25])
def test_powers_of_two_and_a_scale_that_no_requantiser_has(tmp_path, scale):
    graph, rng = Graph(), np.random.default_rng(8)
    x, w = (graph.node("DequantizeLinear", [v, np.float32(0.125), np.int8(0)]) for v in ("x", integers(rng, (4, 5), np.int8)))
    y = graph.node("Relu", [graph.node("Gemm", [x, w])])
    path = graph.save(tmp_path / "net.onnx", (1, 4), np.int8, [graph.node("QuantizeLinear", [y, np.float32(scale), ZERO])])
    check(path, integers(rng, (3, 4), np.int8))


@pytest.mark.parametrize("scales", [(1e20, 1e20, 1e-10), (np.nan, 0.1, 0.1), (0.1, 0.1, np.nan), (np.inf, 0.1, 0.1), (-0.1, 0.2, 0.1)])
@pytest.mark.parametrize("operator", ["Max", "Min"])
def test_maxima_of_scales_that_no_requantiser_has(tmp_path, operator, scales):
    graph, rng = Graph(), np.random.default_rng(9)
    x, other, y = (np.float32(scale) for scale in scales)
    operands = [graph.node("DequantizeLinear", ["x", scale, zero]) for scale, zero in ((x, ZERO), (other, OTHER_ZERO))]
    output = graph.node("QuantizeLinear", [graph.node(operator, operands), y, ZERO])
    check(graph.save(tmp_path / "net.onnx", X, np.int8, [output]), integers(rng, X, np.int8))


@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [2, 3])
def test_automatic_padding_that_skips_pixels(tmp_path, automatic, stride):
    graph, rng = Graph(), np.random.default_rng(10)
    attributes = {"kernel_shape": [1], "strides": [stride], "auto_pad": automatic}
    path = graph.save(tmp_path / "net.onnx", (1, 2, 6), np.int8, [sandwich(graph, "AveragePool", (SCALE, ZERO), AFTER, **attributes)])
    assert ("AveragePool" in check(path, integers(rng, (3, 2, 6), np.int8))) == (stride == 3)


def test_automatic_padding_of_a_dilated_window(tmp_path):
    graph, rng = Graph(), np.random.default_rng(11)
    window = {"kernel_shape": [3, 1], "strides": [3, 1], "auto_pad": "SAME_LOWER", "ceil_mode": 1, "dilations": [2, 3]}
    path = graph.save(tmp_path / "net.onnx", (1, 7, 2, 2), np.int8, [graph.node("MaxPool", ["x"], **window)])
    assert check(path, integers(rng, (3, 7, 2, 2), np.int8)) == ["MaxPool"]
