"""Train and quantise the demonstration network: ``python -m celosia.tools.demo.train``.

A residual convolutional network of 8 × 8 grey images into ten digits, trained on scikit-learn's bundled handwritten digits
(1,797 images; the optdigits set of the UCI repository), written as float ONNX and quantised by ONNX Runtime's
``quantize_static`` to int8 QDQ with per-channel weights. Its outputs are the three files of :mod:`celosia.tools.demo`, which are
checked in; nothing at run time needs this script. It takes about half a minute and needs the extra ``train``.

::

    image 1×8×8 ── Conv 16, Relu ──┬── Conv 16, Relu ── Conv 16 ── Add, Relu ── MaxPool 2×2 ──┐
                                   └────────────────────────────────┘                         │
    logits 10 ── Gemm ── GlobalAveragePool ── Add, Relu ──┬── Conv 32 ── Relu, Conv 32 ─┬── Conv 32, Relu
                                                          └─────────────────────────────┘
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from celosia.tools.demo import IMAGES, LABELS, MODEL
from celosia.tools.demo.layers import (
    Adam,
    Conv,
    Dense,
    GlobalAveragePool,
    MaxPool,
    Relu,
    Residual,
    Sequence,
    softmax_loss,
)

__all__ = ["build", "export", "load", "quantise", "train"]

OPSET = 17


def load(seed):
    """Return ``(train images, train labels, test images, test labels)``; a fifth of the images is for testing.

    Images are float32 ``[n, 1, 8, 8]`` in 0…1.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    order = np.random.default_rng(seed).permutation(len(images))
    test, rest = order[: len(images) // 5], order[len(images) // 5 :]
    return images[rest], digits.target[rest], images[test], digits.target[test]


def build(rng):
    return Sequence(
        Conv(rng, 1, 16), Relu(),
        Residual(Conv(rng, 16, 16), Relu(), Conv(rng, 16, 16)), Relu(),
        MaxPool(),
        Conv(rng, 16, 32), Relu(),
        Residual(Conv(rng, 32, 32), Relu(), Conv(rng, 32, 32)), Relu(),
        GlobalAveragePool(), Dense(rng, 32, 10),
    )  # fmt: skip


def shifted(rng, images):
    """Return the images moved by up to one pixel in each direction, each by its own amount."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    offsets = rng.integers(0, 3, (len(images), 2))
    return np.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets)])


def train(model, rng, images, labels, *, epochs, batch=64, rate=2e-3, progress=print):
    """Train in place with Adam; the rate falls to zero as a cosine."""
    optimiser = Adam(model)
    steps = epochs * (len(images) // batch)
    for epoch in range(epochs):
        order = rng.permutation(len(images))
        losses = []
        for start in range(0, len(images) // batch * batch, batch):
            chosen = order[start : start + batch]
            loss, gradient = softmax_loss(model.forward(shifted(rng, images[chosen])), labels[chosen])
            model.backward(gradient)
            optimiser.step(rate * 0.5 * (1 + np.cos(np.pi * optimiser.step_count / steps)))
            losses.append(loss)
        progress(f"epoch {epoch + 1:3}: loss {np.mean(losses):.4f}")


def export(model):
    """Return the network as a float ONNX model for one image at a time."""
    nodes, weights, count = [], [], Counter()

    def emit(operator, *inputs, **attributes):
        count[operator] += 1
        name = f"{operator.lower()}{count[operator]}"
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def parameters(operator, part):
        names = [f"{operator.lower()}{count[operator] + 1}_{name}" for name in part.params]
        weights.extend(numpy_helper.from_array(array, name) for name, array in zip(names, part.params.values()))
        return names

    def walk(part, value):
        match part:
            case Residual():
                return emit("Add", walk(Sequence(*part.parts), value), value)
            case Sequence():
                for inner in part.parts:
                    value = walk(inner, value)
                return value
            case Conv():
                return emit("Conv", value, *parameters("Conv", part), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            case Dense():
                return emit("Gemm", value, *parameters("Gemm", part), transB=1)
            case MaxPool():
                return emit("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
            case GlobalAveragePool():
                return emit("Flatten", emit("GlobalAveragePool", value))
            case Relu():
                return emit("Relu", value)

    logits = walk(model, "image")
    nodes[-1].output[0] = "logits"
    assert nodes[-1].name == logits
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        weights,
    )  # fmt: skip
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="celosia", ir_version=9)
    onnx.checker.check_model(result, full_check=True)
    return result


def quantise(model, images, path):
    """Write ``model`` to ``path`` as int8 QDQ with per-channel weights, calibrated (minimum and maximum) on ``images``."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.samples = iter(images)

        def get_next(self):
            image = next(self.samples, None)
            return None if image is None else {"image": image[None]}

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        onnx.save(model, source)
        quantize_static(
            source, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    rng = np.random.default_rng(options.seed)
    images, labels, test_images, test_labels = load(options.seed)
    model = build(rng)
    train(model, rng, images, labels, epochs=options.epochs)
    accuracy = np.mean(model.forward(test_images).argmax(1) == test_labels)
    print(f"float accuracy on {len(test_labels)} held-out images: {accuracy:.1%}")
    quantise(export(model), images[:256], MODEL)
    np.savez_compressed(IMAGES, image=test_images)
    np.save(LABELS, test_labels.astype(np.uint8))
    print(f"wrote {MODEL}, {IMAGES} and {LABELS}")


if __name__ == "__main__":
    main()
