"""Operator families one by one: what they become, that it is ONNX Runtime's result, and the sentences of their limits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_graphs import Recipe, Step, attempt
from test_frontend import execute, expected

from celosia.sim import reference
from celosia.sim.numerics import channel_params, requantize
from celosia.tools.compiler import frontend, ir
from celosia.tools.ops.convolution import accumulator_bounds
from celosia.tools.ops.pooling import near_ties

TYPES = {np.int8: TensorProto.INT8, np.uint8: TensorProto.UINT8, np.float32: TensorProto.FLOAT}


class Net:
    """Builds a small QDQ model. Values are quantised; ``add`` appends an operator with its DequantizeLinear and QuantizeLinear."""

    def __init__(self, shape, *, dtype=np.int8, scale=0.05, zero_point=3, opset=17):
        self.dtype, self.shape, self.opset = dtype, shape, opset
        self.nodes, self.constants, self.parameters = [], [], {}
        self.last = "x"
        self.parameters["x"] = self.quantisation(scale, zero_point)

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def quantisation(self, scale, zero_point):
        return self.constant(np.float32(scale)), self.constant(self.dtype(zero_point))

    def node(self, operator, inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"{operator}_{name}", **attributes))
        return name

    def dequantise(self, value=None):
        value = value or self.last
        return self.node("DequantizeLinear", [value, *self.parameters[value]])

    def quantise(self, value, scale, zero_point):
        parameters = self.quantisation(scale, zero_point)
        self.last = self.node("QuantizeLinear", [value, *parameters])
        self.parameters[self.last] = parameters
        return self

    def add(self, operator, *others, scale=0.05, zero_point=3, then=None, **attributes):
        value = self.node(operator, [self.dequantise(), *others], **attributes)
        if then:
            value = self.node(then, [value])
        return self.quantise(value, scale, zero_point)

    def weight(self, rng, shape, scale, *, axis=None, bias=None):
        """Return the dequantised weight, and bias if given."""
        array = rng.integers(-127, 128, shape).astype(np.int8)
        attributes = {} if axis is None else {"axis": axis}
        zero = np.zeros(np.shape(scale), np.int8)
        inputs = [self.constant(array), self.constant(np.float32(scale)), self.constant(zero)]
        found = [self.node("DequantizeLinear", inputs, **attributes)]
        if bias is not None:
            scales = np.float32(scale) * np.float32(0.05)
            inputs = [self.constant(np.int32(bias)), self.constant(np.float32(scales)), self.constant(zero.astype(np.int32))]
            found.append(self.node("DequantizeLinear", inputs, **attributes))
        return found

    def save(self, path, outputs=None):
        kind = TYPES[self.dtype]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", kind, self.shape)],
            [onnx.ValueInfoProto(name=name) for name in outputs or [self.last]],
            self.constants,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9), path)
        return path


def check(net, folder, *, samples=8, outputs=None):
    """Lower, compare with ONNX Runtime on random inputs, and return the front end's result."""
    path = net.save(Path(folder) / "net.onnx", outputs)
    limits = np.iinfo(net.dtype)
    shape = (samples, *net.shape[1:])
    feed = {"x": np.random.default_rng(5).integers(limits.min, limits.max + 1, shape).astype(net.dtype)}
    lowered = frontend.lower(path)
    values = execute(lowered, feed)
    for name, array in expected(path, [name for name, *_ in lowered.outputs], feed).items():
        assert np.array_equal(values[name], array), name
    return lowered


def nodes(lowered):
    assert all(isinstance(segment, ir.Graph) for segment in lowered.segments), [row for row in lowered.rows if row[2] == "host"]
    return [node for segment in lowered.segments for node in segment.nodes]


def reasons(lowered):
    return {row[1]: row[3] for row in lowered.rows if row[2] == "host" and not row[3].startswith("part of")}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("group", [1, 4])
