"""The address generator: turns an EXECUTE into one activation read per cycle, or with ``depthwise`` into one per image row.

::

    instruction ─► PassGenerator ─► Pass ─► PixelGenerator ─► Pixel
                    ky, kx, block           y, x, padding, hazards

A pixel takes one word; with ``depthwise``, ``stride_x`` words and at the ends of tile rows some more, of which the first carries the
sums. These words follow each other without a gap: what could hold one back does so before the first word of a pass.

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
"""Holds every input coordinate: 4095 + 1024 * 15 + 191 * 63 < 2**15, with 3 * 64 kernel rows in the depthwise mode."""


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
    x_step: 4  # from word to word
    rest: 4  # words of a pixel after its first, and of the last one of a tile row, and of the pass
    row_rest: 5
    pass_rest: 5
    row_step: 16
    ky_step: 16
    dilation_y: 6
    in_height: 12
    in_width: 12
    pad: signed(8)
    unsigned: 1
    max: 1
    depthwise: 1
    slot: 3
    signal: Signals
    index: 16


class ImageRow(data.Struct):
    """One more word of the same cycle, for the depthwise mode."""

    addr: 16
    padding: 1


class Pixel(data.Struct):
    """One activation word and where its sums go."""

    addr: 16
    padding: 1  # not read: the word is ``pad``
    pad: signed(8)
    unsigned: 1
    depthwise: 1
    slot: 3
    switch: 1  # first word for a new weight tile
    counts: 1  # its sums are those of a pixel
    entry: 10
    bank: 1
    overwrite: 1
    max: 1
    last: 1  # of the instruction
    act_range: 1  # a word to read is beyond the activation memory
    acc_range: 1  # ``entry`` is beyond the accumulators
    signal: Signals
    index: 16


_SAME = (
    "acc", "bank", "tile_rows", "tile_cols", "stride_y", "row_step", "ky_step", "dilation_y", "in_height", "in_width",
    "pad", "unsigned", "max", "slot",
)  # fmt: skip


class PassGenerator(wiring.Component):
    """Walks ``ky``, ``kx`` and ``block``: one pass per cycle, after one cycle for taking the instruction.

    Parameters
    ----------
    image_rows : int
        Kernel rows in a pass of the depthwise mode; 0 if there is none.
    slots : int
        Column tiles that share a word.

    Members
    -------
    i : In(stream.Signature(QueuedInstruction))
    o : Out(stream.Signature(Pass))
        Never of an instruction that is ``illegal``.
    illegal : Out(1)
        The instruction ``o.payload.index`` has a field without meaning; it stays.
    """

    def __init__(self, *, image_rows=0, slots=1):
        self.image_rows = image_rows
        self.slots = slots
        super().__init__({
            "i": In(stream.Signature(QueuedInstruction)),
            "o": Out(stream.Signature(Pass)),
            "illegal": Out(1),
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
        valid, depthwise = Signal(), Signal()
        ky_step, dilation_y = Signal(16), Signal(8)  # of a group of kernel rows
        x_step, rest, row_rest, pass_rest = Signal(4), Signal(4), Signal(5), Signal(5)

        m.d.comb += [self.i.ready.eq(~valid), self.o.valid.eq(valid & ~self.illegal)]
        m.d.comb += o.last.eq((ky == 0) & (kx == 0) & (block == 0))
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                valid.eq(1),
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
                ky_step.eq(taken.ky_step),
                dilation_y.eq(taken.dilation_y),
                x_step.eq(taken.stride_x),
                Cat(depthwise, rest, row_rest, pass_rest).eq(0),
                self.illegal.eq(taken.depthwise),
            ]
            if self.image_rows:
                with m.If(taken.depthwise):
                    m.d.sync += [
                        ky_step.eq(taken.ky_step * self.image_rows),
                        dilation_y.eq(taken.dilation_y * self.image_rows),
                        x_step.eq(1),
                        depthwise.eq(1),
                        rest.eq(taken.stride_x - 1),
                        row_rest.eq(taken.stride_x - 1 + taken.gap),
                        pass_rest.eq(taken.stride_x - 1 + taken.gap + taken.tail),
                        self.illegal.eq((taken.slot >= self.slots) | (taken.stride_x == 0)),
                    ]
        with m.Elif(self.o.valid & self.o.ready):
            with m.If(o.last):
                m.d.sync += valid.eq(0)
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
                    m.d.sync += [ky.eq(ky - 1), kx.eq(now.kernel_x), x.eq(now.x0), y.eq(y + dilation_y)]
                    m.d.sync += Cat(row_start, tap_start, start).eq((row_start + ky_step)[:16].replicate(3))

        m.d.comb += [getattr(o, name).eq(getattr(now, name)) for name in _SAME]
        m.d.comb += [
            o.start.eq(start), o.y.eq(y), o.x.eq(x), o.tile.eq(tile), o.switch.eq(switch), o.resume.eq(resume),
            o.overwrite.eq(overwrite), o.signal.eq(now.header.signal), o.index.eq(index), o.depthwise.eq(depthwise),
            o.x_step.eq(x_step), o.rest.eq(rest), o.row_rest.eq(row_rest), o.pass_rest.eq(pass_rest),
        ]  # fmt: skip
        return m


class PixelGenerator(wiring.Component):
    """Walks ``y`` and ``x`` of each pass: one word per cycle, also from one pass to the next, and at most one pass every other
    cycle.

    A pixel that adds to an accumulator entry used less than ``distance`` cycles ago waits, in the depthwise mode the first word of a
    pass while any entry has been.

    Parameters
    ----------
    act_depth, acc_depth : int
        Words and entries there are, for the range checks.
    distance : int
        Cycles from one access of an accumulator entry to the first that sees its result.
    image_rows : int
        Words that the depthwise mode reads in a cycle; 0 if there is none.

    Members
    -------
    i : In(stream.Signature(Pass))
    o : Out(stream.Signature(Pixel))
    row1, … : Out(ImageRow)
        Together with ``o``: the words of the other image rows.
    hazard : Out(1)
        The next pixel waits for an accumulator entry.
    """

    def __init__(self, *, act_depth, acc_depth, distance, image_rows=0):
        self.act_depth = act_depth
        self.acc_depth = acc_depth
        self.distance = distance
        self.image_rows = image_rows
        super().__init__({
            "i": In(stream.Signature(Pass)),
            "o": Out(stream.Signature(Pixel)),
            **{f"row{row}": Out(ImageRow) for row in range(1, image_rows)},
            "hazard": Out(1),
        })

    @property
    def rows(self):
        """The words of the other image rows, in order."""
        return [getattr(self, f"row{row}") for row in range(1, self.image_rows)]

    def elaborate(self, platform):
        m = Module()
        ahead, now = Signal(Pass, reset_less=True), Signal(Pass, reset_less=True)  # the next pass and the present one
        waiting, running, first = Signal(), Signal(), Signal()
        columns, rows, words = Signal(10), Signal(10), Signal(5)  # still to come, ``words`` of this pixel
        x = Signal(COORDINATE)
        entry, enters = Signal(11), Signal()
        move, begin, pixel_ends, row_ends, pass_ends = Signal(), Signal(), Signal(), Signal(), Signal()

        m.d.comb += [
            pixel_ends.eq(words == 0),
            row_ends.eq(pixel_ends & (columns == 0)),
            pass_ends.eq(row_ends & (rows == 0)),
            begin.eq(waiting & (~running | (move & pass_ends))),
            self.i.ready.eq(~waiting),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [waiting.eq(1), ahead.eq(self.i.payload)]
        with m.Elif(begin):
            m.d.sync += waiting.eq(0)

        def rest(of, last_column, last_row):
            return Mux(last_column, Mux(last_row, of.pass_rest, of.row_rest), of.rest)

        with m.If(begin):
            m.d.sync += [
                running.eq(1),
                first.eq(1),
                enters.eq(1),
                now.eq(ahead),
                columns.eq(ahead.tile_cols),
                rows.eq(ahead.tile_rows),
                words.eq(rest(ahead, ahead.tile_cols == 0, ahead.tile_rows == 0)),
                x.eq(ahead.x),
                entry.eq(Mux(ahead.resume, entry + 1, ahead.acc)),
            ]
        with m.Elif(move):
            m.d.sync += [first.eq(0), enters.eq(pixel_ends), x.eq(x + now.x_step)]
            with m.If(pass_ends):
                m.d.sync += running.eq(0)
            with m.Elif(pixel_ends):
                m.d.sync += entry.eq(entry + 1)
            with m.If(row_ends):
                m.d.sync += [columns.eq(now.tile_cols), rows.eq(rows - 1), x.eq(now.x)]
                m.d.sync += words.eq(rest(now, now.tile_cols == 0, rows == 1))
            with m.Elif(pixel_ends):
                m.d.sync += [columns.eq(columns - 1), words.eq(rest(now, columns == 1, rows == 0))]
            with m.Else():
                m.d.sync += words.eq(words - 1)

        pixel, valid = Signal(Pixel, reset_less=True), Signal()
        free = Signal()
        m.d.comb += [free.eq(~valid | (self.o.valid & self.o.ready)), move.eq(running & free)]
        places = [self._row(m, row, ahead, now, begin, move, row_ends) for row in range(max(1, self.image_rows))]
        outside_x = Signal()
        m.d.comb += outside_x.eq(x.as_unsigned() >= now.in_width)  # unsigned comparison finds negative coordinates too
        beyond = []
        for row, (addr, outside_y) in enumerate(places):
            read = self.rows[row - 1] if row else pixel
            skipped = outside_x | outside_y | (~now.depthwise if row else 0)
            with m.If(free):
                m.d.sync += [read.addr.eq(addr), read.padding.eq(skipped)]
            beyond.append(~skipped & (addr >= self.act_depth))
        with m.If(free):
            m.d.sync += [
                valid.eq(running),
                pixel.switch.eq(first & now.switch),
                pixel.counts.eq(enters),
                pixel.entry.eq(entry),
                pixel.last.eq(now.last & pass_ends),
                pixel.act_range.eq(Cat(beyond).any()),
                pixel.acc_range.eq(entry >= self.acc_depth),
            ]
            m.d.sync += [
                getattr(pixel, name).eq(getattr(now, name))
                for name in ("pad", "unsigned", "depthwise", "slot", "bank", "overwrite", "max", "signal", "index")
            ]
        m.d.comb += [self.o.payload.eq(pixel), self.o.valid.eq(valid & ~self.hazard)]
        self._interlock(m, Cat(entry[:10], now.bank), now, first, valid, pixel)
        return m

    def _row(self, m, row, ahead, now, begin, move, row_ends):
        """Walk the words of image row ``row``; return the address and whether the row lies outside the map."""
        start, first_y = ahead.start, ahead.y
        if row:
            start, first_y = Signal(16, name=f"start{row}"), Signal(COORDINATE, name=f"first_y{row}")
            given = self.i.payload
            with m.If(self.i.ready):
                m.d.sync += [start.eq(given.start + row * given.ky_step), first_y.eq(given.y + row * given.dilation_y)]
        addr, next_row = Signal(16, name=f"addr{row}"), Signal(16, name=f"next_row{row}")
        y = Signal(COORDINATE, name=f"y{row}")
        with m.If(begin):
            m.d.sync += [addr.eq(start), next_row.eq(start + ahead.row_step), y.eq(first_y)]
        with m.Elif(move & row_ends):
            m.d.sync += [addr.eq(next_row), next_row.eq(next_row + now.row_step), y.eq(y + now.stride_y)]
        with m.Elif(move):
            m.d.sync += addr.eq(addr + now.x_step)
        return addr, y.as_unsigned() >= now.in_height

    def _interlock(self, m, coming, now, first, valid, pixel):
        """Hold a pixel back while its entry was issued less than ``distance`` cycles ago.

        The comparisons are made while the pixel moves into the output register; afterwards only their results grow older.
        """
        issued = self.o.valid & self.o.ready
        present = Cat(pixel.entry, pixel.bank)
        history = [(issued & pixel.counts, present)]
        matches = Signal(self.distance - 1)  # bit n: the same entry was issued n + 1 cycles ago
        for age in range(1, self.distance - 1):
            used, place = Signal(name=f"used{age}"), Signal.like(present, name=f"place{age}", reset_less=True)
            m.d.sync += [used.eq(history[-1][0]), place.eq(history[-1][1])]
            history.append((used, place))
        m.d.comb += self.hazard.eq(valid & matches.any())
        with m.If(~valid | issued):
            m.d.sync += matches.eq(
                Cat(used & Mux(now.depthwise, first, place == coming) & ~now.overwrite for used, place in history)
            )
        with m.Else():
            m.d.sync += matches.eq(matches << 1)
