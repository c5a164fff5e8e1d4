"""The address generator: turns an EXECUTE into one activation read per cycle, or with ``depthwise`` into one per image row.

::

    instruction ─► passes: ky, kx, block ─► words: y, x ─► range, padding, hazards ─┬─► Pixel, to the memories
                                                                                    └─► tag, to the accumulators

A pixel takes one word; with ``depthwise``, ``stride_x`` words and at the ends of tile rows some more, of which the first carries the
sums. These words follow each other without a gap: what could hold one back does so before the first word of a pass.

The instruction is kept once. What the next pass begins with is computed from what the present one began with, or taken from the
instruction that waits at the input, in the cycle in which the last word of the present pass leaves, so that neither a new pass nor a
new instruction costs a cycle. Distances within the map begin at zero and grow by adding a field of the instruction; there is no
multiplier. They are as wide as the accumulators' depth allows: a word beyond stops the engine before its address matters.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from celosia.rtl.interfaces import QueuedInstruction
from celosia.rtl.isa import ErrorCode, ExecuteInstruction, largest
from celosia.rtl.limits import at_least

__all__ = ["AddressGenerator", "ImageRow", "Pixel", "Tag"]


def Tag(*, acc_depth, program_depth):
    """Layout of what travels beside a word to the accumulators.

    ``entry`` of ``bank`` takes the sums (``overwrite``, ``max`` as in the instruction) if the word ``counts``; ``last`` word of the
    instruction ``index``, which owes ``signal``. With ``stop`` the word must not be used, and ``signal`` is an :class:`ErrorCode`; with
    ``act_range`` it must not either, for :attr:`ErrorCode.ACT_RANGE`.
    """
    return data.StructLayout({
        "entry": ceil_log2(acc_depth), "bank": 1, "overwrite": 1, "max": 1, "counts": 1, "last": 1, "act_range": 1, "stop": 1,
        "signal": 3, "index": ceil_log2(program_depth),
    })  # fmt: skip


class ImageRow(data.Struct):
    """A word of the activation memory; ``read`` it unless it is ``padding`` or beyond the memory."""

    addr: 16
    padding: 1
    read: 1


class Pixel(data.Struct):
    """A word to multiply, and what to know on the way to the array; with ``switch`` the first for a new weight tile."""

    word: ImageRow
    pad: signed(8)
    unsigned: 1
    depthwise: 1
    slot: 3
    switch: 1


class AddressGenerator(wiring.Component):
    """Walks the passes of an instruction, and in each its pixels: one word per cycle, also from one pass or instruction to the next if
    both have at least two words, and at most one pass every other cycle.

    A pixel that adds to an accumulator entry used less than ``distance`` cycles ago waits, in the depthwise mode the first word of a
    pass while any entry has been.

    Parameters
    ----------
    act_depth, acc_depth, weight_tiles : int
        Words, entries and tiles there are, for the range checks.
    program_depth : int
        Instructions there are, for the width of their numbers.
    distance : int
        Cycles from one access of an accumulator entry to the first that sees its result.
    image_rows : int
        Words that the depthwise mode reads in a cycle; 0 if there is none.
    slots : int
        Column tiles that share a word.
    maximum : int
        0: ``max`` is illegal.
    pipelining : int
        0: the instruction is not copied, but stays at the input until it has ``ended``; ``distance`` is at most 2.

    Members
    -------
    i : In(stream.Signature(QueuedInstruction))
        The payload is used from ``valid`` to the cycle of ``ready``, in which the first word of the instruction is on its way to ``o``; without
        ``pipelining`` ``ready`` is ``ended``.
    ended : In(1)
        Without ``pipelining``: the instruction's sums are under way to the accumulators' memory.
    o : Out(stream.Signature(Pixel))
    row1, … : Out(ImageRow)
        Together with ``o``: the words of the other image rows.
    tile : Out
        The weight tile of a word with ``switch``.
    tag, tag_valid : Out
        One for each word, one cycle before it comes to ``o``, or as long before as the word before it waits there.
    running : Out(1)
        Words of an instruction whose ``ready`` has been will still be walked.
    hazard : Out(1)
        The next word waits for an accumulator entry.
    """

    def __init__(self, *, act_depth, acc_depth, weight_tiles, program_depth, distance, image_rows=0, slots=1, maximum=1, pipelining=1):
        self.act_depth = act_depth
        self.acc_depth = acc_depth
        self.weight_tiles = weight_tiles
        self.program_depth = program_depth
        self.distance = distance
        self.image_rows = image_rows
        self.slots = slots
        self.maximum = maximum
        self.pipelining = pipelining
        super().__init__({
            "i": In(stream.Signature(QueuedInstruction)),
            "ended": In(1),
            "o": Out(stream.Signature(Pixel)),
            **{f"row{row}": Out(ImageRow) for row in range(1, image_rows)},
            "tile": Out(ceil_log2(weight_tiles)),
            "tag": Out(Tag(acc_depth=acc_depth, program_depth=program_depth)),
            "tag_valid": Out(1),
            "running": Out(1),
            "hazard": Out(1),
        })

    @property
    def rows(self):
        """The words of all image rows, in order."""
        return [self.o.payload.word, *(getattr(self, f"row{row}") for row in range(1, self.image_rows))]

    def elaborate(self, platform):
        m = Module()
        if self.pipelining:
            now = Signal(ExecuteInstruction, reset_less=True)
            index = Signal.like(self.tag.index, reset_less=True)
        else:
            now, index = data.View(ExecuteInstruction, self.i.payload.instruction), self.i.payload.index
        self._depthwise = now.depthwise if self.image_rows else Const(0)  # else it is illegal
        begin, fresh, free, running, valid = Signal(), Signal(), Signal(), Signal(), Signal()
        issued = Signal()
        m.d.comb += [
            issued.eq(self.o.valid & self.o.ready),
            free.eq(~valid | issued),
            self.tag_valid.eq(running & free),
            self.o.valid.eq(valid & ~self.hazard),
        ]
        # Whether there is an instruction to go on with, and whether one waits.
        self._active, waits = Const(1), self.i.valid & ~self.i.ready
        if self.pipelining:
            m.d.comb += self.running.eq(running & ~self.i.ready)
            m.d.sync += self.i.ready.eq(fresh)
        else:
            self._active = active = Signal()
            waits = self.i.valid & ~active
            m.d.comb += [self.running.eq(active), self.i.ready.eq(self.ended)]
            with m.If(fresh | self.ended):
                m.d.sync += active.eq(fresh)

        place, ends = self._words(m, now, self.tag_valid, fresh)
        # A pass begins when the last word of the former leaves, but not before that's first has been issued, since it needs `tile`.
        more, passes = self._passes(m, now, index, begin)
        m.d.comb += begin.eq(free & (~running | (ends["pass"] & ~place["first"])) & (more | waits))
        m.d.comb += fresh.eq(begin & ~more)
        with m.If(begin):
            m.d.sync += running.eq(1)
        with m.Elif(self.tag_valid & ends["pass"]):
            m.d.sync += running.eq(0)

        count = Signal(bits_for(self.acc_depth))  # pixels since the entry was `acc`
        with m.If(self.tag_valid & ends["pixel"]):
            m.d.sync += count.eq(count + 1)
        with m.If(begin & ~passes["resumes"]):
            m.d.sync += count.eq(0)
        entry = Signal.like(count)
        low = self.tag.entry.shape().width
        m.d.comb += entry.eq(now.acc[:low] + count)

        with m.If(free):
            m.d.sync += [valid.eq(running), self.o.payload.switch.eq(place["first"] & passes["switch"])]
        with m.If(free if self.pipelining else 1):
            domain = m.d.sync if self.pipelining else m.d.comb
            domain += [getattr(self.o.payload, name).eq(getattr(now, name)) for name in ("pad", "unsigned", "slot")]
            domain += self.o.payload.depthwise.eq(self._depthwise)
        illegal, larger = Signal(), Const(0) if self.maximum else now.max
        m.d.comb += illegal.eq(larger | (now.depthwise & ((now.slot >= self.slots) | (now.stride_x == 0) if self.image_rows else 1)))
        self._read(m, now, free, place, passes, illegal)

        tag = self.tag
        m.d.comb += [
            tag.entry.eq(entry),
            tag.bank.eq(now.bank),
            tag.overwrite.eq(passes["overwrite"]),
            tag.max.eq(now.max),
            tag.counts.eq(place["enters"]),
            tag.last.eq(ends["pass"] & ~more),
            tag.signal.eq(now.header.signal),
            tag.index.eq(index),
        ]
        for found, code in (
            (at_least(entry, self.acc_depth) | now.acc[low:].any(), ErrorCode.ACC_RANGE),
            (at_least(passes["tile"], self.weight_tiles), ErrorCode.WEIGHT_RANGE),
            (illegal, ErrorCode.ILLEGAL_FIELD),
        ):
            with m.If(found):
                m.d.comb += [tag.stop.eq(1), tag.signal.eq(code)]
        checked = passes["overwrite"], self._depthwise & ~place["first"], self._depthwise
        if self.distance > 2:  # words of an entry, which lie in different passes, are two cycles apart
            self._interlock(m, Cat(tag.entry, now.bank, tag.counts), checked, free, valid, issued)
        return m

    def _passes(self, m, now, index, begin):
        """Walk ``ky``, ``kx`` and ``block``; return whether a pass follows this one, and what there is to know of this one."""
        given = data.View(ExecuteInstruction, self.i.payload.instruction)
        last = Signal(data.StructLayout({"block": 8, "kx": 6, "ky": 6}))  # reset: no pass follows
        if not self.pipelining:
            m.d.comb += Cat(last.block, last.kx, last.ky).eq(Cat(given.blocks, given.kernel_x, given.kernel_y))
        block, kx, ky = (Signal.like(last[name], name=name) for name in ("block", "kx", "ky"))
        block_ends, kx_ends, more = Signal(), Signal(), Signal()
        m.d.comb += [
            block_ends.eq((block == last.block) | ~self._active),
            kx_ends.eq((kx == last.kx) | ~self._active),
            more.eq(~(block_ends & kx_ends & (ky == last.ky)) & self._active),
        ]

        # Addresses of the pass and of its group of kernel rows, without what is due to kx.
        groups = max(1, self.image_rows)
        ky_step = Mux(self._depthwise, now.ky_step * groups, now.ky_step)
        dilation_y = Mux(self._depthwise, now.dilation_y * groups, now.dilation_y)
        start, row_start, following = Signal(16), Signal(16), Signal(16)
        step = Signal(16)
        m.d.comb += [
            step.eq(Mux(block_ends, Mux(kx_ends, ky_step, 0), now.block_step)),
            following.eq(Mux(more, Mux(block_ends, row_start, start) + step, given.start)),
        ]
        right = Signal(range(63 * 63 + 1))  # kx * dilation_x
        y = Signal(self._coordinate(now.kernel_y, groups))
        tile = Signal(ceil_log2(self.weight_tiles) + 1)
        overwrite, switch = Signal(), Signal()
        low = ceil_log2(self.weight_tiles)
        with m.If(begin):
            m.d.sync += [start.eq(following), switch.eq(~more | ~now.hold)]
            m.d.sync += overwrite.eq(Mux(more, overwrite & now.per_block & ~block_ends, ~given.accumulate))
            with m.If(~more | ~now.hold):
                m.d.sync += tile.eq(Mux(more, tile + 1, Cat(given.weights[:low], given.weights[low:].any())))
            m.d.sync += block.eq(block + 1)
            with m.If(block_ends):
                m.d.sync += [kx.eq(kx + 1), right.eq(right + now.dilation_x)]
                with m.If(kx_ends):
                    m.d.sync += [ky.eq(ky + 1), row_start.eq(following), y.eq(Mux(more, y + dilation_y, given.y0))]
        # Cleared by conditions of their own, which become the flip-flops' resets.
        with m.If(begin & block_ends):
            m.d.sync += block.eq(0)
        with m.If(begin & block_ends & kx_ends):
            m.d.sync += [kx.eq(0), right.eq(0)]
        with m.If(begin & ~more):
            m.d.sync += ky.eq(0)
            if self.pipelining:
                m.d.sync += [
                    now.eq(given),
                    index.eq(self.i.payload.index),
                    Cat(last.block, last.kx, last.ky).eq(Cat(given.blocks, given.kernel_x, given.kernel_y)),
                ]
        m.d.comb += self.tile.eq(tile)
        return more, {
            "start": start, "right": right, "y": y, "tile": tile, "overwrite": overwrite, "switch": switch,
            "resumes": now.per_block & ~block_ends,
        }  # fmt: skip

    def _coordinate(self, kernel, groups):
        """Return the width that coordinates need to be told from those inside a map, modulo two to its power.

        The largest is that of the last pixel that the accumulators can hold; a negative one, at least -4096, must not come down to where a
        map can be.
        """
        distance = (self.acc_depth - 1) * 15 + 2 * 15 + (((1 << len(kernel)) * groups) - 1) * 63
        return bits_for(largest(ExecuteInstruction, "y0") + distance)

    def _words(self, m, now, move, fresh):
        """Walk ``y``, ``x`` and the words of a pixel; return what there is to know of the word, and what ends with it.

        Everything hangs on what ends: so whether a column or row is the last one is known before the walk comes to it, and the words of a
        pixel are added up when the instruction comes.
        """
        given = data.View(ExecuteInstruction, self.i.payload.instruction)
        size = ceil_log2(self.acc_depth)
        column, row = Signal(size), Signal(size)
        last_column, last_row = Signal(), Signal()
        top, left, enters = Signal(init=1), Signal(init=1), Signal(init=1)  # first row; first word of a row, of a pixel
        word = Signal(5, init=1)
        across = Signal(range((self.acc_depth - 1) * 15 + 2 * 15 + 63 * 63 + 1))  # x * stride_x + kx * dilation_x
        down = Signal(range((self.acc_depth - 1) * 15 + 1))  # y * stride_y
        pixel_ends, row_ends, pass_ends = Signal(), Signal(), Signal()
        most = given.stride_x + given.gap + given.tail  # words of a pixel: the last one's
        row_words, pass_words = Signal.like(most, reset_less=True), Signal.like(most, reset_less=True)
        with m.If(fresh):
            m.d.sync += [row_words.eq(given.stride_x + given.gap), pass_words.eq(most)]
        words = Mux(last_column, Mux(last_row, pass_words, row_words), now.stride_x)
        m.d.comb += [
            pixel_ends.eq(~self._depthwise | (word == words)),
            row_ends.eq(pixel_ends & last_column),
            pass_ends.eq(row_ends & last_row),
        ]
        with m.If(move):
            m.d.sync += [left.eq(row_ends), enters.eq(pixel_ends), word.eq(Mux(pixel_ends, 1, word + 1))]
            with m.If(pixel_ends):
                m.d.sync += column.eq(column + 1)
            with m.If(row_ends):
                m.d.sync += [top.eq(last_row), row.eq(row + 1), down.eq(down + now.stride_y)]
        with m.If(move & row_ends):
            m.d.sync += column.eq(0)
        with m.If(move & pass_ends):
            m.d.sync += [row.eq(0), down.eq(0)]
        for last, count, size, moves in (
            (last_column, column, "tile_cols", pixel_ends),
            (last_row, row, "tile_rows", row_ends),
        ):
            with m.If(fresh):
                m.d.sync += last.eq(given[size] == 0)
            with m.Elif(move & moves):
                m.d.sync += last.eq(Mux(last, 0, count + 1) == now[size])
        place = {"top": top, "left": left, "first": top & left, "enters": enters, "across": across, "down": down}
        return place | {"move": move, "row_ends": row_ends}, {"pixel": pixel_ends, "pass": pass_ends}

    def _read(self, m, now, free, place, passes, illegal):
        """Add up addresses and coordinates and compare them; drive the words to read, and ``tag.act_range``."""
        across, x = Signal.like(place["across"]), Signal(self._coordinate(now.kernel_x, 1))
        row_addr, addr = Signal(16), Signal(16)
        y = Signal.like(passes["y"])
        base = Signal(16)
        m.d.comb += [
            across.eq(Mux(place["left"], passes["right"], place["across"])),
            base.eq(Mux(place["top"], passes["start"], row_addr)),
            addr.eq(base + across),
            x.eq(now.x0 + across),
            y.eq(passes["y"] + place["down"]),
        ]
        with m.If(place["move"]):
            m.d.sync += place["across"].eq(across + Mux(self._depthwise, 1, now.stride_x))
            with m.If(place["row_ends"]):
                m.d.sync += row_addr.eq(base + now.row_step)
        outside_x = at_least(x, now.in_width)
        beyond = []
        for number, row in enumerate(self.rows):
            here, row_y = Signal(16, name=f"addr{number}"), Signal.like(y, name=f"y{number}")
            m.d.comb += [here.eq(addr + number * now.ky_step), row_y.eq(y + number * now.dilation_y)]
            skipped = outside_x | at_least(row_y, now.in_height) | (~self._depthwise if number else 0)
            inside = ~at_least(here, self.act_depth)
            with m.If(free):
                m.d.sync += [row.addr.eq(here), row.padding.eq(skipped), row.read.eq(~skipped & inside & ~illegal)]
            beyond.append(~skipped & ~inside)
        m.d.comb += self.tag.act_range.eq(Cat(beyond).any())

    def _interlock(self, m, coming, checked, free, valid, issued):
        """Hold a word back while its entry was issued less than ``distance`` cycles ago.

        The comparisons are made while the word moves into the output register; afterwards only their results grow older.
        """
        overwrite, inside_pass, any_entry = checked
        present = Signal.like(coming, name="present", reset_less=True)
        with m.If(free):
            m.d.sync += present.eq(coming)
        history = [(issued & present[-1], present[:-1])]
        matches = Signal(self.distance - 1)  # bit n: the same entry was issued n + 1 cycles ago
        for age in range(1, self.distance - 1):
            used, place = Signal(name=f"used{age}"), Signal(len(coming) - 1, name=f"place{age}", reset_less=True)
            m.d.sync += [used.eq(history[-1][0]), place.eq(history[-1][1])]
            history.append((used, place))
        m.d.comb += self.hazard.eq(valid & matches.any())
        same = [used & (any_entry | (place == coming[:-1])) for used, place in history]
        with m.If(free):
            m.d.sync += matches.eq(Mux(overwrite | inside_pass, 0, Cat(same)))
        with m.Else():
            m.d.sync += matches.eq(matches << 1)
