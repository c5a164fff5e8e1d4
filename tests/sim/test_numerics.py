"""Golden arithmetic: the integers are float32 arithmetic bit for bit, and that is what ONNX Runtime computes."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from celosia.sim import numerics
from celosia.sim.numerics import add_residual, add_table_float, channel_params, requantize, requantize_float, solve_add
from celosia.sim.pairs import edge_pairs, random_controls, random_pairs, tie_pairs

SEED = 2
CHUNK = 1_000_000


def count_differences(acc, bias, scale, controls):
    zero_point, low, high = controls.T
    mantissa, shift = channel_params(scale)
    got = requantize(acc, bias, mantissa, shift, zero_point, low, high)
    assert got.dtype == np.int8
    return int(np.count_nonzero(got != requantize_float(acc, bias, scale, zero_point, low, high)))


@pytest.mark.parametrize("pairs, chunks", [(random_pairs, 6), (tie_pairs, 5)])
def test_requantize_equals_float32_on_11_million_pairs(pairs, chunks):
    for seed in range(SEED, SEED + chunks):
        rng = np.random.default_rng(seed)
        assert count_differences(*pairs(rng, CHUNK), random_controls(rng, CHUNK)) == 0, f"seed {seed}"


def test_requantize_equals_float32_at_every_corner():
    acc, bias, scale = edge_pairs()
    for controls in ([0, -128, 127], [-128, -128, 127], [127, -128, 127], [-3, -3, 100], [5, 5, 5]):
        assert count_differences(acc, bias, scale, np.tile(controls, (len(acc), 1))) == 0, controls


def test_rounding_once_would_not_do():
    """The tie pairs reach the cases in which the product's rounding to 24 bits decides."""
    rng = np.random.default_rng(SEED)
    acc, bias, scale = tie_pairs(rng, CHUNK)
    mantissa, shift = channel_params(scale)
    product = numerics.round_significant(np.abs(acc + bias)) * mantissa
    once = numerics.round_shift(product, shift.clip(0, 60)) * np.sign(acc + bias)
    assert np.count_nonzero(once.clip(-128, 127) != requantize(acc, bias, mantissa, shift, 0)) > 1000


@pytest.mark.parametrize("scale, expected", [
    (0.0, (0, 0)), (1.0, (1 << 23, 23)), (2.0**-40, (1 << 23, 63)), (np.float32(2.0**-40) * np.float32(0.9999999), (0, 0)),
    (1e-45, (0, 0)), (1.5, (3 << 22, 23)), (2.0**23, (1 << 23, 0)), (16777215.0, (16777215, 0)),
])  # fmt: skip
def test_channel_params_are_the_scale_itself(scale, expected):
    mantissa, shift = channel_params(scale)
    assert (int(mantissa), int(shift)) == expected


def test_channel_params_multiply_back_to_the_scale():
    scale = random_pairs(np.random.default_rng(SEED), 100_000)[2]
    scale = scale[scale >= 2.0**-40]
    mantissa, shift = channel_params(scale)
    assert np.array_equal(np.ldexp(mantissa.astype(np.float64), -shift), scale.astype(np.float64))


@pytest.mark.parametrize("scale", [-1.0, 2.0**24, np.inf, np.nan])
def test_channel_params_refuse_scales_that_do_not_fit(scale):
    with pytest.raises(ValueError, match=r"scale must be at least 0 and below 2\*\*24, not "):
        channel_params(np.float32(scale))


def test_mantissa_that_is_not_normalised_counts_as_zero():
    assert requantize(1 << 30, 0, (1 << 23) - 1, 20, 5) == 5
    assert requantize(3, 0, 1 << 23, 23, 5) == 8


# Against ONNX Runtime itself -------------------------------------------------------------------------------------------------


def session(node, inputs, output, constants, domains=()):
    """Return an ONNX Runtime session of one node, or a list of them, between typed values of fixed shape."""
    nodes = node if isinstance(node, list) else [node]
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in [*inputs, output]]
    tensors = [helper.make_tensor(name, kind, np.shape(value), np.ravel(value)) for name, kind, value in constants]
    graph = helper.make_graph(nodes, "node", values[:-1], values[-1:], tensors)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("unsigned", [False, True])
