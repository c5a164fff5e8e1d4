"""Operators that run on the host between layers of the engine: exact there, named, and everything around them on the engine."""

import numpy as np
import pytest
from test_product import Model, check

from celosia.rtl.config import PRESETS
from celosia.tools.program import HostSegment


def host_nodes(session):
    return [node for segment in session.model.segments if isinstance(segment, HostSegment) for node in segment.nodes]


def kinds(session):
    return ["host" if isinstance(segment, HostSegment) else "engine" for segment in session.model.segments]


def between(model, operator, make):
    """Quantise the float result that ``make`` computes from a dequantised product; return it and the name of the product."""
    x = model.input((1, 6, 10), np.int8, 4)
    first = model.product(x, model.weight((10, 12)), 10)
    real = model.node("DequantizeLinear", [first, *map(model.constant, model.quantisation[first])])
    real = make(real)
    made = model.node("QuantizeLinear", [real, model.constant(np.float32(0.02)), model.constant(np.int8(-11))])
    model.quantisation[made] = np.float32(0.02), np.int8(-11)
    return made


def layer_normalization(model):
    def make(real):
        scale, bias = (model.constant(model.rng.normal(1, 0.3, 12).astype(np.float32)) for _ in range(2))
        return model.node("LayerNormalization", [real, scale, bias], axis=-1)

    return make


FORMS = {
    "LayerNormalization": layer_normalization,
    "Softmax": lambda model: lambda real: model.node("Softmax", [real], axis=-1),
    "LogSoftmax": lambda model: lambda real: model.node("LogSoftmax", [real], axis=1),
}


@pytest.mark.parametrize("operator", FORMS)
def test_rows_are_normalised_on_the_host(tmp_path, operator):
    model = Model(3)
    middle = between(model, operator, FORMS[operator](model))
    last = model.product(middle, model.weight((12, 7)), 12)
    session = check(model, tmp_path, "test", last, all_on_engine=False)
    assert kinds(session) == ["engine", "host", "engine"]
    reasons = {node[1]: node[2] for node in host_nodes(session)}
    assert reasons.keys() - {"QuantizeLinear", "DequantizeLinear"} == {operator}
    divisor = "deviation" if operator == "LayerNormalization" else "sum"
    assert reasons[operator].startswith(f"{operator} divides by a {divisor} that differs from row to row")


def test_quantised_softmax_of_attention(tmp_path):
    model = Model(5)
    x = model.input((1, 6, 8))
    q, k = (model.product(x, model.weight((8, 8)), 8) for _ in range(2))
    scores = model.product(q, model.move("Transpose", k, perm=(0, 2, 1)), 8)
    out = model.constant(np.float32(1 / 256)), model.constant(np.int8(-128))
    inputs = [scores, *map(model.constant, model.quantisation[scores]), *out]
    weights = model.node("QLinearSoftmax", inputs, domain="com.microsoft", axis=-1, opset=17)
    model.quantisation[weights] = np.float32(1 / 256), np.int8(-128)
    session = check(model, tmp_path, "mac64", model.product(weights, x, 6), all_on_engine=False)
    assert kinds(session) == ["engine", "host", "engine"]
    assert [node[1] for node in host_nodes(session)] == ["QLinearSoftmax"]


def test_argmax_at_the_end(tmp_path):
    model = Model(6)
    x = model.input((1, PRESETS["test"].rows * 2, 10), count=4)
    made = model.product(x, model.weight((10, 12)), 10)
    best = model.node("ArgMax", [made], axis=-1, keepdims=0)
    session = check(model, tmp_path, "test", best, all_on_engine=False)
    assert kinds(session) == ["engine", "host"]
    ((_, operator, reason, *_),) = host_nodes(session)
    assert operator == "ArgMax" and reason.startswith("ArgMax gives 64-bit places")
