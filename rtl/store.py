"""Store unit: drains accumulators through requantiser, table and a second operand into the activation memory.

::

    accumulators ─► [ drain ] ─► requantiser ─► table ─► adder ─► collect beats ─► activation memory
    parameters  ──────┘  │ operand reads ─► operands ─────┘                           tags ─┘
                         └───────────────────────────── tags ─────────────────────────┘

The pipeline never stops: the activation memory takes every word. One accumulator entry takes ``beats`` cycles; the write follows
:attr:`Store.latency` cycles after the reads of the entry's last beat. An operand is multiplied in front of the requantiser and added, or
compared, behind the table. Without an addition all pass the adder with the constants of the identity. What is constant during an
instruction is loaded into a stage's registers in front of its first beat.
"""

from amaranth.hdl import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import Out
from amaranth.utils import ceil_log2

from celosia.rtl import add, requantizer
from celosia.rtl.config import EngineConfig
from celosia.rtl.drain import Beat, Drain
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
from celosia.rtl.isa import ADD_FRACTION, AddParams, Combine
from celosia.rtl.multiplier import FORMS

__all__ = ["Store", "store_latency"]

_OPERANDS = ACC_READ_LATENCY + 1
"""Cycles from a beat's issue to its elements and parameters at the requantiser."""

_CONTROLS = _OPERANDS + requantizer.CONTROL_LATENCY
_REQUANTISED = _OPERANDS + requantizer.LATENCY
_ADDENDS = _REQUANTISED + TABLE_READ_LATENCY


