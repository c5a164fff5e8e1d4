"""Whole networks on the simulated RTL of `mac256`: equal to ONNX Runtime, and in the cycles that are promised."""

from pathlib import Path

import numpy as np
import pytest

from celosia.tools.bench.networks import gemm
from celosia.tools.check import check_layers, check_outputs, summary
from celosia.tools.demo import IMAGES, LABELS, MODEL
from celosia.tools.session import InferenceSession

PERFORMANCE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"


def run(path, feed, *, engine="mac256"):
    session = InferenceSession(path, engine)
    outputs = session.run(None, feed)
    assert summary(check_outputs(session, path, feed, outputs))[1:] == (0, 0)
    return session, outputs


def documented(row):
    """Return the cycles that `docs/performance.md` states in the row that begins with ``row``."""
    (line,) = [line for line in PERFORMANCE.read_text().splitlines() if line.startswith(f"| {row}")]
    return int(line.split("|")[2].replace(",", ""))


def test_digits():
    images, labels = np.load(IMAGES)["image"], np.load(LABELS)
    session, (logits,) = run(MODEL, {"image": images})
    assert (logits.argmax(1) == labels).mean() >= 0.97
    assert session.report.cycles == pytest.approx(documented("digits"), rel=0.01)
    few = {"image": images[:5]}
    assert summary(check_layers(session, MODEL, few))[1:] == (0, 0)


@pytest.mark.parametrize("engine", ["test", "mac64"])
def test_digits_on_other_presets(engine):
    run(MODEL, {"image": np.load(IMAGES)["image"][:3]}, engine=engine)


def test_gemm_reaches_95_percent():
    product = gemm(256, 256, 256)
    session, _ = run(product.model().SerializeToString(), product.feed())
    assert session.report.utilization >= 0.95
    assert session.report.cycles == pytest.approx(documented("matrix product 256"), rel=0.01)


@pytest.mark.skipif(not MODELS.exists(), reason="the MLPerf Tiny models are not part of the project")
@pytest.mark.parametrize(
    "model, data, row, most_cycles, most_samples",
    [
        ("mlperf_ic_resnet8_int8", "ic_cifar10_200", "MLPerf Tiny ResNet-8", 55_000, 200),
        ("mlperf_ad_autoencoder_int8", "ad_windows_120", "MLPerf Tiny autoencoder", 6_000, 120),
        ("mlperf_kws_dscnn_int8", "kws_12", "MLPerf Tiny DS-CNN", 15_000, 12),
        ("mlperf_vww_mobilenetv1_int8", "vww_coco_100", "MLPerf Tiny MobileNetV1", 50_000, 20),
    ],
)
def test_mlperf_tiny(model, data, row, most_cycles, most_samples):
    path = MODELS / f"{model}.onnx"
    with np.load(MODELS / "data" / f"{data}.npz") as file:
        feed = {name: array[:most_samples] for name, array in file.items()}
    session, _ = run(path, feed)
    assert session.report.cycles <= most_cycles
    assert session.report.cycles == pytest.approx(documented(row), rel=0.01)
    ten = {name: array[:10] for name, array in feed.items()}
    assert summary(check_layers(session, path, ten))[1:] == (0, 0)
