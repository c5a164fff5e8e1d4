"""The comparison with ONNX Runtime sees a single wrong element, and tells ties from errors."""

import numpy as np
import onnx
import pytest
from graph_builder import Builder
from random_graphs import Recipe, Step, build

from celosia.tools.check import Comparison, check_layers, check_outputs, compare, summary
from celosia.tools.pools import average_pools
from celosia.tools.session import InferenceSession

CHAIN = Recipe(
    seed=3, form="qdq", unsigned=False, shape=(5, 6, 6), count=4,
    steps=(
        Step("conv", 1, (("kernel", (3, 3)), ("pads", (1, 1, 1, 1)), ("out", 6), ("relu", "relu"), ("per_channel", True))),
        Step("maxpool", 2, (("kernel", (2, 2)), ("stride", (2, 2)))),
        Step("conv", 3, (("kernel", (2, 2)), ("out", 7))),
        Step("flatten", 4),
        Step("gemm", 5, (("out", 3), ("transposed", True))),
    ),
)  # fmt: skip


def saved(tmp_path, recipe):
    model, inputs = build(recipe)
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return path, inputs


def test_equal_arrays_have_no_difference():
    x = np.arange(12, dtype=np.int8).reshape(3, 4)
    assert compare("x", x, x) == Comparison("x", 12, 0)


def test_one_wrong_element_is_found_and_named():
    x = np.arange(12, dtype=np.int8).reshape(3, 4)
    y = x.copy()
    y[2, 1] += 1
    found = compare("x", y, x)
    assert (found.elements, found.differences) == (12, 1)
    assert str(found) == "x: 1 of 12 elements differ; element [2, 1] is 10, ONNX Runtime has 9"


def test_shapes_and_types_must_agree():
    with pytest.raises(ValueError, match="must be int8"):
        compare("x", np.zeros(3, np.uint8), np.zeros(3, np.int8))


def test_floats_are_compared_exactly_and_nan_equals_nan():
    x = np.array([1.0, np.nan], np.float32)
    assert compare("x", x, x).differences == 0
    assert compare("x", x, np.nextafter(x, np.float32(2))).differences == 1


def test_outputs_of_a_chain_are_equal_and_a_changed_one_is_not(tmp_path):
    path, inputs = saved(tmp_path, CHAIN)
    session = InferenceSession(path, "test", "golden")
    outputs = session.run(None, inputs)
    assert summary(check_outputs(session, path, inputs, outputs)) == (outputs[0].size, 0, 0)
    outputs[0][1, 2] ^= 1
    assert summary(check_outputs(session, path, inputs, outputs)) == (outputs[0].size, 1, 0)


def test_layers_are_compared_one_by_one(tmp_path):
    path, inputs = saved(tmp_path, CHAIN)
    session = InferenceSession(path, "test", "golden")
    found = check_layers(session, path, inputs)
    assert len(found) == 4  # two convolutions, pooling, and the matrix product that is the output
    assert summary(found)[1:] == (0, 0)
    assert summary(found)[0] == 4 * (6 * 6 * 6 + 6 * 3 * 3 + 7 * 2 * 2 + 3)


def test_a_wrong_layer_is_found_even_where_the_output_hides_it(tmp_path, monkeypatch):
    path, inputs = saved(tmp_path, CHAIN)
    session = InferenceSession(path, "test", "golden")
    name = session.model.segments[0].program.layers[0].output
    honest = InferenceSession.run

    def dishonest(self, names, feed, *, progress=None):
        values = honest(self, names, feed, progress=progress)
        for (output, _, _), value in zip(self.model.outputs, values):
            if output == name:
                value[0, 0, 0, 0] ^= 1
        return values

    monkeypatch.setattr(InferenceSession, "run", dishonest)
    found = check_layers(session, path, inputs)
    assert [comparison.name for comparison in found if comparison.differences] == [name]


def test_layers_are_taken_in_groups_where_all_do_not_fit(tmp_path, monkeypatch):
    from celosia.tools import session as module
    from celosia.tools.errors import DoesNotFit

    path, inputs = saved(tmp_path, CHAIN)
    session = InferenceSession(path, "test", "golden")
    honest, seen = module.compile_model, []

    def tight(path, config, options=None, *, keep=()):
        if len(keep) > 1:
            raise DoesNotFit("activation", 2, 1)
        seen.append(tuple(keep))
        return honest(path, config, options, keep=keep)

    monkeypatch.setattr(module, "compile_model", tight)
    assert summary(check_layers(session, path, inputs))[1] == 0
    assert len(seen) == 3 and all(len(keep) == 1 for keep in seen)


def pooling(same_scale, tmp_path, form="qoperator"):
    """An average of two pixels with equal scales: every other result is a tie."""
    rng = np.random.default_rng(5)
    builder = Builder(form=form, unsigned=False)
    value = builder.input(rng, (2, 8, 8), count=4)
    pooled = builder.pooled(
        rng, "AveragePool", value, {"kernel_shape": [1, 2], "strides": [1, 2]}, same_scale=same_scale
    )  # fmt: skip
    builder.output(pooled)
    path = tmp_path / "pool.onnx"
    onnx.save(builder.model("pool"), path)
    return path, builder.samples


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_ties_of_average_pools_are_counted_apart(tmp_path, form):
    path, inputs = pooling(True, tmp_path, form)
    session = InferenceSession(path, "test", "golden")
    outputs = session.run(None, inputs)
    elements, differences, ties = summary(check_outputs(session, path, inputs, outputs))
    assert elements == outputs[0].size
    assert differences == 0

    (pool,) = average_pools(onnx.load(path))
    x = next(iter(inputs.values()))[:, None]
    at_tie = pool.is_tie(x, outputs[0][:, None])
    assert 0.3 < at_tie.mean() < 0.7
    assert ties <= at_tie.sum()

    outputs[0][tuple(np.argwhere(~at_tie)[0][[0, 2, 3, 4]])] ^= 1
    assert summary(check_outputs(session, path, inputs, outputs)) == (elements, 1, ties)


def test_a_wrong_average_beside_a_tie_is_a_difference(tmp_path):
    path, inputs = pooling(True, tmp_path)
    (pool,) = average_pools(onnx.load(path))
    x = next(iter(inputs.values()))[:, None].astype(np.int64)
    pairs = x[..., 0::2] + x[..., 1::2]
    below, above = pairs // 2, -(-pairs // 2)
    tie = pairs % 2 == 1
    assert (pool.is_tie(x, below) == tie).all() and (pool.is_tie(x, above) == tie).all()
    assert not pool.is_tie(x, below - 1).any() and not pool.is_tie(x, above + 1).any()
