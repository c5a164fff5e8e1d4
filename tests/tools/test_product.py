"""Products of two tensors against ONNX Runtime: shapes, zero points, batches, attention heads; and on the simulated RTL."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_graphs import Recipe, Step, attempt

from celosia.rtl.config import PRESETS
from celosia.rtl.isa import Opcode
from celosia.sim.executor import instructions_of
from celosia.tools.compiler.frontend import lower
from celosia.tools.compiler.importer import session_options
from celosia.tools.compiler.ir import Matrices
from celosia.tools.compiler.pipeline import compile_frontend
from celosia.tools.compiler.product import places
from celosia.tools.errors import UnsupportedOperator
from celosia.tools.program import EngineSegment
from celosia.tools.session import InferenceSession

TYPES = {np.int8: TensorProto.INT8, np.uint8: TensorProto.UINT8}


class Model:
    """A small ONNX model of QLinearMatMul and what moves elements."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.inputs, self.feed, self.quantisation = [], [], [], {}, {}

    def constant(self, value):
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, shape, dtype=np.int8, zero_point=0, count=2):
        name = f"input{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], shape))
        limits = np.iinfo(dtype)
        self.feed[name] = self.rng.integers(limits.min, limits.max + 1, (count * shape[0], *shape[1:])).astype(dtype)
        self.quantisation[name] = np.float32(0.02), dtype(zero_point)
        return name

    def weight(self, shape):
        name = self.constant(self.rng.integers(-127, 128, shape).astype(np.int8))
        self.quantisation[name] = np.float32(0.01), np.int8(0)
        return name

    def node(self, operator, inputs, domain="", **attributes):
        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, domain=domain, **attributes))
        return f"{name}_out"

    def move(self, operator, name, *more, **attributes):
        made = self.node(operator, [name, *more], **attributes)
        self.quantisation[made] = self.quantisation[name]
        return made

    def product(self, a, b, length, zero_point=0, *, gemm=None):
        """Add the product of ``a`` and ``b``, at a scale that results of random operands fit; QGemm with the
        attributes ``gemm``. ``zero_point`` is added to that of a centred result."""
        (sa, za), (sb, zb) = self.quantisation[a], self.quantisation[b]
        means = [np.iinfo(z.dtype).min + 127.5 - int(z) for z in (za, zb)]
        mean, spread = length * means[0] * means[1], length**0.5 * np.hypot(74, means[0]) * np.hypot(74, means[1])
        scale = np.float32(sa * sb * (abs(mean) + spread) / 50)
        limits = np.iinfo(za.dtype)
        zero_point = np.clip(limits.min + 128 + zero_point - round(mean * sa * sb / scale), limits.min, limits.max)
        result = scale, za.dtype.type(zero_point)
        sa, za, sb, zb, sy, zy = (self.constant(value) for value in (sa, za, sb, zb, *result))
        if gemm is None:
            made = self.node("QLinearMatMul", [a, sa, za, b, sb, zb, sy, zy])
        else:
            made = self.node("QGemm", [a, sa, za, b, sb, zb, "", sy, zy], domain="com.microsoft", **gemm)
        self.quantisation[made] = result
        return made

    def save(self, path, *outputs):
        made = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "product", self.inputs, made, self.constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
        return path


