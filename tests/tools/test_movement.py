"""Operators that move elements: on the engine, with ONNX Runtime's result, whatever the order."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from test_ops import Net

from celosia.tools.check import check_outputs, summary
from celosia.tools.session import InferenceSession

SCALE = np.float32(0.05)
MODES = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


def pads_of(rng, rank, most=3, *, low=0):
    spatial = rng.integers(low, most, 2 * rank)
    axes = rng.random(rank) < 0.6
    return [int(pad) * int(axes[place % rank]) for place, pad in enumerate(spatial)]


def slice_of(net, rng, shape):
    axes, starts, ends, steps = [], [], [], []
    for axis in range(1, len(shape)):
        size, step = shape[axis], int(rng.choice([1, 1, 2, 3, -1, -2]))
        first, last = sorted(rng.integers(0, size + 1, 2).tolist())
        first, last = (first, last) if first < last else (0, size)
        if step < 0:
            first, last = last - 1, (first - 1 if first else -(1 << 40))
        axes.append(axis), starts.append(first), ends.append(last), steps.append(step)
    return [net.constant(np.array(array, np.int64)) for array in (starts, ends, axes, steps)], {}


def pad_of(net, rng, shape):
    mode = str(rng.choice(["constant", "edge", "reflect"]))
    pads = pads_of(rng, len(shape), min(3, min(shape[1:])) if mode == "reflect" else 4, low=-1 if min(shape[1:]) > 2 else 0)
    pads[0] = pads[len(shape)] = 0
    operands = [net.constant(np.array(pads, np.int64))]
    if mode == "constant":
        operands.append(net.constant(np.float32(rng.choice([0, 1.5, -99]))))
    return operands, {"mode": mode}


def resize_of(net, rng, shape):
    sizes = [*shape[:2], *(int(size) for size in rng.integers(1, 3 * np.array(shape[2:]) + 1))]
    mode = str(rng.choice(MODES))
    attributes = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": str(rng.choice(NEAREST))}
    if rng.random() < 0.5:
        sizes = [*shape[:2], *(size * int(rng.integers(1, 4)) for size in shape[2:])]
    return ["", "", net.constant(np.array(sizes, np.int64))], attributes


def transpose_of(net, rng, shape):
    return [], {"perm": [0, *(int(axis) + 1 for axis in rng.permutation(len(shape) - 1))]}


def expand_of(net, rng, shape):
    return [net.constant(np.array([1, *(int(rng.integers(1, 5)) if size == 1 else size for size in shape[1:])], np.int64))], {}


def tile_of(net, rng, shape):
    return [net.constant(np.array([1, *rng.integers(1, 4, len(shape) - 1)], np.int64))], {}


def gather_of(net, rng, shape):
    axis = int(rng.integers(1, len(shape)))
    return [net.constant(rng.integers(-shape[axis], shape[axis], int(rng.integers(1, 9))))], {"axis": axis}


def blocks_of(net, rng, shape):
    return [], {"blocksize": 2, "mode": str(rng.choice(["DCR", "CRD"]))}


CASES = {
    "Slice": slice_of, "Pad": pad_of, "Resize": resize_of, "Transpose": transpose_of, "Expand": expand_of, "Tile": tile_of,
    "Gather": gather_of, "DepthToSpace": blocks_of, "SpaceToDepth": lambda *_: ([], {"blocksize": 2}),
}  # fmt: skip


def shape_of(operator, rng):
    channels, height, width = (int(size) for size in rng.integers(1, 10, 3))
    if operator == "DepthToSpace":
        channels *= 4
    if operator == "SpaceToDepth":
        height, width = 2 * height, 2 * width
    if operator == "Expand":
        height = 1 if rng.random() < 0.5 else height
        channels = 1 if rng.random() < 0.3 else channels
    return (1, channels, height, width)


def check(net, folder, *, outputs=None, on="golden", engine="test", operators=()):
    """Run on the engine, compare with ONNX Runtime, and return the session; ``operators`` must not run on the host."""
    path = net.save(folder / "net.onnx", outputs)
    limits = np.iinfo(net.dtype)
    feed = {"x": np.random.default_rng(5).integers(limits.min, limits.max + 1, (2, *net.shape[1:])).astype(net.dtype)}
    session = InferenceSession(path, engine, on, workers=1)
    assert summary(check_outputs(session, path, feed, session.run(None, feed)))[1] == 0
    host = {row[1]: row[3] for row in session.model.nodes if row[2] == "host" and row[1] in operators}
    assert not host, host
    return session


@pytest.mark.parametrize("operator", CASES)
def test_moved_elements_are_onnx_runtimes(tmp_path, operator):
    for seed in range(6):
        rng = np.random.default_rng([seed, len(operator), ord(operator[0])])
        shape = shape_of(operator, rng)
        net = Net(shape, dtype=[np.int8, np.uint8][seed % 2], zero_point=9)
        net.add("Conv", *net.weight(rng, (shape[1], shape[1], 1, 1), 0.02), scale=SCALE, zero_point=9)
        operands, attributes = CASES[operator](net, rng, shape)
        rescaled = (
            {"scale": 0.071, "zero_point": 30} if seed % 3 == 2 and operator != "Pad" else {"scale": SCALE, "zero_point": 9}
        )
        net.add(operator, *operands, **rescaled, **attributes)
        moved = net.last
        if seed % 2:
            channels = onnxruntime_shape(net)[1]
            net.add("Conv", *net.weight(rng, (3, channels, 2, 2), 0.02), pads=[1, 1, 1, 1])
        check(
            net, tmp_path, outputs=[net.last, moved] if seed == 3 else None, operators=() if operator == "Transpose" else CASES
        )


def onnxruntime_shape(net):
    """Return the shape of the net's last value."""
    graph = helper.make_graph(
        net.nodes, "net", [helper.make_tensor_value_info("x", onnx.helper.np_dtype_to_tensor_dtype(np.dtype(net.dtype)), net.shape)],
        [onnx.ValueInfoProto(name=net.last)], net.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros(net.shape, net.dtype)})[0].shape


