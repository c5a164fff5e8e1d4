"""The row loader: walks weight tiles through the banks of the weight memory into the array, just in time.

Bank ``j`` holds rows ``j * load_cycles`` … of a tile and walks them ``j * load_cycles`` cycles after bank 0, so that row ``r``
reaches the array exactly ``r`` cycles after row 0, in step with the array's wavefront::

    bank 0  |t0 t0 t0 t0|t1 t1 t1 t1|           load_cycles = 4
    bank 1               |t0 t0 t0 t0|t1 t1 t1 t1|

A walk starts when the first pixel that needs the tile is issued; both take the same time to the array.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from celosia.rtl.interfaces import WeightReadSignature

__all__ = ["LOAD_LATENCY", "RowLoader"]

LOAD_LATENCY = 3
"""Cycles from ``taken`` to ``load``: address register, block RAM, register."""


class RowLoader(wiring.Component):
    """Loads requested tiles, one per ``load_cycles`` cycles at most.

    Parameters
    ----------
    cols : int
        Weights per row.
    weight_rows : int
        Banks.
    load_cycles : int
        Rows per bank and tile; a power of two, at least 2.
    weight_tiles : int
        Tiles in the weight memory.

    Members
    -------
    tile : In
        The tile to load.
    ready : Out(1)
        A walk can start.
    taken : In(1)
        Start the walk of ``tile``; only while ``ready``.
    read0, read1, … : Out(WeightReadSignature)
        The banks' read ports.
    load, weights : Out
        To the array.
    """

    def __init__(self, *, cols, weight_rows, load_cycles, weight_tiles):
        if load_cycles < 2:
            raise ValueError(f"load_cycles must be at least 2, not {load_cycles}")
        self.cols = cols
        self.weight_rows = weight_rows
        self.load_cycles = load_cycles
        self.weight_tiles = weight_tiles
        reads = {f"read{bank}": Out(WeightReadSignature(cols=cols)) for bank in range(weight_rows)}
        super().__init__({
            "tile": In(range(weight_tiles)),
            "ready": Out(1, init=1),
            "taken": In(1),
            **reads,
            "load": Out(1),
            "weights": Out(data.ArrayLayout(data.ArrayLayout(signed(8), cols), weight_rows)),
        })

    @property
    def reads(self):
        """The banks' read ports, in order."""
        return [getattr(self, f"read{bank}") for bank in range(self.weight_rows)]

    def elaborate(self, platform):
        m = Module()
        walking, soon_free = Signal(), Signal()
        m.d.sync += self.ready.eq(~self.taken & (~walking | soon_free))

        begins, tile = self.taken, self.tile
        for bank, read in enumerate(self.reads):
            ends, row, tile, active = self._walk(m, bank, begins, tile)
            m.d.comb += [read.en.eq(active), read.addr.eq(Cat(row, tile))]
            m.d.sync += Value.cast(self.weights[bank]).eq(Value.cast(read.data))
            if bank == 0:
                # In the last row but one, or in the last: the next walk can start in the next cycle.
                m.d.comb += [walking.eq(active), soon_free.eq(row >= self.load_cycles - 2)]
            begins = ends

        arriving = Signal(LOAD_LATENCY - 1)
        m.d.sync += Cat(arriving, self.load).eq(Cat(self.taken, arriving))
        return m

    def _walk(self, m, bank, begins, tile):
        """Walk ``tile`` from the cycle after ``begins``; return the flag of its last cycle, its row, itself, and its activity."""
        active = Signal(name=f"active{bank}")
        row = Signal(exact_log2(self.load_cycles), name=f"row{bank}")
        current = Signal(range(self.weight_tiles), name=f"tile{bank}", reset_less=True)
        ends = Signal(name=f"ends{bank}")
        m.d.comb += ends.eq(active & row.all())
        with m.If(begins):
            m.d.sync += [active.eq(1), row.eq(0), current.eq(tile)]
        with m.Else():
            m.d.sync += row.eq(row + 1)
            with m.If(ends):
                m.d.sync += active.eq(0)
        return ends, row, current, active
