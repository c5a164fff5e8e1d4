"""Front of the store unit: takes ``STORE`` instructions, walks their pixels, checks ranges and issues the reads.

::

    instruction ─► [walk: one pixel] ─► [issue: one beat a cycle] ─► accumulator, operand and parameter reads
                        offset, counters      addresses, checked

An instruction is taken when the last pixel of the former has left the first stage: with one beat per pixel, a cycle is lost then; with
more, none. One with an operand waits until everything before it is written, since its operand may be the result of its predecessor, and
spends one more cycle (two with one lane) to read the constants of an addition.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import Error, QueuedInstruction
from celosia.rtl.isa import Combine, ErrorCode, StoreInstruction

__all__ = ["CONTEXTS", "Beat", "Drain", "Tag"]

CONTEXTS = 16
"""Instructions that may be unfinished at the same time; their constants lie in LUT RAM of this depth."""


class Beat(data.Struct):
    """What travels down the pipeline beside the elements.

    With ``fetch`` the parameter entry read is (a part of) the constants of an addition, and there are no elements.
    """

    valid: 1
    fetch: 1
    first: 1  # of the pixel; or the lower part of the constants
    last: 1
    context: range(CONTEXTS)


class Tag(data.Struct):
    """Where a pixel goes; ``end`` marks the instruction's last one."""

    addr: 16
    slot: 4
    end: 1


