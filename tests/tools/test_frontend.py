"""The front half of the compiler against ONNX Runtime: every tensor and output of real networks."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from celosia.sim import reference
from celosia.tools.compiler import frontend, ir
from celosia.tools.compiler.importer import session_options

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
SAMPLES = 6


def runtime(model):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"])


def execute(lowered, feed):
    """Run the segments on a batch; return every tensor by name, ``[inferences, *ONNX shape without a batch of one]``."""
    values = dict(feed)
    count = len(next(iter(feed.values())))
    for segment in lowered.segments:
        if isinstance(segment, ir.Graph):
            inputs = {name: reference.from_onnx(values[name], segment.tensors[name]) for name in segment.inputs}
            for name, array in reference.run(segment, inputs).items():
                values[name] = reference.to_onnx(array, segment.tensors[name])
        else:
            session = runtime(segment.onnx)
            shapes = {value.name: value.shape for value in session.get_inputs()}
            found = [
                session.run(list(segment.outputs), {name: values[name][i].reshape(shapes[name]) for name in segment.inputs})
                for i in range(count)
            ]
            values |= {name: np.stack([_without_batch(a) for a in arrays]) for name, arrays in zip(segment.outputs, zip(*found))}
    return values


def _without_batch(array):
    return array[0] if array.shape[:1] == (1,) else array


def expected(path, names, feed):
    """Return ONNX Runtime's values of ``names``, as far as the model has them by that name."""
    model = onnx.load(path)
    known = {name for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    names = [name for name in names if name in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    session = runtime(model)
    count = len(next(iter(feed.values())))
    runs = [session.run(names, {name: array[i : i + 1] for name, array in feed.items()}) for i in range(count)]
    return {name: np.stack([_without_batch(array) for array in arrays]) for name, arrays in zip(names, zip(*runs))}


def inputs_of(path, samples=SAMPLES):
    stored = np.load(path.with_suffix(".npz"))
    arrays = {name.removeprefix("in__"): stored[name][:samples] for name in stored.files if name.startswith("in__")}
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}  # samples as the batch


def compare(path, samples=SAMPLES):
    """Return (lowered, {tensor: differing elements}) over the tensors of the engine and the outputs."""
    feed = inputs_of(path, samples)
    lowered = frontend.lower(path)
    found = execute(lowered, feed)
    segments = [segment for segment in lowered.segments if isinstance(segment, ir.Graph)]
    names = [name for segment in segments for name in segment.tensors] + [name for name, *_ in lowered.outputs]
    want = expected(path, list(dict.fromkeys(names)), feed)
    stored = np.load(path.with_suffix(".npz"))
    for name, *_ in lowered.outputs:
        assert np.array_equal(want[name], stored[f"out__{name}"][:samples, 0]), "this machine's ONNX Runtime has other integers"
    return lowered, {name: int((found[name] != array).sum()) for name, array in want.items()}


EXACT = """
    mlperf_ic_resnet8_int8 mlperf_ic_resnet8_int8_f32io mlperf_ad_autoencoder_int8 mlperf_ad_autoencoder_int8_f32io
    mlperf_kws_dscnn_int8 mlperf_kws_dscnn_int8_f32io mlperf_vww_mobilenetv1_int8 mlperf_vww_mobilenetv1_int8_f32io
    digits_cnn_s8s8pc digits_cnn_qop_u8s8 digits_cnn_u8u8 digits_tcn_s8s8pc digits_unet_s8s8pc digits_vit_s8s8pc
    tinymaix_mnist_dw_int8 tinymaix_mnist_resnet_int8 kai_ic_resnet8_qdq kai_vww_mobilenetv1_qdq microkws_m_qoperator
    cfu_person_detect_96_int8 mww_vad_stream_int8 nxp_yolo_face_128x160_int8 coral_mobilenet_v1_025_128_u8
    coral_split_concat_u8 qonnx_espcn_subpixel_qdq
""".split()  # fmt: skip


def shared(name):
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize("name", EXACT)
def test_every_tensor_of_a_real_network_equals_onnx_runtime(name):
    _, differing = compare(shared(name))
    assert differing and not any(differing.values()), differing


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("mlperf_ic_resnet8_int8", [11]),
        ("mlperf_ad_autoencoder_int8", [10]),
        ("mlperf_kws_dscnn_int8", [11]),
        ("mlperf_vww_mobilenetv1_int8", [29]),
        ("digits_cnn_s8s8pc", [9]),
        ("tinymaix_mnist_resnet_int8", [5]),
    ],
)
def test_networks_run_on_the_engine_in_one_piece(name, nodes):
    lowered = frontend.lower(shared(name))
    assert [len(segment.nodes) for segment in lowered.segments if isinstance(segment, ir.Graph)] == nodes


def test_average_pooling_with_equal_scales_differs_at_ties_only():
    path = shared("microkws_m_qdq")
    feed = inputs_of(path)
    lowered = frontend.lower(path)
    segment = next(segment for segment in lowered.segments if isinstance(segment, ir.Graph))
    want = expected(path, list(segment.tensors), feed)
    ties = differences = 0
    values = {name: reference.from_onnx(array, segment.tensors[name]) for name, array in want.items()}
    for node in segment.nodes:
        if node.input not in values:  # an input that the optimiser made
            continue
        given = {name: values[name] for name in node.inputs if name not in segment.constants}
        found = reference.run(segment.replace(nodes=(node,)), given)[node.output]
        wrong = found != values[node.output]
        loose = reference.ties(segment, node, values[node.input]) if isinstance(node, ir.Pool) else np.zeros_like(wrong)
        assert not (wrong & ~loose).any(), node.name
        ties += int(loose.sum())
        differences += int(wrong.sum())
    assert 0 < differences < ties / 4


def test_a_kept_value_is_not_fused_away():
    path = shared("mlperf_ic_resnet8_int8")
    plain, kept = (frontend.lower(path, keep=keep) for keep in ((), ("t24", "t35")))
    assert "t24" not in plain.segments[0].tensors
    graph = kept.segments[0]
    assert "t24" in graph.tensors and "t24" in graph.outputs
    assert {"t24"} <= {name for node in plain.segments[0].nodes for name in node.fused}
    values = execute(kept, inputs_of(path, 2))
    for name, array in expected(path, ["t24", "t35", "output"], inputs_of(path, 2)).items():
        assert np.array_equal(values[name], array), name
