"""Element-wise operators: functions as tables, and two operands with and without broadcasting, on the golden executor and the RTL."""

import dataclasses

import numpy as np
import pytest
from test_ops import Net, check, nodes, reasons

from celosia.rtl.config import PRESETS
from celosia.tools.check import check_outputs, summary
from celosia.tools.compiler.frontend import lower
from celosia.tools.compiler.ir import Op
from celosia.tools.compiler.pipeline import compile_frontend
from celosia.tools.errors import UnsupportedOperator
from celosia.tools.session import InferenceSession

SEED = 21
X, Y, Z = 0.05131273, 0.06374191, 0.04170937
"""Scales whose ratios are no short fractions: their results are no ties."""


def run(net, folder, *, on="golden", engine="mac64", samples=3):
    """Compare the interpreter and the engine with ONNX Runtime; return the nodes of the engine, on which everything must run."""
    made = nodes(check(net, folder, samples=samples))
    path = folder / "net.onnx"
    limits = np.iinfo(net.dtype)
    feed = {"x": np.random.default_rng(SEED).integers(limits.min, limits.max + 1, (samples, *net.shape[1:])).astype(net.dtype)}
    session = InferenceSession(path, engine, on)
    assert summary(check_outputs(session, path, feed, session.run(None, feed)))[1:] == (0, 0)
    return made


def two(operator, *, dtype=np.int8, shape=(1, 5, 3, 4), swapped=False):
    """A net that combines its input with a function of it."""
    net = Net(shape, dtype=dtype, scale=X, zero_point=20)
    net.add("Sigmoid", scale=0.003906513, zero_point=np.iinfo(dtype).min)
    first, second = net.dequantise(), net.dequantise("x")
    if swapped:
        first, second = second, first
    return net.quantise(net.node(operator, [first, second]), Y, 7)


def quantised(net, array, scale=0.01131873, zero_point=2):
    return net.node("DequantizeLinear", [net.constant(array.astype(net.dtype)), *net.quantisation(scale, zero_point)])


def small(rng, shape, dtype=np.int8):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("operator, op", [("Add", Op.ADD), ("Sub", Op.ADD), ("Mul", Op.MUL), ("Min", Op.MIN), ("Max", Op.MAX)])
def test_two_tensors(tmp_path, operator, op, dtype):
    for swapped in (False, True):
        made = run(two(operator, dtype=dtype, swapped=swapped), tmp_path)
        assert made[-1].combine.op == op


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul"])
def test_two_tensors_on_the_rtl(tmp_path, operator):
    run(two(operator), tmp_path, on="verilator", engine="test")


def test_two_tensors_are_the_hosts_where_the_engine_combines_none(tmp_path):
    config = dataclasses.replace(PRESETS["test"], name="plain", combine=0)
    engine = tmp_path / "plain.json"
    engine.write_text(config.to_json())
    net = two("Add")
    path = net.save(tmp_path / "net.onnx")
    feed = {"x": np.random.default_rng(SEED).integers(-128, 128, net.shape).astype(np.int8)}
    session = InferenceSession(path, str(engine), "golden")
    assert summary(check_outputs(session, path, feed, session.run(None, feed)))[1:] == (0, 0)
    lowered = lower(path, config)
    reasons_why = [reason for _, operator, where, reason, _ in lowered.rows if where == "host" and operator == "Add"]
    assert reasons_why == ["It combines two tensors element by element, which this engine was built without (combine = 0)."]
    with pytest.raises(UnsupportedOperator, match=r"it combines two tensors element by element, which this engine was built without \(combine = 0\)"):
        compile_frontend(lower(path), config)


def test_a_division_of_two_tensors_is_the_hosts(tmp_path):
    assert reasons(check(two("Div"), tmp_path)) == {
        "Div": "No fixed-point constants of the engine give ONNX Runtime's result for all 65,536 pairs of operands."
    }