def store_latency(config):
    """Return the cycles from the issue of a pixel's last beat to its write."""
    return _ADDENDS + (add.LATENCY if config.combine else 0)


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
        One word per pixel, in order. ``ready`` must always be high.
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

    @property
    def latency(self):
        """:func:`store_latency` of the configuration."""
        return store_latency(self.config)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes = config.lanes
        m.submodules.drain = drain = Drain(config)
        m.submodules.requantizer = requantize = requantizer.Requantizer(lanes=lanes, multiplier_form=self.multiplier)
        word = drain.instruction

        beats = [drain.beat]  # beats[t] was issued t cycles ago
        for age in range(1, self.latency + 1):
            beat = Signal(Beat, name=f"beat_{age}")
            m.d.sync += beat.eq(beats[-1])
            if age <= 2:
                m.d.sync += beat.valid.eq(beats[-1].valid & ~drain.halted)
            beats.append(beat)

        def loaded(age, *values):
            """Return registers that hold ``values`` from the first beat under new constants on, for beats that are ``age`` cycles old."""
            held = [Signal.like(Value.cast(value), name=f"held_{age}_{n}") for n, value in enumerate(values)]
            with m.If(beats[age - 1].change):
                m.d.sync += [register.eq(value) for register, value in zip(held, values)]
            return held

        # Reads: the accumulators answer when the beat is two cycles old, the parameters are registered then.
        number = self._delayed(m, drain.number, ACC_READ_LATENCY)
        params = Signal(64 * lanes)
        m.d.comb += [
            self.acc.en.eq(drain.beat.valid),
            self.acc.bank.eq(drain.acc_bank),
            self.acc.addr.eq(drain.acc_addr),
            self.params.addr.eq(drain.param_addr),
            requantize.params.as_value().eq(params),
        ]
        m.d.sync += [
            requantize.acc.as_value().eq(self.acc.data.as_value().word_select(number, 32 * lanes)),
            params.eq(self.params.data),
        ]

        # Requantise and look up.
        fields = word.raw, word.zero_point, word.low, word.high, word.use_table, word.table
        held = *loaded(_OPERANDS, *fields[:1]), *loaded(_CONTROLS, *fields[1:4]), *loaded(_REQUANTISED, *fields[4:])
        ports = requantize.raw, requantize.zero_point, requantize.low, requantize.high
        m.d.comb += [port.eq(value) for port, value in zip(ports, held)]
        same = Cat(old == new for old, new in zip(held, fields)).all()
        *_, use_table, table = held
        for lane in range(lanes):
            m.d.comb += self.tables.addr[lane].eq(Cat(requantize.result[lane].as_unsigned(), table))
        plain = self._delayed(m, requantize.result.as_value(), TABLE_READ_LATENCY)
        use_late = self._delayed(m, use_table, TABLE_READ_LATENCY)
        result = Mux(use_late, self.tables.data.as_value(), plain)
        if config.combine:
            result, combined = self._combine(m, drain, beats, number, params, requantize, loaded, result)
            same &= ~combined & (word.combine == Combine.NONE)

        settled = Signal(init=1)
        m.d.comb += [drain.same.eq(same), drain.settled.eq(settled)]
        with m.If(drain.beat.change):
            m.d.sync += settled.eq(0)
        with m.Elif(beats[_ADDENDS + add.CONTROL_LATENCY - 1 if config.combine else _REQUANTISED - 1].change):
            m.d.sync += settled.eq(1)
        self._write(m, drain, beats[-1].valid, result)
        return m

    def _combine(self, m, drain, beats, number, params, requantize, loaded, result):
        """Build what brings in the operand; return the sums, and whether the constants held are those of a combination."""
        config, word = self.config, drain.instruction
        lanes, width = config.lanes, 8 * config.cols
        m.submodules.adder = adder = add.Adder(lanes=lanes, multiplier_form=self.multiplier)

        # The operand's column tile waits for the results to be added to; the pixel's other beats multiply by it as well.
        assert ACT_READ_LATENCY == ACC_READ_LATENCY
        slot = self._delayed(m, drain.tag.slot, ACT_READ_LATENCY)
        operand, first, taken = Signal(width), Signal(2), Signal(range(config.beats))
        summed = beats[_ADDENDS - 1].valid
        waiting, _ = self._ring(m, "operands", operand, put=first[1], take=summed & (taken == config.beats - 1))
        m.d.comb += [
            self.operand.addr.eq(drain.operand_addr),
            self.operand.valid.eq(drain.operand_valid),
            drain.operand_ready.eq(self.operand.ready),
            first[0].eq(beats[ACT_READ_LATENCY].valid & (number == 0)),
        ]
        m.d.sync += [first[1].eq(first[0]), adder.operand.as_value().eq(waiting.word_select(taken, 8 * lanes))]
        with m.If(first[0]):
            m.d.sync += operand.eq(self.operand.data.as_value().word_select(slot, width))
        with m.If(summed):
            m.d.sync += taken.eq(taken + 1)

        multiply, zero = loaded(_OPERANDS, word.combine == Combine.MUL, word.combine_low)
        (late,) = loaded(_CONTROLS, word.combine == Combine.MUL)
        m.d.comb += [
            requantize.multiply.eq(multiply),
            requantize.operand.as_value().eq(operand.word_select(self._delayed(m, number, 1), 8 * lanes)),
            requantize.operand_zero.eq(zero),
            requantize.late.eq(late),
        ]

        # The constants of an addition are read while the pipeline is empty, in two halves where an entry has only one. Without an
        # addition those of the identity follow the last beat under the former ones.
        adds, smaller, larger = (word.combine == choice for choice in (Combine.ADD, Combine.MIN, Combine.MAX))
        constants = data.View(AddParams, params[:128] if lanes > 1 else params.replicate(2))
        fetched = beats[_OPERANDS].fetch & adds
        upper = fetched & beats[_OPERANDS].upper if lanes == 1 else fetched
        ends = _ADDENDS + add.CONTROL_LATENCY
        half, k_zero_half = 1 << ADD_FRACTION - 1, adder.k_zero_half
        low_bits = 64 - data.Layout.cast(AddParams)["k_zero"].offset
        with m.If(fetched & ~beats[_OPERANDS].upper):
            m.d.sync += [adder.k_result.eq(constants.k_result), adder.k_operand.eq(constants.k_operand)]
            m.d.sync += k_zero_half[:low_bits].eq(constants.k_zero.as_unsigned()[:low_bits])
        with m.If(upper):
            m.d.sync += k_zero_half[low_bits:].eq(((constants.k_zero + half) >> low_bits).as_unsigned())
        with m.If(beats[_ADDENDS + add.FACTORS_LATENCY - 1].change & ~adds):
            m.d.sync += [adder.k_result.eq(1 << ADD_FRACTION), adder.k_operand.eq(0)]
        with m.If(beats[ends - 1].change & ~adds):
            m.d.sync += k_zero_half.eq(half)

        minimum, maximum = loaded(_ADDENDS, smaller, larger)
        low, high = loaded(ends, word.combine_low, word.combine_high)
        with m.If(beats[ends - 1].change & ~(adds | smaller | larger)):
            m.d.sync += [low.eq(-128), high.eq(127)]
        (combined,) = loaded(ends, word.combine != Combine.NONE)
        m.d.comb += [
            adder.result.as_value().eq(result),
            adder.minimum.eq(minimum),
            adder.maximum.eq(maximum),
            adder.low.eq(low),
            adder.high.eq(high),
        ]
        return adder.sum.as_value(), combined

    def _write(self, m, drain, valid, result):
        """Collect the beats of pixels, join them with their tags, write them, and report instructions whose last word is written."""
        config, unit = self.config, self.unit
        width, gathered, written = 8 * config.lanes, Signal(range(config.beats)), Signal()
        collected = result
        if config.beats > 1:  # the newest enters at the top
            earlier = Signal(8 * (config.cols - config.lanes))
            collected = Cat(earlier, result)
            with m.If(valid):
                m.d.sync += [earlier.eq(collected[width:]), gathered.eq(gathered + 1)]
        tag, waiting = self._ring(m, "tags", drain.tag, put=drain.tag_valid, take=written)
        slots = Cat((tag.slot == slot).replicate(config.cols) for slot in range(config.slots))
        pending, drained = Signal(), Signal()
        m.d.sync += [
            pending.eq(waiting),
            unit.done.valid.eq(written & tag.end),
            unit.done.signal.eq(tag.signal),
        ]
        wiring.connect(m, wiring.flipped(unit.i), drain.i)
        m.d.comb += [
            written.eq(valid & (gathered == config.beats - 1)),
            self.write.valid.eq(written),
            self.write.payload.addr.eq(tag.addr),
            self.write.payload.data.as_value().eq(collected.replicate(config.slots)),
            self.write.payload.mask.eq(slots),
            drained.eq(~waiting & ~pending),
            drain.drained.eq(drained),
            unit.error.eq(drain.error),
            unit.idle.eq(~drain.active & ~waiting & ~unit.done.valid),
            unit.trace.busy.eq(drain.active | waiting),
            unit.trace.stall.eq(drain.stall),
            unit.trace.index.eq(drain.index),
        ]

    def _ring(self, m, name, value, *, put, take):
        """Return the oldest of the values put in and not taken, and whether there is one. Every pixel under way has a place."""
        beats = self.config.beats
        places = 1 << ceil_log2((self.latency + beats - 2) // beats + 2)
        storage = memory.Memory(shape=Value.cast(value).shape(), depth=places, init=[], attrs={"ram_style": "distributed"})
        m.submodules[name] = storage
        write, read = storage.write_port(), storage.read_port(domain="comb")
        oldest, following = Signal(range(places), name=f"{name}_oldest"), Signal(range(places), name=f"{name}_following")
        m.d.comb += [write.en.eq(put), write.addr.eq(following), write.data.eq(value), read.addr.eq(oldest)]
        m.d.sync += [following.eq(following + put), oldest.eq(oldest + take)]
        payload = read.data if isinstance(value, Signal) else data.View(value.shape(), read.data)
        return payload, oldest != following

    @staticmethod
    def _delayed(m, value, cycles):
        for _ in range(cycles):
            late = Signal(value.shape(), reset_less=True)
            m.d.sync += late.eq(value)
            value = late
        return value
