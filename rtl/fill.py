"""The load unit's second way out: activation words become rows of weight tiles.

::

    Walk ─► activation memory ─► slot ─► weight memory
                      row, tile ────────────►┘
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from celosia.rtl.interfaces import WeightWriteSignature
from celosia.rtl.isa import FillInstruction

__all__ = ["Fill"]


class Fill(wiring.Component):
    """Writes the rows of a ``FILL``, see :class:`~celosia.rtl.isa.FillInstruction`, one per cycle.

    Parameters
    ----------
    config : EngineConfig
    width : int
        Bytes of a part of a word, a power of two and at least ``cols``.

    Members
    -------
    tile : ``In(16)``
        Of the next row.
    slot : ``In``
        As in the instruction, until the last row.
    valid : ``In(1)``
        A row comes.
    data : ``In(ArrayLayout(8, width))``
        One cycle later: the part of the word that its bytes are in; zero if the row is.
    last : ``Out(1)``
        The next row is the last one of its tile.
    out_of_range : ``Out(1)``
        The tile of the row in this cycle does not exist; it must not be ``valid``.
    write : ``Out(WeightWriteSignature)``
        In the cycle of ``data``.
    """

    def __init__(self, *, config, width):
        self.config = config
        self.width = width
        super().__init__({
            "tile": In(16),
            "slot": In(FillInstruction.as_shape()["slot"].shape),
            "valid": In(1),
            "data": In(data.ArrayLayout(8, width)),
            "last": Out(1),
            "out_of_range": Out(1),
            "write": Out(WeightWriteSignature(cols=config.cols, weight_rows=config.weight_rows)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        row = Signal(range(config.rows))
        with m.If(self.valid):
            m.d.sync += row.eq(row + 1)
        bits = exact_log2(config.load_cycles)
        slots = self.width // config.cols
        parts = data.View(data.ArrayLayout(self.write.data.shape(), slots), self.data.as_value())
        m.d.comb += [
            self.last.eq(row.all()),
            self.out_of_range.eq(self.tile >= config.weight_tiles),
            self.write.data.eq(parts[self.slot[: ceil_log2(slots)]]),
        ]
        m.d.sync += [
            self.write.en.eq(self.valid << row[bits:]),
            self.write.addr.eq(Cat(row[:bits], self.tile)),
        ]
        return m