def test_convolution_with_stride_dilation_and_uneven_pads(tmp_path, dtype, dims, group):
    rng = np.random.default_rng(1)
    net = Net((1, 4, 11, 9)[: 2 + dims], dtype=dtype, zero_point=20)
    weight = net.weight(rng, (8, 4 // group, 3, 2)[: 2 + dims], rng.uniform(1e-3, 2e-2, 8), axis=0, bias=range(-400, 400, 100))
    pads = {1: [2, 1], 2: [2, 0, 1, 1]}[dims]
    net.add("Conv", *weight, group=group, strides=[2, 1][:dims], dilations=[2, 1][:dims], pads=pads)
    (node,) = nodes(check(net, tmp_path))
    assert (node.group, node.weight.shape[0], node.scale.dtype) == (group, 8, np.float32)


def test_automatic_padding(tmp_path):
    rng = np.random.default_rng(2)
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        net = Net((1, 2, 7, 6))
        net.add("Conv", *net.weight(rng, (3, 2, 2, 3), 0.01), auto_pad=mode, strides=[2, 1])
        nodes(check(net, tmp_path))


def test_flattening_a_transposed_map_reorders_the_weights(tmp_path):
    rng = np.random.default_rng(3)
    net = Net((1, 2, 3, 5))
    net.add("MaxPool", kernel_shape=[1, 2])
    net.add("Transpose", perm=[0, 2, 3, 1]).add("Flatten")
    net.add("MatMul", *net.weight(rng, (24, 7), rng.uniform(1e-3, 1e-2, 7), axis=1))
    node = nodes(check(net, tmp_path))[-1]
    assert node.weight.shape == (7, 2, 3, 4)


def test_rows_of_a_matrix_are_pixels(tmp_path):
    rng = np.random.default_rng(4)
    net = Net((1, 9, 12))
    net.add("MatMul", *net.weight(rng, (12, 5), 0.01))
    lowered = check(net, tmp_path)
    (node,) = nodes(lowered)
    tensor = lowered.segments[0].tensors[node.output]
    assert (tensor.matrix, tensor.channels, tensor.height, tensor.width, tensor.shape) == (True, 5, 9, 1, (9, 5))


@pytest.mark.parametrize("operator", ["Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Elu", "Abs", "Relu"])
def test_a_function_becomes_a_table_of_the_node_before(tmp_path, operator):
    rng = np.random.default_rng(6)
    net = Net((1, 3, 4, 4))
    net.add("Conv", *net.weight(rng, (5, 3, 1, 1), 0.02)).add(operator, scale=0.01, zero_point=-30)
    (node,) = nodes(check(net, tmp_path))
    assert node.table is not None and node.table.shape == (256,) and len(node.fused) == 1


def test_a_function_of_several_operators_is_one_table(tmp_path):
    net = Net((1, 3, 4, 4))
    value = net.dequantise()
    net.quantise(net.node("Mul", [value, net.node("Sigmoid", [value])]), 0.03, -120)
    (node,) = nodes(check(net, tmp_path))
    assert isinstance(node, ir.Copy) and node.table is not None


def test_a_clip_needs_no_table(tmp_path):
    rng = np.random.default_rng(7)
    net = Net((1, 3, 4, 4))
    net.add("Conv", *net.weight(rng, (5, 3, 1, 1), 0.02), scale=0.05)
    net.add("Clip", net.constant(np.float32(-1.0)), net.constant(np.float32(2.0)), scale=0.05)
    (node,) = nodes(check(net, tmp_path))
    assert (node.low, node.high, node.table) == (3 - 20, 3 + 40, None)


def test_a_relu_that_quantisation_contains_costs_nothing(tmp_path):
    rng = np.random.default_rng(8)
    net = Net((1, 3, 4, 4))
    net.add("Conv", *net.weight(rng, (5, 3, 1, 1), 0.02), then="Relu", zero_point=-128)
    (node,) = nodes(check(net, tmp_path))
    assert (node.low, node.high, node.table) == (-128, 127, None)


def test_a_relu_that_quantisation_does_not_contain_is_onnx_runtimes_float(tmp_path):
    rng = np.random.default_rng(8)
    net = Net((1, 3, 4, 4))
    net.add("Conv", *net.weight(rng, (5, 3, 1, 1), 0.02), then="Relu", zero_point=0)
    assert reasons(check(net, tmp_path))["Conv"] == (
        "ONNX Runtime computes this Conv in floating point, for the Relu after it limits more than the quantisation does."
    )


def test_an_addition_goes_into_the_later_producer(tmp_path):
    rng = np.random.default_rng(9)
    net = Net((1, 4, 5, 5))
    net.add("Conv", *net.weight(rng, (4, 4, 3, 3), 0.005), pads=[1, 1, 1, 1])
    first = net.last
    net.add("Conv", *net.weight(rng, (4, 4, 3, 3), 0.005), pads=[1, 1, 1, 1], scale=0.07, zero_point=-9)
    net.add("Add", net.dequantise(first), scale=0.09, zero_point=11)
    one, two = nodes(check(net, tmp_path))
    assert one.combine is None and two.combine.tensor == first and len(two.fused) == 1


def test_an_addition_of_a_value_to_itself(tmp_path):
    net = Net((1, 4, 5, 5))
    net.add("MaxPool", kernel_shape=[2, 2])
    net.add("Add", net.dequantise(), scale=0.1)
    nodes(check(net, tmp_path))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_pooling_windows_at_the_border(tmp_path, dtype):
    for operator, attributes in (
        ("MaxPool", {"ceil_mode": 1}),
        ("MaxPool", {"dilations": [2, 1]}),
        ("AveragePool", {"count_include_pad": 0}),
        ("AveragePool", {"count_include_pad": 1}),
    ):
        net = Net((1, 3, 8, 7), dtype=dtype, zero_point=60)
        scale = 0.05 if operator == "MaxPool" else 0.0377
        net.add(operator, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 0, 0], scale=scale, zero_point=60, **attributes)
        (node,) = nodes(check(net, tmp_path))
        if operator == "AveragePool":
            assert set(node.scales) == {2, 3, 4, 6}


def test_means_over_the_map(tmp_path):
    for operator, attributes in (
        ("GlobalAveragePool", {}),
        ("ReduceMean", {"axes": [2, 3]}),
        ("ReduceMean", {"axes": [-1, -2], "keepdims": 0}),
    ):
        net = Net((1, 6, 4, 5))
        net.add(operator, scale=0.0331, zero_point=-70, **attributes)  # no sum of 20 is near a tie
        (node,) = nodes(check(net, tmp_path, samples=64))
        assert node.kernel == (4, 5) and list(node.scales) == [20]


def test_padding_goes_into_the_next_convolution(tmp_path):
    rng = np.random.default_rng(10)
    net = Net((1, 3, 6, 6), zero_point=17)
    net.add("Pad", net.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1])), zero_point=17)
    net.add("Conv", *net.weight(rng, (4, 3, 3, 3), 0.01), strides=[2, 2], pads=[0, 1, 0, 0])
    (node,) = nodes(check(net, tmp_path))
    assert node.pads == (1, 3, 0, 1)


