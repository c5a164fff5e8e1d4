"""`celosia.InferenceSession` behaves like ONNX Runtime's, on every backend."""

import numpy as np
import onnx
import onnxruntime
import pytest
from random_graphs import Recipe, Step, build

import celosia
from celosia.rtl.config import PRESETS
from celosia.tools.compiler.importer import session_options
from celosia.tools.compiler.pipeline import compile_model
from celosia.tools.errors import BadConfig, BadInput, BadModel

RECIPE = Recipe(
    seed=7, form="qdq", unsigned=True, shape=(3, 5, 5), count=5, real_output=True, softmax=True,
    steps=(Step("conv", 1, (("kernel", (3, 3)), ("pads", (1, 1, 1, 1)), ("out", 5))), Step("add", 2, (("fresh", True),)),
           Step("flatten", 3), Step("gemm", 4, (("out", 4),))),
)  # fmt: skip


@pytest.fixture
def net(tmp_path):
    model, inputs = build(RECIPE)
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx", inputs


def reference(path, inputs):
    session = onnxruntime.InferenceSession(path, session_options())
    count = len(next(iter(inputs.values())))
    runs = [session.run(None, {name: array[n : n + 1] for name, array in inputs.items()}) for n in range(count)]
    return [np.concatenate(arrays) for arrays in zip(*runs)]


def test_has_the_feel_of_onnx_runtime(net):
    path, inputs = net
    ours, theirs = celosia.InferenceSession(path, engine="test", on="golden"), onnxruntime.InferenceSession(path, session_options())
    for mine, other in ((ours.get_inputs(), theirs.get_inputs()), (ours.get_outputs(), theirs.get_outputs())):
        assert [(a.name, a.type, a.shape) for a in mine] == [(a.name, a.type, a.shape) for a in other]
    assert ours.report is None
    (result,) = ours.run(None, inputs)
    (expected,) = reference(path, inputs)
    assert result.dtype == expected.dtype and np.array_equal(result, expected)
    (named,) = ours.run([ours.get_outputs()[0].name], inputs)
    assert np.array_equal(named, expected)
    assert ours.report.inferences == 5 and ours.report.macs > 0


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rtl_equals_onnx_runtime_with_any_number_of_simulators(net, workers):
    path, inputs = net
    session = celosia.InferenceSession(path, engine="test", workers=workers)
    done = []
    (result,) = session.run(None, inputs, progress=done.append)
    assert np.array_equal(result, reference(path, inputs)[0])
    assert sum(done) == 5
    report = session.report
    assert report.cycles > 0 and 0 < report.utilization < 1
    assert sum(layer.cycles for layer in report.layers if layer.where == "engine") + report.unexplained == report.cycles
    assert [layer.operator for layer in report.layers if layer.where == "host"] == ["DequantizeLinear", "Softmax"]


def test_accepts_a_compiled_model_and_a_configuration(net):
    path, inputs = net
    config = PRESETS["test"]
    session = celosia.InferenceSession(compile_model(path, config), config, "golden")
    assert np.array_equal(session.run(None, inputs)[0], reference(path, inputs)[0])


def test_kept_values_are_outputs_too(net):
    path, inputs = net
    plain = celosia.InferenceSession(path, "test", "golden")
    name = next(layer.output for layer in plain.model.segments[0].program.layers if layer.operator == "Conv")
    session = celosia.InferenceSession(path, "test", "golden", keep=[name])
    values = dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs)))
    assert values[name].shape[0] == 5
    assert np.array_equal(values[plain.get_outputs()[0].name], reference(path, inputs)[0])


def test_unknown_output_and_backend_are_refused(net):
    path, inputs = net
    session = celosia.InferenceSession(path, "test", "golden")
    with pytest.raises(BadInput, match="'nothing' is not an output of the model"):
        session.run(["nothing"], inputs)
    with pytest.raises(BadInput, match=r"must be given as a dict of arrays by name, not as ndarray"):
        session.run(None, next(iter(inputs.values())))
    with pytest.raises(BadConfig, match="on must be one of verilator, icarus, amaranth, golden, not 'paper'"):
        celosia.InferenceSession(path, "test", "paper")
    with pytest.raises(BadModel, match="no such file"):
        celosia.InferenceSession("missing.onnx", "test", "golden")


def test_errors_share_a_base():
    assert issubclass(BadInput, celosia.CelosiaError) and issubclass(BadConfig, celosia.CelosiaError)
    assert celosia.EngineConfig is type(PRESETS["test"])
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        celosia.Nothing  # noqa: B018
