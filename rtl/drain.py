"""Front of the store unit: takes ``STORE`` instructions, walks their pixels, checks ranges and issues the reads.

::

    instruction ─► [walk: one pixel] ─► [issue: one beat a cycle] ─► accumulator, operand and parameter reads
                        offset, counters      addresses, checked

An instruction is taken when the last pixel of the former has left the first stage: with one beat per pixel, a cycle is lost then; with
more, none. One with an addition waits until everything before it is written, since its operand may be the result of its predecessor, and
spends one more cycle (two with one lane) to read its constants.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import Error, QueuedInstruction
from celosia.rtl.isa import ErrorCode, StoreInstruction

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
        The read of the other addend; accepted together with the pixel's first beat.
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
        offset, row, block = Signal(16), Signal(16), Signal(16)
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

        base, step, following = Signal(16), Signal(16), Signal(16)
        with m.If(~last["x"]):
            m.d.comb += [base.eq(offset), step.eq(word.col_step)]
        with m.Elif(~last["y"]):
            m.d.comb += [base.eq(row), step.eq(word.row_step)]
        with m.Else():
            m.d.comb += [base.eq(block), step.eq(word.block_step)]
        m.d.comb += following.eq(base + step)
        with m.If(advance):
            m.d.sync += [offset.eq(following), acc.eq(acc + 1), opening.eq(0)]
            with m.If(last["x"]):
                m.d.sync += row.eq(following)
                with m.If(last["y"]):
                    m.d.sync += block.eq(following)
                    with m.If(word.advance):
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
                Cat(offset, row, block).eq(0),
                acc.eq(arriving.acc),
                params.eq(arriving.params),
                opening.eq(1),
            ]
        return {"valid": valid, "offset": offset, "acc": acc, "params": params, "opening": opening, "end": end, "halted": halted}

    def _check(self, m, pixel, dest, operand):
        """Return the :class:`ErrorCode` of the pixel about to be issued, in the order in which the golden executor looks."""
        config, word = self.config, self.instruction
        constants = max(1, 2 // config.lanes)
        code = Signal(ErrorCode)
        with m.If((word.slot >= config.slots) | (word.use_table & (word.table >= config.tables))):
            m.d.comb += code.eq(ErrorCode.ILLEGAL_FIELD)
        with m.Elif(pixel["acc"] >= config.acc_depth):
            m.d.comb += code.eq(ErrorCode.ACC_RANGE)
        with m.Elif(
            (pixel["params"] > config.param_depth - config.beats) | (word.add & (word.add_params > config.param_depth - constants))
        ):
            m.d.comb += code.eq(ErrorCode.PARAM_RANGE)
        with m.Elif((dest >= config.act_depth) | (word.add & (operand >= config.act_depth))):
            m.d.comb += code.eq(ErrorCode.ACT_RANGE)
        return code

    def _issue(self, m, advance, pixel):
        """Build the stage that issues the beats of one pixel at checked addresses."""
        config, word = self.config, self.instruction
        constants = max(1, 2 // config.lanes)
        dest, operand = Signal(16), Signal(16)
        m.d.comb += [dest.eq(word.dest + pixel["offset"]), operand.eq(word.operand + pixel["offset"])]
        code = self._check(m, pixel, dest, operand)

        valid, add, bad = Signal(), Signal(), Signal()
        params, add_params, context = Signal(14), Signal(14), Signal(range(CONTEXTS))
        fetching, part = Signal(), Signal()
        error = Signal(Error)
        number = self.number
        last = Signal()
        go, fetch = Signal(), Signal()
        m.d.comb += [
            last.eq(number == config.beats - 1),
            fetch.eq(valid & fetching & ~bad & self.drained),
            self.operand_valid.eq(valid & ~fetching & ~bad & add & (number == 0) & self.tag.ready),
            go.eq(valid & ~fetching & ~bad & ((number != 0) | (self.tag.ready & (~add | self.operand_ready)))),
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
        m.d.sync += self.param_addr.eq(Mux(fetch, add_params + part, params + number))
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
                add.eq(word.add),
                bad.eq(code != ErrorCode.NONE),
                error.code.eq(code),
                error.index.eq(self.index),
                fetching.eq(pixel["opening"] & word.add),
                context.eq(self.context),
                params.eq(pixel["params"]),
                add_params.eq(word.add_params),
                self.acc_bank.eq(word.bank),
                self.acc_addr.eq(pixel["acc"]),
                self.operand_addr.eq(operand),
                self.slot.eq(word.slot),
                self.tag.payload.addr.eq(dest),
                self.tag.payload.slot.eq(word.slot),
                self.tag.payload.end.eq(pixel["end"]),
            ]
        return m