def concat(net, values, axis, scale=SCALE, zero_point=9):
    net.quantise(net.node("Concat", [net.dequantise(value) for value in values], axis=axis), scale, zero_point)
    return net.last


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_joined_tensors_are_requantised(tmp_path, axis):
    for seed, ratio in enumerate((1, 1.5, 0.5, 1 / 3, 0.7, 2.0**-30)):
        rng = np.random.default_rng([seed, axis])
        net = Net((1, 5, 4, 3), dtype=[np.int8, np.uint8][seed % 2], zero_point=9)
        net.add("Conv", *net.weight(rng, (6, 5, 1, 1), 0.02), scale=0.04, zero_point=7)
        first = net.last
        sizes = [6, 4, 3]
        sizes[axis - 1] = 4
        net.add(
            "Slice",
            *(
                net.constant(np.array(a, np.int64))
                for a in ([0, 0, 0], [sizes[0], 3 if axis == 2 else 4, 2 if axis == 3 else 3], [1, 2, 3])
            ),
            scale=0.04,
            zero_point=7,
        )
        net.add("MaxPool", kernel_shape=[1, 1], scale=np.float32(SCALE * ratio), zero_point=9 if ratio == 1 else 20)
        last = concat(net, [net.last, first, net.last], axis)
        net.add("MaxPool", kernel_shape=[2, 2], scale=SCALE, zero_point=9)
        check(net, tmp_path, outputs=[net.last, last] if seed % 2 else None, operators=("Concat",))


def test_aligned_parts_are_written_in_place_and_read_in_place(tmp_path):
    rng = np.random.default_rng(3)
    net = Net((1, 4, 6, 6), zero_point=9)
    parts = []
    for channels in (8, 4, 3):
        net.last = "x"
        net.add("Conv", *net.weight(rng, (channels, 4, 3, 3), 0.01), pads=[1, 1, 1, 1], scale=SCALE, zero_point=9)
        parts.append(net.last)
    whole = concat(net, parts, 1)
    net.add(
        "Slice", *(net.constant(np.array(a, np.int64)) for a in ([4, 1, 1], [12, 5, 4], [1, 2, 3])), scale=SCALE, zero_point=9
    )
    net.add("Conv", *net.weight(rng, (2, 8, 3, 3), 0.01), scale=SCALE, zero_point=9)
    session = check(net, tmp_path, outputs=[whole, net.last])
    (segment,) = session.model.segments
    assert [layer.operator for layer in segment.program.layers] == ["Conv"] * 4


