"""`celosia explain`, host nodes in the output of `celosia run`, and `--strict`."""

import json
import re

import numpy as np
import onnx
import pytest
from graph_builder import Builder
from onnx import TensorProto, helper

from celosia.tools import ops
from celosia.tools.check import check_layers, check_outputs, summary
from celosia.tools.cli import main
from celosia.tools.compiler import quantise
from celosia.tools.session import InferenceSession

GOLDEN = ("--engine", "test", "--on", "golden")
POINTWISE = {"kernel_shape": [1, 1]}


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def network(layers, *, host_at=None, seed=0, real=False):
    """Return a model of ``layers`` convolutions, a CumSum (which no engine has) before number ``host_at``, and its inputs."""
    rng = np.random.default_rng(seed)
    builder = Builder(form="qdq", unsigned=False)
    value = builder.input(rng, (2, 4, 4), count=3, real=real)
    for layer in range(layers):
        if layer == host_at:
            name = builder.node("CumSum", [builder.dequantise(value), builder.constant("axis", np.int64(3))])
            value = builder.quantise(rng, name, np.cumsum(value.sample, 3))
        value = builder.weighted(rng, "Conv", value, (2, 2, 1, 1), 0, per_channel=True, bias=True, attributes=POINTWISE)
    builder.output(value, real=real)
    return builder.model("net"), builder.samples


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with ``net.onnx`` (all on the engine), ``host.onnx`` (a CumSum in the middle), and their inputs."""
    monkeypatch.chdir(tmp_path)
    for name, host_at in (("net", None), ("host", 1)):
        model, inputs = network(2, host_at=host_at)
        onnx.save(model, f"{name}.onnx")
        np.savez(f"{name}.npz", **inputs)
    return tmp_path


def float_model():
    shape = [1, 4]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "float.onnx")


def test_exit_code_0_where_the_engine_runs_all(folder, capsys):
    code, out, _ = call(capsys, "explain", "net.onnx", "--engine", "test")
    assert code == 0
    assert re.search(r"Conv +│ engine", out) and "0 on the host" in out


def test_exit_code_3_reason_and_suggestion_where_it_does_not(folder, capsys):
    code, out, _ = call(capsys, "explain", "host.onnx", "--json", "why.json", "--engine", "test")
    assert code == 3
    assert "CumSum is computed in floating point." in " ".join(out.split())
    document = json.loads((folder / "why.json").read_text())
    assert document["model"] == "host.onnx"
    (node,) = [node for node in document["nodes"] if node["operator"] == "CumSum"]
    assert node["where"] == "host" and node["reason"] == "CumSum is computed in floating point."
    assert node["suggestion"] == quantise.ADVICE
    assert {node["where"] for node in document["nodes"] if node["operator"] == "Conv"} == {"engine"}


def test_quantisation_at_the_ends_is_on_the_host_too(folder, capsys):
    model, _ = network(1, real=True)
    onnx.save(model, "ends.onnx")
    code, out, _ = call(capsys, "explain", "ends.onnx", "--engine", "test")
    assert code == 3
    assert "give it int8 inputs and outputs" in " ".join(out.split())


def test_a_model_that_does_not_fit_says_so(folder, capsys):
    rng = np.random.default_rng(0)
    builder = Builder(form="qdq", unsigned=False)
    value = builder.input(rng, (3, 90, 90), count=1)
    builder.output(builder.weighted(rng, "Conv", value, (4, 3, 1, 1), 0, per_channel=False, bias=True, attributes=POINTWISE))
    onnx.save(builder.model("large"), "large.onnx")
    code, out, err = call(capsys, "explain", "large.onnx", "--engine", "test", "--json", "why.json")
    assert code == 1 and "Conv" in out
    assert err.startswith("celosia: large.onnx: does not fit engine 'test': the activation memory is ") and err.count("\n") == 1
    assert f"celosia: {json.loads((folder / 'why.json').read_text())['problem']}\n" == err


def test_an_operator_nobody_supports_is_a_sentence(folder, capsys):
    model, _ = network(2)
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.op_type, node.domain, node.name = "Frobnicate", "org.example", "frob"
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    onnx.save(model, "frob.onnx")
    for arguments in (("explain", "frob.onnx"), ("run", "frob.onnx", "--input", "net.npz"), ("compile", "frob.onnx", "-o", "p")):
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (1, "")
        assert err == "celosia: frob.onnx: node 'frob' (Frobnicate): no operator of this name in domain 'org.example'\n"


def test_a_float_model_is_explained_but_not_run(folder, capsys):
    float_model()
    code, out, _ = call(capsys, "explain", "float.onnx")
    assert code == 3 and "celosia quantize" in out
    np.save("x.npy", np.zeros((1, 4), np.float32))
    sentence = (
        "celosia: float.onnx: is a float model: no node of it is quantised; "
        "quantise it first: celosia quantize float.onnx --calibration DATA.npz -o float_int8.onnx\n"
    )
    assert call(capsys, "run", "float.onnx", "--input", "x.npy") == (1, "", sentence)
    assert call(capsys, "compile", "float.onnx", "-o", "p") == (1, "", sentence)


def test_a_session_runs_a_model_without_any_engine_part(folder):
    float_model()
    session = InferenceSession("float.onnx", "test", "golden")
    (result,) = session.run(None, {"x": np.array([[-1, 0, 1, 2]], np.float32)})
    assert result.tolist() == [[0, 0, 1, 2]]
    assert [(layer.operator, layer.where) for layer in session.report.layers] == [("Relu", "host")]


def test_run_names_host_nodes(folder, capsys):
    code, out, _ = call(capsys, "run", "host.onnx", "--input", "host.npz", "--check", "--json", "r.json", *GOLDEN)
    assert code == 0 and "0 differences" in out
    assert re.search(r"on the host, in ONNX Runtime: .* CumSum_\d+ \(CumSum\)", " ".join(out.split()))
    layers = [layer for layer in json.loads((folder / "r.json").read_text())["layers"] if layer["where"] == "host"]
    assert [layer["operator"] for layer in layers] == ["DequantizeLinear", "CumSum", "QuantizeLinear"]
    assert layers[1]["reason"] == "CumSum is computed in floating point."
    assert "on the host" not in call(capsys, "run", "net.onnx", "--input", "net.npz", *GOLDEN)[1]


@pytest.mark.parametrize("command", ["run", "compile"])
def test_strict_refuses_with_one_sentence_per_node(folder, capsys, command):
    model, inputs = network(3, host_at=1, real=True)
    onnx.save(model, "host.onnx")
    np.savez("host.npz", **inputs)

    def arguments(name):
        if command == "run":
            return ["run", f"{name}.onnx", "--input", f"{name}.npz", "--strict", *GOLDEN]
        return ["compile", f"{name}.onnx", "-o", f"{name}.celosia", "--strict", "--engine", "test"]

    code, _, err = call(capsys, *arguments("host"))
    assert code == 1
    lines = err.splitlines()
    assert [re.search(r"\((\w+)\)", line)[1] for line in lines] == [
        "QuantizeLinear", "DequantizeLinear", "CumSum", "QuantizeLinear", "DequantizeLinear"
    ]  # fmt: skip
    assert all(line.startswith("celosia: host.onnx: node ") for line in lines)
    assert all(line.endswith("; --strict allows no node on the host") for line in lines)
    assert not (folder / "host.celosia").exists()
    assert call(capsys, *arguments("net"))[0] == 0


@pytest.mark.parametrize("on", ["golden", "verilator"])
def test_twenty_layers_with_a_host_node_in_the_middle_are_exact(tmp_path, on):
    model, inputs = network(20, host_at=10, seed=5)
    path = tmp_path / "deep.onnx"
    onnx.save(model, path)
    session = InferenceSession(path, "test", on)
    assert [hasattr(segment, "program") for segment in session.model.segments] == [True, False, True]
    outputs = session.run(None, inputs)
    assert summary(check_outputs(session, path, inputs, outputs))[1:] == (0, 0)
    elements, differences, _ = summary(check_layers(session, path, inputs))
    assert differences == 0 and elements >= 20 * 3 * 32


def test_every_constraint_is_one_sentence():
    for _, _, rules in ops.rows():
        for sentence, suggestion in rules:
            assert sentence.endswith(".") and sentence[0].isupper(), sentence
            assert not suggestion or suggestion.endswith("."), suggestion


def test_parts_are_named_after_nodes_of_the_file(folder, capsys):
    rng = np.random.default_rng(0)
    builder = Builder(form="qdq", unsigned=False)
    value = builder.input(rng, (4, 2, 2), count=1)
    first = builder.node("Reshape", [builder.dequantise(value), builder.constant("flat", np.array([1, 16]))])
    second = builder.node("Reshape", [first, builder.constant("map", np.array([1, 2, 8]))])
    builder.output(builder.quantise(rng, second, value.sample.reshape(1, 2, 8)))
    onnx.save(builder.model("reshapes"), "reshapes.onnx")
    call(capsys, "explain", "reshapes.onnx", "--json", "why.json")
    nodes = json.loads((folder / "why.json").read_text())["nodes"]
    names = {node["name"] for node in nodes}
    parts = [node["reason"].removeprefix("part of ") for node in nodes if node["reason"].startswith("part of ")]
    assert parts and set(parts) <= names


def test_compile_names_the_nodes_on_the_host(folder, capsys):
    code, out, _ = call(capsys, "compile", "host.onnx", "-o", "host.celosia", "--engine", "test")
    assert code == 0 and "on the host, in ONNX Runtime: " in out and "(CumSum)" in out
