"""`celosia quantize`: what comes out runs on the engine, is exact there, and loses little."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from celosia.tools.check import check_outputs, summary
from celosia.tools.cli import main
from celosia.tools.quantization_report import compare_models
from celosia.tools.quantizer import METHODS, prepare, quantize, split
from celosia.tools.session import InferenceSession

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def float_network(*, batch=1, opset=17, seed=0):
    """Conv–BatchNorm–Relu, a residual of Conv–Clip, max and global average pooling, HardSwish, Gemm, Softmax."""
    rng = np.random.default_rng(seed)
    constants = {
        "w0": rng.normal(0, 0.3, (8, 3, 3, 3)), "w1": rng.normal(0, 0.15, (8, 8, 3, 3)), "b1": rng.normal(0, 0.1, 8),
        "gamma": rng.uniform(0.5, 2, 8), "beta": rng.normal(0, 0.3, 8), "mean": rng.normal(0, 0.2, 8), "var": rng.uniform(0.5, 2, 8),
        "low": 0.0, "high": 6.0, "w2": rng.normal(0, 0.4, (5, 8)), "b2": rng.normal(0, 0.2, 5),
    }  # fmt: skip
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0", **same),
        helper.make_node("BatchNormalization", ["c0", "gamma", "beta", "mean", "var"], ["n0"], "norm"),
        helper.make_node("Relu", ["n0"], ["r0"], "relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "conv1", **same),
        helper.make_node("Clip", ["c1", "low", "high"], ["r1"], "clip"),
        helper.make_node("Add", ["r0", "r1"], ["a"], "add"),
        helper.make_node("MaxPool", ["a"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["m"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["l"], "gemm", transB=1),
        helper.make_node("Softmax", ["l"], ["y"], "softmax"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


X = np.random.default_rng(1).normal(0, 1, (20, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(float_network(), "float.onnx")
    np.savez("data.npz", x=X)
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_channel", ["--per-channel", "--no-per-channel"])
def test_the_result_runs_on_the_engine_exactly_and_agrees_with_the_float_model(folder, capsys, method, per_channel):
    arguments = ["float.onnx", "--calibration", "data.npz", "-o", "int8.onnx", "--method", method, per_channel, "--json", "r.json"]
    code, out, err = call(capsys, "quantize", *arguments)
    assert (code, err) == (0, "")
    assert "the largest element agrees in" in out
    report = json.loads((folder / "r.json").read_text())
    assert (report["calibration_samples"], report["held_back_samples"]) == (16, 4)
    assert [layer["operator"] for layer in report["layers"]] == ["Relu", "Clip", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"]
    assert min(layer["sqnr_db"] for layer in report["layers"]) > 20
    assert [node["operator"] for node in report["host_nodes"]] == ["QuantizeLinear", "DequantizeLinear", "Softmax"]
    session = InferenceSession("int8.onnx", "test", "golden")
    outputs = session.run(None, {"x": X})
    assert summary(check_outputs(session, "int8.onnx", {"x": X}, outputs))[1:] == (0, 0)
    exact = onnxruntime.InferenceSession("float.onnx").run(None, {"x": X[:1]})[0]
    assert np.abs(outputs[0][0] - exact[0]).max() < 0.1


def test_old_operator_sets_and_dynamic_batches(folder, capsys):
    onnx.save(float_network(batch="N", opset=11), "float.onnx")
    assert call(capsys, "quantize", "float.onnx", "--calibration", "data.npz", "-o", "int8.onnx")[0] == 0
    assert call(capsys, "run", "int8.onnx", "--input", "data.npz", "--engine", "test", "--on", "golden", "--check")[0] == 0


def test_weights_that_are_stored_in_8_bits_are_folded(folder, capsys):
    model = float_network()
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w0"]
    values = numpy_helper.to_array(weight)
    scale = np.float32(np.abs(values).max((1, 2, 3)) / 127)
    model.graph.initializer.remove(weight)
    model.graph.initializer.append(numpy_helper.from_array(np.rint(values / scale[:, None, None, None]).astype(np.int8), "w0q"))
    model.graph.initializer.append(numpy_helper.from_array(scale, "w0s"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["w0q", "w0s"], ["w0"], axis=0))
    onnx.save(model, "float.onnx")
    code, out, _ = call(capsys, "quantize", "float.onnx", "--calibration", "data.npz", "-o", "int8.onnx")
    assert code == 0
    assert "on the host: x_QuantizeLinear (QuantizeLinear), l_DequantizeLinear (DequantizeLinear), softmax (Softmax)" in " ".join(out.split())


def test_an_average_over_the_whole_map_has_a_scale_of_its_own(folder, capsys):
    model = float_network()
    node = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    node.CopyFrom(helper.make_node("AveragePool", node.input, node.output, node.name, kernel_shape=[4, 4]))
    onnx.save(model, "float.onnx")
    assert call(capsys, "quantize", "float.onnx", "--calibration", "data.npz", "-o", "int8.onnx")[0] == 0
    assert "GlobalAveragePool" in {node.op_type for node in onnx.load("int8.onnx").graph.node}


def test_one_sample_is_used_for_both(folder, capsys):
    np.savez("data.npz", x=X[:1])
    code, out, _ = call(capsys, "quantize", "float.onnx", "--calibration", "data.npz", "-o", "int8.onnx")
    assert code == 0 and "only one sample" in out


def test_held_back_samples_are_spread_and_not_calibrated_with(folder):
    source = prepare("float.onnx")
    marked = np.zeros_like(X) + np.arange(20, dtype=np.float32)[:, None, None, None]
    calibration, held_back = split(source, {"x": marked}, 4)
    assert held_back["x"][:, 0, 0, 0, 0].tolist() == [2, 7, 12, 17]
    assert sorted([*calibration["x"][:, 0, 0, 0, 0], *held_back["x"][:, 0, 0, 0, 0]]) == list(range(20))


def not_finite():
    array = X.copy()
    array[3, 0, 0, 0] = np.nan
    np.savez("data.npz", x=array)


def damaged():
    data = Path("float.onnx").read_bytes()
    Path("float.onnx").write_bytes(data[: len(data) // 2])


def quantised():
    source = prepare("float.onnx")
    quantize(source, split(source, {"x": X})[0], "q.onnx")
    Path("q.onnx").replace("float.onnx")


BAD = [
    (not_finite, [], "data.npz: input 'x' holds a value that is not finite, in sample 3"),
    (damaged, [], "float.onnx: is not an ONNX file, or is cut short; export or download it again"),
    (quantised, [], "float.onnx: is quantised already; `celosia run` takes it as it is"),
    (lambda: np.savez("data.npz", x=X[:, :2]), [], "data.npz: input 'x' must have shape [inferences, 3, 8, 8], not [20, 2, 8, 8]"),
    (lambda: np.savez("data.npz", x=X.astype(np.float64)), [], "data.npz: input 'x' must be float32, not float64; convert it to float32"),
    (lambda: np.savez("data.npz", image=X), [], "data.npz: input 'image' is not an input of the model (inputs: x)"),
    (lambda: Path("data.npz").unlink(), [], "data.npz: no such file"),
    (lambda: np.savez("data.npz", x=X[:0]), [], "data.npz: input 'x' holds no inference; give at least one"),
    (lambda: None, ["--held-back", 20],
     "data.npz: input 'x' holds 20 samples, of which 20 cannot be held back; give at least 21, or a smaller --held-back"),
    (lambda: None, ["--held-back", 0], "--held-back must be at least 1, not 0"),
    (lambda: None, ["-o", "float.onnx"], "-o must be another file than the model float.onnx"),
    (lambda: None, ["-o", "data.npz"], "-o must be another file than the calibration data data.npz"),
    (lambda: None, ["-o", "nowhere/int8.onnx"], "nowhere/int8.onnx: cannot be written: there is no folder nowhere; create it"),
    (lambda: None, ["--json", "nowhere/r.json"], "nowhere/r.json: cannot be written: there is no folder nowhere; create it"),
]  # fmt: skip


@pytest.mark.parametrize("spoil, arguments, sentence", BAD, ids=range(len(BAD)))
def test_bad_input_is_one_sentence_and_leaves_no_file(folder, capsys, spoil, arguments, sentence):
    spoil()
    before = sorted(path.name for path in folder.iterdir())
    code, _, err = call(capsys, "quantize", "float.onnx", "--calibration", "data.npz", "-o", "int8.onnx", *arguments)
    assert code == 1
    assert err.splitlines()[-1] == f"celosia: {sentence}"
    assert sorted(path.name for path in folder.iterdir()) == before


def test_what_onnx_runtime_cannot_quantise_is_a_sentence(folder, capsys, monkeypatch):
    def broken(*arguments, **options):
        Path(arguments[1]).write_bytes(b"half")
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : by accident")

    monkeypatch.setattr("celosia.tools.quantizer.quantize_static", broken)
    code, _, err = call(capsys, "quantize", "float.onnx", "--calibration", "data.npz", "-o", "int8.onnx")
    assert (code, err.splitlines()[-1]) == (1, "celosia: float.onnx: cannot be quantised: by accident")
    assert not (folder / "int8.onnx").exists()


# The MLPerf Tiny networks --------------------------------------------------------------------------------------------


def real_inputs(stem, data):
    """Return the inputs of ``data``, which holds those of the int8 model, as the float model takes them."""
    model = onnx.load(MODELS / f"{stem}_int8_f32io.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale, zero_point = (constants[name].item() for name in first.input[1:])
    return (np.load(MODELS / "data" / f"{data}.npz")["input"].astype(np.float32) - zero_point) * np.float32(scale)


@pytest.mark.skipif(not MODELS.exists(), reason="the MLPerf Tiny models are not part of the project")
@pytest.mark.parametrize(
    "stem, data, labels",
    [
        ("mlperf_ic_resnet8", "ic_cifar10_200", "ic_labels_200"),
        ("mlperf_kws_dscnn", "kws_12", "kws_labels_12"),
        ("mlperf_vww_mobilenetv1", "vww_coco_100", "vww_labels_100"),
    ],
)
def test_accuracy_stays_within_1_5_points_of_the_float_model(tmp_path, stem, data, labels):
    images, labels = real_inputs(stem, data), np.load(MODELS / "data" / f"{labels}.npy")
    source = prepare(MODELS / f"{stem}_float.onnx")
    path = tmp_path / "int8.onnx"
    quantize(source, split(source, {"input": images})[0], path)
    session = InferenceSession(path, "mac256", "golden")
    assert {node[1] for node in session.model.host_nodes} == {"QuantizeLinear", "DequantizeLinear", "Softmax"}
    (ours,) = session.run(None, {"input": images})
    float_session = onnxruntime.InferenceSession(MODELS / f"{stem}_float.onnx")
    theirs = np.concatenate([float_session.run(None, {"input": image[None]})[0] for image in images])
    before, after = ((scores.argmax(1) == labels).mean() for scores in (theirs, ours))
    assert after >= before - 0.015


@pytest.mark.skipif(not MODELS.exists(), reason="the MLPerf Tiny models are not part of the project")
def test_the_autoencoder_keeps_its_signal(tmp_path):
    windows = real_inputs("mlperf_ad_autoencoder", "ad_windows_120")
    source = prepare(MODELS / "mlperf_ad_autoencoder_float.onnx")
    calibration, held_back = split(source, {"input": windows})
    quantize(source, calibration, tmp_path / "int8.onnx")
    _, (output,) = compare_models(source, tmp_path / "int8.onnx", held_back)
    assert output.decibels > 38