def test_a_shuffle_of_channels(tmp_path):
    rng = np.random.default_rng(4)
    net = Net((1, 8, 5, 5), zero_point=9)
    net.add("Conv", *net.weight(rng, (12, 8, 1, 1), 0.02), scale=SCALE, zero_point=9)
    for shape in ([1, 3, 4, 5, 5], None, [1, 12, 5, 5]):
        if shape is None:
            net.add("Transpose", perm=[0, 2, 1, 3, 4], scale=SCALE, zero_point=9)
        else:
            net.add("Reshape", net.constant(np.array(shape, np.int64)), scale=SCALE, zero_point=9)
    net.add("Conv", *net.weight(rng, (12, 1, 3, 3), 0.02), group=12)
    check(net, tmp_path, operators=("Reshape", "Transpose"))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_convolution_reads_a_channels_last_input_as_it_is(tmp_path, channels):
    rng = np.random.default_rng(5)
    net = Net((1, 8, 9, channels), zero_point=9)
    net.add("Transpose", perm=[0, 3, 1, 2], scale=SCALE, zero_point=9)
    net.add("Conv", *net.weight(rng, (6, channels, 3, 2), 0.02), strides=[2, 2], pads=[1, 0, 0, 1])
    session = check(net, tmp_path, operators=("Transpose",))
    assert [layer.operator for layer in session.model.segments[0].program.layers] == ["Conv"]


def test_a_grouped_convolution_of_side_by_side_channels(tmp_path):
    rng = np.random.default_rng(13)
    net = Net((1, 1, 1, 2), zero_point=9)
    net.add("Transpose", perm=[0, 3, 1, 2], scale=SCALE, zero_point=9)
    net.add("Conv", *net.weight(rng, (2, 1, 1, 1), 0.02), group=2)
    check(net, tmp_path)


def test_a_channels_last_input_of_other_operators(tmp_path):
    net = Net((1, 6, 5, 6), zero_point=9)
    net.add("Transpose", perm=[0, 3, 1, 2], scale=SCALE, zero_point=9)
    net.add("MaxPool", kernel_shape=[2, 2], scale=SCALE, zero_point=9)
    net.add("Transpose", perm=[0, 2, 3, 1], scale=SCALE, zero_point=9)
    check(net, tmp_path)


def test_pixels_become_rows_of_a_matrix(tmp_path):
    rng = np.random.default_rng(6)
    net = Net((1, 3, 6, 5), zero_point=9)
    net.add("Conv", *net.weight(rng, (7, 3, 2, 2), 0.02), scale=SCALE, zero_point=9)
    net.add("Reshape", net.constant(np.array([1, 7, 20], np.int64)), scale=SCALE, zero_point=9)
    net.add("Transpose", perm=[0, 2, 1], scale=SCALE, zero_point=9)
    net.add("MatMul", *net.weight(rng, (7, 6), 0.01), scale=SCALE, zero_point=9)
    net.add("Transpose", perm=[0, 2, 1], scale=SCALE, zero_point=9)
    net.add("MatMul", *net.weight(rng, (20, 4), 0.01), scale=SCALE, zero_point=9)
    check(net, tmp_path, operators=("Reshape", "Transpose", "MatMul"))


def test_boxes_of_several_maps_are_rows_of_one_matrix(tmp_path):
    rng = np.random.default_rng(12)
    net = Net((1, 4, 6, 6), zero_point=9)
    heads = []
    for stride in (1, 2):
        net.last = "x"
        weight = net.weight(rng, (12, 4, 3, 3), 0.01)
        net.add("Conv", *weight, pads=[1, 1, 1, 1], strides=[stride] * 2, scale=SCALE, zero_point=9)
        net.add("Transpose", perm=[0, 2, 3, 1], scale=SCALE, zero_point=9)
        net.add("Reshape", net.constant(np.array([1, -1, 4], np.int64)), scale=SCALE, zero_point=9)
        heads.append(net.last)
    whole = concat(net, heads, 1)
    session = check(net, tmp_path, outputs=[whole], operators=("Reshape", "Transpose", "Concat"))
    (segment,) = session.model.segments
    assert len(segment.program.instructions) < 50


def test_pads_that_no_reader_can_fold(tmp_path):
    rng = np.random.default_rng(7)
    net = Net((1, 3, 6, 6), zero_point=17)
    for _ in range(2):
        net.add("Pad", net.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1])), zero_point=17)
    net.add("AveragePool", kernel_shape=[3, 3], scale=0.0377, zero_point=17)
    net.add("Pad", net.constant(np.array([0, 1, 0, 0, 0, 0, 1, 0])), net.constant(np.float32(1.0)), scale=0.0377, zero_point=17)
    net.add("Conv", *net.weight(rng, (4, 4, 2, 2), 0.02))
    check(net, tmp_path, operators=("Pad",))


