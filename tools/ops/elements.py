"""Where the elements of a value come from: the arithmetic of operations that only move.

:class:`Elements` is an ONNX value as elements of engine tensors and constants; :func:`rearranged` makes it a node.
"""

from dataclasses import dataclass, replace

import numpy as np

from celosia.tools.compiler import ir

__all__ = ["Elements", "map_size", "rearranged"]

WORD = 16
MOST_WORDS = 4
MOST_MOVES = 1 << 16
"""Channels of a word, for estimates only; how many words a word may be made of if the host could move the elements instead; and how many in all."""


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

    def words(self, *, matrix):
        """Estimate how many words the result has, as a map or as the rows of a matrix, and how many words they are made of."""
        count = len(self.tensors)
        pixels = np.full(self.part.shape, -1, np.int64)
        for number, tensor in enumerate(self.tensors):
            here = self.part == number
            pixels[here] = self.index[here] % (tensor.height * tensor.width) * count + number
        pixels = pixels.reshape(-1, pixels.shape[-1]).T if matrix else pixels.reshape(map_size(pixels.shape)[0], -1)
        words = [np.sort(pixels[first : first + WORD], axis=0) for first in range(0, len(pixels), WORD)]
        return sum(word.shape[1] for word in words), sum((np.diff(word, axis=0) != 0).sum() + word.shape[1] for word in words)

    @property
    def is_better_as_matrix(self):
        """Whether fewer words have to be moved if the last axis becomes the channels."""
        shape = self.index.shape
        return len(shape) > 2 and self.words(matrix=True)[1] < self.words(matrix=False)[1]

    def is_bounded(self, *, matrix):
        """Whether the engine can move the elements in a program of reasonable length."""
        return self.words(matrix=matrix)[1] <= MOST_MOVES

    @property
    def is_cheap(self):
        """Whether neighbouring channels stay together, in one form or the other."""
        counts = [self.words(matrix=matrix) for matrix in (False, True)[: self.index.ndim]]
        return any(taken <= MOST_WORDS * words for words, taken in counts)


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
