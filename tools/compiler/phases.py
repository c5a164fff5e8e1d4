"""Transposed convolution as ordinary ones: the output pixels ``(y, x)`` of equal ``(y mod stride, x mod stride)`` form a *phase*.

Output pixel ``y = phase + stride · t`` is the sum over the taps ``k`` with ``phase + pad − k · dilation`` divisible by the stride, each times
input pixel ``t + (phase + pad − k · dilation) / stride``. These offsets are evenly spaced: a phase is a convolution of stride one over ``t``
with some of the taps in reverse order.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from celosia.tools.compiler.ir import Conv, Node

__all__ = ["Phase", "phases"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """Output pixels ``(y + stride_y · t, x + stride_x · u)`` for ``t < height``, ``u < width``, and the convolution that gives them."""

    node: Conv
    y: int
    x: int
    height: int
    width: int


def phases(node, out):
    """Yield the :class:`Phase` s of an :class:`~celosia.tools.compiler.ir.ConvTranspose` whose output tensor is ``out``."""
    common = {field.name: getattr(node, field.name) for field in dataclasses.fields(Node)}
    kernel, size = node.weight.shape[2:], (out.height, out.width)
    axes = [
        [_axis(phase, *facts) for phase in range(min(facts[0], extent))]
        for facts, extent in zip(zip(node.stride, node.dilation, node.pads, kernel), size)
    ]
    for y, (taps_y, dilation_y, pad_y) in enumerate(axes[0]):
        for x, (taps_x, dilation_x, pad_x) in enumerate(axes[1]):
            weight = node.weight[:, :, taps_y][:, :, :, taps_x]
            pads = pad_y, pad_x, 0, 0
            if not weight.size:  # no tap meets this phase: only the bias
                weight, pads = np.zeros((*weight.shape[:2], 1, 1), np.int8), (0, 0, 0, 0)
            part = Conv(
                weight=weight, bias=node.bias, dilation=(dilation_y, dilation_x), pads=pads, group=node.group, **common
            )
            height, width = (len(range(at, extent, step)) for at, extent, step in zip((y, x), size, node.stride))
            yield Phase(node=part, y=y, x=x, height=height, width=width)


def _axis(phase, stride, dilation, pad, kernel):
    """Return the taps of a phase along one axis in the order of the input pixels, their distance, and the padding before them."""
    offsets = {(phase + pad - tap * dilation) // stride: tap for tap in range(kernel) if (phase + pad - tap * dilation) % stride == 0}
    places = sorted(offsets)
    distance = places[1] - places[0] if len(places) > 1 else 1
    return [offsets[place] for place in places], distance, -places[0] if places else 0
