"""`celosia.onnx_backend`, and ONNX's own tests of the quantised operators over it (`make conformance` runs all of them)."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.base import Backend

import celosia.onnx_backend as backend
from celosia.tools import conformance
from celosia.tools.errors import CelosiaError


def convolution(rng):
    """A QLinearConv with constant weights, which the engine runs."""
    constants = {
        "xs": np.float32(0.05), "xz": np.uint8(120), "w": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.float32(0.01), "wz": np.int8(0), "ys": np.float32(0.2), "yz": np.uint8(100),
    }  # fmt: skip
    node = helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 4, 5, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_a_model_runs_on_the_engine_from_any_kind_of_input():
    rng = np.random.default_rng(0)
    model = convolution(rng)
    x = rng.integers(0, 256, (1, 3, 5, 5)).astype(np.uint8)
    ready = backend.prepare(model, "CPU", engine="test")
    assert issubclass(backend.CelosiaBackend, Backend) and backend.supports_device("CPU") and not backend.supports_device("CUDA")
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    for given in (x, [x], {"x": x}):
        assert np.array_equal(ready.run(given)["y"], expected)
        assert [layer.where for layer in ready.report.layers] == ["engine"]
    assert np.array_equal(backend.run_model(model, [x], engine="test")[0], ready.run(x)[0])


def test_one_node_runs_on_its_own():
    (result,) = backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [np.float32([[-1, 2]])], opset_version=17)
    assert result.tolist() == [[0, 2]]


def test_what_cannot_be_compiled_is_a_sentence():
    model = convolution(np.random.default_rng(0))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(CelosiaError, match="dynamic shape"):
        backend.prepare(model)
    assert not backend.is_compatible(model)


def test_a_newer_operator_set_than_onnx_runtimes():
    version = onnx.defs.onnx_opset_version()
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    arrays = [np.float32([1, 2.5, -300]), np.float32(1), np.int8(3)]
    assert backend.run_node(node, arrays, opset_version=version)[0].tolist() == [4, 5, -128]


# These need types that ONNX Runtime does not exchange with Python.
OTHER_TYPES = ("e4m3fn", "e5m2", "int4", "int2", "float4e2m1")


@pytest.mark.parametrize(
    "pattern, most_skipped", [("qlinear", 0), ("convinteger", 0), ("matmulinteger", 0), ("quantizelinear", 18), ("uint8", 3)]
)
def test_onnx_tests_of_quantised_operators(pattern, most_skipped):
    results = conformance.run(pattern)
    assert [result for result in results if result.where == "failed"] == []
    skipped = [result.name for result in results if result.where == "skipped"]
    assert len(skipped) <= most_skipped
    if pattern != "uint8":
        assert all(any(kind in name for kind in OTHER_TYPES) for name in skipped)


def test_convolution_and_matrix_product_run_on_the_engine():
    where = {result.name: result.where for result in conformance.run("qlinear")}
    assert where["test_qlinearconv"] == "engine"
    assert where["test_qlinearmatmul_2D_int8_float32"] == where["test_qlinearmatmul_2D_uint8_float32"] == "engine"


def test_float_operators_run_on_the_host_and_refusals_have_a_reason():
    by_name = {result.name: result for pattern in ("softmax_", "sequence") for result in conformance.run(pattern)}
    assert by_name["test_softmax_example"].where == "host"
    assert by_name["test_sequence_insert_at_back"].where == "skipped"
    assert all(result.reason for result in by_name.values() if result.where == "skipped")


def test_the_page_counts_every_test():
    results = conformance.run("relu")
    text = conformance.page(results)
    assert f"| all | {len(results)} |" in text and "| **fails** | 0 |" in text
