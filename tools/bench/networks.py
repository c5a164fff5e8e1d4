"""Generated networks: published layer shapes, seeded weights, the same file on every machine.

====================  ================================================================  ==============================================
name                  network                                                           shapes from
====================  ================================================================  ==============================================
``resnet8``           MLPerf Tiny image classification, 32 × 32 × 3                     Banbury et al., *MLPerf Tiny Benchmark*, 2021
``dscnn``             MLPerf Tiny keyword spotting, 49 × 10                             the same
``vww``               MLPerf Tiny visual wake words: MobileNetV1 0.25, 96 × 96 × 3      the same
``autoencoder``       MLPerf Tiny anomaly detection, 640 features                       the same
``resnet50``          ResNet-50 v1, stride in the first 1 × 1 of a block, 224 × 224     He et al., 2015
``mobilenetv1``       MobileNetV1 1.0, 224 × 224                                        Howard et al., 2017
``mobilenetv2``       MobileNetV2 1.0, 224 × 224                                        Sandler et al., 2018
``gemm-MxKxN``        ``[M, K]`` activations times ``[K, N]`` weights
``conv-…``            one convolution, see :func:`conv`
====================  ================================================================  ==============================================

Batch normalisation is folded into the convolutions; the networks end in their logits: a Softmax is the host's.
"""

import re

from celosia.tools.bench.builder import Builder
from celosia.tools.errors import BadConfig

__all__ = ["NETWORKS", "autoencoder", "conv", "dscnn", "gemm", "mobilenet_v1", "mobilenet_v2", "network", "resnet8", "resnet50"]


def resnet8(name="resnet8"):
    """Return the :class:`~celosia.tools.bench.builder.Builder` of MLPerf Tiny's ResNet-8."""
    net = Builder(name)
    x = net.conv(net.input(3, 32, 32), 16, 3, activation="relu")
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        y = net.conv(x, channels, 3, stride=stride, activation="relu")
        y = net.conv(y, channels, 3)
        if stride > 1:
            x = net.conv(x, channels, 1, stride=stride)
        x = net.add(x, y, activation="relu")
    net.output(net.dense(net.global_average(x), 10))
    return net


def dscnn(name="dscnn"):
    """Return the builder of MLPerf Tiny's DS-CNN."""
    net = Builder(name)
    x = net.conv(net.input(1, 49, 10, symmetric=True), 64, (10, 4), stride=2, activation="relu")
    for _ in range(4):
        x = _separable(net, x, 64, 1, "relu")
    net.output(net.dense(net.global_average(x), 12))
    return net


def autoencoder(name="autoencoder"):
    """Return the builder of MLPerf Tiny's fully connected autoencoder."""
    net = Builder(name)
    x = net.input(640, symmetric=True)
    for features in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = net.dense(x, features, activation="relu")
    net.output(net.dense(x, 640))
    return net


def mobilenet_v1(name="mobilenetv1", *, size=224, width=1.0, classes=1000, activation="relu6"):
    """Return the builder of MobileNetV1 with ``width`` times the channels."""
    net = Builder(name)
    layers = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    x = net.conv(net.input(3, size, size), int(32 * width), 3, stride=2, activation=activation)
    for channels, stride in layers:
        x = _separable(net, x, int(channels * width), stride, activation)
    net.output(net.dense(net.global_average(x), classes))
    return net


def mobilenet_v2(name="mobilenetv2", *, size=224, classes=1000):
    """Return the builder of MobileNetV2 1.0."""
    net = Builder(name)
    x = net.conv(net.input(3, size, size), 32, 3, stride=2, activation="relu6")
    groups = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, channels, count, stride in groups:
        for number in range(count):
            y, step = x, stride if number == 0 else 1
            if expansion > 1:
                y = net.conv(y, expansion * x.shape[0], 1, activation="relu6")
            y = net.conv(y, y.shape[0], 3, stride=step, group=y.shape[0], activation="relu6")
            y = net.conv(y, channels, 1)
            x = net.add(x, y) if x.shape == y.shape else y
    x = net.conv(x, 1280, 1, activation="relu6")
    net.output(net.dense(net.global_average(x), classes))
    return net


def resnet50(name="resnet50", *, size=224, classes=1000):
    """Return the builder of ResNet-50 v1."""
    net = Builder(name)
    x = net.conv(net.input(3, size, size), 64, 7, stride=2, padding=3, activation="relu")
    x = net.max_pool(x, 3, stride=2, padding=1)
    for channels, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            step = stride if number == 0 else 1
            y = net.conv(x, channels, 1, stride=step, activation="relu")
            y = net.conv(y, channels, 3, activation="relu")
            y = net.conv(y, 4 * channels, 1)
            if number == 0:
                x = net.conv(x, 4 * channels, 1, stride=step)
            x = net.add(x, y, activation="relu")
    net.output(net.dense(net.global_average(x), classes))
    return net


def gemm(m, k, n):
    """Return the builder of a matrix product with constant weights; of one row, a fully connected layer."""
    net = Builder(f"gemm-{m}x{k}x{n}")
    net.output(net.dense(net.input(*([m] if m > 1 else []), k, symmetric=True), n))
    return net


def conv(channels, size, outputs, kernel, stride, *, depthwise=False, name=None):
    """Return the builder of one padded convolution, ReLU fused, of ``channels × size × size``; with ``depthwise`` a filter for each channel."""
    net = Builder(name or f"conv-{channels}x{size}-{outputs}-k{kernel}s{stride}")
    x = net.input(channels, size, size)
    group = channels if depthwise else 1
    net.output(net.conv(x, outputs, kernel, stride=stride, group=group, activation="relu"))
    return net


def _separable(net, x, channels, stride, activation):
    x = net.conv(x, x.shape[0], 3, stride=stride, group=x.shape[0], activation=activation)
    return net.conv(x, channels, 1, activation=activation)


def _vww():
    return mobilenet_v1("vww", size=96, width=0.25, classes=2, activation="relu")


NETWORKS = {
    "resnet8": resnet8, "dscnn": dscnn, "vww": _vww, "autoencoder": autoencoder,
    "resnet50": resnet50, "mobilenetv2": mobilenet_v2, "mobilenetv1": mobilenet_v1,
}  # fmt: skip
"""Functions without arguments that return a network's builder, by name."""


def network(name):
    """Return the builder of the network ``name``, one of :data:`NETWORKS` or ``gemm-MxKxN``.

    Raises
    ------
    BadConfig
        If there is no such network.
    """
    if name in NETWORKS:
        return NETWORKS[name]()
    sides = re.fullmatch(r"gemm-(\d+)x(\d+)x(\d+)", name)
    if sides and all(1 <= int(side) <= 1 << 14 for side in sides.groups()):
        return gemm(*map(int, sides.groups()))
    raise BadConfig(f"network must be one of {', '.join(NETWORKS)} or gemm-MxKxN (sides of at most 16,384), not {name!r}")
