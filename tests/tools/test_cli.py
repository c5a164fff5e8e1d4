"""The command line: what it prints and writes, and one sentence with exit code 1 for everything that can go wrong."""

import json
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from graph_builder import Builder
from random_graphs import Recipe, Step, build

import celosia
from celosia.rtl.config import PRESETS
from celosia.tools.cli import main

RECIPE = Recipe(
    seed=1, form="qdq", unsigned=False, shape=(3, 6, 6), count=4,
    steps=(Step("conv", 1, (("kernel", (3, 3)), ("out", 5), ("relu", "relu"))), Step("flatten", 2), Step("gemm", 3, (("out", 4),))),
)  # fmt: skip


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A folder with ``net.onnx`` (one int8 input ``input0``) and ``in.npz``, as working folder."""
    model, inputs = build(RECIPE)
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "in.npz", **inputs)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


GOLDEN = ("--engine", "test", "--on", "golden")


# What works ----------------------------------------------------------------------------------------------------------


def test_run_writes_outputs_and_report_and_finds_them_equal(net, capsys):
    code, out, err = call(capsys, "run", "net.onnx", "--input", "in.npz", "--output", "out.npz", "--json", "r.json", "--check", *GOLDEN)
    assert (code, err) == (0, "")
    assert "0 differences from ONNX Runtime in 16 elements" in out
    with np.load("out.npz") as outputs:
        (name,) = outputs.files
        assert outputs[name].shape == (4, 4) and outputs[name].dtype == np.int8
    report = json.loads((net / "r.json").read_text())
    assert {"cycles", "macs", "utilization", "elements", "differences", "ties", "layers", "engine", "model", "version"} <= set(report)
    assert (report["elements"], report["differences"], report["ties"]) == (16, 0, 0)
    assert {"name", "operator", "where", "cycles", "macs", "utilization"} == set(report["layers"][0])
    assert report["version"] == celosia.__version__


def test_npy_is_the_only_input_and_limit_cuts_it(net, capsys):
    with np.load("in.npz") as file:
        np.save("in.npy", file["input0"])
    code, _, _ = call(capsys, "run", "net.onnx", "--input", "in.npy", "--output", "out.npz", "--limit", 2, *GOLDEN)
    assert code == 0
    with np.load("out.npz") as outputs:
        assert outputs[outputs.files[0]].shape == (2, 4)


def test_check_of_layers_covers_more_than_the_outputs(net, capsys):
    code, out, _ = call(capsys, "run", "net.onnx", "--input", "in.npz", "--check=layers", *GOLDEN)
    assert code == 0
    assert f"0 differences from ONNX Runtime in {4 * (5 * 4 * 4 + 4)} elements of 2 tensors" in out


def test_a_difference_is_exit_code_1(net, capsys, monkeypatch):
    from celosia.tools.backends import Golden

    honest = Golden.run

    def dishonest(self, feed, progress):
        outputs, cycles, events = honest(self, feed, progress)
        next(iter(outputs.values())).flat[5] ^= 1
        return outputs, cycles, events

    monkeypatch.setattr(Golden, "run", dishonest)
    code, out, _ = call(capsys, "run", "net.onnx", "--input", "in.npz", "--check", "--json", "r.json", *GOLDEN)
    assert code == 1
    assert "1 of 16 elements differ; element [1, 0, 1] is" in out
    assert json.loads((net / "r.json").read_text())["differences"] == 1


def test_compile_then_run_the_program(net, capsys):
    code, out, _ = call(capsys, "compile", "net.onnx", "-o", "net.celosia", "--engine", "test")
    assert code == 0 and "instructions" in out
    call(capsys, "run", "net.onnx", "--input", "in.npz", "--output", "a.npz", *GOLDEN)
    code, _, _ = call(capsys, "run", "net.celosia", "--input", "in.npz", "--output", "b.npz", *GOLDEN)
    assert code == 0
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert a.files == b.files and all((a[name] == b[name]).all() for name in a.files)


def test_compile_dumps_passes_and_lists_instructions(net, capsys):
    code, out, _ = call(capsys, "compile", "net.onnx", "--dump-after", "tile", "--listing", "--engine", "test")
    assert code == 0
    assert "after pass 'tile':" in out
    assert "END" in out.upper()


def test_engine_from_a_file(net, capsys):
    (net / "mine.json").write_text(PRESETS["test"].to_json())
    assert call(capsys, "run", "net.onnx", "--input", "in.npz", "--engine", "mine.json", "--on", "golden")[0] == 0


def test_engines_and_ops_list_everything(capsys):
    code, out, _ = call(capsys, "engines")
    assert code == 0 and all(name in out and f"{PRESETS[name].digest:08x}" in out for name in PRESETS)
    code, out, _ = call(capsys, "ops")
    assert code == 0 and "Conv" in out and "GlobalAveragePool" in out


def test_engines_ops_and_compile_as_json(net, capsys):
    assert call(capsys, "engines", "--json", "engines.json")[0] == 0
    engines = json.loads((net / "engines.json").read_text())
    assert list(engines) == list(PRESETS) and engines["test"]["digest"] == f"{PRESETS['test'].digest:08x}"
    (net / "mine.json").write_text(json.dumps(engines["test"]["configuration"]))
    assert call(capsys, "run", "net.onnx", "--input", "in.npz", "--engine", "mine.json", "--on", "golden")[0] == 0
    assert call(capsys, "ops", "--json", "ops.json")[0] == 0
    families = json.loads((net / "ops.json").read_text())
    assert any("Conv" in family["operators"] and family["constraints"][0]["suggestion"] for family in families)
    assert call(capsys, "compile", "net.onnx", "--engine", "test", "--json", "net.json")[0] == 0
    document = json.loads((net / "net.json").read_text())
    memories = document["programs"][0]["memories"]
    assert 0 < memories["weight_bytes"]["taken"] <= memories["weight_bytes"]["available"] == PRESETS["test"].weight_bytes
    assert [node["operator"] for node in document["host_nodes"]] == []


def test_help_lists_every_pass(capsys):
    from celosia.tools.compiler import pipeline

    with pytest.raises(SystemExit):
        main(["compile", "--help"])
    assert ", ".join(pipeline.PASSES) in " ".join(capsys.readouterr().out.split())


def test_demo_on_the_golden_executor(net, capsys):
    code, out, _ = call(capsys, "demo", "--on", "golden", "--limit", 20)
    assert code == 0
    assert "accuracy:" in out and "0 differences from ONNX Runtime in 200 elements" in out


@pytest.mark.parametrize("command", [[sys.executable, "-m", "celosia"], ["celosia"]])
def test_version_of_the_installed_command(command):
    if command == ["celosia"]:
        command = [str(__import__("pathlib").Path(sys.executable).parent / "celosia")]
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"celosia {celosia.__version__}"


def test_names_in_brackets_are_printed_as_they_are(net, capsys):
    model = onnx.load("net.onnx")
    for node in model.graph.node:
        node.name = f"[red]{node.op_type}[/blue]{node.output[0]}"
    onnx.save(model, "[b]net.onnx")
    for arguments in (
        ["run", "[b]net.onnx", "--input", "in.npz", "--on", "golden", "--check=layers"],
        ["explain", "[b]net.onnx"],
        ["compile", "[b]net.onnx", "-o", "[b]net.celosia"],
    ):
        code, out, err = call(capsys, *arguments, "--engine", "test")
        assert (code, err) == (0, "") and "[b]net.onnx" in out


# What goes wrong -----------------------------------------------------------------------------------------------------


def truncated():
    data = open("net.onnx", "rb").read()
    open("bad.onnx", "wb").write(data[: len(data) // 2])


def unknown_operator():
    model = onnx.load("net.onnx")
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Frobnicate"
    onnx.save(model, "bad.onnx")


def dynamic_shape():
    model = onnx.load("net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, "bad.onnx")


def text_file():
    open("bad.onnx", "w").write("hello\n")


def no_outputs():
    model = onnx.load("net.onnx")
    del model.graph.output[:]
    onnx.save(model, "bad.onnx")


def folder():
    os.mkdir("bad.onnx")


def damaged_member():
    rng = np.random.default_rng(0)
    np.savez_compressed("x.npz", input0=rng.integers(-9, 9, (40, 3, 6, 6), np.int8))
    data = bytearray(open("x.npz", "rb").read())
    data[200:260] = bytes(60)
    open("x.npz", "wb").write(data)


def member_that_is_text():
    with zipfile.ZipFile("x.npz", "w") as file:
        file.writestr("input0", "hello")


def save(name, **arrays):
    return lambda: np.savez(name, **arrays)


X = np.zeros((4, 3, 6, 6), np.int8)

BAD_MODELS = [
    (truncated, "bad.onnx: is not an ONNX file, or is cut short; export or download it again"),
    (text_file, "bad.onnx: is not an ONNX file, or is cut short; export or download it again"),
    (unknown_operator, "bad.onnx: node 'Relu_12' (Frobnicate): no operator of this name in ONNX operator set 17"),
    (dynamic_shape, "bad.onnx: input 'input0' has a dynamic shape: dimension 2 is 'height'; export it with a fixed shape, or fix "
                    "it with python -m onnxruntime.tools.make_dynamic_shape_fixed"),
    (no_outputs, "bad.onnx: has no graph output; export it with its outputs"),
    (folder, "bad.onnx: is a folder; give the ONNX file in it"),
    (lambda: None, "bad.onnx: no such file; looked for bad.onnx"),
]  # fmt: skip


@pytest.mark.parametrize("make, sentence", BAD_MODELS, ids=[make.__name__ for make, _ in BAD_MODELS])
@pytest.mark.parametrize("command", ["run", "compile", "explain"])
def test_bad_model_is_one_sentence(net, capsys, command, make, sentence):
    make()
    arguments = {"run": ["--input", "in.npz", "--output", "out.npz"], "compile": ["-o", "out.npz"], "explain": []}[command]
    code, out, err = call(capsys, command, "bad.onnx", *arguments)
    assert (code, out) == (1, "")
    assert err == f"celosia: {sentence}\n"
    assert sorted(path.name for path in net.iterdir() if path.name != "bad.onnx") == ["in.npz", "net.onnx"]


BAD_INPUTS = [
    (save("x.npz", input0=X[:, :2]), "x.npz", "x.npz: input 'input0' must have shape [inferences, 3, 6, 6], not [4, 2, 6, 6]"),
    (save("x.npz", input0=X[0]), "x.npz", "x.npz: input 'input0' must have shape [inferences, 3, 6, 6], not [3, 6, 6]; for one inference give array[None]"),
    (save("x.npz", input0=X[:0]), "x.npz", "x.npz: input 'input0' holds no inference; give at least one"),
    (save("x.npz", input0=X.astype(np.float32)), "x.npz",
     "x.npz: input 'input0' must be int8, not float32; quantise it with the scale and zero point of the model's input"),
    (save("x.npz", input0=X.astype(np.uint8)), "x.npz", "x.npz: input 'input0' must be int8, not uint8; convert it to int8"),
    (save("x.npz", image=X), "x.npz", "x.npz: input 'image' is not an input of the model (inputs: input0)"),
    (save("x.npz"), "x.npz", "x.npz: input 'input0' is missing; given: none"),
    (lambda: None, "x.npz", "x.npz: no such file"),
    (lambda: open("x.npz", "w").write("1 2 3"), "x.npz", "x.npz: must be a .npz or .npy file of numbers, and whole; write it with numpy.savez"),
    (damaged_member, "x.npz", "x.npz: must be a .npz or .npy file of numbers, and whole; write it with numpy.savez"),
    (member_that_is_text, "x.npz", "x.npz: must be a .npz or .npy file of numbers, and whole; write it with numpy.savez"),
    (lambda: np.save("x.npy", np.array([object()])), "x.npy", "x.npy: must be a .npz or .npy file of numbers, and whole; write it with numpy.savez"),
]  # fmt: skip


@pytest.mark.parametrize("make, file, sentence", BAD_INPUTS, ids=range(len(BAD_INPUTS)))
def test_bad_input_is_one_sentence(net, capsys, make, file, sentence):
    make()
    code, out, err = call(capsys, "run", "net.onnx", "--input", file, "--output", "out.npz", *GOLDEN)
    assert (code, out) == (1, "")
    assert err == f"celosia: {sentence}\n"
    assert not (net / "out.npz").exists()


def test_npy_for_several_inputs(net, capsys):
    recipe = Recipe(seed=1, form="qdq", unsigned=False, shape=(2, 3, 3), steps=(Step("add", 1, (("fresh", True),)),))
    onnx.save(build(recipe)[0], "two.onnx")
    np.save("x.npy", np.zeros((1, 2, 3, 3), np.int8))
    code, _, err = call(capsys, "run", "two.onnx", "--input", "x.npy", *GOLDEN)
    assert code == 1
    assert err == "celosia: input 'input0' cannot come from x.npy, which holds one array for the inputs input0, input1; use .npz\n"


def test_inputs_with_different_numbers_of_inferences(net, capsys):
    recipe = Recipe(seed=1, form="qdq", unsigned=False, shape=(2, 3, 3), steps=(Step("add", 1, (("fresh", True),)),))
    onnx.save(build(recipe)[0], "two.onnx")
    np.savez("x.npz", input0=np.zeros((3, 2, 3, 3), np.int8), input1=np.zeros((2, 2, 3, 3), np.int8))
    code, _, err = call(capsys, "run", "two.onnx", "--input", "x.npz", *GOLDEN)
    assert (code, err) == (1, "celosia: x.npz: input 'input1' holds 2 inferences, but 'input0' holds 3\n")


def test_program_for_another_engine(net, capsys):
    call(capsys, "compile", "net.onnx", "-o", "net.celosia", "--engine", "test")
    code, _, err = call(capsys, "run", "net.celosia", "--input", "in.npz", "--engine", "mac64", "--on", "golden")
    assert code == 1
    test, mac64 = PRESETS["test"].digest, PRESETS["mac64"].digest
    assert err == (
        f"celosia: net.celosia: was compiled for engine 'test' (digest {test:#010x}), not for 'mac64' ({mac64:#010x}); "
        "compile the model for this one\n"
    )


def test_damaged_program(net, capsys):
    call(capsys, "compile", "net.onnx", "-o", "net.celosia", "--engine", "test")
    data = (net / "net.celosia").read_bytes()
    (net / "net.celosia").write_bytes(data[: len(data) // 2])
    code, _, err = call(capsys, "run", "net.celosia", "--input", "in.npz", *GOLDEN)
    assert (code, err) == (1, "celosia: net.celosia: is not a compiled program, or damaged; compile the model again\n")


def test_check_of_a_program_needs_the_model(net, capsys):
    call(capsys, "compile", "net.onnx", "-o", "net.celosia", "--engine", "test")
    code, _, err = call(capsys, "run", "net.celosia", "--input", "in.npz", "--check", *GOLDEN)
    assert code == 1
    assert err == "celosia: net.celosia: --check compares with ONNX Runtime and needs the ONNX file: run that instead\n"


def test_unknown_engine(net, capsys):
    code, _, err = call(capsys, "run", "net.onnx", "--input", "in.npz", "--engine", "huge")
    assert (code, err) == (1, "celosia: engine must be one of test, mac64, mac256, test_port, mac256_port, a board or a .json file, not 'huge'\n")


@pytest.mark.parametrize(
    "text, sentence",
    [
        (None, "cannot read engine configuration e.json: No such file or directory"),
        ("{", "e.json must be JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("{}", "e.json: rows is missing"),
        ('{"rows": 4, "colour": 1}', "e.json: 'colour' is not a knob of the engine"),
    ],
)
def test_bad_engine_file(net, capsys, text, sentence):
    if text is not None:
        (net / "e.json").write_text(text)
    code, _, err = call(capsys, "run", "net.onnx", "--input", "in.npz", "--engine", "e.json")
    assert code == 1
    assert err.startswith(f"celosia: {sentence}") and err.count("\n") == 1


def test_network_that_does_not_fit_names_memory_and_bytes(net, capsys):
    builder = Builder(form="qdq", unsigned=False)
    rng = np.random.default_rng(0)
    value = builder.input(rng, (3, 90, 90), count=1)
    options = {"kernel_shape": [1, 1]}
    builder.output(builder.weighted(rng, "Conv", value, (4, 3, 1, 1), 0, per_channel=False, bias=True, attributes=options))
    onnx.save(builder.model("large"), "large.onnx")
    code, _, err = call(capsys, "compile", "large.onnx", "-o", "large.celosia", "--engine", "test")
    assert code == 1
    assert err.startswith("celosia: large.onnx: does not fit engine 'test': the activation memory is ") and err.count("\n") == 1
    assert "bytes too small" in err and err.endswith("; choose another preset, or a JSON file with a larger act_depth\n")
    assert not (net / "large.celosia").exists()


BAD_OUTPUTS = [
    (["--output", "nowhere/out.npz"], "nowhere/out.npz: cannot be written: there is no folder nowhere; create it"),
    (["--output", "."], ".: cannot be written: it is a folder; give a file name"),
    (["--output", ""], "--output must name a file, not ''"),
    (["--output", "kept.npz"], "kept.npz: cannot be written: it is read-only; give another name"),
    (["--output", "out.npz", "--json", "nowhere/r.json"], "nowhere/r.json: cannot be written: there is no folder nowhere; create it"),
    (["--output", "out.npz", "--json", "./net.onnx"], "--json must be another file than the model net.onnx"),
    (["--output", "in.npz"], "--output must be another file than the input in.npz"),
    (["--output", "out.npz", "--json", "out.npz"], "--json must be another file than --output out.npz"),
    (["--output", "out.npz", "--timeline", "t.svg"], "--timeline needs cycles, and there are none on 'golden'; use --on verilator"),
]


@pytest.mark.parametrize("arguments, sentence", BAD_OUTPUTS, ids=range(len(BAD_OUTPUTS)))
def test_output_that_cannot_be_written_is_refused_before_the_run(net, capsys, arguments, sentence):
    (net / "kept.npz").write_bytes(b"kept")
    (net / "kept.npz").chmod(0o444)
    before = {path.name: path.read_bytes() for path in net.iterdir()}
    code, out, err = call(capsys, "run", "net.onnx", "--input", "in.npz", *arguments, *GOLDEN)
    assert (code, out, err) == (1, "", f"celosia: {sentence}\n")
    assert {path.name: path.read_bytes() for path in net.iterdir()} == before


def test_a_timeline_of_a_model_on_the_host_is_refused_before_a_file_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ends = [onnx.helper.make_tensor_value_info(*end, [1, 4]) for end in (("x", onnx.TensorProto.INT8), ("y", onnx.TensorProto.FLOAT))]
    scale = onnx.numpy_helper.from_array(np.float32(0.5), "scale")
    graph = onnx.helper.make_graph([onnx.helper.make_node("DequantizeLinear", ["x", "scale"], ["y"])], "host", ends[:1], ends[1:], [scale])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), "host.onnx")
    np.savez("in.npz", x=np.zeros((1, 4), np.int8))
    outputs = ["--output", "out.npz", "--json", "r.json", "--timeline", "t.svg"]
    code, _, err = call(capsys, "run", "host.onnx", "--input", "in.npz", *outputs)
    assert code == 1 and "the engine runs no node of host.onnx" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host.onnx", "in.npz"]


def test_a_link_stays_a_link_and_a_pipe_is_written_to(net, capsys):
    (net / "real.json").write_text("old")
    (net / "link.json").symlink_to("real.json")
    assert call(capsys, "run", "net.onnx", "--input", "in.npz", "--json", "link.json", *GOLDEN)[0] == 0
    assert (net / "link.json").is_symlink() and "cycles" in json.loads((net / "real.json").read_text())
    os.mkfifo("pipe")
    pipe = os.open("pipe", os.O_RDWR)
    assert call(capsys, "run", "net.onnx", "--input", "in.npz", "--json", "pipe", *GOLDEN)[0] == 0
    assert (net / "pipe").is_fifo() and json.loads(os.read(pipe, 1 << 16)) == json.loads((net / "real.json").read_text())
    os.close(pipe)


def test_onnx_runtime_is_quoted_without_its_source_files(net, capsys):
    model = onnx.load("net.onnx")
    model.ir_version = 99
    onnx.save(model, "bad.onnx")
    code, _, err = call(capsys, "explain", "bad.onnx")
    assert code == 1
    assert re.fullmatch(r"celosia: bad.onnx: ONNX Runtime refuses it: Unsupported model IR version: 99, max .*: \d+\n", err)


def test_program_given_where_a_model_belongs(net, capsys):
    call(capsys, "compile", "net.onnx", "-o", "net.celosia", "--engine", "test")
    code, _, err = call(capsys, "explain", "net.celosia")
    assert (code, err) == (1, "celosia: net.celosia: is a program of `celosia compile` or another archive; give the ONNX file\n")


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one(net, capsys, limit):
    code, _, err = call(capsys, "run", "net.onnx", "--input", "in.npz", "--limit", limit, *GOLDEN)
    assert (code, err) == (1, f"celosia: --limit must be at least 1, not {limit}\n")


def test_unknown_pass(net, capsys):
    code, _, err = call(capsys, "compile", "net.onnx", "--dump-after", "magic")
    assert code == 1
    assert err.startswith("celosia: --dump-after must be one of importer, legalise,") and err.endswith("not 'magic'\n")


def test_internal_error_is_a_sentence_and_debug_shows_it(net, capsys, monkeypatch):
    from celosia.tools.backends import Golden

    def broken(self, feed, progress):
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(Golden, "run", broken)
    arguments = ["run", "net.onnx", "--input", "in.npz", *GOLDEN]
    code, _, err = call(capsys, *arguments)
    assert code == 1
    assert err == "celosia: internal error, please report it with the output of --debug: ZeroDivisionError: by accident\n"
    with pytest.raises(ZeroDivisionError):
        main([*arguments, "--debug"])
    with pytest.raises(ZeroDivisionError):
        main(["--debug", *arguments])


def test_interrupted_write_leaves_nothing(net, capsys, monkeypatch):
    def broken(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", broken)
    code, _, err = call(capsys, "run", "net.onnx", "--input", "in.npz", "--output", "out.npz", *GOLDEN)
    assert (code, err) == (1, "celosia: out.npz: cannot be written: No space left on device\n")
    assert sorted(path.name for path in net.iterdir()) == ["in.npz", "net.onnx"]


def test_estimate_prints_cycles_and_what_bounds_them(net, capsys):
    code, out, err = call(capsys, "estimate", "net.onnx", "--engine", "test", "--json", "e.json", "--timeline", "e.svg")
    assert (code, err) == (0, "")
    assert "bound by" in out and "predicted by the cycle model" in out
    report = json.loads((net / "e.json").read_text())
    assert report["on"] == "estimate" and report["cycles"] == sum(layer["cycles"] for layer in report["layers"]) + report["unexplained_cycles"]
    assert {layer["bound"] for layer in report["layers"]} <= {"array", "weights", "load", "store", "latency"}
    assert (net / "e.svg").read_text().startswith("<svg")
    call(capsys, "compile", "net.onnx", "--engine", "test", "-o", "net.celosia")
    assert call(capsys, "estimate", "net.celosia", "--engine", "test")[0] == 0


def test_estimate_of_a_model_that_does_not_fit_says_so(net, capsys):
    small = {"name": "small"} | json.loads(PRESETS["test"].to_json()) | {"weight_tiles": 8}
    (net / "small.json").write_text(json.dumps(small))
    code, out, _ = call(capsys, "estimate", "net.onnx", "--engine", "small.json")
    assert code == 0 and "does not fit engine" in out and "as if the engine had the largest memories" in out
