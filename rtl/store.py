"""Store unit: drains accumulators through requantiser, table and a second operand into the activation memory.

::

    accumulators ─► [ drain ] ─► requantiser ─► table ─► adder ─► collect beats ─► results ─► activation memory
    parameters  ──────┘  │ operand reads ─► operands ─────┘                           tags ─┘
                         └───────────────────────────── tags ─────────────────────────┘

The pipeline from the drain to the results never stops: a pixel is issued only if the results have room for it. One accumulator entry
takes ``beats`` cycles; the first write follows :data:`LATENCY` cycles after its reads. An operand is multiplied in front of the
requantiser and added, or compared, behind the table. Without an addition all pass the adder with the constants of the identity. What is constant during an instruction waits in LUT RAM until its elements come by.
"""

from amaranth.hdl import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import Out
from amaranth.utils import ceil_log2

from celosia.rtl import add, requantizer
from celosia.rtl.config import EngineConfig
from celosia.rtl.drain import CONTEXTS, Beat, Drain, Tag
from celosia.rtl.interfaces import (
    ACC_READ_LATENCY,
    ACT_READ_LATENCY,
    TABLE_READ_LATENCY,
    AccReadSignature,
    ActReadSignature,
    ActWrite,
    ParamReadSignature,
    TableReadSignature,
    UnitSignature,
)
from celosia.rtl.isa import ADD_FRACTION, AddParams, Combine, Signals
from celosia.rtl.multiplier import FORMS
from celosia.rtl.queue import Queue

__all__ = ["LATENCY", "Store"]

_OPERANDS = ACC_READ_LATENCY + 1
"""Cycles from a beat's issue to its elements and parameters at the requantiser."""

_REQUANTISED = _OPERANDS + requantizer.LATENCY
_ADDENDS = _REQUANTISED + TABLE_READ_LATENCY
_SUM = _ADDENDS + add.LATENCY

LATENCY = _SUM + 1
"""Cycles from the issue of a pixel's last beat to its write."""


class _Bounds(data.Struct):
    low: signed(8)
    high: signed(8)


class _Front(data.Struct):
    """What the requantiser takes with the sum."""

    raw: 3
    multiply: 1
    operand_zero: signed(8)


class _Requantise(data.Struct):
    zero_point: signed(8)
    bounds: _Bounds
    late: 1


class _Lookup(data.Struct):
    use: 1
    table: 4


class _Choice(data.Struct):
    add: 1
    minimum: 1
    maximum: 1


class _Factors(data.Struct):
    k_result: signed(28)
    k_operand: signed(28)


class _Finish(data.Struct):
    signal: Signals
    index: 16


