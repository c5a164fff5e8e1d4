"""Linear Resize: on the engine where its result is ONNX Runtime's, between DequantizeLinear and QuantizeLinear and on integers."""

import numpy as np
import pytest
from test_frontend import execute, expected
from test_movement import check as run
from test_ops import Net, check, nodes, reasons

from celosia.sim.numerics import channel_params, requantize
from celosia.tools.compiler import frontend, ir
from celosia.tools.ops.interpolation import LESS, axis_of, is_decided

MODES = ("asymmetric", "half_pixel", "pytorch_half_pixel")
UNDECIDED = "Some interpolated values are so near to halfway between two integers that the error of ONNX Runtime's float32 sums decides."


def resized(net, factors, mode, *, integers=False, sizes=False, scale=0.0625, zero_point=3, **attributes):
    """Append a linear Resize; ``integers`` puts it on the quantised tensor itself."""
    scales = np.array([1, 1, *factors], np.float32)
    shape = np.array([net.shape[0], net.shape[1], *(size * factor for size, factor in zip(net.shape[2:], factors))], np.int64)
    operands = ["", "", net.constant(shape)] if sizes else ["", net.constant(scales)]
    attributes |= {"mode": "linear", "coordinate_transformation_mode": mode}
    if not integers:
        return net.add("Resize", *operands, scale=scale, zero_point=zero_point, **attributes)
    value = net.node("Resize", [net.last, *operands], **attributes)
    net.parameters[value] = net.parameters[net.last]
    net.last = value
    return net


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factors", [(2, 2), (4, 2), (1, 2), (8, 1), (4, 4)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("integers", [False, True])
def test_enlarging_by_powers_of_two(tmp_path, mode, factors, dtype, integers):
    for shape in ((1, 3, 5, 6), (1, 17, 1, 2)):
        net = Net(shape, dtype=dtype, scale=0.0625)
        resized(net, factors, mode, integers=integers, sizes=shape[1] == 3)
        kinds = [type(node) for node in nodes(check(net, tmp_path))]
        assert kinds == [ir.Rearrange] + [ir.ConvTranspose] * (2 if integers and dtype == np.int8 else 1)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("integers", [False, True])
def test_all_pairs_of_values(tmp_path, dtype, integers):
    net = Net((1, 256, 256, 2), dtype=dtype, scale=0.0625)
    path = resized(net, (1, 2), "half_pixel", integers=integers).save(tmp_path / "net.onnx")
    lowered = frontend.lower(path)
    nodes(lowered)
    feed = {"x": np.stack(np.meshgrid(*[np.arange(256, dtype=np.uint8).view(dtype)] * 2), -1)[None]}
    for name, array in expected(path, [name for name, *_ in lowered.outputs], feed).items():
        assert np.array_equal(execute(lowered, feed)[name], array)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factors", [(3, 3), (3, 5), (1, 3)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_enlarging_by_odd_factors_has_no_ties_with_equal_scales(tmp_path, mode, factors, dtype):
    net = Net((1, 5, 9, 14), dtype=dtype, scale=0.0472123, zero_point=11)
    nodes(check(resized(net, factors, mode, scale=0.0472123, zero_point=7), tmp_path))


def test_scales_that_leave_no_tie(tmp_path):
    ran = 0
    for seed, scale in enumerate(np.random.default_rng(6).uniform(0.03, 0.09, 12)):
        net = Net((1, 8, 16, 16), dtype=[np.int8, np.uint8][seed % 2], scale=0.05, zero_point=[-128, 0][seed % 2])
        lowered = check(resized(net, (2, 2), MODES[seed % 3], scale=scale, zero_point=[-128, 0][seed % 2]), tmp_path)
        ran += not reasons(lowered)
    assert ran >= 4


def test_ties_that_float32_decides_are_left_to_it(tmp_path):
    net = Net((1, 3, 4, 4), scale=0.05)
    assert reasons(check(resized(net, (2, 2), "half_pixel", scale=0.05), tmp_path)) == {"Resize": UNDECIDED}