def test_additions_of_differently_ordered_operands(tmp_path):
    rng = np.random.default_rng(8)
    net = Net((1, 4, 5, 5), zero_point=9)
    net.add("Conv", *net.weight(rng, (4, 4, 1, 1), 0.02), scale=SCALE, zero_point=9)
    first = net.last
    net.add("Transpose", perm=[0, 1, 3, 2], scale=SCALE, zero_point=9)
    net.add("Add", net.dequantise(first), scale=0.09, zero_point=11)
    check(net, tmp_path, operators=("Add", "Transpose"))


@pytest.mark.parametrize("operator", ["Mul", "Add"])
def test_constants_for_elements_that_are_repeated_or_left_out(tmp_path, operator):
    rng = np.random.default_rng(15)
    net = Net((1, 4, 1, 5), zero_point=9)
    net.add("Conv", *net.weight(rng, (1, 4, 1, 1), 0.02), scale=SCALE, zero_point=9)
    net.add("Expand", net.constant(np.array([1, 6, 1, 5], np.int64)), scale=SCALE, zero_point=9)
    net.add(operator, net.constant(rng.uniform(0.2, 3, (6, 1, 1)).astype(np.float32)), scale=SCALE, zero_point=9)
    net.add("Slice", *(net.constant(np.array(a, np.int64)) for a in ([1, 0], [4, 3], [1, 3])), scale=SCALE, zero_point=9)
    net.add(operator, net.constant(rng.uniform(0.2, 3, (3, 1, 1)).astype(np.float32)), scale=SCALE, zero_point=9)
    check(net, tmp_path)


def test_a_split_in_parts_for_host_and_engine(tmp_path):
    rng = np.random.default_rng(9)
    net = Net((1, 4, 5, 5), dtype=np.uint8, zero_point=9)
    net.add("Conv", *net.weight(rng, (9, 4, 1, 1), 0.02), scale=SCALE, zero_point=9)
    sizes = net.constant(np.array([2, 4, 3], np.int64))
    net.nodes.append(helper.make_node("Split", [net.dequantise(), sizes], ["a", "b", "c"], axis=1, name="split"))
    parts = []
    for name in "abc":
        net.quantise(name, SCALE, 9)
        parts.append(net.last)
    whole = concat(net, [parts[2], parts[0]], 1)
    net.last = parts[1]
    net.add("Conv", *net.weight(rng, (2, 4, 3, 3), 0.02))
    check(net, tmp_path, outputs=[net.last, whole, parts[0]], operators=("Split", "Concat"))


def test_what_only_moves_inputs_is_on_the_engine_as_well(tmp_path):
    net = Net((1, 3, 4, 6), zero_point=9)
    net.add("Resize", "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest", scale=SCALE, zero_point=9)
    check(net, tmp_path, operators=("Resize",))


def test_rearranged_networks_on_rtl(tmp_path):
    rng = np.random.default_rng(10)
    net = Net((1, 6, 6, 3), dtype=np.uint8, zero_point=9)
    net.add("Transpose", perm=[0, 3, 1, 2], scale=SCALE, zero_point=9)
    net.add("Conv", *net.weight(rng, (8, 3, 3, 3), 0.02), scale=SCALE, zero_point=9)
    first = net.last
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], scale=0.04, zero_point=9)
    net.add("Resize", "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest", scale=0.04, zero_point=9)
    concat(net, [first, net.last], 1)
    net.add("DepthToSpace", blocksize=2, scale=SCALE, zero_point=9)
    net.add("Pad", net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), mode="reflect", scale=SCALE, zero_point=9)
    net.add("Transpose", perm=[0, 1, 3, 2], scale=SCALE, zero_point=9)
    net.add("Conv", *net.weight(rng, (5, 4, 3, 3), 0.02), strides=[2, 2])
    check(net, tmp_path, on="verilator", operators=("Transpose", "Concat", "Resize", "Pad", "DepthToSpace"))


def test_a_product_of_all_rows_of_a_channels_last_input(tmp_path):
    rng = np.random.default_rng(14)
    net = Net((1, 5, 3), zero_point=9)
    net.add("Transpose", perm=[0, 2, 1], scale=SCALE, zero_point=9).add("Flatten", scale=SCALE, zero_point=9)
    net.add("MatMul", *net.weight(rng, (15, 6), 0.01), scale=SCALE, zero_point=9)
    check(net, tmp_path, operators=("MatMul",))