def test_padding_that_nothing_can_take_is_put_together(tmp_path):
    net = Net((1, 3, 6, 6), zero_point=17)
    net.add("Pad", net.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1])), zero_point=17)
    net.add("GlobalAveragePool", zero_point=17)
    pad, _ = nodes(check(net, tmp_path))
    assert isinstance(pad, ir.Rearrange) and np.unique(pad.index[pad.part < 0]).tolist() == [17]


def test_a_reshaped_result_leaves_under_its_own_name(tmp_path):
    rng = np.random.default_rng(11)
    net = Net((1, 3, 4, 4))
    net.add("Conv", *net.weight(rng, (5, 3, 1, 1), 0.02)).add("Flatten")
    lowered = check(net, tmp_path)
    (node,) = nodes(lowered)
    assert node.output == net.last and lowered.segments[0].tensors[net.last].shape == (80,)


def test_segments_alternate_where_the_host_has_work_in_the_middle(tmp_path):
    rng = np.random.default_rng(12)
    net = Net((1, 4, 6, 6))
    net.add("Conv", *net.weight(rng, (4, 4, 1, 1), 0.02))
    net.add("Resize", "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="cubic")
    net.add("Conv", *net.weight(rng, (3, 4, 1, 1), 0.02))
    lowered = check(net, tmp_path)
    assert [isinstance(segment, ir.Graph) for segment in lowered.segments] == [True, False, True]
    assert reasons(lowered) == {
        "Resize": "Resize and Upsample must take the nearest element, or be linear and alone: others are computed in floating point."
    }


def test_a_conditional_on_the_host_takes_values_from_outside(tmp_path):
    rng = np.random.default_rng(16)
    net = Net((1, 4, 6, 6))
    net.add("Conv", *net.weight(rng, (4, 4, 1, 1), 0.02))
    real = net.dequantise()
    total = net.node("ReduceSum", [real], keepdims=0)
    positive = net.node("Greater", [total, net.constant(np.float32(0))])
    bodies = {}
    for branch, operator in (("then_branch", "Neg"), ("else_branch", "Abs")):
        inside = [helper.make_node(operator, [real], [branch])]
        bodies[branch] = helper.make_graph(inside, branch, [], [onnx.ValueInfoProto(name=branch)])
    net.quantise(net.node("If", [positive], **bodies), 0.05, 0)
    net.add("Conv", *net.weight(rng, (3, 4, 1, 1), 0.02))
    lowered = check(net, tmp_path)
    assert [isinstance(segment, ir.Graph) for segment in lowered.segments] == [True, False, True]


def test_limits_are_told(tmp_path):
    rng = np.random.default_rng(13)
    net = Net((1, 4, 4, 4, 4))
    net.add("Conv", *net.weight(rng, (2, 4, 1, 1, 1), 0.02))
    assert reasons(check(net, tmp_path)) == {"Conv": "The kernel must have one or two spatial dimensions."}
    net = Net((1, 70000))
    array = np.full((70000, 2), 127, np.int8)
    net.add("MatMul", net.node("DequantizeLinear", [net.constant(a) for a in (array, np.float32(1e-6), np.int8(0))]))
    assert reasons(check(net, tmp_path, samples=1)) == {}
    net = Net((1, 140000), zero_point=-128)
    array = np.full((140000, 2), 127, np.int8)
    net.add("MatMul", net.node("DequantizeLinear", [net.constant(a) for a in (array, np.float32(1e-6), np.int8(0))]))
    lowered = frontend.lower(net.save(tmp_path / "net.onnx"))
    assert reasons(lowered) == {"MatMul": "The sum of output channel 0 can reach 4,533,900,000, beyond 32-bit accumulators."}


def test_accumulator_bounds_are_reached():
    weight = np.array([[[[3, -4]]], [[[127, 127]]]], np.int8)
    assert accumulator_bounds(weight, np.array([0, 1000]), -128).tolist() == [
        max(3 * 127 + 4 * 128, 128 * 3 + 4 * 127, 3 * 255, 4 * 255),
        254 * 255 + 1000,
    ]


def test_sums_far_from_ties_have_one_result_whatever_the_order_of_float_additions():
    rng = np.random.default_rng(14)
    scale, output_scale, zero, output_zero, count = np.float32(0.0231), np.float32(0.0307), -17, 5, 9
    factor = np.float32(scale / (output_scale * count))
    loose = set(near_ties(count, factor, zero, output_zero).tolist())
    x = rng.integers(-128, 128, (200_000, count))
    real = np.zeros(len(x), np.float32)
    for column in rng.permutation(count):
        real = real + (x[:, column] - zero).astype(np.float32) * scale
    average = np.rint(real / np.float32(count) / output_scale + np.float32(output_zero)).clip(-128, 127)
    total = (x - zero).sum(1)
    mantissa, shift = channel_params(factor)
    ours = requantize(total, 0, mantissa, shift, output_zero)
    assert set(total[ours != average].tolist()) <= loose
    assert len(near_ties(4, np.float32(0.25), -128, -128)) == 255


def test_interpreter_and_onnx_forms_are_inverse():
    tensor = ir.Tensor(
        name="t", channels=3, height=4, width=1, shape=(4, 3), matrix=True, scale=np.float32(1), zero_point=0, unsigned=True
    )
    array = np.random.default_rng(15).integers(0, 256, (2, 4, 3)).astype(np.uint8)
    assert np.array_equal(reference.to_onnx(reference.from_onnx(array, tensor), tensor), array)


@pytest.mark.parametrize("step", ["matmul", "unary"])
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_transposed_input_of_several_columns_is_not_mistaken_for_a_matrix(step, form):
    steps = (Step("transpose", 3), Step(step, 4, (("function", "Round"), ("out", 2))))
    for seed in range(8):
        outcome = attempt(Recipe(seed, form, False, (3, 4) if step == "matmul" else (3, 1, 4), steps), on="golden")
        assert not outcome.problem and outcome.elements
