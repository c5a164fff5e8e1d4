"""Random networks equal ONNX Runtime on the golden executor and on the RTL; `make random` runs more of them."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_steps import STEPS, UNARY
from random_graphs import Step, attempt, build, main, random_recipe, shrink

from celosia.tools.compiler.importer import session_options

GOLDEN = 2000
RTL = 500
ICARUS = 3


def check(seed, on):
    outcome = attempt(random_recipe(seed), engine="test", on=on)
    assert not outcome.problem, f"seed {seed}: {outcome.problem}\n{outcome.recipe}"
    assert outcome.elements


@pytest.mark.parametrize("start", range(0, GOLDEN, 100))
def test_golden_executor(start):
    for seed in range(start, start + 100):
        check(seed, "golden")


@pytest.mark.parametrize("start", range(0, RTL, 50))
def test_rtl(start):
    for seed in range(start, start + 50):
        check(seed, "verilator")


@pytest.mark.parametrize("seed", range(ICARUS))
def test_rtl_in_icarus(seed):
    check(seed, "icarus")


@pytest.mark.parametrize("engine", ["mac64", "mac256"])
def test_other_presets_on_the_golden_executor(engine):
    for seed in range(60):
        outcome = attempt(random_recipe(seed), engine=engine, on="golden")
        assert not outcome.problem, f"seed {seed}: {outcome.problem}\n{outcome.recipe}"


def test_graphs_are_valid_and_the_same_every_time():
    for seed in range(40):
        model, inputs = build(random_recipe(seed))
        again, same = build(random_recipe(seed))
        assert model.SerializeToString() == again.SerializeToString()
        assert all(np.array_equal(inputs[name], same[name]) for name in inputs)
        onnx.checker.check_model(model)


def test_graphs_cover_what_they_should():
    seen, channels = collections.Counter(), set()
    for seed in range(GOLDEN):
        recipe = random_recipe(seed)
        seen[recipe.form] += 1
        seen["unsigned" if recipe.unsigned else "signed"] += 1
        for step in recipe.steps:
            seen[step.operator] += 1
            seen["per channel"] += step.get("per_channel", False)
            seen["stride"] += step.get("stride", (1, 1)) != (1, 1)
            seen["dilation"] += step.get("dilation", (1, 1)) != (1, 1)
            channels.add(step.get("out", 0) % 4)
        model, _ = build(recipe)
        seen.update({f"node {kind}" for kind in (node.op_type for node in model.graph.node)})
        for constant in model.graph.initializer:
            if constant.name.startswith("zero_point") and constant.data_type in (2, 3):
                value = onnx.numpy_helper.to_array(constant).item()
                limits = (0, 255) if recipe.unsigned else (-128, 127)
                seen["first zero point"] += value == limits[0]
                seen["last zero point"] += value == limits[1]
    for name in (
        "qdq", "qoperator", "signed", "unsigned", "per channel", "stride", "dilation", "first zero point", "last zero point",
        "conv", "gemm", "matmul", "maxpool", "averagepool", "globalaveragepool", "add", "flatten", "pad", "clip",
    ):  # fmt: skip
        assert seen[name] >= 15, name
    assert set(STEPS) <= set(seen)
    for name in (
        "Concat", "ConvTranspose", "DepthToSpace", "Expand", "Gather", "GlobalMaxPool", "Max", "Min", "Mul", "PRelu", "Pad", "QLinearMul",
        "ReduceMax", "ReduceMean", "ReduceSum", "Resize", "Slice", "SpaceToDepth", "Split", "Sub", "Transpose", "Unsqueeze", *UNARY,
    ):  # fmt: skip
        assert seen[f"node {name}"] >= 5, name
    assert channels == {0, 1, 2, 3}


def test_outputs_are_not_saturated_throughout():
    parts = []
    for seed in range(100):
        model, inputs = build(random_recipe(seed))
        session = onnxruntime.InferenceSession(model.SerializeToString(), session_options())
        for output in session.run(None, {name: array[:1] for name, array in inputs.items()}):
            if output.dtype.kind in "iu":
                limits = np.iinfo(output.dtype)
                parts.append(np.mean((output == limits.min) | (output == limits.max)))
    assert np.mean(parts) < 0.5 and np.mean(np.array(parts) == 1) < 0.15


def test_a_failing_graph_shrinks_to_the_step_that_fails():
    recipe = next(r for r in map(random_recipe, range(1000)) if len(r.steps) >= 4 and any(s.operator == "maxpool" for s in r.steps))
    small = shrink(recipe, lambda r: any(step.operator == "maxpool" for step in r.steps), limit=400)
    assert [step.operator for step in small.steps] == ["maxpool"]
    assert small.shape == (1, 1, 1) and small.count == 1


def test_a_wrong_number_is_reported_with_its_seed(monkeypatch, capsys):
    from celosia.tools.backends import Golden

    honest = Golden.run

    def dishonest(self, feed, progress):
        outputs, cycles, events = honest(self, feed, progress)
        next(iter(outputs.values())).flat[0] ^= 1
        return outputs, cycles, events

    monkeypatch.setattr(Golden, "run", dishonest)
    assert main(["--count", "3", "--on", "golden", "--no-shrink"]) == 1
    assert "elements differ" in capsys.readouterr().out


def test_steps_keep_their_numbers_when_others_are_dropped():
    first, second = Step("conv", 11, (("out", 3),)), Step("conv", 12, (("out", 2),))
    recipe = random_recipe(0)
    weights = []
    for steps in ((first, second), (second,)):
        model, _ = build(type(recipe)(seed=5, form="qdq", unsigned=False, shape=(3, 4, 4), steps=steps))
        named = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer if c.name.startswith("weight_q")}
        weights.append(list(named.values())[-1])
    assert np.array_equal(*weights)