def test_a_product_rounds_after_the_zero_point(tmp_path):
    """Scales whose product is a power of two make ties; QLinearMul adds an odd zero point before it rounds them."""
    net = Net((1, 8, 6, 6), scale=0.25, zero_point=3)
    net.add("Relu", scale=0.25, zero_point=-5)
    net.add("Mul", net.dequantise("x"), scale=0.5, zero_point=-7)
    assert run(net, tmp_path, samples=20)[-1].combine.op == Op.MUL


def test_a_clip_after_a_sum_or_a_product_costs_nothing(tmp_path):
    rng = np.random.default_rng(SEED)
    for operator in ("Add", "Mul", "Sub"):
        net = Net((1, 4, 4, 4))
        net.add("Conv", *net.weight(rng, (4, 4, 1, 1), 0.02), scale=Z)
        value = net.node(operator, [net.dequantise(), net.dequantise("x")])
        net.quantise(net.node("Relu", [value]), Y, 4)
        made = run(net, tmp_path)
        assert len(made) == (2 if operator == "Mul" else 1) and made[-1].table is None


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Min", "Max"])
@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (5, 1, 1), (4,), (3, 1), (1, 5, 3, 4), (1, 1, 3, 4)])
def test_quantised_constants_of_any_shape(tmp_path, operator, shape):
    rng = np.random.default_rng(SEED)
    for place in (0, 1):
        net = Net((1, 5, 3, 4), scale=X)
        operands = [net.dequantise(), quantised(net, small(rng, shape))]
        net.quantise(net.node(operator, operands if place else operands[::-1]), Y, 7)
        (node,) = run(net, tmp_path)
        assert node.combine is not None


def test_constants_stay_in_memory_on_the_rtl(tmp_path):
    rng = np.random.default_rng(SEED)
    net = Net((1, 5, 3, 4), scale=X)
    net.add("Mul", quantised(net, small(rng, (1, 5, 3, 4))), scale=Y)
    net.add("Max", quantised(net, small(rng, (4,))), scale=Y)
    net.add("Add", quantised(net, small(rng, (5, 1, 1))), scale=Y)
    run(net, tmp_path, on="verilator", engine="test")


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Min", "Max"])
def test_one_tensor_is_repeated(tmp_path, operator):
    rng = np.random.default_rng(SEED)
    by_channel = Net((1, 5, 3, 4), scale=X)
    by_channel.add("GlobalAveragePool", scale=Z)
    by_channel.quantise(by_channel.node(operator, [by_channel.dequantise("x"), by_channel.dequantise()]), Y, 7)
    by_pixel = Net((1, 5, 3, 4), scale=X)
    by_pixel.add("Conv", *by_pixel.weight(rng, (1, 5, 1, 1), 0.02), scale=Z)
    by_pixel.quantise(by_pixel.node(operator, [by_pixel.dequantise(), by_pixel.dequantise("x")]), Y, 7)
    by_row = Net((1, 5, 3, 4), scale=X)
    by_row.add("MaxPool", kernel_shape=[1, 4], scale=X)
    by_row.quantise(by_row.node(operator, [by_row.dequantise(), by_row.dequantise("x")]), Y, 7)
    for net in (by_channel, by_pixel, by_row):
        assert run(net, tmp_path)[-1].combine is not None
    run(by_row, tmp_path, on="verilator", engine="test", samples=1)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Min", "Max"])
def test_float_constants_by_channel(tmp_path, operator):
    rng = np.random.default_rng(SEED)
    for shape in ((1, 5, 1, 1), (), (1,)):
        net = Net((1, 5, 3, 4), scale=X)
        net.add(operator, net.constant(rng.uniform(0.3, 2, shape).astype(np.float32)), scale=Y)
        assert len(run(net, tmp_path)) == 1


