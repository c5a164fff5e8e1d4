"""Store unit that takes four cycles for an element: what :class:`celosia.rtl.store.Store` does without combining, in a fraction of its area.

::

    accumulators ─► [ walk ] ─► requantiser ─► table ─► collect ─► activation memory
    parameters  ──────┘                                                │
                                              [ address ] ◄─ pixel written

A phase counts the four cycles of an element; everything moves with it. The instruction stays with the sequencer, and is taken from it when
its last word is written, so that there is one at a time and none of it is kept here. The address of a pixel is needed only when it is
written; it is computed afterwards, by one adder in several cycles.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import Out

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import (
    ACC_READ_LATENCY,
    TABLE_READ_LATENCY,
    AccReadSignature,
    ActReadSignature,
    ActWrite,
    ParamWordReadSignature,
    TableReadSignature,
    UnitSignature,
)
from celosia.rtl.isa import Combine, ErrorCode, StoreInstruction
from celosia.rtl.limits import at_least
from celosia.rtl.serial_requantizer import PERIOD, SerialRequantizer

__all__ = ["SerialStore"]

_STAGES = 3
"""Elements under way at a time, apart from the one that is read."""

assert ACC_READ_LATENCY < PERIOD and 1 + TABLE_READ_LATENCY < PERIOD


class SerialStore(wiring.Component):
    """Runs ``STORE`` instructions as :class:`celosia.rtl.isa.StoreInstruction` defines them, with ``combine`` = ``NONE``.

    Parameters
    ----------
    config : EngineConfig
        With ``lane_cycles`` = 4.

    Members
    -------
    unit : ``Out(UnitSignature)``
        ``unit.i`` must stay as it is until it is taken.
    acc : ``Out(AccReadSignature)``
    params : ``Out(ParamWordReadSignature)``
    tables : ``Out(TableReadSignature)``
    operand : ``Out(ActReadSignature)``
        Not used.
    write : ``Out(stream.Signature(ActWrite))``
        One word per pixel, in order. May stall.
    """

    def __init__(self, config):
        if not isinstance(config, EngineConfig):
            raise TypeError(f"config must be an EngineConfig, not {config!r}")
        if config.lane_cycles != PERIOD:
            raise ValueError(f"config.lane_cycles must be {PERIOD}, not {config.lane_cycles}")
        self.config = config
        super().__init__({
            "unit": Out(UnitSignature()),
            "acc": Out(AccReadSignature(cols=config.cols)),
            "params": Out(ParamWordReadSignature()),
            "tables": Out(TableReadSignature(lanes=config.lanes)),
            "operand": Out(ActReadSignature(rows=config.rows)),
            "write": Out(stream.Signature(ActWrite(rows=config.rows))),
        })

    def elaborate(self, platform):
        m = Module()
        config, unit = self.config, self.unit
        word = data.View(StoreInstruction, unit.i.payload.instruction)
        m.submodules.requantizer = requantize = SerialRequantizer()
        phase, run, last_phase = Signal(2), Signal(), Signal()
        busy, walking, halted = Signal(), Signal(), Signal()
        stages, gathered, pending = Signal(_STAGES), Signal(range(config.cols)), Signal()
        start, step, wrong = Signal(), Signal(), Signal()
        m.d.comb += [
            # Everything waits in phase 2: the bias that is read then is used as it comes, and so is the scale after it.
            run.eq((phase != 2) | ~((walking & ~self.params.ready) | (pending & ~self.write.ready))),
            self.params.valid.eq(walking & phase[1]),
            self.params.addr[0].eq(phase[0]),
            last_phase.eq(run & (phase == PERIOD - 1)),
            start.eq(last_phase & unit.i.valid & ~busy & ~halted & ~unit.done.valid),
            step.eq(last_phase & walking),
        ]
        with m.If(run):
            m.d.sync += phase.eq(phase + 1)
        with m.If(start):
            m.d.sync += [busy.eq(1), walking.eq(1)]

        final, code = self._walk(m, word, start, step, walking)
        level = Signal(2)
        with m.If(final["pixel"]):
            m.d.sync += level.eq(Cat(final["x"], final["x"] & final["y"]))
        with m.If(final["all"]):
            m.d.sync += walking.eq(0)
        with m.If(last_phase):
            m.d.sync += stages.eq(Cat(walking & ~wrong, stages))

        looked_up = Mux(word.use_table, self.tables.data[0], requantize.result)
        collected = Signal(8 * config.cols)
        m.d.comb += [
            requantize.phase.eq(phase),
            requantize.run.eq(run),
            requantize.param.eq(self.params.data),
            requantize.raw.eq(word.raw),
            requantize.zero_point.eq(word.zero_point),
            requantize.low.eq(word.low),
            requantize.high.eq(word.high),
            self.tables.addr[0].eq(Cat(requantize.result.as_unsigned(), word.table)),
        ]
        with m.If(last_phase & stages[-1]):
            m.d.sync += [collected.eq(Cat(collected[8:], looked_up[:8])), gathered.eq(gathered + 1)]
            with m.If(gathered == config.cols - 1):
                m.d.sync += pending.eq(1)

        # A pixel's address is looked at when it is written; nothing is written after an error.
        address, settled = self._address(m, word, start, self.write.valid & self.write.ready, level)
        inside, taken = ~at_least(address, config.act_depth), Signal()
        with m.If(taken | wrong):
            m.d.sync += pending.eq(0)
        m.d.comb += [
            taken.eq(self.write.valid & self.write.ready),
            self.write.valid.eq(pending & inside & ~halted),
            self.write.payload.addr.eq(address),
            self.write.payload.data.as_value().eq(collected.replicate(config.slots)),
            self.write.payload.mask.eq(Cat((word.slot == slot).replicate(config.cols) for slot in range(config.slots))),
        ]
        beyond = pending & ~inside
        with m.If(code != ErrorCode.NONE):
            m.d.comb += unit.error.code.eq(code)
        with m.Else():
            m.d.comb += unit.error.code.eq(ErrorCode.ACT_RANGE)
        m.d.comb += wrong.eq(((walking & (phase == 0) & (code != ErrorCode.NONE)) | beyond) & ~halted)
        with m.If(wrong):
            m.d.sync += halted.eq(1)

        complete = busy & ~(walking | pending | halted | wrong) & ~stages.any() & settled
        m.d.comb += [
            unit.i.ready.eq(complete),
            unit.error.valid.eq(wrong),
            unit.error.index.eq(unit.i.payload.index),
            unit.idle.eq(~busy & ~unit.done.valid),
            unit.trace.busy.eq(busy),
            unit.trace.stall.eq(busy & ~run),
            unit.trace.index.eq(unit.i.payload.index),
        ]
        m.d.sync += [unit.done.valid.eq(complete), unit.done.signal.eq(word.header.signal)]
        with m.If(complete):
            m.d.sync += busy.eq(0)
        m.d.comb += requantize.acc.eq(self.acc.data.as_value().word_select(self._number, 32).as_signed())
        return m

    def _walk(self, m, word, start, step, walking):
        """Build the counters and the reads; return which of them are at their last value, and the error of the element that is read."""
        config = self.config
        self._number = number = Signal(range(config.cols))
        acc = Signal(11)
        moves = step & (number == config.cols - 1)
        final = {"pixel": moves}
        with m.If(step):
            m.d.sync += number.eq(number + 1)
        with m.If(start):
            m.d.sync += acc.eq(word.acc)
        with m.Elif(moves):
            m.d.sync += acc.eq(acc + 1)
        for axis, size in (("x", "tile_cols"), ("y", "tile_rows"), ("b", "blocks")):
            count = Signal.like(word[size], name=axis)
            final[axis] = Signal(name=f"last_{axis}")
            m.d.comb += final[axis].eq(count == word[size])
            with m.If(moves):
                m.d.sync += count.eq(count + 1)
            moves = moves & final[axis]
            with m.If(moves):
                m.d.sync += count.eq(0)
        final["all"] = moves
        param_addr = Signal(15)
        m.d.comb += [
            param_addr.eq(word.params + Cat(number, count & word.advance.replicate(len(count)))),
            self.params.addr[1:].eq(param_addr),
            self.acc.en.eq(walking),
            self.acc.bank.eq(word.bank),
            self.acc.addr.eq(acc),
        ]

        code = Signal(ErrorCode)
        illegal = (word.slot >= config.slots) | (word.use_table & (word.table >= config.tables)) | (word.raw > 4)
        with m.If(illegal | (word.combine != Combine.NONE)):
            m.d.comb += code.eq(ErrorCode.ILLEGAL_FIELD)
        with m.Elif(at_least(acc, config.acc_depth)):
            m.d.comb += code.eq(ErrorCode.ACC_RANGE)
        with m.Elif(at_least(param_addr, config.param_depth)):
            m.d.comb += code.eq(ErrorCode.PARAM_RANGE)
        return final, code

    def _address(self, m, word, start, written, level):
        """Return the address of the next pixel to be written, and whether it is up to date; ``level`` is that of the one written.

        The addresses of the pixel and of the beginnings of its row and block are a stack. The next pixel's is that at the depth
        of ``level`` (two bits: at the end of a row, at the end of a block) plus a step, and takes the place of all above.
        """
        address, row, block = (Signal(16, name=name) for name in ("address", "row", "block"))
        rows, blocks, first = Signal(), Signal(), Signal()
        place = Signal(3)  # 0: up to date
        stride = Signal(16)
        with m.If(blocks):
            m.d.comb += stride.eq(word.block_step)
        with m.Elif(rows):
            m.d.comb += stride.eq(word.row_step)
        with m.Else():
            m.d.comb += stride.eq(word.col_step)
        with m.If(start | written):
            m.d.sync += [place.eq(1), rows.eq(start | level[0]), blocks.eq(start | level[1]), first.eq(start)]
        with m.Elif(place != 0):
            m.d.sync += place.eq(Mux(place == 5, 0, place + 1))
        pop = ((place == 1) & blocks) | ((place == 2) & rows)
        push = ((place == 4) & rows) | ((place == 5) & blocks)
        with m.If(pop):
            m.d.sync += [address.eq(row), row.eq(block)]
        with m.If((place == 3) & ~first):
            m.d.sync += address.eq(address + stride)
        with m.If(push):
            m.d.sync += [row.eq(address), block.eq(row)]
        with m.If(start):
            m.d.sync += block.eq(word.dest)
        return address, place == 0