def test_requantize_equals_qlinearconv(unsigned):
    """Real accumulators of a 3 × 3 convolution with scales per channel from 2**-36 to 2**0.9 and biases up to 2**30."""
    rng = np.random.default_rng(SEED + unsigned)
    kind, offset = (TensorProto.UINT8, 128) if unsigned else (TensorProto.INT8, 0)
    dtype = np.uint8 if unsigned else np.int8
    channels, outputs, size = 8, 256, 40
    weight = rng.integers(-127, 128, (outputs, channels, 3, 3))
    x_scale, y_scale = np.float32(0.037), np.float32(0.0911)
    ratio = np.exp2(rng.uniform(-36, 0.9, outputs))
    ratio[: outputs // 2] = np.exp2(rng.uniform(-13, -7, outputs // 2))  # where most results are not saturated
    w_scale = (ratio * y_scale / x_scale).astype(np.float32)
    bias = (rng.integers(-(1 << 30), 1 << 30, outputs) >> rng.integers(0, 30, outputs)).clip(-(1 << 30), 1 << 30)
    bias[: outputs // 2] >>= 12
    x_zero, y_zero = -7, 11
    x = rng.integers(-128, 128, (1, channels, size, size))
    constants = [
        ("xs", TensorProto.FLOAT, x_scale), ("xz", kind, x_zero + offset), ("w", TensorProto.INT8, weight),
        ("ws", TensorProto.FLOAT, w_scale), ("wz", TensorProto.INT8, np.zeros(outputs, np.int8)),
        ("ys", TensorProto.FLOAT, y_scale), ("yz", kind, y_zero + offset), ("b", TensorProto.INT32, bias),
    ]  # fmt: skip
    node = helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"])
    run = session(node, [("x", kind, x.shape)], ("y", kind, (1, outputs, size - 2, size - 2)), constants)
    (y,) = run.run(None, {"x": (x + offset).astype(dtype)})
    windows = np.lib.stride_tricks.sliding_window_view(x[0] - x_zero, (3, 3), axis=(1, 2))
    acc = np.einsum("chwij,ocij->ohw", windows, weight, optimize=True)
    mantissa, shift = channel_params(np.float32(x_scale * w_scale) / y_scale)
    bias, mantissa, shift = (values[:, None, None] for values in (bias, mantissa, shift))
    got = requantize(acc, bias, mantissa, shift, y_zero)
    assert len(np.unique(got)) == 256
    assert np.array_equal(got, y[0].astype(np.int64) - offset)


def random_addition(rng):
    scales = np.exp(rng.uniform(-4, 1, 2)).astype(np.float32)
    scale = np.float32(scales.sum() * np.exp(rng.uniform(-1.5, 0.5)))
    zeros = [int(zero) for zero in rng.choice([-128, 127, *rng.integers(-128, 128, 4)], 3)]
    return scales[0], zeros[0], scales[1], zeros[1], scale, zeros[2]


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("form", ["qlinear", "qdq"])
def test_add_table_equals_onnx_runtime(form, unsigned):
    """MLAS contracts to fused multiply-adds on x86 only; other machines may round near-ties otherwise."""
    rng = np.random.default_rng(SEED)
    kind, offset, dtype = (TensorProto.UINT8, 128, np.uint8) if unsigned else (TensorProto.INT8, 0, np.int8)
    a, b = np.broadcast_arrays(*numerics.add_operands())
    feeds = {name: (values.astype(np.int64) + offset).astype(dtype) for name, values in (("a", a), ("b", b))}
    for _ in range(60):
        facts = random_addition(rng)
        constants = []
        for name, scale, zero in zip("abc", facts[::2], facts[1::2]):
            constants += [(f"{name}s", TensorProto.FLOAT, scale), (f"{name}z", kind, zero + offset)]
        if form == "qlinear":
            nodes = [helper.make_node("QLinearAdd", ["a", "as", "az", "b", "bs", "bz", "cs", "cz"], ["c"], domain="com.microsoft")]
        else:
            nodes = [helper.make_node("DequantizeLinear", [n, f"{n}s", f"{n}z"], [f"{n}f"]) for n in "ab"]
            nodes += [helper.make_node("Add", ["af", "bf"], ["cf"]), helper.make_node("QuantizeLinear", ["cf", "cs", "cz"], ["c"])]
        run = session(nodes, [(n, kind, a.shape) for n in "ab"], ("c", kind, a.shape), constants, ["com.microsoft"])
        (c,) = run.run(None, feeds)
        assert np.array_equal(add_table_float(*facts, unsigned=unsigned), c.astype(np.int64) - offset), facts


def test_solve_add_is_exact_or_says_so():
    rng = np.random.default_rng(SEED)
    a, b = numerics.add_operands()
    solved = tuned = 0
    for n in range(200):
        facts = random_addition(rng)
        low = facts[-1] if n % 3 == 0 else -128  # a fused Relu clips at the zero point
        table = add_table_float(*facts, unsigned=n % 2 == 1).clip(low, 127)
        ratios = float(facts[0]) / float(facts[4]), float(facts[2]) / float(facts[4])
        constants = solve_add(table, *ratios, low=low)
        if constants is not None:
            solved += 1
            tuned += solve_add(table, *ratios, low=low, reach=0) is None
            assert np.array_equal(add_residual(a, b, *constants, low, 127), table)
    assert solved >= 190
    assert tuned > 0


def test_solve_add_gives_up_on_what_is_no_addition():
    a, b = (values.astype(np.int64) for values in numerics.add_operands())
    assert solve_add((a * b >> 7).astype(np.int8), 0.5, 0.5) is None
    assert solve_add(np.clip(a + b, -128, 127), 9.0, 1.0) is None  # a ratio beyond the field


def test_solve_add_takes_a_difference_and_some_operands_only():
    a, b = (values.astype(np.int64) for values in numerics.add_operands())
    some = np.array([-128, 3, 77])
    table = np.clip(np.rint(a * 0.70711 - b * 0.30103 + 0.2), -90, 127).astype(np.int8)
    for operand, columns in ((None, slice(None)), (some, some + 128)):
        constants = solve_add(table[:, columns], 0.70711, -0.30103, operand=operand, low=-90)
        values = b if operand is None else operand
        assert np.array_equal(add_residual(a, values, *constants, -90, 127), table[:, columns])


def test_ties_are_even_with_the_zero_point_where_it_is_added_first():
    acc = np.arange(-9, 10)
    mantissa, shift = channel_params(np.float32(0.5))
    for zero_point in (-3, 0, 1, 4):
        got = requantize(acc, 0, mantissa, shift, zero_point, late=True)
        assert got.tolist() == np.rint(acc * np.float32(0.5) + np.float32(zero_point)).tolist()
        assert requantize(acc, 0, mantissa, shift, zero_point).tolist() == (np.rint(acc * np.float32(0.5)) + zero_point).tolist()


def test_add_residual_rounds_ties_to_even():
    one = 1 << 24
    got = add_residual(np.array([1, 3, -1, -3, 5]), 0, one // 2, 0, 0)
    assert got.tolist() == [0, 2, 0, -2, 2]
