"""The address generator: turns an EXECUTE into one activation read per cycle.

::

    instruction ─► PassGenerator ─► Pass ─► PixelGenerator ─► Pixel
                    ky, kx, block           y, x, padding, hazards

The pass generator works one pass ahead of the pixel generator, across instructions too, so that neither a new pass nor a new
instruction costs a cycle. Addresses, coordinates and accumulator entries only ever grow by adding a field of the instruction;
there is no multiplier.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.interfaces import QueuedInstruction
from celosia.rtl.isa import ExecuteInstruction, Signals

__all__ = ["Pass", "PassGenerator", "Pixel", "PixelGenerator"]

COORDINATE = signed(16)
"""Holds every input coordinate: 4095 + 1023 * 15 + 63 * 63 < 2**15."""


class Pass(data.Struct):
    """One tap of one block over all pixels of the tile: where it starts, and what stays the same in it."""

    start: 16
    y: COORDINATE
    x: COORDINATE
    tile: 17  # weight tile
    switch: 1  # a new weight tile is used from here on
    resume: 1  # entries go on where the last pass ended
    overwrite: 1
    last: 1
    acc: 10
    bank: 1
    tile_rows: 10
    tile_cols: 10
    stride_y: 4
    stride_x: 4
    row_step: 16
    in_height: 12
    in_width: 12
    pad: signed(8)
    unsigned: 1
    max: 1
    signal: Signals
    index: 16


class Pixel(data.Struct):
    """One activation word and where its sums go."""

    addr: 16
    padding: 1  # not read: the word is ``pad``
    pad: signed(8)
    unsigned: 1
    switch: 1  # first word for a new weight tile
    entry: 10
    bank: 1
    overwrite: 1
    max: 1
    last: 1  # of the instruction
    act_range: 1  # ``addr`` is beyond the activation memory
    acc_range: 1  # ``entry`` is beyond the accumulators
    signal: Signals
    index: 16


_SAME = (
    "acc", "bank", "tile_rows", "tile_cols", "stride_y", "stride_x", "row_step", "in_height", "in_width",
    "pad", "unsigned", "max",
)  # fmt: skip


class PassGenerator(wiring.Component):
    """Walks ``ky``, ``kx`` and ``block``: one pass per cycle, after one cycle for taking the instruction.

    Members
    -------
    i : In(stream.Signature(QueuedInstruction))
    o : Out(stream.Signature(Pass))
    """

    def __init__(self):
        super().__init__({
            "i": In(stream.Signature(QueuedInstruction)),
            "o": Out(stream.Signature(Pass)),
        })

    def elaborate(self, platform):
        m = Module()
        taken = data.View(ExecuteInstruction, self.i.payload.instruction)
        now = Signal(ExecuteInstruction, reset_less=True)
        index = Signal(16, reset_less=True)
        o = self.o.payload

        ky, kx, block = Signal(6), Signal(6), Signal(8)  # passes still to come in each loop
        row_start, tap_start, start = Signal(16), Signal(16), Signal(16)  # of this ky, this kx, this block
        y, x = Signal(COORDINATE), Signal(COORDINATE)
        tile = Signal(17)
        overwrite, resume, switch = Signal(), Signal(), Signal()

        m.d.comb += self.i.ready.eq(~self.o.valid)
        m.d.comb += o.last.eq((ky == 0) & (kx == 0) & (block == 0))
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                self.o.valid.eq(1),
                now.eq(taken),
                index.eq(self.i.payload.index),
                ky.eq(taken.kernel_y),
                kx.eq(taken.kernel_x),
                block.eq(taken.blocks),
                Cat(row_start, tap_start, start).eq(taken.start.replicate(3)),
                y.eq(taken.y0),
                x.eq(taken.x0),
                tile.eq(taken.weights),
                overwrite.eq(~taken.accumulate),
                resume.eq(0),
                switch.eq(1),
            ]
        with m.Elif(self.o.valid & self.o.ready):
            with m.If(o.last):
                m.d.sync += self.o.valid.eq(0)
            with m.If(now.hold):
                m.d.sync += switch.eq(0)
            with m.Else():
                m.d.sync += tile.eq(tile + 1)

            with m.If(block != 0):
                m.d.sync += [block.eq(block - 1), start.eq(start + now.block_step), resume.eq(now.per_block)]
                with m.If(~now.per_block):
                    m.d.sync += overwrite.eq(0)
            with m.Else():
                m.d.sync += [block.eq(now.blocks), overwrite.eq(0), resume.eq(0)]
                with m.If(kx != 0):
                    m.d.sync += [kx.eq(kx - 1), x.eq(x + now.dilation_x)]
                    m.d.sync += Cat(tap_start, start).eq((tap_start + now.dilation_x)[:16].replicate(2))
                with m.Else():
                    m.d.sync += [ky.eq(ky - 1), kx.eq(now.kernel_x), x.eq(now.x0), y.eq(y + now.dilation_y)]
                    m.d.sync += Cat(row_start, tap_start, start).eq((row_start + now.ky_step)[:16].replicate(3))

        m.d.comb += [getattr(o, name).eq(getattr(now, name)) for name in _SAME]
        m.d.comb += [
            o.start.eq(start), o.y.eq(y), o.x.eq(x), o.tile.eq(tile), o.switch.eq(switch), o.resume.eq(resume),
            o.overwrite.eq(overwrite), o.signal.eq(now.header.signal), o.index.eq(index),
        ]  # fmt: skip
        return m


class PixelGenerator(wiring.Component):
    """Walks ``y`` and ``x`` of each pass: one pixel per cycle, also from one pass to the next, and at most one pass every other
    cycle.

    A pixel that adds to an accumulator entry used less than ``distance`` cycles ago waits.

    Parameters
    ----------
    act_depth, acc_depth : int
        Words and entries there are, for the range checks.
    distance : int
        Cycles from one access of an accumulator entry to the first that sees its result.

    Members
    -------
    i : In(stream.Signature(Pass))
    o : Out(stream.Signature(Pixel))
    hazard : Out(1)
        The next pixel waits for an accumulator entry.
    """

    def __init__(self, *, act_depth, acc_depth, distance):
        self.act_depth = act_depth
        self.acc_depth = acc_depth
        self.distance = distance
        super().__init__({
            "i": In(stream.Signature(Pass)),
            "o": Out(stream.Signature(Pixel)),
            "hazard": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        ahead, now = Signal(Pass, reset_less=True), Signal(Pass, reset_less=True)  # the next pass and the present one
        waiting, running, first = Signal(), Signal(), Signal()
        columns, rows = Signal(10), Signal(10)  # still to come
        addr, next_row = Signal(16), Signal(16)
        y, x = Signal(COORDINATE), Signal(COORDINATE)
        entry = Signal(11)
        move, begin, row_ends, pass_ends = Signal(), Signal(), Signal(), Signal()

        m.d.comb += [
            row_ends.eq(columns == 0),
            pass_ends.eq(row_ends & (rows == 0)),
            begin.eq(waiting & (~running | (move & pass_ends))),
            self.i.ready.eq(~waiting),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [waiting.eq(1), ahead.eq(self.i.payload)]
        with m.Elif(begin):
            m.d.sync += waiting.eq(0)

        with m.If(begin):
            m.d.sync += [
                running.eq(1),
                first.eq(1),
                now.eq(ahead),
                columns.eq(ahead.tile_cols),
                rows.eq(ahead.tile_rows),
                addr.eq(ahead.start),
                next_row.eq(ahead.start + ahead.row_step),
                x.eq(ahead.x),
                y.eq(ahead.y),
                entry.eq(Mux(ahead.resume, entry + 1, ahead.acc)),
            ]
        with m.Elif(move):
            m.d.sync += first.eq(0)
            with m.If(pass_ends):
                m.d.sync += running.eq(0)
            with m.Else():
                m.d.sync += entry.eq(entry + 1)
            with m.If(row_ends):
                m.d.sync += [
                    columns.eq(now.tile_cols),
                    rows.eq(rows - 1),
                    addr.eq(next_row),
                    next_row.eq(next_row + now.row_step),
                    x.eq(now.x),
                    y.eq(y + now.stride_y),
                ]
            with m.Else():
                m.d.sync += [columns.eq(columns - 1), addr.eq(addr + now.stride_x), x.eq(x + now.stride_x)]

        pixel, valid = Signal(Pixel, reset_less=True), Signal()
        m.d.comb += move.eq(running & (~valid | (self.o.valid & self.o.ready)))
        with m.If(~valid | (self.o.valid & self.o.ready)):
            m.d.sync += [
                valid.eq(running),
                pixel.addr.eq(addr),
                # Unsigned comparison finds negative coordinates too.
                pixel.padding.eq((y.as_unsigned() >= now.in_height) | (x.as_unsigned() >= now.in_width)),
                pixel.switch.eq(first & now.switch),
                pixel.entry.eq(entry),
                pixel.last.eq(now.last & pass_ends),
                pixel.act_range.eq(addr >= self.act_depth),
                pixel.acc_range.eq(entry >= self.acc_depth),
            ]
            m.d.sync += [
                getattr(pixel, name).eq(getattr(now, name))
                for name in ("pad", "unsigned", "bank", "overwrite", "max", "signal", "index")
            ]
        m.d.comb += [self.o.payload.eq(pixel), self.o.valid.eq(valid & ~self.hazard)]
        self._interlock(m, Cat(entry[:10], now.bank), now.overwrite, valid, Cat(pixel.entry, pixel.bank))
        return m

    def _interlock(self, m, coming, overwrites, valid, present):
        """Hold a pixel back while its entry was issued less than ``distance`` cycles ago.

        The comparisons are made while the pixel moves into the output register; afterwards only their results grow older.
        """
        issued = self.o.valid & self.o.ready
        history = [(issued, present)]
        matches = Signal(self.distance - 1)  # bit n: the same entry was issued n + 1 cycles ago
        for age in range(1, self.distance - 1):
            used, place = Signal(name=f"used{age}"), Signal.like(present, name=f"place{age}", reset_less=True)
            m.d.sync += [used.eq(history[-1][0]), place.eq(history[-1][1])]
            history.append((used, place))
        m.d.comb += self.hazard.eq(valid & matches.any())
        with m.If(~valid | issued):
            m.d.sync += matches.eq(Cat(used & (place == coming) & ~overwrites for used, place in history))
        with m.Else():
            m.d.sync += matches.eq(matches << 1)