@pytest.mark.parametrize("slopes", [(0.1, 0.25, 0.3, 0.01), (0.5, 1.7, 3.0, 0.0), (-0.2, 0.3, 1.0, 0.7), (-0.5, 1.5, 0.2, -2.0)])
def test_prelu_with_a_slope_for_each_channel(tmp_path, slopes):
    net = Net((1, 4, 3, 4), scale=X, zero_point=11)
    net.add("PRelu", net.constant(np.float32(slopes).reshape(4, 1, 1)), scale=Z, zero_point=-9)
    assert len(run(net, tmp_path)) <= 3


def test_constants_by_pixel_must_be_quantised(tmp_path):
    net = Net((1, 4, 3, 4))
    net.add("Add", net.constant(np.linspace(0, 1, 48).reshape(4, 3, 4).astype(np.float32)))
    assert reasons(check(net, tmp_path)) == {"Add": "The engine has other constants for each channel, not for each pixel."}


def test_rows_of_a_matrix(tmp_path):
    rng = np.random.default_rng(SEED)
    for operator in ("Add", "Mul"):
        net = Net((1, 9, 12))
        net.add("MatMul", *net.weight(rng, (12, 5), 0.01), scale=Z)
        net.add(operator, quantised(net, small(rng, (5,))), scale=Y)
        assert run(net, tmp_path)[-1].combine is not None


def test_operators_on_bytes(tmp_path):
    net = Net((1, 5, 3, 4))
    net.add("Sigmoid", scale=0.05, zero_point=3)
    for operator in ("Max", "Min"):
        net.last = net.node(operator, [net.last, "x"])
    assert [node.combine.op for node in run(net, tmp_path)] == [Op.MAX, Op.MIN]


# Functions of one tensor --------------------------------------------------------------------------------------------

FUNCTIONS = [
    "Abs", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Neg", "Reciprocal",
    "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
]  # fmt: skip


def patterns(net):
    """Return real functions made of several operators, by name."""
    value = net.dequantise()
    number = lambda x: net.constant(np.float32(x))
    half = net.node("Mul", [value, number(0.5)])
    erf = net.node("Erf", [net.node("Div", [value, number(np.sqrt(2))])])
    return {
        "Silu": net.node("Mul", [value, net.node("Sigmoid", [value])]),
        "x · HardSigmoid(x)": net.node("Mul", [value, net.node("HardSigmoid", [value], alpha=1 / 6)]),
        "Gelu by Erf": net.node("Mul", [half, net.node("Add", [erf, number(1)])]),
        "Mish by Softplus": net.node("Mul", [value, net.node("Tanh", [net.node("Softplus", [value])])]),
        "PRelu of one slope": net.node("PRelu", [value, number([0.3])]),
        "Relu6": net.node("Clip", [value, number(0), number(6)]),
        "Pow": net.node("Pow", [value, number(2)]),
        "x · x": net.node("Mul", [value, value]),
        "rescale": value,
    }


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_functions_are_tables_of_onnx_runtimes_results(tmp_path, dtype):
    net = Net((1, 7, 6, 7), dtype=dtype, zero_point=25)
    real = {operator: net.node(operator, [net.dequantise()]) for operator in FUNCTIONS} | patterns(net)
    outputs = [net.quantise(value, 0.031, 60 if number % 2 else 9).last for number, value in enumerate(real.values())]
    made = nodes(check(net, tmp_path, outputs=outputs))
    assert len(made) == len(real) and all(node.combine is None for node in made)


@pytest.mark.parametrize("opset", [13, 17, 20, 21])
def test_functions_of_every_operator_set(tmp_path, opset):
    net = Net((1, 3, 4, 4), opset=opset)
    later = {14: "HardSwish", 18: "Mish", 20: "Gelu"}
    names = ["HardSigmoid", "LeakyRelu", "Sigmoid", *(name for first, name in later.items() if first <= opset)]
    outputs = [net.quantise(net.node(operator, [net.dequantise()]), 0.03, -5).last for operator in names]
    assert len(nodes(check(net, tmp_path, outputs=outputs))) == len(names)
