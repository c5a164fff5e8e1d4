"""Convolutions and matrix products of every form on the golden executor, and some on the simulated RTL: ONNX Runtime's integers."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from celosia.rtl.config import PRESETS
from celosia.sim.executor import instructions_of
from celosia.tools.check import check_outputs, summary
from celosia.tools.compiler.importer import session_options
from celosia.tools.session import InferenceSession

TEST = PRESETS["test"]
ROOMY = dataclasses.replace(TEST, name="roomy", act_depth=1 << 16, weight_tiles=1 << 14, param_depth=1 << 12, program_depth=1 << 12)
MICROSOFT = "com.microsoft"


class Graph:
    """Collects nodes and constants of a small model; scales and zero points are given as numbers."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, array):
        self.constants.append(numpy_helper.from_array(np.asarray(array), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, operator, inputs, **attributes):
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        domain = MICROSOFT if operator in ("QGemm", "QLinearAveragePool", "QLinearGlobalAveragePool") else ""
        self.nodes.append(helper.make_node(operator, names, [f"v{len(self.nodes)}"], f"n{len(self.nodes)}", domain=domain, **attributes))
        return self.nodes[-1].output[0]

    def save(self, path, shape, dtype, outputs):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", kind, shape)],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
        return path


def integers(rng, shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def check(path, x, *, engine=ROOMY, on="golden", host=0):
    """Run the model with input ``x`` and compare with ONNX Runtime, which sees the whole batch at once; return the session."""
    session = InferenceSession(path, engine, on)
    rows = [row for row in session.model.nodes if row[2] == "host"]
    assert len(rows) == host, rows
    ours = session.run(None, {"x": x})
    reference = onnxruntime.InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"])
    batch = reference.get_inputs()[0].shape[0]
    parts = [reference.run(None, {"x": x[n : n + batch]}) for n in range(0, len(x), batch)]
    for name, found, *expected in zip([value.name for value in reference.get_outputs()], ours, *parts):
        expected = np.concatenate([array.reshape(-1, *array.shape[1:]) for array in expected])
        assert np.array_equal(found.reshape(expected.shape), expected), (name, int((found.reshape(expected.shape) != expected).sum()))
    return session


def convolution(rng, *, dtype, weight_dtype, zero_point, weight_shape, sparse=1.0, y_zero=None, **attributes):
    """Return a :class:`Graph` of one QLinearConv and its output; scales keep the result within 8 bits."""
    weight = integers(rng, weight_shape, weight_dtype)
    weight = np.where(rng.random(weight_shape) < sparse, weight, weight_dtype(zero_point)).astype(weight_dtype)
    channels = weight_shape[0]
    fan_in = np.prod(weight_shape[1:])
    per_channel = rng.random() < 0.5
    scale = np.float32(0.02 * rng.uniform(0.5, 1.5, channels if per_channel else 1) / 60 / np.sqrt(fan_in))
    zeros = np.full(scale.shape, zero_point, weight_dtype)
    graph = Graph()
    offset = np.iinfo(dtype).min
    inputs = ["x", np.float32(0.03), dtype(offset + rng.integers(256)), weight, scale, zeros, np.float32(0.0271 * 0.03)]
    inputs += [dtype(offset + rng.integers(256) if y_zero is None else y_zero), rng.integers(-9000, 9000, channels).astype(np.int32)]
    return graph, graph.node("QLinearConv", inputs, **attributes)


@pytest.mark.parametrize("seed", range(12))
def test_weights_with_a_zero_point(tmp_path, seed):
    rng = np.random.default_rng(seed)
    # ONNX Runtime has no kernel for int8 activations with uint8 weights.
    dtype, weight_dtype = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)][seed % 3]
    limits = np.iinfo(weight_dtype)
    zero_point = int(rng.choice([limits.min, limits.max, rng.integers(limits.min, limits.max)]))
    group = int(rng.choice([1, 1, 3]))
    shape = (1, 3 * int(rng.integers(1, 4)), int(rng.integers(3, 8)), int(rng.integers(3, 8)))
    weight_shape = (3 * int(rng.integers(1, 5)), shape[1] // group, int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    facts = {"dtype": dtype, "weight_dtype": weight_dtype, "zero_point": zero_point, "sparse": rng.uniform(0.02, 1)}
    graph, y = convolution(rng, weight_shape=weight_shape, group=group, pads=[1, 0, 1, 2], **facts)
    check(graph.save(tmp_path / "net.onnx", shape, dtype, [y]), integers(rng, (4, *shape[1:]), dtype))


def test_only_tiles_with_a_remainder_take_further_passes(tmp_path):
    graph = Graph()
    weight = np.full((4, 12, 3, 3), 200, np.uint8)
    weight[1, 5, 1, 2] = 20  # 180 below the zero point
    weight[2, 9, 1, 1:] = 10
    weight[:, 0] = 202
    inputs = ["x", np.float32(0.03), np.uint8(7), weight, np.float32(0.01), np.uint8(200), np.float32(0.1), np.uint8(130)]
    y = graph.node("QLinearConv", inputs)
    path = graph.save(tmp_path / "net.onnx", (1, 12, 5, 5), np.uint8, [y])
    session = check(path, integers(np.random.default_rng(0), (3, 12, 5, 5), np.uint8))
    (program,) = (segment.program for segment in session.model.segments)
    passes = [i.kernel_y * i.kernel_x * i.blocks for i in instructions_of(program) if i is not None and i.opcode.name == "EXECUTE"]
    assert passes == [27, 4]


@pytest.mark.parametrize("seed", range(16))
def test_matrix_products(tmp_path, seed):
    """Either operand constant, transposed or not, with leading dimensions, as a batch and not."""
    rng = np.random.default_rng([seed, 1])
    rows, inner, out = (int(n) for n in rng.integers(1, 14, 3))
    dtype = [np.uint8, np.int8][seed % 2]
    weight_dtype = dtype if rng.random() < 0.5 else np.int8
    swapped, gemm, per_channel = seed % 8 >= 4, seed % 4 >= 2, rng.random() < 0.5
    left, right = (int(gemm and rng.random() < 0.5) for _ in range(2))
    lead = () if gemm else [(), (1,), (1, 3)][rng.integers(3)] if not swapped else [(), (1,)][rng.integers(2)]
    x_shape = (inner, rows) if (right == 0 if swapped else left) else (rows, inner)
    w_shape = ((inner, out) if left else (out, inner)) if swapped else ((out, inner) if right else (inner, out))
    if swapped:
        per_channel = False
    weight, zero_point = integers(rng, w_shape, weight_dtype), integers(rng, (), weight_dtype)
    scale = np.float32(rng.uniform(0.5, 1.5, out if per_channel else ()) * 0.0005)
    x = ["x", np.float32(0.03), dtype(np.iinfo(dtype).min + rng.integers(256))]
    w = [weight, scale, np.full(scale.shape, zero_point)]
    inputs = [*w, *x] if swapped else [*x, *w]
    y = [np.float32(0.03 * 0.05), dtype(np.iinfo(dtype).min + 128)]
    graph = Graph()
    if gemm:
        kind = rng.integers(4)
        shape = [(out,), (1, out), (), None][kind] if not swapped else [(out, 1), (1, 1), (), None][kind]
        bias = "" if shape is None else rng.integers(-3000, 3000, shape).astype(np.int32)
        output = graph.node("QGemm", [*inputs, bias, *y], transA=left, transB=right, alpha=float(rng.choice([1.0, 0.7])))
    else:
        output = graph.node("QLinearMatMul", [*inputs, *y])
    shape = (*lead, *x_shape)
    path = graph.save(tmp_path / "net.onnx", shape, dtype, [output])
    check(path, integers(rng, (shape[0] * 3, *shape[1:]), dtype))


def test_inferences_of_a_fixed_batch_run_one_by_one(tmp_path):
    rng = np.random.default_rng(2)
    facts = {"dtype": np.uint8, "weight_dtype": np.int8, "zero_point": 0, "y_zero": 9}
    graph, y = convolution(rng, weight_shape=(4, 3, 3, 3), **facts)
    y = graph.node("Reshape", [y, np.array([6, 36])])
    w = integers(rng, (36, 5), np.int8)
    y = graph.node("QLinearMatMul", [y, np.float32(0.02), np.uint8(9), w, np.float32(0.001), np.int8(0), np.float32(0.01), np.uint8(128)])
    path = graph.save(tmp_path / "net.onnx", (6, 3, 5, 5), np.uint8, [y])
    session = check(path, integers(rng, (12, 3, 5, 5), np.uint8))
    assert session.get_inputs()[0].shape == [1, 3, 5, 5] and session.report.inferences == 12


def test_a_first_dimension_that_is_no_batch_stays(tmp_path):
    graph = Graph()
    x = graph.node("Transpose", ["x"], perm=[1, 0])
    w = integers(np.random.default_rng(3), (6, 5), np.int8)
    y = graph.node("QLinearMatMul", [x, np.float32(0.02), np.int8(9), w, np.float32(0.01), np.int8(0), np.float32(0.1), np.int8(1)])
    path = graph.save(tmp_path / "net.onnx", (6, 4), np.int8, [y])
    session = check(path, integers(np.random.default_rng(4), (6, 4), np.int8))
    assert session.get_inputs()[0].shape == [6, 4]


BEYOND = {
    "a one-dimensional map of many pixels": {"shape": (1, 2, 9001), "kernel": (9,), "strides": [3], "pads": [4, 4]},
    "a stride as long as the kernel": {"shape": (1, 3, 35, 40), "kernel": (16, 20), "strides": [16, 20]},
    "a stride in one direction": {"shape": (1, 2, 40, 37), "kernel": (3, 3), "strides": [1, 17], "pads": [1, 2, 0, 3]},
    "a long dilation": {"shape": (1, 3, 300), "kernel": (4,), "dilations": [70], "pads": [100, 33]},
    "dilations of both axes": {"shape": (1, 2, 80, 90), "kernel": (2, 2), "dilations": [64, 77], "pads": [0, 3, 1, 0]},
    "taps behind the map": {"shape": (1, 1, 2, 4000), "kernel": (1, 3), "pads": [0, 40, 0, 200], "dilations": [1, 60]},
    "a kernel of 70 × 3": {"shape": (1, 2, 75, 9), "kernel": (70, 3)},
    "a kernel larger than a word": {"shape": (1, 2, 9, 90), "kernel": (2, 65), "strides": [2, 3]},
}


@pytest.mark.parametrize("case", BEYOND)
@pytest.mark.parametrize("dense", [True, False], ids=["input", "inside"])
def test_windows_beyond_the_fields_of_an_instruction(tmp_path, case, dense):
    rng = np.random.default_rng(5)
    facts = dict(BEYOND[case])
    shape, kernel = facts.pop("shape"), facts.pop("kernel")
    facts |= {"dtype": np.uint8, "weight_dtype": np.int8, "zero_point": 0}
    channels = shape[1] if dense else 5
    graph, y = convolution(rng, weight_shape=(3, channels, *kernel), **facts)
    if not dense:
        graph.nodes[0].input[0], graph.nodes[0].name = "inside", "second"
        w = integers(rng, (5, shape[1], *(1 for _ in kernel)), np.int8)
        zero = numpy_helper.to_array(graph.constants[1])
        graph.node("QLinearConv", ["x", np.float32(0.02), np.uint8(90), w, np.float32(0.01), np.int8(0), np.float32(0.04), zero])
        graph.nodes[1].output[0] = "inside"
        graph.nodes.reverse()
    check(graph.save(tmp_path / "net.onnx", shape, np.uint8, [y]), integers(rng, (2, *shape[1:]), np.uint8))


def transposed_convolution(rng, *, dtype, shape, channels, kernel, group=1, activation=None, power=False, **attributes):
    """Return a :class:`Graph` of one ConvTranspose in QDQ form and its output."""
    graph, offset = Graph(), np.iinfo(dtype).min
    weight = integers(rng, (shape[1], channels // group, *kernel), np.int8)
    per_channel = group == 1 and rng.random() < 0.5
    scale = np.float32(rng.uniform(0.5, 1.5, channels if per_channel else ()) * 0.001)
    x_scale, y_scale = np.float32(0.03), np.float32(0.03 * 0.001 * 1500)
    if power:
        scale, x_scale, y_scale = np.float32(2**-9), np.float32(2**-5), np.float32(2**-4)
    zeros = np.zeros(scale.shape, np.int8)
    x = graph.node("DequantizeLinear", ["x", x_scale, dtype(offset + rng.integers(256))])
    w = graph.node("DequantizeLinear", [weight, scale, zeros], **({"axis": 1} if per_channel else {}))
    bias = rng.integers(-9000, 9000, channels).astype(np.int32)
    b = graph.node("DequantizeLinear", [bias, np.float32(x_scale * scale), zeros.astype(np.int32)], **({"axis": 0} if per_channel else {}))
    y = graph.node("ConvTranspose", [x, w, b], group=group, **attributes)
    if activation:
        y = graph.node(activation, [y, *([np.float32(-3.1), np.float32(4.7)] if activation == "Clip" else [])])
    return graph, graph.node("QuantizeLinear", [y, y_scale, dtype(offset + rng.integers(100, 150))])


TRANSPOSED = {
    "stride of the kernel": {"strides": [2, 2], "kernel": (2, 2)},
    "overlapping": {"strides": [2, 3], "kernel": (4, 5), "pads": [1, 2, 0, 1]},
    "output padding": {"strides": [3, 2], "kernel": (3, 3), "pads": [1, 1, 1, 1], "output_padding": [2, 1]},
    "dilation": {"strides": [2, 3], "kernel": (3, 2), "dilations": [2, 4]},
    "holes": {"strides": [4, 3], "kernel": (2, 1)},
    "groups": {"strides": [2, 1], "kernel": (3, 3), "group": 3},
    "one dimension": {"strides": [2], "kernel": (5,), "pads": [2, 1], "activation": "Relu"},
    "a long stride": {"strides": [1, 17], "kernel": (2, 18), "activation": "Clip"},
    "same upper": {"strides": [2, 2], "kernel": (3, 3), "auto_pad": "SAME_UPPER"},
    "an output shape": {"strides": [2, 2], "kernel": (3, 3), "output_shape": [10, 9]},
}


@pytest.mark.parametrize("case", TRANSPOSED)
@pytest.mark.parametrize("power", [False, True], ids=["real", "powers"])
def test_transposed_convolution(tmp_path, case, power):
    rng = np.random.default_rng([3, len(case)])
    facts = TRANSPOSED[case]
    dtype = [np.int8, np.uint8][len(case) % 2]
    shape = (1, 6, *(5, 4)[-len(facts["kernel"]) :])
    graph, y = transposed_convolution(rng, dtype=dtype, shape=shape, channels=9, power=power, **facts)
    path = graph.save(tmp_path / "net.onnx", shape, dtype, [y])
    x = integers(rng, (8, *shape[1:]), dtype)
    if power:
        check(path, x)  # float32 holds every sum: ties go to even as in the engine
        return
    session = InferenceSession(path, ROOMY, "golden")
    assert not session.model.host_nodes, session.model.host_nodes
    elements, differences, ties = summary(check_outputs(session, path, {"x": x}, session.run(None, {"x": x})))
    assert differences == 0 and ties <= elements // 1000


def test_on_the_simulated_engine(tmp_path):
    """Remainder passes, a 1-D map beyond the fields, a long stride and phases of a transposed convolution, on RTL."""
    rng = np.random.default_rng(6)
    facts = {"dtype": np.uint8, "weight_dtype": np.uint8, "zero_point": 90}
    cases = [
        ((1, 5, 6, 5), convolution(rng, weight_shape=(6, 5, 3, 2), sparse=0.3, pads=[1, 0, 1, 2], **facts)),
        ((1, 1, 5000), convolution(rng, weight_shape=(2, 1, 5), strides=[7], pads=[2, 2], **facts)),
        ((1, 2, 33, 20), convolution(rng, weight_shape=(3, 2, 16, 3), strides=[16, 1], **facts)),
        ((1, 3, 90), convolution(rng, weight_shape=(3, 3, 2), dilations=[70], **facts)),
    ]
    shape = (1, 6, 4, 3)
    cases.append((shape, transposed_convolution(rng, dtype=np.uint8, shape=shape, channels=5, kernel=(3, 3), strides=[2, 2], power=True)))
    for shape, (graph, y) in cases:
        path = graph.save(tmp_path / "net.onnx", shape, np.uint8, [y])
        check(path, integers(rng, (2, *shape[1:]), np.uint8), engine=TEST, on="verilator")


def with_relu(rng, operator, *, y_scale, activation="Relu", w_scale=2.0**-7):
    """Return a :class:`Graph` of a Conv or Gemm with a Relu that the quantisation does not contain, its output and input shape."""
    shape, weight_shape = ((1, 6, 5, 5), (7, 6, 3, 3)) if operator == "Conv" else ((1, 40), (7, 40))
    graph = Graph()
    x = graph.node("DequantizeLinear", ["x", np.float32(2**-4), np.int8(rng.integers(-20, 20))])
    scale = np.float32(w_scale * 2.0 ** rng.integers(-2, 2, 7)) if operator == "Conv" else np.float32(w_scale)
    axis = {"axis": 0} if operator == "Conv" else {}
    w = graph.node("DequantizeLinear", [integers(rng, weight_shape, np.int8), scale, np.zeros(scale.shape, np.int8)], **axis)
    bias = [rng.integers(-3000, 3000, 7).astype(np.int32), np.float32(2**-4) * scale, np.zeros(scale.shape, np.int32)]
    b = graph.node("DequantizeLinear", bias, **axis)
    y = graph.node(operator, [x, w, b], **({} if operator == "Conv" else {"transB": 1}))
    y = graph.node(activation, [y, *([np.float32(-1), np.float32(6)] if activation == "Clip" else [])])
    return graph, graph.node("QuantizeLinear", [y, np.float32(y_scale), np.int8(5)]), shape


@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_float_kernels_that_never_round_run_on_the_engine(tmp_path, operator, activation):
    rng = np.random.default_rng(10)
    for y_scale in (2**-4, 0.07):
        graph, y, shape = with_relu(rng, operator, activation=activation, y_scale=y_scale)
        path = graph.save(tmp_path / "net.onnx", shape, np.int8, [y])
        session = InferenceSession(path, ROOMY, "golden")
        if not session.model.host_nodes:
            check(path, integers(rng, (16, *shape[1:]), np.int8))
        assert not session.model.host_nodes or y_scale == 0.07
    graph, y, shape = with_relu(rng, operator, activation=activation, y_scale=2**-4, w_scale=0.01)
    path = graph.save(tmp_path / "net.onnx", shape, np.int8, [y])
    reasons = [reason for _, _, reason, _ in InferenceSession(path, ROOMY, "golden").model.host_nodes]
    assert any(f"for the {activation} after it limits more" in reason for reason in reasons), reasons
