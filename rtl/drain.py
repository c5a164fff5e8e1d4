"""Front of the store unit: takes ``STORE`` instructions, walks their pixels, issues the reads and checks their ranges.

::

    instruction ─► [walk: one pixel, one beat a cycle] ─► accumulator, operand and parameter reads
                        addresses, counters    └─► [check, one cycle later] ─► error

An instruction is taken with the last beat of the former: with one beat per pixel a cycle later. Its constants travel down the pipeline
with its first beat, out of the drain's copy of it: if they differ from those of the former, the next instruction waits until they
have reached the last stage. One with an operand waits until everything before it is written, since its operand may be the result of
its predecessor, and then spends one more cycle (two with one lane) to read the constants of an addition.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import Error, QueuedInstruction
from celosia.rtl.isa import Combine, ErrorCode, Signals, StoreInstruction

__all__ = ["Beat", "Drain", "Tag"]


class Beat(data.Struct):
    """What travels down the pipeline beside the elements."""

    valid: 1  # there are elements
    change: 1  # the first beat under new constants
    fetch: 1  # no elements: the parameter entry read is (a part of) the constants of an addition
    upper: 1  # … the upper part


class Tag(data.Struct):
    """Where a pixel goes; ``end`` marks the instruction's last one, whose completion sends tokens to the units of ``signal``."""

    addr: 16
    end: 1
    signal: Signals
    slot: 4