class Store(wiring.Component):
    """Runs ``STORE`` instructions as :class:`celosia.rtl.isa.StoreInstruction` defines them.

    Parameters
    ----------
    config : EngineConfig
    multiplier : str
        One of :data:`celosia.rtl.multiplier.FORMS`; nine multipliers per lane.

    Members
    -------
    unit : ``Out(UnitSignature)``
    acc : ``Out(AccReadSignature)``
    params : ``Out(ParamReadSignature)``
    tables : ``Out(TableReadSignature)``
    operand : ``Out(ActReadSignature)``
        May stall.
    write : ``Out(stream.Signature(ActWrite))``
        One word per pixel, in order.
    """

    def __init__(self, config, multiplier="portable"):
        if not isinstance(config, EngineConfig):
            raise TypeError(f"config must be an EngineConfig, not {config!r}")
        if multiplier not in FORMS:
            raise ValueError(f"multiplier must be one of {', '.join(FORMS)}, not {multiplier!r}")
        self.config = config
        self.multiplier = multiplier
        super().__init__({
            "unit": Out(UnitSignature()),
            "acc": Out(AccReadSignature(cols=config.cols)),
            "params": Out(ParamReadSignature(lanes=config.lanes)),
            "tables": Out(TableReadSignature(lanes=config.lanes)),
            "operand": Out(ActReadSignature(rows=config.rows)),
            "write": Out(stream.Signature(ActWrite(rows=config.rows))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes, cols = config.lanes, config.cols
        m.submodules.drain = drain = Drain(config)
        # A pixel holds its place from the issue of its first beat until the cycle after its write.
        places = 1 << ceil_log2(-(-LATENCY // config.beats) + 1)
        m.submodules.tags = tags = Queue(shape=Tag, depth=places)
        m.submodules.operands = operands = Queue(shape=8 * cols, depth=places)
        m.submodules.results = results = Queue(shape=8 * cols, depth=places)
        m.submodules.requantizer = requantize = requantizer.Requantizer(lanes=lanes, multiplier_form=self.multiplier)
        m.submodules.adder = adder = add.Adder(lanes=lanes, multiplier_form=self.multiplier)

        beats = [drain.beat]  # beats[t] was issued t cycles ago
        for age in range(1, _SUM + 1):
            beat = Signal(Beat, name=f"beat_{age}")
            m.d.sync += beat.eq(beats[-1])
            beats.append(beat)
        elements = [beat.valid & ~beat.fetch for beat in beats]
        instruction = drain.instruction

        def constant(name, shape, value, *, age, stored=None):
            """Return, registered, what was stored under the context of the beat that is ``age`` cycles old.

            Stored when an instruction starts, or under a beat's context while ``stored`` (a pair: enable, context).
            """
            enable, context = stored or (drain.start, drain.context)
            m.submodules[name] = storage = memory.Memory(shape=shape, depth=CONTEXTS, init=[], attrs={"ram_style": "distributed"})
            write, read = storage.write_port(), storage.read_port(domain="comb")
            held = Signal(shape, name=f"{name}_held")
            m.d.comb += [
                write.en.eq(enable),
                write.addr.eq(context),
                Value.cast(write.data).eq(value),
                read.addr.eq(beats[age - 1].context),
            ]
            m.d.sync += held.eq(read.data)
            return held, read.data

        # Reads: the accumulators answer when the beat is two cycles old, the parameters are registered then.
        assert ACT_READ_LATENCY == ACC_READ_LATENCY
        number = self._delayed(m, drain.number, ACC_READ_LATENCY)
        slot = self._delayed(m, drain.slot, ACT_READ_LATENCY)
        params = Signal(64 * lanes)
        params_before = Signal(64 * lanes)
        word = Signal(8 * cols)
        m.d.comb += [
            self.acc.en.eq(elements[0]),
            self.acc.bank.eq(drain.acc_bank),
            self.acc.addr.eq(drain.acc_addr),
            self.params.addr.eq(drain.param_addr),
            self.operand.addr.eq(drain.operand_addr),
            self.operand.valid.eq(drain.operand_valid),
            drain.operand_ready.eq(self.operand.ready),
            requantize.params.as_value().eq(params),
            operands.i.payload.eq(word),
            operands.i.valid.eq(elements[_OPERANDS] & beats[_OPERANDS].first),
        ]
        m.d.sync += [
            requantize.acc.as_value().eq(self.acc.data.as_value().word_select(number, 32 * lanes)),
            params.eq(self.params.data),
            params_before.eq(params),
        ]
        with m.If(elements[ACT_READ_LATENCY] & beats[ACT_READ_LATENCY].first):  # the pixel's other beats multiply by it as well
            m.d.sync += word.eq(self.operand.data.as_value().word_select(slot, 8 * cols))

        # Multiply, requantise, look up.
        multiplies = instruction.combine == Combine.MUL
        front, _ = constant("front", _Front, Cat(instruction.raw, multiplies, instruction.combine_low), age=_OPERANDS)
        control, _ = constant(
            "requantise", _Requantise, Cat(instruction.zero_point, instruction.low, instruction.high, multiplies),
            age=_OPERANDS + requantizer.CONTROL_LATENCY,
        )  # fmt: skip
        lookup, _ = constant("lookup", _Lookup, Cat(instruction.use_table, instruction.table), age=_REQUANTISED)
        m.d.comb += [
            requantize.raw.eq(front.raw),
            requantize.multiply.eq(front.multiply),
            requantize.operand.as_value().eq(word.word_select(self._delayed(m, number, 1), 8 * lanes)),
            requantize.operand_zero.eq(front.operand_zero),
            requantize.zero_point.eq(control.zero_point),
            requantize.low.eq(control.bounds.low),
            requantize.high.eq(control.bounds.high),
            requantize.late.eq(control.late),
        ]
        plain = self._delayed(m, requantize.result.as_value(), TABLE_READ_LATENCY)
        use_table = self._delayed(m, lookup.use, TABLE_READ_LATENCY)
        for lane in range(lanes):
            m.d.comb += self.tables.addr[lane].eq(Cat(requantize.result[lane].as_unsigned(), lookup.table))
        m.d.comb += adder.result.as_value().eq(Mux(use_table, self.tables.data.as_value(), plain))

        # Add or compare. Constants are fetched from the parameter memory, in two halves where an entry has only one.
        fetched = data.View(AddParams, params[:128] if lanes > 1 else Cat(params_before, params))
        kept = beats[_OPERANDS].valid & beats[_OPERANDS].fetch, beats[_OPERANDS].context
        choices = [instruction.combine == choice for choice in (Combine.ADD, Combine.MIN, Combine.MAX)]
        _, choice = constant("choice", _Choice, Cat(choices), age=_ADDENDS)
        _, factors = constant("factors", _Factors, Cat(fetched.k_result, fetched.k_operand), age=_ADDENDS, stored=kept)
        late = _ADDENDS + add.CONTROL_LATENCY
        _, choice_late = constant("choice_late", _Choice, Cat(choices), age=late)
        _, k_zero = constant("k_zero", signed(40), fetched.k_zero, age=late, stored=kept)
        _, bounds = constant("bounds", _Bounds, Cat(instruction.combine_low, instruction.combine_high), age=late)
        m.d.sync += [
            adder.minimum.eq(choice.minimum),
            adder.maximum.eq(choice.maximum),
            adder.k_result.eq(Mux(choice.add, factors.k_result, 1 << ADD_FRACTION)),
            adder.k_operand.eq(Mux(choice.add, factors.k_operand, 0)),
            adder.k_zero.eq(Mux(choice_late.add, k_zero, 0)),
            adder.low.eq(Mux(choice_late.as_value().any(), bounds.low, -128)),
            adder.high.eq(Mux(choice_late.as_value().any(), bounds.high, 127)),
        ]
        taken = Signal(range(config.beats))
        m.d.sync += adder.operand.as_value().eq(operands.o.payload.word_select(taken, 8 * lanes))
        m.d.comb += operands.o.ready.eq(elements[_ADDENDS - 1] & beats[_ADDENDS - 1].last)
        with m.If(elements[_ADDENDS - 1]):
            m.d.sync += taken.eq(Mux(beats[_ADDENDS - 1].last, 0, taken + 1))

        # Collect the beats of a pixel; the newest enters at the top.
        collected = Signal(8 * cols)
        m.d.comb += [
            collected.eq(adder.sum.as_value()),
            results.i.payload.eq(collected),
            results.i.valid.eq(elements[_SUM] & beats[_SUM].last),
        ]
        if config.beats > 1:
            earlier = Signal(8 * (cols - lanes))
            m.d.comb += collected.eq(Cat(earlier, adder.sum.as_value()))
            with m.If(elements[_SUM]):
                m.d.sync += earlier.eq(collected[8 * lanes :])

        wiring.connect(m, drain.tag, tags.i)
        m.d.comb += drain.drained.eq(~tags.o.valid)
        self._write(m, drain, tags, results, instruction)
        return m

    def _write(self, m, drain, tags, results, instruction):
        """Join results with their tags, write them, and report instructions whose last word is accepted."""
        config = self.config
        tag = tags.o.payload
        written = Signal()
        m.d.comb += [
            self.write.valid.eq(results.o.valid),
            self.write.payload.addr.eq(tag.addr),
            self.write.payload.data.as_value().eq(results.o.payload.replicate(config.slots)),
            self.write.payload.mask.eq(Cat((tag.slot == slot).replicate(config.cols) for slot in range(config.slots))),
            written.eq(results.o.valid & self.write.ready),
            results.o.ready.eq(written),
            tags.o.ready.eq(written),
            drain.finished.eq(written & tag.end),
        ]

        m.submodules.finish = finish = memory.Memory(
            shape=_Finish, depth=CONTEXTS, init=[], attrs={"ram_style": "distributed"}
        )  # fmt: skip
        write, read = finish.write_port(), finish.read_port(domain="comb")
        oldest = Signal(range(CONTEXTS), init=1)  # the first instruction's context, since the drain counts before
        unit = self.unit
        wiring.connect(m, wiring.flipped(unit.i), drain.i)
        m.d.comb += [
            write.en.eq(drain.start),
            write.addr.eq(drain.context),
            write.data.signal.eq(instruction.header.signal),
            write.data.index.eq(drain.index),
            read.addr.eq(oldest),
            unit.error.eq(drain.error),
            unit.idle.eq(~drain.active & ~unit.done.valid),
            unit.trace.busy.eq(drain.active),
            unit.trace.stall.eq(drain.stall | (self.write.valid & ~self.write.ready)),
            unit.trace.index.eq(read.data.index),
        ]
        m.d.sync += [unit.done.valid.eq(drain.finished), unit.done.signal.eq(read.data.signal)]
        with m.If(drain.finished):
            m.d.sync += oldest.eq(oldest + 1)

    @staticmethod
    def _delayed(m, value, cycles):
        for _ in range(cycles):
            late = Signal(value.shape(), reset_less=True)
            m.d.sync += late.eq(value)
            value = late
        return value