@pytest.mark.parametrize(
    "factors, mode, attributes",
    [((2, 2), "align_corners", {}), ((2, 2.5), "half_pixel", {}), ((2, 2), "half_pixel", {"antialias": 1})],
)
def test_other_interpolations_are_on_the_host(tmp_path, factors, mode, attributes):
    net = Net((1, 3, 4, 4), opset=18)
    (reason,) = reasons(check(resized(net, factors, mode, **attributes), tmp_path)).values()
    assert reason.startswith("Linear Resize and Upsample must enlarge height and width")


def test_integers_enlarged_by_three_are_on_the_host(tmp_path):
    net = resized(Net((1, 3, 4, 4)), (3, 3), "half_pixel", integers=True)
    (reason,) = reasons(check(net, tmp_path)).values()
    assert reason.startswith("Resize of integers truncates")


def test_upsample(tmp_path):
    net = Net((1, 3, 4, 5), dtype=np.uint8, scale=0.125, opset=9)
    value = net.node("Upsample", ["x", net.constant(np.array([1, 1, 2, 4], np.float32))], mode="linear")
    net.last = value
    nodes(check(net, tmp_path))


def test_the_first_resize_is_asymmetric(tmp_path):
    net = Net((1, 3, 4, 5), dtype=np.int8, opset=10)
    net.last = net.node("Resize", ["x", net.constant(np.array([1, 1, 2, 4], np.float32))], mode="linear")
    nodes(check(net, tmp_path))


def test_a_resize_between_convolutions(tmp_path):
    rng = np.random.default_rng(3)
    net = Net((1, 4, 6, 5))
    net.add("Conv", *net.weight(rng, (20, 4, 3, 3), 0.01), scale=0.0625, zero_point=9)
    before = net.last
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    net.add("Resize", "", scales, mode="linear", coordinate_transformation_mode="half_pixel", scale=0.0625, zero_point=9)
    net.add("Conv", *net.weight(rng, (3, 20, 3, 3), 0.01))
    nodes(check(net, tmp_path, outputs=[net.last, before]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("engine", ["test", "mac256"])
def test_programs(tmp_path, dtype, engine):
    rng = np.random.default_rng(4)
    for factors, mode, integers in (((2, 2), "half_pixel", False), ((8, 8), "half_pixel", False), ((2, 4), "asymmetric", True)):
        net = Net((1, 4, 3, 4), dtype=dtype)
        net.add("Conv", *net.weight(rng, (19, 4, 1, 1), 0.01), scale=0.0625, zero_point=9)
        net.shape = (1, 19, 3, 4)
        resized(net, factors, mode, integers=integers)
        net.shape = (1, 4, 3, 4)
        run(net, tmp_path, engine=engine, operators=("Resize",))


def test_every_sum_is_truncated():
    for parts in (2, 4, 8, 16, 64, 128, 256):
        total = np.arange(-128 * parts, 127 * parts + 1)
        scale, half = channel_params(np.float32(LESS / parts)), parts // 2 - 1
        assert (requantize(total, 128 * parts - half, *scale, -128) == total // parts).all()
        above, below = requantize(total, -half, *scale, 0, low=0), requantize(total, half, *scale, 0, high=0)
        assert (above + below == np.fix(total / parts)).all()


def test_taps_of_an_axis():
    assert axis_of(2, centred=False).taps.tolist() == [1, 2, 1]
    assert axis_of(2, centred=True).taps.tolist() == [1, 3, 3, 1, 0]
    assert axis_of(3, centred=True).taps.tolist() == [1, 2, 3, 2, 1, 0, 0]


def test_scales_with_few_bits_are_decided():
    assert is_decided(np.float32(0.0625), np.float32(0.0625), 3, 3, 16)
    assert is_decided(np.float32(3 / 64), np.float32(3 / 64), 3, 3, 16)
    assert not is_decided(np.float32(0.05), np.float32(0.05), 3, 3, 16)