class Drain(wiring.Component):
    """Issues one beat of ``lanes`` elements per cycle.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i : ``In(stream.Signature(QueuedInstruction))``
    instruction, index : ``Out``
        The instruction taken last, and its number in the program.
    same, settled : ``In(1)``
        Its constants are those of its predecessor (looked at with its first beat); the newest constants have reached every stage.
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
    tag, tag_valid : ``Out``
        One per pixel, with its first beat.
    drained : ``In(1)``
        All pixels issued are written, and a read in the next cycle sees them.
    error : ``Out(Error)``
        One cycle after a pixel's first beat. Nothing more is issued from then on, until reset.
    halted : ``Out(1)``
        The beats issued in this cycle and in the one before must not be written.
    active, stall : ``Out(1)``
        There is an instruction to walk; a beat had to wait.
    """

    def __init__(self, config):
        if not isinstance(config, EngineConfig):
            raise TypeError(f"config must be an EngineConfig, not {config!r}")
        self.config = config
        super().__init__({
            "i": In(stream.Signature(QueuedInstruction)),
            "instruction": Out(StoreInstruction),
            "index": Out(16),
            "same": In(1),
            "settled": In(1),
            "beat": Out(Beat),
            "acc_bank": Out(1),
            "acc_addr": Out(10),
            "number": Out(range(config.beats)),
            "param_addr": Out(14),
            "operand_addr": Out(16),
            "operand_valid": Out(1),
            "operand_ready": In(1),
            "tag": Out(Tag),
            "tag_valid": Out(1),
            "drained": In(1),
            "error": Out(Error),
            "halted": Out(1),
            "active": Out(1),
            "stall": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, word = self.config, self.instruction
        arriving = data.View(StoreInstruction, self.i.payload.instruction)
        valid, opening, halted = Signal(), Signal(), Signal()
        accept, advance = Signal(), Signal()
        number, acc = self.number, Signal(11)
        last_beat, first_beat = number == config.beats - 1, number == 0

        last, block = self._counters(m, arriving, accept, advance)
        steps = word.col_step, word.row_step, word.block_step
        dest = self._address(m, "dest", arriving.dest, accept, advance, last, steps)
        end = last["x"] & last["y"] & last["b"]
        paired, fetching, asks, part, operand = Const(0), Const(0), Const(0), Const(0), Const(0, 16)
        if config.combine:
            steps = Mux(word.operand_still, 0, word.col_step), word.operand_row_step, word.operand_block_step
            operand = self._address(m, "operand", arriving.operand, accept, advance, last, steps)
            paired, fetching, asks, part = Signal(), Signal(), Signal(), Signal()

        # Only a beat that `asks` for an operand waits, a pixel's first one. What it waits for goes through the memory and back: so whether
        # it asks is known from a register.
        go, fetch = Signal(), Signal()
        ready = ~valid if config.beats == 1 else ~valid | (end & last_beat)
        m.d.comb += [
            fetch.eq(valid & fetching & self.drained),
            self.operand_valid.eq(asks),
            go.eq(valid & ~fetching & (~asks | self.operand_ready)),
            advance.eq(go & last_beat),
            self.i.ready.eq(ready & self.settled & ~halted),
            accept.eq(self.i.valid & self.i.ready),
            self.acc_bank.eq(word.bank),
            self.acc_addr.eq(acc),
            self.operand_addr.eq(operand),
            self.beat.valid.eq(go),
            self.beat.change.eq(go & opening & ~self.same),
            self.beat.fetch.eq(fetch),
            self.beat.upper.eq(part),
            self.tag_valid.eq(go & first_beat),
            self.tag.addr.eq(dest),
            self.tag.slot.eq(word.slot),
            self.tag.end.eq(end),
            self.tag.signal.eq(word.header.signal),
            self.active.eq(valid),
            self.stall.eq(valid & ~go & ~fetch),
        ]
        with m.If(go):
            m.d.sync += [opening.eq(0), number.eq(Mux(last_beat, 0, number + 1))]
        with m.If(advance):
            m.d.sync += acc.eq(acc + 1)
            with m.If(end):
                m.d.sync += valid.eq(0)
        if config.combine:
            with m.If(go):
                m.d.sync += asks.eq(paired & last_beat & ~end)
            with m.If(fetch):
                again = (config.lanes == 1) & ~part
                m.d.sync += [part.eq(~part), fetching.eq(again), asks.eq(~again)]
        with m.If(accept):
            m.d.sync += [valid.eq(1), opening.eq(1), word.eq(arriving), self.index.eq(self.i.payload.index), acc.eq(arriving.acc)]
            if config.combine:
                needs = arriving.combine != Combine.NONE
                m.d.sync += [paired.eq(needs), fetching.eq(needs), asks.eq(0), part.eq(0)]

        # An entry is taken by every block unless they advance: their number and the beat's are the digits of the distance.
        param_addr = Signal(15)
        distance = Cat(number, block & word.advance.replicate(len(block)))
        base = word.params
        if config.combine:
            base, distance = Mux(fetching, word.combine_params, base), Mux(fetching, part, distance)
        m.d.sync += param_addr.eq(base + distance)
        m.d.comb += self.param_addr.eq(param_addr)
        self._check(m, go & first_beat, halted, acc, param_addr, dest, operand)
        return m

    def _counters(self, m, arriving, accept, advance):
        """Build the counters of columns, rows and blocks; return whether each is at its last value, and the block's number."""
        word, moves, last = self.instruction, advance, {}
        for axis, size in (("x", "tile_cols"), ("y", "tile_rows"), ("b", "blocks")):
            count = Signal.like(word[size], name=axis)
            final = last[axis] = Signal(name=f"last_{axis}")
            following = (count + 1)[: len(count)]
            with m.If(moves):
                m.d.sync += [count.eq(following), final.eq(following == word[size])]
                with m.If(final):
                    m.d.sync += [count.eq(0), final.eq(word[size] == 0)]
            with m.If(accept):
                m.d.sync += [count.eq(0), final.eq(arriving[size] == 0)]
            moves = moves & final
        return last, count

    @staticmethod
    def _address(m, name, start, accept, advance, last, steps):
        """Return the address of the pixel: ``steps`` are those of columns, rows and blocks."""
        address, row, block = (Signal(16, name=f"{name}{part}") for part in ("", "_row", "_block"))
        base, step, following = (Signal(16, name=f"{name}_{part}") for part in ("base", "step", "following"))
        with m.If(~last["x"]):
            m.d.comb += [base.eq(address), step.eq(steps[0])]
        with m.Elif(~last["y"]):
            m.d.comb += [base.eq(row), step.eq(steps[1])]
        with m.Else():
            m.d.comb += [base.eq(block), step.eq(steps[2])]
        m.d.comb += following.eq(Mux(accept, start, base + step))
        with m.If(advance | accept):
            m.d.sync += address.eq(following)
        with m.If((advance & last["x"]) | accept):
            m.d.sync += row.eq(following)
        with m.If((advance & last["x"] & last["y"]) | accept):
            m.d.sync += block.eq(following)
        return address

    def _check(self, m, first, halted, acc, param_addr, dest, operand):
        """Look at a pixel's addresses in the cycle after its first beat; codes in the order in which the golden executor looks."""
        config, word = self.config, self.instruction
        constants = max(1, 2 // config.lanes)
        checked, fields, acc_range, constant_range, act_range = (Signal(name=name) for name in (
            "checked", "bad_fields", "bad_acc", "bad_constants", "bad_act",
        ))  # fmt: skip
        highest = max(Combine) if config.combine else Combine.NONE
        illegal = (word.slot >= config.slots) | (word.combine > highest) | (word.raw > 4)
        beyond = operand >= config.act_depth
        m.d.sync += [
            checked.eq(first & ~self.halted),
            fields.eq(illegal | (word.use_table & (word.table >= config.tables))),
            acc_range.eq(acc >= config.acc_depth),
            constant_range.eq((word.combine == Combine.ADD) & (word.combine_params > config.param_depth - constants)),
            act_range.eq((dest >= config.act_depth) | ((word.combine != Combine.NONE) & beyond)),
        ]
        param_range = constant_range | (param_addr > config.param_depth - config.beats)
        index = Signal(16)
        with m.If(first):
            m.d.sync += index.eq(self.index)
        with m.If(fields):
            m.d.comb += self.error.code.eq(ErrorCode.ILLEGAL_FIELD)
        with m.Elif(acc_range):
            m.d.comb += self.error.code.eq(ErrorCode.ACC_RANGE)
        with m.Elif(param_range):
            m.d.comb += self.error.code.eq(ErrorCode.PARAM_RANGE)
        with m.Else():
            m.d.comb += self.error.code.eq(ErrorCode.ACT_RANGE)
        m.d.comb += [
            self.error.index.eq(index),
            self.error.valid.eq(checked & (fields | acc_range | param_range | act_range)),
            self.halted.eq(self.error.valid | halted),
        ]
        with m.If(self.error.valid):
            m.d.sync += halted.eq(1)
