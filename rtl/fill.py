"""The load unit's other half: copies activation words into rows of weight tiles.

::

    instruction ─► check ─► walk over tiles, rows ─► activation memory ─► slot ─► weight memory
                                        └─────────────── bank, entry ──────────────►┘

One row per cycle as long as the activation memory serves it; rows that become zero read nothing.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from celosia.rtl.interfaces import ACT_READ_LATENCY, ActReadSignature, WeightWriteSignature
from celosia.rtl.isa import ErrorCode, FillInstruction

__all__ = ["FILL_OVERHEAD", "Fill"]

FILL_OVERHEAD = 5
"""Cycles from an accepted instruction to the load unit's ``done``, besides one per row of each tile."""


class Fill(wiring.Component):
    """Runs ``FILL``, see :class:`~celosia.rtl.isa.FillInstruction`.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    start : ``In(1)``
        Begin ``instruction``, which must stay until ``done``.
    instruction : ``In(FillInstruction)``
    done : ``Out(1)``
        The last row is written in this cycle or was before.
    error : ``Out(ErrorCode)``
        Not ``NONE`` in the one cycle in which the instruction proves illegal: ``ILLEGAL_FIELD`` if there are too many rows or the slot
        does not exist, ``WEIGHT_RANGE``, ``ACT_RANGE``. Nothing is done any more.
    stall : ``Out(1)``
        The activation memory refuses the read of this cycle.
    read : ``Out(ActReadSignature)``
    write : ``Out(WeightWriteSignature)``
    """

    def __init__(self, *, config):
        self.config = config
        super().__init__({
            "start": In(1),
            "instruction": In(FillInstruction),
            "done": Out(1),
            "error": Out(ErrorCode),
            "stall": Out(1),
            "read": Out(ActReadSignature(rows=config.rows)),
            "write": Out(WeightWriteSignature(cols=config.cols, weight_rows=config.weight_rows)),
        })

    def elaborate(self, platform):
        m = Module()
        config, i = self.config, self.instruction
        row, t = Signal(range(config.rows)), Signal.like(i.tiles)
        word, following = Signal(16), Signal(16)  # this row's, and the first one of the next tile
        tile = Signal(range(config.weight_tiles))
        last_row, last_tile, wanted, out_of_range = Signal(), Signal(), Signal(), Signal()
        too_many, beyond = Signal(), Signal()
        walking, advance = Signal(), Signal()
        m.d.sync += [
            too_many.eq((i.rows >= config.rows) | (i.slot >= config.slots)),
            beyond.eq(i.weights + i.tiles >= config.weight_tiles),
        ]
        m.d.comb += [
            last_row.eq(row == config.rows - 1),
            last_tile.eq(t == i.tiles),
            wanted.eq(row <= i.rows),
            out_of_range.eq(wanted & (word >= config.act_depth)),
            self.read.addr.eq(word),
            self.read.valid.eq(walking & wanted & ~out_of_range),
            advance.eq(walking & (~wanted | (self.read.valid & self.read.ready))),
            self.stall.eq(walking & ~advance),
        ]

        flight = Signal(range(ACT_READ_LATENCY + 2))
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [row.eq(0), t.eq(0), flight.eq(ACT_READ_LATENCY)]
                with m.If(self.start):
                    m.next = "check"
            with m.State("check"):
                m.d.sync += [word.eq(i.source), following.eq(i.source + i.tile_step), tile.eq(i.weights)]
                m.next = "refuse"
            with m.State("refuse"):
                m.next = "walk"
                with m.If(too_many | beyond):
                    m.d.comb += self.error.eq(Mux(too_many, ErrorCode.ILLEGAL_FIELD, ErrorCode.WEIGHT_RANGE))
                    m.next = "failed"
            with m.State("walk"):
                m.d.comb += walking.eq(1)
                with m.If(out_of_range):
                    m.d.comb += self.error.eq(ErrorCode.ACT_RANGE)
                    m.next = "failed"
                with m.Elif(advance):
                    m.d.sync += [row.eq(row + 1), word.eq(word + i.row_step)]
                    with m.If(last_row):
                        m.d.sync += [word.eq(following), following.eq(following + i.tile_step), tile.eq(tile + 1), t.eq(t + 1)]
                        with m.If(last_tile):
                            m.next = "finish"
            with m.State("finish"):
                m.d.sync += flight.eq(flight - 1)
                with m.If(flight == 0):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
            with m.State("failed"):
                pass

        # Where the row goes travels beside the read; the word's slot is chosen into a register of its own.
        bits = exact_log2(config.load_cycles)
        shape = data.StructLayout({"bank": range(config.weight_rows), "entry": range(config.weight_depth), "zero": 1, "valid": 1})
        place = Signal(shape)
        m.d.comb += [
            place.bank.eq(row[bits:]),
            place.entry.eq(Cat(row[:bits], tile)),
            place.zero.eq(~wanted),
            place.valid.eq(advance),
        ]
        for stage in range(ACT_READ_LATENCY):
            late = Signal(shape, name=f"place{stage}")
            m.d.sync += late.eq(place)
            place = late
        slots = data.ArrayLayout(self.write.data.shape(), config.slots)
        words = data.View(slots, self.read.data.as_value())
        slot = i.slot[: ceil_log2(config.slots)]
        m.d.sync += [
            self.write.en.eq(place.valid << place.bank),
            self.write.addr.eq(place.entry),
            self.write.data.eq(Mux(place.zero, 0, words[slot].as_value())),
        ]
        return m
