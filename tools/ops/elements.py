"""Where the elements of a value come from: the arithmetic of operations that only move.

:class:`Elements` is an ONNX value as elements of engine tensors and constants; :func:`rearranged` makes it a node.
"""

from dataclasses import dataclass, replace

import numpy as np

from celosia.tools.compiler import ir

__all__ = ["Elements", "map_size", "rearranged"]

WORD = 16
"""Channels of a word, for the estimate of :attr:`Elements.is_cheap` only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Elements:
    """An ONNX value element by element.

    Parameters
    ----------
    tensors : tuple of ir.Tensor
    part, index : integer arrays in the value's ONNX shape
        As in :class:`~celosia.tools.compiler.ir.Rearrange`.
    scales, zeros : tuple
        How each part is requantised; by default not at all.
    like : ir.Tensor, optional
        Has the quantisation of the result; by default the first tensor.
    """

    tensors: tuple
    part: np.ndarray
    index: np.ndarray
    scales: tuple | None = None
    zeros: tuple | None = None
    like: ir.Tensor | None = None

    @property
    def is_cheap(self):
        """Whether a word of the result is made of few words: neighbouring channels stay together."""
        channels, height, width = map_size(self.index.shape)
        pixels = np.ones(self.part.shape, np.int64)
        for number, tensor in enumerate(self.tensors):
            area = tensor.height * tensor.width
            pixels = np.where(self.part == number, (self.index % area) * len(self.tensors) + number, pixels)
        pixels = np.where(self.part < 0, -1, pixels).reshape(channels, height * width)
        words = [np.sort(pixels[first : first + WORD], axis=0) for first in range(0, channels, WORD)]
        taken = sum((np.diff(word, axis=0) != 0).sum() + word.shape[1] for word in words)
        return bool(taken <= 4 * len(words) * height * width)


def map_size(shape):
    """Return channels, height and width of a value ``[1, C, …]``, or ``[C, …]`` without a batch."""
    channels, *rest = (shape[1:] if shape[:1] == (1,) else shape) or (1,)
    return channels, int(np.prod(rest[:-1])), int(rest[-1]) if rest else 1


def rearranged(elements, operation, name, *, matrix=False):
    """Return the tensor ``name`` that holds ``elements``, its elements in the value's shape, and the node that makes it.

    Parameters
    ----------
    elements : Elements
    operation : Operation or None
        What the node is called after.
    name : str
    matrix : bool
        The last axis becomes the channels, and all others the rows.

    Returns
    -------
    ir.Tensor, index array in the ONNX shape, ir.Rearrange
    """
    shape = elements.index.shape
    if matrix:
        channels, height, width = shape[-1], int(np.prod(shape[:-1])), 1
        place = np.arange(channels * height).reshape(channels, height).T.reshape(shape)
    else:
        channels, height, width = map_size(shape)
        place = np.arange(elements.index.size).reshape(shape)
    like = elements.like or elements.tensors[0]
    batched = shape[:1] == (1,)
    size = {"channels": channels, "height": height, "width": width, "shape": tuple(shape[batched:]), "batched": batched}
    tensor = replace(like, name=name, matrix=matrix, **size)
    arrays = {}
    for field in ("part", "index"):
        array = np.empty(elements.index.size, np.int64)
        array[place.ravel()] = getattr(elements, field).ravel()
        arrays[field] = array.reshape(channels, height, width)
    count = len(elements.tensors)
    node = ir.Rearrange(
        name=operation.name if operation else name,
        operator=operation.operator if operation else "Rearrange",
        sources=operation.sources if operation else (),
        input=elements.tensors[0].name,
        more=tuple(tensor.name for tensor in elements.tensors[1:]),
        output=name,
        scale=np.ones(1, np.float32),
        zero_point=tensor.zero_point,
        scales=elements.scales or (np.float32(1),) * count,
        zeros=elements.zeros or (tensor.zero_point,) * count,
        **arrays,
    )
    return tensor, place, node