class Drain(wiring.Component):
    """Issues one beat of ``lanes`` elements per cycle.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i : ``In(stream.Signature(QueuedInstruction))``
    start : ``Out(1)``
        An instruction was taken in the last cycle: ``instruction``, with number ``index`` in the program. It is ``context`` from now on.
    instruction, index, context : ``Out``
    finished : ``In(1)``
        The oldest unfinished instruction is complete.
    beat : ``Out(Beat)``
        The micro-operation issued in this cycle. The accumulator's data and the parameters belong to it.
    acc_bank, acc_addr : ``Out``
        The accumulator entry of the beat; every beat of a pixel reads it.
    number : ``Out``
        Which ``lanes`` elements of the entry the beat takes.
    param_addr : ``Out(14)``
        Parameter entry, **one cycle after** the beat.
    operand_addr, operand_valid, operand_ready
        The read of the operand; accepted together with the pixel's first beat.
    slot : ``Out(4)``
        The column tile of the operand's word.
    tag : ``Out(stream.Signature(Tag))``
        One per pixel, with its first beat; a pixel waits until there is room.
    drained : ``In(1)``
        All pixels issued are written, and a read in the next cycle sees them.
    error : ``Out(Error)``
        After an error nothing more is issued until reset.
    active, stall : ``Out(1)``
        An instruction is unfinished; a beat had to wait.
    """

    def __init__(self, config):
        if not isinstance(config, EngineConfig):
            raise TypeError(f"config must be an EngineConfig, not {config!r}")
        self.config = config
        super().__init__({
            "i": In(stream.Signature(QueuedInstruction)),
            "start": Out(1),
            "instruction": Out(StoreInstruction),
            "index": Out(16),
            "context": Out(range(CONTEXTS)),
            "finished": In(1),
            "beat": Out(Beat),
            "acc_bank": Out(1),
            "acc_addr": Out(10),
            "number": Out(range(config.beats)),
            "param_addr": Out(14),
            "operand_addr": Out(16),
            "operand_valid": Out(1),
            "operand_ready": In(1),
            "slot": Out(4),
            "tag": Out(stream.Signature(Tag)),
            "drained": In(1),
            "error": Out(Error),
            "active": Out(1),
            "stall": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        advance = Signal()  # the walk's pixel moves on to the issue stage
        pixel = self._walk(m, advance)
        self._issue(m, advance, pixel)
        return m

    def _walk(self, m, advance):
        """Build the stage that holds an instruction and steps through its pixels; return the pixel as a dict of values."""
        word = self.instruction
        valid, opening, halted = Signal(), Signal(), Signal()
        acc, params = Signal(11), Signal(15)
        unfinished = Signal(range(CONTEXTS + 1))
        accept, end = Signal(), Signal()
        arriving = data.View(StoreInstruction, self.i.payload.instruction)

        # Pixels count down; that a count is at its last pixel is known from a register when the pixel is.
        moves, last = advance, {}
        for axis, size in (("x", "tile_cols"), ("y", "tile_rows"), ("b", "blocks")):
            count = Signal.like(word[size], name=axis)
            final = last[axis] = Signal(name=f"last_{axis}")
            with m.If(moves):
                m.d.sync += [
                    count.eq(Mux(final, word[size], count - 1)),
                    final.eq(Mux(final, word[size] == 0, count == 1)),
                ]
            with m.If(accept):
                m.d.sync += [count.eq(arriving[size]), final.eq(arriving[size] == 0)]
            moves = moves & final
        m.d.comb += end.eq(last["x"] & last["y"] & last["b"])

        offsets = [
            self._offset(m, name, advance, accept, last, steps)
            for name, steps in (
                ("dest", (word.col_step, word.row_step, word.block_step)),
                ("operand", (Mux(word.operand_still, 0, word.col_step), word.operand_row_step, word.operand_block_step)),
            )
        ]
        with m.If(advance):
            m.d.sync += [acc.eq(acc + 1), opening.eq(0)]
            with m.If(last["x"] & last["y"] & word.advance):
                m.d.sync += params.eq(params + self.config.beats)
            with m.If(end):
                m.d.sync += valid.eq(0)

        m.d.comb += [
            self.i.ready.eq(~valid & (unfinished != CONTEXTS) & ~halted),
            accept.eq(self.i.valid & self.i.ready),
            self.active.eq(unfinished != 0),
        ]
        m.d.sync += [self.start.eq(accept), unfinished.eq(unfinished + accept - self.finished)]
        with m.If(self.error.valid):
            m.d.sync += halted.eq(1)
        with m.If(accept):
            m.d.sync += [
                valid.eq(1),
                word.eq(arriving),
                self.index.eq(self.i.payload.index),
                self.context.eq(self.context + 1),
                acc.eq(arriving.acc),
                params.eq(arriving.params),
                opening.eq(1),
            ]
        values = {"valid": valid, "acc": acc, "params": params, "opening": opening, "end": end, "halted": halted}
        return values | dict(zip(("offset", "operand"), offsets))

    @staticmethod
    def _offset(m, name, advance, accept, last, steps):
        """Return the pixel's distance from the first one: ``steps`` are those of columns, rows and blocks."""
        offset, row, block = (Signal(16, name=f"{name}_{axis}") for axis in ("offset", "row", "block"))
        base, step, following = (Signal(16, name=f"{name}_{part}") for part in ("base", "step", "following"))
        with m.If(~last["x"]):
            m.d.comb += [base.eq(offset), step.eq(steps[0])]
        with m.Elif(~last["y"]):
            m.d.comb += [base.eq(row), step.eq(steps[1])]
        with m.Else():
            m.d.comb += [base.eq(block), step.eq(steps[2])]
        m.d.comb += following.eq(base + step)
        with m.If(advance):
            m.d.sync += offset.eq(following)
            with m.If(last["x"]):
                m.d.sync += row.eq(following)
                with m.If(last["y"]):
                    m.d.sync += block.eq(following)
        with m.If(accept):
            m.d.sync += Cat(offset, row, block).eq(0)
        return offset

    def _check(self, m, pixel, dest, operand):
        """Return the :class:`ErrorCode` of the pixel about to be issued, in the order in which the golden executor looks."""
        config, word = self.config, self.instruction
        constants = max(1, 2 // config.lanes)
        code = Signal(ErrorCode)
        illegal = (word.slot >= config.slots) | (word.use_table & (word.table >= config.tables))
        with m.If(illegal | (word.combine > max(Combine)) | (word.raw > 4)):
            m.d.comb += code.eq(ErrorCode.ILLEGAL_FIELD)
        with m.Elif(pixel["acc"] >= config.acc_depth):
            m.d.comb += code.eq(ErrorCode.ACC_RANGE)
        with m.Elif(
            (pixel["params"] > config.param_depth - config.beats)
            | ((word.combine == Combine.ADD) & (word.combine_params > config.param_depth - constants))
        ):
            m.d.comb += code.eq(ErrorCode.PARAM_RANGE)
        with m.Elif((dest >= config.act_depth) | ((word.combine != Combine.NONE) & (operand >= config.act_depth))):
            m.d.comb += code.eq(ErrorCode.ACT_RANGE)
        return code

    def _issue(self, m, advance, pixel):
        """Build the stage that issues the beats of one pixel at checked addresses."""
        config, word = self.config, self.instruction
        constants = max(1, 2 // config.lanes)
        dest, operand = Signal(16), Signal(16)
        m.d.comb += [dest.eq(word.dest + pixel["offset"]), operand.eq(word.operand + pixel["operand"])]
        code = self._check(m, pixel, dest, operand)

        valid, paired, bad = Signal(), Signal(), Signal()
        params, constants_at, context = Signal(14), Signal(14), Signal(range(CONTEXTS))
        fetching, part = Signal(), Signal()
        error = Signal(Error)
        number = self.number
        last = Signal()
        go, fetch = Signal(), Signal()
        m.d.comb += [
            last.eq(number == config.beats - 1),
            fetch.eq(valid & fetching & ~bad & self.drained),
            self.operand_valid.eq(valid & ~fetching & ~bad & paired & (number == 0) & self.tag.ready),
            go.eq(valid & ~fetching & ~bad & ((number != 0) | (self.tag.ready & (~paired | self.operand_ready)))),
            self.tag.valid.eq(go & (number == 0)),
            advance.eq(pixel["valid"] & (~valid | (go & last)) & ~pixel["halted"]),
            self.beat.valid.eq(go | fetch),
            self.beat.fetch.eq(fetch),
            self.beat.first.eq(Mux(fetch, ~part, number == 0)),
            self.beat.last.eq(last & go),
            self.beat.context.eq(context),
            self.stall.eq(valid & ~bad & ~go & ~fetch),
            self.error.valid.eq(valid & bad & ~pixel["halted"]),
            self.error.code.eq(error.code),
            self.error.index.eq(error.index),
        ]
        m.d.sync += self.param_addr.eq(Mux(fetch, constants_at + part, params + number))
        with m.If(fetch):
            m.d.sync += part.eq(part + 1)
            with m.If(part == constants - 1):
                m.d.sync += [fetching.eq(0), part.eq(0)]
        with m.If(go):
            m.d.sync += number.eq(Mux(last, 0, number + 1))
            with m.If(last):
                m.d.sync += valid.eq(0)
        with m.If(advance):
            m.d.sync += [
                valid.eq(1),
                paired.eq(word.combine != Combine.NONE),
                bad.eq(code != ErrorCode.NONE),
                error.code.eq(code),
                error.index.eq(self.index),
                fetching.eq(pixel["opening"] & (word.combine != Combine.NONE)),
                context.eq(self.context),
                params.eq(pixel["params"]),
                constants_at.eq(word.combine_params),
                self.acc_bank.eq(word.bank),
                self.acc_addr.eq(pixel["acc"]),
                self.operand_addr.eq(operand),
                self.slot.eq(word.slot),
                self.tag.payload.addr.eq(dest),
                self.tag.payload.slot.eq(word.slot),
                self.tag.payload.end.eq(pixel["end"]),
            ]
        return m
