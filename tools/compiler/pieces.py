"""What pass 'tile' cuts nodes into."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Chunk", "Column", "Filter", "Group", "Region"]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """How a kernel is cut for the depthwise mode: groups of ``rows`` kernel rows and of ``taps`` kernel columns, one pass each."""

    rows: int
    taps: int
    groups_y: int
    groups_x: int


@dataclass(frozen=True, kw_only=True)
class Region:
    """Output pixels of one tile. ``count`` is the number of input pixels in each pooling window, where that matters."""

    y: int
    x: int
    height: int
    width: int
    count: int = 0

    @property
    def pixels(self):
        return self.height * self.width


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """What one EXECUTE sums up: a range of taps and input blocks, and their weight tiles int8 ``[tiles, rows, cols]``.

    ``filled`` is the first weight tile within the buffer of the work's filling where ``weights`` is None. With ``hold`` all blocks share one
    tile. With ``pad`` every byte is that number instead of the input's. In a column with a ``filter``, ``ky`` … ``kernel_x`` count its
    groups of taps.
    """

    ky: int
    kx: int
    kernel_y: int
    kernel_x: int
    block: int
    blocks: int
    weights: np.ndarray | None
    filled: int = 0
    hold: bool = False
    pad: int | None = None

    @property
    def passes(self):
        return self.kernel_y * self.kernel_x * self.blocks


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One column tile, or with ``per_block`` the column tiles of ``out_blocks`` blocks at the same ``slot``; with a ``filter`` in the
    depthwise mode."""

    chunks: tuple
    out_block: int
    slot: int
    out_blocks: int = 1
    per_block: bool = False
    filter: Filter | None = None

    @property
    def passes(self):
        return sum(chunk.passes for chunk in self.chunks)


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Column tiles in one accumulator bank; those of one slot are neighbours and their output blocks consecutive."""

    columns: tuple

    @property
    def entries(self):
        """Accumulator entries per pixel."""
        return sum(column.out_blocks for column in self.columns)
