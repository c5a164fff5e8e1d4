"""Networks from elsewhere on the golden executor: every stored output, and which nodes run on the host.

The models are not part of the project: they lie beside it, each with inputs and ONNX Runtime's outputs. `HOST` is what the compiler leaves to
ONNX Runtime today; a node that joins it is a regression.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from celosia.rtl.config import PRESETS
from celosia.tools.check import check_layers, check_outputs, summary
from celosia.tools.session import InferenceSession

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"

LARGE = dataclasses.replace(
    PRESETS["mac256"], name="large", rows=32, cols=32, lanes=16, act_depth=1 << 16, weight_tiles=1 << 13,
    param_depth=1 << 13, program_depth=1 << 15, tables=16,
)  # fmt: skip
"""Memories for what `mac256` cannot hold at once; no such engine is built, the golden executor computes as if."""

ENDS = ("QuantizeLinear", "DequantizeLinear")
CONVERTED = dict.fromkeys(ENDS, 1)

HOST = {
    "cfu_person_detect_96_int8": {"Softmax": 1},
    "coral_mobilenet_v1_025_128_u8": {"Softmax": 1},
    "coral_mobilenet_v2_10_224_u8": {"Softmax": 1},
    "coral_split_concat_u8": {},
    "digits_cnn_qop_u8s8": {"QLinearAdd": 1, **CONVERTED},
    "digits_cnn_s8s8pc": CONVERTED,
    "digits_cnn_u8u8": {"Add": 1, **CONVERTED},
    "digits_tcn_s8s8pc": CONVERTED,
    "digits_unet_s8s8pc": CONVERTED,
    "digits_vit_s8s8pc": {"LayerNormalization": 5, "Softmax": 2, "QuantizeLinear": 6, "DequantizeLinear": 6},
    "kai_ic_resnet8_qdq": {"Softmax": 1, **CONVERTED},
    "kai_vww_mobilenetv1_qdq": {"Softmax": 1, **CONVERTED},
    "microkws_m_qdq": {"Softmax": 1, **CONVERTED},
    "microkws_m_qoperator": {"QLinearSoftmax": 1, **CONVERTED},
    "mlperf_ad_autoencoder_int8": {},
    "mlperf_ad_autoencoder_int8_f32io": CONVERTED,
    "mlperf_ic_resnet8_int8": {"Softmax": 1},
    "mlperf_ic_resnet8_int8_f32io": {"Softmax": 1, **CONVERTED},
    "mlperf_kws_dscnn_int8": {"Softmax": 1},
    "mlperf_kws_dscnn_int8_f32io": {"Softmax": 1, **CONVERTED},
    "mlperf_vww_mobilenetv1_int8": {"Softmax": 1},
    "mlperf_vww_mobilenetv1_int8_f32io": {"Softmax": 1, **CONVERTED},
    "mww_vad_stream_int8": {},
    "nxp_yolo_face_128x160_int8": {},
    "qonnx_espcn_subpixel_qdq": {  # float to ONNX Runtime: batch normalisation and a 4-bit Clip stand before each quantisation
        "Conv": 4, "BatchNormalization": 3, "Clip": 3, "Relu": 1, "DepthToSpace": 1, "QuantizeLinear": 3, "DequantizeLinear": 4,
    },
    "tinymaix_mnist_dw_int8": {"Softmax": 1},
    "tinymaix_mnist_resnet_int8": {"Softmax": 1},
}  # fmt: skip
"""Nodes on the host by model and operator."""

TIES = ("microkws_m_qdq", "microkws_m_qoperator", "kai_ic_resnet8_qdq", "kai_vww_mobilenetv1_qdq")
"""Models with an AveragePool, whose ties ONNX Runtime's float32 breaks either way."""

ON_LARGE = ("coral_mobilenet_v1_025_128_u8", "coral_mobilenet_v2_10_224_u8", "nxp_yolo_face_128x160_int8")
MANY = ("digits_", "tinymaix_", "mww_", "mlperf_ad_", "coral_split_")
"""Small enough to run all stored samples."""


def load(name, count):
    """Return path, inputs and stored outputs of a model: all samples, or the first and the last ones."""
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not part of the project")
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {key: file[key] for key in file.files}
    places = slice(None) if count is None else [*range(count - count // 2), *range(-(count // 2), 0)]

    def chosen(prefix):
        found = {key.removeprefix(prefix): array[places] for key, array in arrays.items() if key.startswith(prefix)}
        return {key: array.reshape(-1, *array.shape[2:]) for key, array in found.items()}

    return path, chosen("in__"), chosen("out__")


def samples(name):
    return None if name.startswith(MANY) else 2


def session_of(path, name):
    return InferenceSession(path, LARGE if name in ON_LARGE else "mac256", "golden")


@pytest.mark.parametrize("name", HOST)
def test_outputs_are_those_stored_and_no_further_node_is_on_the_host(name):
    path, inputs, stored = load(name, samples(name))
    session = session_of(path, name)
    found = Counter(operator for _, operator, _, _ in session.model.host_nodes)
    assert not found - Counter(HOST[name]), "more nodes run on the host than before"
    outputs = session.run(None, inputs)
    names = [argument.name for argument in session.get_outputs()]
    differences = sum(int((array != stored[key]).sum()) for key, array in zip(names, outputs))
    if name in TIES and differences:
        compared = check_outputs(session, path, inputs, outputs)
        elements, wrong, ties = summary(compared)
        print(f"{name}: {differences} outputs differ behind {ties} ties of {elements} elements")
        assert wrong == 0 and ties > 0
    else:
        assert differences == 0


@pytest.mark.parametrize("name", TIES)
def test_every_layer_but_for_ties(name):
    path, inputs, _ = load(name, 2)
    _, differences, _ = summary(check_layers(session_of(path, name), path, inputs))
    assert differences == 0


@pytest.mark.parametrize("form", ["int8", "int8_f32io"])
@pytest.mark.parametrize(
    "stem, data, count",
    [
        ("mlperf_ic_resnet8", "ic_cifar10_200", 200),
        ("mlperf_kws_dscnn", "kws_12", 12),
        ("mlperf_vww_mobilenetv1", "vww_coco_100", 50),
        ("mlperf_ad_autoencoder", "ad_windows_120", 120),
    ],
)
def test_mlperf_networks_on_real_inputs(stem, data, count, form):
    path, *_ = load(f"{stem}_{form}", 2)
    feed = {"input": np.load(MODELS / "data" / f"{data}.npz")["input"][:count]}
    if form == "int8_f32io":
        model = onnx.load(path)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        scale, zero_point = (constants[name].astype(np.float32) for name in first.input[1:])
        feed = {"input": (feed["input"].astype(np.float32) - zero_point) * scale}
    session = InferenceSession(path, "mac256", "golden")
    outputs = session.run(None, feed)
    assert {operator for _, operator, _, _ in session.model.host_nodes} <= {"Softmax", *ENDS}
    assert summary(check_outputs(session, path, feed, outputs)) == (sum(array.size for array in outputs), 0, 0)


def test_every_model_is_listed():
    if not MODELS.exists():
        pytest.skip("the models are not part of the project")
    assert sorted(HOST) == sorted(path.stem for path in MODELS.glob("*.onnx") if not path.stem.endswith("_float"))
