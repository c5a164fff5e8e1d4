"""What a user reads about a model that cannot be compiled."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from celosia.tools.compiler.batch import split_batch
from celosia.tools.compiler.importer import load, refuse_float, session_options
from celosia.tools.compiler.legalise import legalise
from celosia.tools.errors import BadModel, UnsupportedOperator


def model(nodes, *, shape=(1, 4), inputs=None, opset=17, kind=TensorProto.INT8, domains=()):
    constants = [
        numpy_helper.from_array(np.float32(0.5), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.ones((4, 4), np.float32), "w"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [helper.make_tensor_value_info("x", kind, shape)],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)], ir_version=9
    )


def dequantise():
    return helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["xd"])


def sentence(tmp_path, what):
    path = tmp_path / "net.onnx"
    path.write_bytes(what if isinstance(what, bytes) else what.SerializeToString())
    with pytest.raises((BadModel, UnsupportedOperator)) as caught:
        legalise(load(path))
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadModel, match=r"^net.onnx: no such file; looked for .*net.onnx$"):
        load(tmp_path / "net.onnx")


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(BadModel, match="is a folder; give the ONNX file in it"):
        load(tmp_path)


def test_a_truncated_file(tmp_path):
    data = model([dequantise()]).SerializeToString()
    expected = "net.onnx: is not an ONNX file, or is cut short; export or download it again"
    for length in (len(data) // 2, len(data) - 1, 10):
        assert sentence(tmp_path, data[:length]) == expected, length


def test_files_that_are_something_else(tmp_path):
    for data in (b"", b"hello, this is text\n", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(range(256))):
        text = sentence(tmp_path, data)
        assert text in (
            "net.onnx: is not an ONNX file, or is cut short; export or download it again",
            "net.onnx: holds no ONNX graph; export or download it again",
        )


def test_a_float_model_is_told_to_be_quantised(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model([helper.make_node("MatMul", ["x", "w"], ["y"])], kind=TensorProto.FLOAT), path)
    with pytest.raises(BadModel) as caught:
        refuse_float(path)
    assert str(caught.value) == (
        "net.onnx: is a float model: no node of it is quantised; "
        "quantise it first: celosia quantize net.onnx --calibration DATA.npz -o net_int8.onnx"
    )


def test_a_dynamic_shape_names_input_and_dimension(tmp_path):
    text = sentence(tmp_path, model([dequantise()], shape=(1, 3, "height", 32)))
    assert text == (
        "net.onnx: input 'x' has a dynamic shape: dimension 2 is 'height'; export it with a fixed shape, "
        "or fix it with python -m onnxruntime.tools.make_dynamic_shape_fixed"
    )


def test_a_fixed_batch_becomes_one_where_inferences_do_not_meet(tmp_path):
    for perm, shape in (((0, 2, 1), (1, 4, 3)), ((1, 0, 2), (8, 4, 3))):
        nodes = [dequantise(), helper.make_node("Transpose", ["xd"], ["z"], perm=perm)]
        onnx.save(model(nodes, shape=(8, 4, 3)), tmp_path / "net.onnx")
        assert load(tmp_path / "net.onnx").inputs[0][2] == shape


def test_an_unknown_operator_is_named(tmp_path):
    text = sentence(tmp_path, model([helper.make_node("Frobnicate", ["x"], ["y"], name="n7")]))
    assert text == "net.onnx: node 'n7' (Frobnicate): no operator of this name in ONNX operator set 17"
    node = helper.make_node("Frob", ["x"], ["y"], domain="example.org")
    text = sentence(tmp_path, model([node], domains=("example.org",)))
    assert text == "net.onnx: node 'Frob→y' (Frob): no operator of this name in domain 'example.org'"


def test_what_onnx_runtime_refuses_is_passed_on(tmp_path):
    text = sentence(tmp_path, model([dequantise(), helper.make_node("MatMul", ["xd", "xd"], ["y"])], shape=(1, 3)))
    assert text.startswith("net.onnx: ONNX Runtime refuses it: ")
    assert "\n" not in text


def test_a_symbolic_batch_is_one(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model([dequantise()], shape=("N", 4)), path)
    source = load(path)
    assert source.inputs == (("x", "int8", (1, 4)),)


def test_a_value_to_keep_becomes_an_output(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model([dequantise(), helper.make_node("Relu", ["xd"], ["y"])]), path)
    assert [name for name, *_ in load(path, keep=["xd"]).outputs] == ["y", "xd"]
    with pytest.raises(BadModel, match="has no value 'nothing' to keep"):
        load(path, keep=["nothing"])


@pytest.mark.parametrize("version", [3, 8])
def test_constants_among_the_inputs_are_constants(tmp_path, version):
    path = tmp_path / "net.onnx"
    net = model([dequantise()])
    net.graph.input.extend(helper.make_tensor_value_info(c.name, c.data_type, list(c.dims)) for c in net.graph.initializer)
    net.ir_version = version
    onnx.save(net, path)
    source = load(path)
    assert [name for name, *_ in source.inputs] == ["x"]
    assert [value.name for value in source.model.graph.input] == ["x"]


def test_a_shape_with_the_batch_in_it_is_made_for_one():
    nodes = [dequantise(), helper.make_node("Reshape", ["xd", "rows"], ["z"])]
    whole = model(nodes, shape=(4, 3, 5))
    whole.graph.initializer.append(numpy_helper.from_array(np.array([12, 5]), "rows"))
    inputs = list(whole.graph.input)
    split_batch(whole, inputs, session_options)
    assert [dim.dim_value for dim in whole.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 5]
    assert numpy_helper.to_array(whole.graph.initializer[-1]).tolist() == [3, 5]


def test_a_batch_stays_whole_where_a_constant_has_it_too(tmp_path):
    path = tmp_path / "net.onnx"
    net = model([helper.make_node("Equal", ["x", "c"], ["y"])], shape=(3, 4))
    net.graph.initializer.append(numpy_helper.from_array(np.arange(12, dtype=np.int8).reshape(3, 4), "c"))
    onnx.save(net, path)
    assert load(path).inputs == (("x", "int8", (3, 4)),)


MEETINGS = {
    "a scale of the whole batch": [
        helper.make_node("DynamicQuantizeLinear", ["xd"], ["q", "s", "p"]),
        helper.make_node("DequantizeLinear", ["q", "s", "p"], ["z"]),
    ],
    "a sum over the batch": [
        helper.make_node("ReduceSum", ["xd", "first"], ["m"], keepdims=1),
        helper.make_node("Mul", ["m", "tiny"], ["n"]),
        helper.make_node("Add", ["xd", "n"], ["z"]),
    ],
    "a matrix for each inference": [helper.make_node("MatMul", ["matrices", "xd"], ["z"])],
    "neighbours in the batch": [helper.make_node("CumSum", ["xd", "axis"], ["z"])],
    "inferences in another order": [helper.make_node("Gather", ["xd", "reversed"], ["z"])],
    "inferences as rows of one matrix": [
        helper.make_node("Reshape", ["xd", "flat"], ["r"]),
        helper.make_node("Softmax", ["r"], ["t"], axis=-1),
        helper.make_node("Reshape", ["t", "back"], ["z"]),
    ],
}


@pytest.mark.parametrize("case", MEETINGS)
def test_a_batch_stays_whole_where_inferences_meet_however_little(case):
    net = model([dequantise(), *MEETINGS[case]], shape=(4, 30, 50))
    constants = {
        "first": np.array([0]), "tiny": np.float32(1e-6), "axis": np.array(0), "reversed": np.arange(4)[::-1].copy(),
        "flat": np.array([1, -1]), "back": np.array([-1, 30, 50]), "matrices": np.ones((4, 2, 30), np.float32),
    }  # fmt: skip
    net.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    split_batch(net, list(net.graph.input), session_options)
    assert [dim.dim_value for dim in net.graph.input[0].type.tensor_type.shape.dim] == [4, 30, 50]


def test_a_batch_is_taken_apart_where_operators_keep_it(tmp_path):
    constants = {
        "channels": np.ones((1, 3, 1), np.float32), "matrix": np.ones((5, 6), np.float32), "rows": np.array([4, 18]),
        "weights": np.ones((18, 3), np.float32), "bias": np.ones(3, np.float32), "from": np.array([1]), "to": np.array([5]),
        "last": np.array([-1]), "around": np.array([0, 1, 0, 0, 1, 0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Mul", ["xd", "channels"], ["a"]),
        helper.make_node("Pad", ["a", "around"], ["b"]),
        helper.make_node("Slice", ["b", "from", "to", "from"], ["c"]),
        helper.make_node("Slice", ["b", "from", "to", "from"], ["d"]),
        helper.make_node("Sub", ["c", "d"], ["e"]),
        helper.make_node("Concat", ["e", "a"], ["f"], axis=1),
        helper.make_node("MatMul", ["a", "matrix"], ["g"]),
        helper.make_node("Reshape", ["g", "rows"], ["h"]),
        helper.make_node("Gemm", ["h", "weights", "bias"], ["i"]),
        helper.make_node("ReduceMean", ["f"], ["j"], axes=[1, 2], keepdims=0),
        helper.make_node("Reshape", ["j", "pillar"], ["k"]),
        helper.make_node("Add", ["i", "k"], ["z"]),
    ]
    net = model([dequantise(), *nodes], shape=(4, 3, 5))
    net.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    net.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), "pillar"))
    split_batch(net, list(net.graph.input), session_options)
    assert [dim.dim_value for dim in net.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 5]