def check(model, path, engine, *outputs, on="golden", all_on_engine=True):
    """Compare with ONNX Runtime; return the session."""
    session = InferenceSession(model.save(path / "model.onnx", *outputs), engine, on)
    if all_on_engine:
        assert [type(segment) for segment in session.model.segments] == [EngineSegment]
    reference = onnxruntime.InferenceSession(path / "model.onnx", session_options(), providers=["CPUExecutionProvider"])
    counts = [len(model.feed[value.name]) // value.type.tensor_type.shape.dim[0].dim_value for value in model.inputs]
    wanted = [
        reference.run(None, {name: array[n * len(array) // counts[0] :][: len(array) // counts[0]] for name, array in model.feed.items()})
        for n in range(counts[0])
    ]
    for number, result in enumerate(session.run(None, model.feed)):
        expected = np.concatenate([arrays[number] for arrays in wanted])
        assert len(np.unique(expected)) > 3 or expected.size < 8, "saturated"
        assert np.array_equal(result, expected), f"{(result != expected).sum()} of {expected.size} differ"
    return session


SHAPES = [
    ((1, 1, 1), (1, 1, 1)), ((1, 5, 7), (1, 7, 3)), ((1, 40, 33), (1, 33, 20)), ((1, 2, 6, 16), (1, 2, 16, 9)),
    ((1, 3, 4, 5), (1, 1, 5, 6)), ((1, 2, 3, 8, 16), (1, 2, 3, 16, 8)), ((1, 1, 70), (1, 70, 2)), ((1, 2, 130, 4), (1, 2, 4, 4)),
]  # fmt: skip
ZEROS = [(np.int8, 0, np.int8, 0), (np.int8, -128, np.int8, 5), (np.int8, 127, np.int8, -128), (np.uint8, 255, np.uint8, 0),
         (np.uint8, 3, np.int8, -77)]  # fmt: skip


@pytest.mark.parametrize("engine", ["test", "mac64", "mac256"])
@pytest.mark.parametrize("left, right", SHAPES, ids=str)
def test_any_batch_and_zero_points(tmp_path, engine, left, right):
    for number, (left_type, left_zero, right_type, right_zero) in enumerate(ZEROS):
        model = Model(number)
        a = model.input(left, left_type, left_zero)
        b = model.input(right, right_type, right_zero)
        check(model, tmp_path, engine, model.product(a, b, left[-1], 9))


def test_a_product_is_the_hosts_where_the_engine_fills_no_weights(tmp_path):
    config = dataclasses.replace(PRESETS["test"], name="plain", fill=0)
    engine = tmp_path / "plain.json"
    engine.write_text(config.to_json())
    model = Model(0)
    a, b = model.input((1, 5, 7)), model.input((1, 7, 3))
    session = check(model, tmp_path, str(engine), model.product(a, b, 7), all_on_engine=False)
    assert EngineSegment not in [type(segment) for segment in session.model.segments]
    path = tmp_path / "model.onnx"
    (reason,) = [reason for _, _, where, reason, _ in lower(path, config).rows if where == "host"]
    assert reason == "It multiplies two activations, which this engine was built without (fill = 0)."
    with pytest.raises(UnsupportedOperator, match=r"it multiplies two activations, which this engine was built without \(fill = 0\)"):
        compile_frontend(lower(path), config)


def test_without_a_batch_dimension(tmp_path):
    model = Model(0)
    a, b = model.input((6, 5), count=1), model.input((5, 9), count=1)
    check(model, tmp_path, "test", model.product(a, b, 5))


@pytest.mark.parametrize("engine", ["test", "mac64"])
@pytest.mark.parametrize("left, right", [(0, 1), (1, 0), (1, 1)])
def test_transposed_operands(tmp_path, engine, left, right):
    model = Model(left + 2 * right)
    a, b = model.input((9, 7)[:: -1 if left else 1], count=1), model.input((7, 6)[:: -1 if right else 1], count=1)
    check(model, tmp_path, engine, model.product(a, b, 7, gemm={"transA": left, "transB": right}))


def attention(model, tokens, heads, width):
    """Add a layer of attention without its Softmax; return the results of both products and of what follows."""
    x = model.input((1, tokens, heads * width), np.int8, -7)
    split, order = model.constant(np.array([1, tokens, heads, width])), (0, 2, 1, 3)
    q, k, v = (model.product(x, model.weight((heads * width,) * 2), heads * width, zero) for zero in (3, -20, 11))
    q, v = (model.move("Transpose", model.move("Reshape", name, split), perm=order) for name in (q, v))
    k = model.move("Transpose", model.move("Reshape", k, split), perm=(0, 2, 3, 1))
    scores = model.product(q, k, width, -5)
    mixed = model.product(scores, v, tokens, 2)
    joined = model.move("Transpose", mixed, perm=order)
    joined = model.move("Reshape", joined, model.constant(np.array([1, tokens, heads * width])))
    return scores, model.product(joined, model.weight((heads * width, 10)), heads * width, 1)


@pytest.mark.parametrize("engine", ["test", "mac64", "mac256"])
@pytest.mark.parametrize("tokens, heads, width", [(16, 2, 16), (9, 3, 6), (5, 1, 20), (33, 2, 8), (4, 4, 4)])
def test_attention_heads_are_parts_of_one_tensor(tmp_path, engine, tokens, heads, width):
    model = Model(tokens)
    check(model, tmp_path, engine, *attention(model, tokens, heads, width)[::-1])


def test_aligned_heads_are_used_where_they_lie(tmp_path):
    model = Model(1)
    session = check(model, tmp_path, "mac64", attention(model, 16, 2, 16)[1])
    (segment,) = session.model.segments
    rearranged = [layer for layer in segment.program.layers if layer.operator == "Rearrange"]
    assert len(rearranged) == 1, "only the transposed operand is copied"
    counts = [i.opcode for i in instructions_of(segment.program)].count(Opcode.FILL)
    assert counts == 8


def test_many_column_tiles_are_filled_in_turns(tmp_path):
    model = Model(4)
    a, b = model.input((1, 3, 100), count=1), model.input((1, 100, 280), np.int8, -3, count=1)
    check(model, tmp_path, "mac64", model.product(a, b, 100))


def test_a_sum_beyond_32_bits_runs_on_the_host(tmp_path):
    model = Model(4)
    a, b = model.input((1, 1, 26000), count=1), model.input((1, 26000, 1), count=1)
    session = check(model, tmp_path, "mac64", model.product(a, b, 26000), all_on_engine=False)
    assert "so short that the sum fits into 32 bits" in session.model.segments[0].nodes[0][2]


@pytest.mark.parametrize("engine", ["test", "mac64"])
def test_rtl_equals_onnx_runtime(tmp_path, engine):
    model = Model(2)
    check(model, tmp_path, engine, *attention(model, 9, 2, PRESETS[engine].rows), on="verilator")
    model = Model(3)
    a, b = model.input((1, 2, 11, 13), np.int8, -128), model.input((1, 2, 13, 7), np.int8, 55)
    check(model, tmp_path, engine, model.product(a, b, 13), on="verilator")


@pytest.mark.parametrize("transposed", [False, True])
def test_places_are_those_of_the_elements(transposed):
    from celosia.tools.compiler.ir import Tensor

    tensor = Tensor(name="t", channels=12, height=5, width=4, shape=(12, 5, 4), scale=np.float32(1), zero_point=0)
    found = Matrices(pixels=(1, 11), channels=(0, 6), step=3, transposed=transposed)
    rows, columns = (4, 3) if transposed else (3, 4)
    assert places(found.elements(rows, columns, tensor), tensor) == found
    scattered = found.elements(rows, columns, tensor)
    scattered[0, 0, 0], scattered[0, 1, 1] = scattered[0, 1, 1], scattered[0, 0, 0]
    assert places(scattered, tensor) is None


def test_a_result_with_rows_apart_is_written_where_it_is_wanted():
    steps = (Step("product", 579512643), Step("transpose", 1943048281))
    outcome = attempt(Recipe(604, "qdq", False, (2, 2, 1), steps), on="golden")
    assert not outcome.problem and outcome.elements
