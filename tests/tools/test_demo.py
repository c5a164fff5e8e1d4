"""The demonstration network's trainer has right gradients, and what is checked in is what it writes."""

import numpy as np
import onnx
import pytest

from celosia.tools.demo import IMAGES, LABELS, MODEL
from celosia.tools.demo.layers import Adam, Conv, Dense, GlobalAveragePool, MaxPool, Relu, Residual, Sequence, softmax_loss
from celosia.tools.demo.train import build, export, train


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda rng: Conv(rng, 2, 3), (2, 2, 4, 5)),
        (lambda rng: Dense(rng, 6, 4), (3, 6)),
        (lambda rng: Relu(), (2, 3, 4, 4)),
        (lambda rng: MaxPool(), (2, 3, 4, 6)),
        (lambda rng: GlobalAveragePool(), (2, 3, 4, 4)),
        (lambda rng: Residual(Conv(rng, 2, 2), Relu()), (1, 2, 4, 4)),
        (lambda rng: Sequence(Conv(rng, 1, 2), MaxPool()), (1, 1, 4, 4)),
    ],
    ids=["conv", "dense", "relu", "maxpool", "average", "residual", "sequence"],
)
def test_gradients_match_finite_differences(make, shape):
    rng = np.random.default_rng(0)
    layer = make(rng)
    for part in layer.layers():
        part.params = {name: value.astype(np.float64) for name, value in part.params.items()}
    x = rng.normal(0, 1, shape)
    weighting = rng.normal(0, 1, layer.forward(x).shape)

    def loss():
        return float((layer.forward(x) * weighting).sum())

    loss()
    dx = layer.backward(weighting)
    pairs = [(x, dx)] + [(part.params[name], part.grads[name]) for part in layer.layers() for name in part.params]
    for array, gradient in pairs:
        for _ in range(5):
            index = tuple(int(rng.integers(size)) for size in array.shape)
            kept, step = array[index], 1e-5
            array[index] = kept + step
            above = loss()
            array[index] = kept - step
            below = loss()
            array[index] = kept
            assert gradient[index] == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-4)


def test_softmax_loss_has_the_right_gradient():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(0, 2, (4, 5)), np.array([0, 3, 3, 1])
    _, gradient = softmax_loss(logits, labels)
    step = np.zeros_like(logits)
    step[2, 3] = 1e-5
    slope = (softmax_loss(logits + step, labels)[0] - softmax_loss(logits - step, labels)[0]) / 2e-5
    assert gradient[2, 3] == pytest.approx(slope, rel=1e-4)


def test_training_lowers_the_loss_and_exports_a_valid_graph():
    rng = np.random.default_rng(2)
    model, images, labels = build(rng), rng.random((64, 1, 8, 8)).astype(np.float32), np.arange(64) % 10
    before, _ = softmax_loss(model.forward(images), labels)
    train(model, rng, images, labels, epochs=15, progress=lambda line: None)
    assert softmax_loss(model.forward(images), labels)[0] < before
    exported = export(model)
    assert [node.op_type for node in exported.graph.node].count("Conv") == 6
    assert sum(value.size for layer in Adam(model).layers for value in layer.params.values()) == sum(
        onnx.numpy_helper.to_array(constant).size for constant in exported.graph.initializer
    )


def test_checked_in_files_belong_together():
    images, labels = np.load(IMAGES)["image"], np.load(LABELS)
    assert images.shape == (359, 1, 8, 8) and images.dtype == np.float32
    assert labels.shape == (359,) and set(labels.tolist()) == set(range(10))
    graph = onnx.load(MODEL).graph
    assert [value.name for value in graph.input] == ["image"] and [value.name for value in graph.output] == ["logits"]
    assert {"Conv", "Add", "MaxPool", "GlobalAveragePool", "Gemm"} <= {node.op_type for node in graph.node}
    scales = {constant.name: constant for constant in graph.initializer if constant.name.endswith("weight_scale")}
    assert any(constant.dims[:] == [16] for constant in scales.values()), "weights must be quantised per channel"
