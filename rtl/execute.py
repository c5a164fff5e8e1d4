"""The execute unit: runs EXECUTE instructions on the array, into the accumulators.

::

    queue ─► PassGenerator ─┬─► PixelGenerator ─► issue ─► activation memory ─► pad ─► Array ─► Accumulator ◄─ store unit
                            └─► RowLoader ─► weight memory ─────────────────────────► ┘

A pixel is issued when its weight tile can follow it and its accumulator entry is free; from then on everything runs at fixed
distances, :data:`ISSUE_TO_WORD` cycles to the array and the array's latency to the accumulators.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.accumulator import DISTANCE, SUMS_DELAY, Accumulator
from celosia.rtl.address import PassGenerator, PixelGenerator
from celosia.rtl.array import Array, array_latency
from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import ACT_READ_LATENCY, AccReadSignature, ActReadSignature, UnitSignature, WeightReadSignature
from celosia.rtl.isa import ErrorCode, Signals
from celosia.rtl.rows import sum_width
from celosia.rtl.weights import LOAD_LATENCY, RowLoader

__all__ = ["ISSUE_TO_WORD", "Execute", "execute_latency"]

ISSUE_TO_WORD = 2 + ACT_READ_LATENCY
"""Cycles from the issue of a pixel to its word at the array: address register, memory, and the register behind padding."""

# The weights of a tile leave their memory in step with the pixel that needs them, and reach the array one cycle before its word.
assert LOAD_LATENCY + 1 == ISSUE_TO_WORD


def execute_latency(rows, multiplier="portable"):
    """Return the cycles from the issue of the last pixel to ``done``."""
    return ISSUE_TO_WORD + array_latency(rows, multiplier) - SUMS_DELAY + DISTANCE - 1


class _Tag(data.Struct):
    """What travels beside a word to the accumulators."""

    entry: 10
    bank: 1
    overwrite: 1
    max: 1
    last: 1
    signal: Signals
    index: 16


class Execute(wiring.Component):
    """The execute unit with array and accumulators.

    One pixel per cycle: without a bubble between passes of at least ``load_cycles`` and
    :data:`~celosia.rtl.accumulator.DISTANCE` pixels, nor between instructions if the next one is taken while the last passes of
    the present one run. Shorter passes take as many cycles as the larger of the two; with ``hold`` only the second counts, and
    only where sums are used again.

    Parameters
    ----------
    config : EngineConfig
    multiplier : str
        Form of the array, see :class:`~celosia.rtl.array.Array`.

    Members
    -------
    unit : Out(UnitSignature)
    act : Out(ActReadSignature)
        Read port of the activation memory; ``ready`` must always be 1.
    act1, … : Out(ActReadSignature)
        Read ports for the other image rows of the depthwise mode; where ``ready`` is 0, the unit stops with an error.
    weight0, weight1, … : Out(WeightReadSignature)
        Read ports of the weight memory's banks.
    acc : In(AccReadSignature)
        The store unit's read port of the accumulators.
    """

    def __init__(self, *, config, multiplier="portable"):
        if not isinstance(config, EngineConfig):
            raise TypeError(f"config must be an EngineConfig, not {config!r}")
        self.config = config
        self.multiplier = multiplier
        weights = {f"weight{bank}": Out(WeightReadSignature(cols=config.cols)) for bank in range(config.weight_rows)}
        super().__init__({
            "unit": Out(UnitSignature()),
            "act": Out(ActReadSignature(rows=config.rows)),
            **{f"act{row}": Out(ActReadSignature(rows=config.rows)) for row in range(1, config.depthwise_rows)},
            **weights,
            "acc": In(AccReadSignature(cols=config.cols)),
        })

    @property
    def weights(self):
        """The weight memory's read ports, in order."""
        return [getattr(self, f"weight{bank}") for bank in range(self.config.weight_rows)]

    @property
    def acts(self):
        """The activation memory's read ports, in order."""
        return [self.act, *(getattr(self, f"act{row}") for row in range(1, self.config.depthwise_rows))]

    def elaborate(self, platform):
        m = Module()
        config = self.config
        image_rows = config.depthwise_rows
        m.submodules.passes = passes = PassGenerator(image_rows=image_rows, slots=config.slots)
        m.submodules.pixels = pixels = PixelGenerator(
            act_depth=config.act_depth, acc_depth=config.acc_depth, distance=DISTANCE, image_rows=image_rows
        )
        m.submodules.loader = loader = RowLoader(
            cols=config.cols, weight_rows=config.weight_rows, load_cycles=config.load_cycles, weight_tiles=config.weight_tiles
        )
        m.submodules.array = array = Array(
            rows=config.rows,
            cols=config.cols,
            weight_rows=config.weight_rows,
            multiplier=self.multiplier,
            image_rows=image_rows,
        )
        m.submodules.accumulator = accumulator = Accumulator(
            cols=config.cols, depth=config.acc_depth, width=sum_width(config.rows)
        )
        wiring.connect(m, wiring.flipped(self.acc), accumulator.read)
        for mine, read in zip(self.weights, loader.reads):
            wiring.connect(m, wiring.flipped(mine), read)
        m.d.comb += [
            Value.cast(array.weights).eq(Value.cast(loader.weights)),
            array.load.eq(loader.load),
            Value.cast(accumulator.sums).eq(Value.cast(array.sums)),
        ]

        self._fork(m, passes, pixels, loader)
        issue = Signal()
        pixel = pixels.o.payload
        self._read(m, issue, pixels, array)
        youngest = self._update(m, issue, pixel, accumulator)
        failed = self._report(m, issue, passes, pixels, loader, accumulator, youngest)
        beyond = pixel.acc_range | pixel.act_range
        m.d.comb += [
            pixels.o.ready.eq(~(pixel.switch & ~loader.full) & ~beyond & ~failed),
            issue.eq(pixels.o.valid & pixels.o.ready),
            loader.taken.eq(issue & pixel.switch),
        ]
        return m

    def _fork(self, m, passes, pixels, loader):
        """Give each pass to the pixel generator, and its weight tile to the row loader, in the same cycle."""
        wiring.connect(m, wiring.flipped(self.unit.i), passes.i)
        accept = loader.i.ready | ~passes.o.payload.switch
        m.d.comb += [
            pixels.i.payload.eq(passes.o.payload),
            pixels.i.valid.eq(passes.o.valid & accept),
            loader.i.payload.tile.eq(passes.o.payload.tile),
            loader.i.payload.index.eq(passes.o.payload.index),
            loader.i.valid.eq(passes.o.valid & passes.o.payload.switch & pixels.i.ready),
            passes.o.ready.eq(pixels.i.ready & accept),
        ]

    def _read(self, m, issue, pixels, array):
        """Read the pixel's words, substitute the padding, and hand them to the array."""
        pixel, rows = pixels.o.payload, [pixels.o.payload, *pixels.rows]
        facts = data.StructLayout({"padding": len(rows), "pad": 8, "unsigned": 1, "slot": 3, "depthwise": 1})
        now = Signal(facts)
        m.d.comb += now.padding.eq(Cat(row.padding for row in rows))
        m.d.comb += [getattr(now, name).eq(getattr(pixel, name)) for name in ("pad", "unsigned", "slot", "depthwise")]
        now = _delay(m, now, ISSUE_TO_WORD - 1, "facts")
        m.d.sync += [array.slot.eq(now.slot), array.depthwise.eq(now.depthwise)]
        for number, (row, act) in enumerate(zip(rows, self.acts)):
            m.d.sync += [act.addr.eq(row.addr), act.valid.eq(issue & ~row.padding)]
            for place, byte in enumerate(act.data):
                value = Signal(signed(8), name=f"word{number}_{place}", reset_less=True)
                m.d.sync += value.eq(Mux(now.padding[number], now.pad, Cat(byte[:7], byte[7] ^ now.unsigned)))
                m.d.comb += array.words[number][place].eq(value)

    def _update(self, m, issue, pixel, accumulator):
        """Send the pixel's tag along and update the accumulators with it; return the index of the youngest update."""
        tag = Signal(_Tag)
        names = ("entry", "bank", "overwrite", "max", "last", "signal", "index")
        m.d.comb += [getattr(tag, name).eq(getattr(pixel, name)) for name in names]
        cycles = ISSUE_TO_WORD + array_latency(self.config.rows, self.multiplier) - SUMS_DELAY
        tag = _delay(m, tag, cycles, "tag")
        valid, counts = (
            _delay(m, flag, cycles, name, reset=True) for name, flag in (("valid", issue), ("counts", issue & pixel.counts))
        )
        update = accumulator.update
        m.d.comb += [getattr(update, name).eq(getattr(tag, name)) for name in ("entry", "bank", "overwrite", "max")]
        m.d.comb += update.valid.eq(counts)
        # The youngest update is the one to name in a bank conflict, which is reported one cycle later.
        youngest = Signal(16)
        with m.If(counts):
            m.d.sync += youngest.eq(tag.index)
        done = Cat(tag.last & valid, tag.signal)
        m.d.comb += Cat(self.unit.done.valid, self.unit.done.signal).eq(_delay(m, done, DISTANCE - 1, "done", reset=True))
        return youngest

    def _report(self, m, issue, passes, pixels, loader, accumulator, youngest):
        """Drive ``idle``, ``error`` and ``trace``; return whether the unit has stopped."""
        unit, pixel = self.unit, pixels.o.payload
        unfinished = Signal(range(execute_latency(self.config.rows, self.multiplier) + 8))
        m.d.sync += unfinished.eq(unfinished + (unit.i.valid & unit.i.ready) - unit.done.valid)
        m.d.comb += [
            unit.idle.eq(unfinished == 0),
            unit.trace.busy.eq(~unit.idle),
            unit.trace.stall.eq(pixels.hazard | (pixels.o.valid & ~issue)),
            unit.trace.index.eq(pixel.index),
        ]

        failed, conflict = Signal(), Signal()
        beyond = pixels.o.valid & (pixel.acc_range | pixel.act_range)
        clash, reading = Signal(), [Signal(16, name=f"reading{age}", reset_less=True) for age in range(2)]
        m.d.sync += [
            conflict.eq(accumulator.conflict),
            unit.error.valid.eq(0),
            clash.eq(Cat(act.valid & ~act.ready for act in self.acts[1:]).any()),
            reading[0].eq(pixel.index),
            reading[1].eq(reading[0]),
        ]
        for found, code, index in (  # the last one found is reported
            (passes.illegal, ErrorCode.ILLEGAL_FIELD, passes.o.payload.index),
            (loader.error, ErrorCode.WEIGHT_RANGE, loader.error_index),
            (beyond, ErrorCode.ACT_RANGE, pixel.index),
            (beyond & pixel.acc_range, ErrorCode.ACC_RANGE, pixel.index),
            (clash, ErrorCode.ACT_CONFLICT, reading[1]),
            (conflict, ErrorCode.BANK_CONFLICT, youngest),
        ):
            with m.If(found & ~failed):
                m.d.sync += [unit.error.valid.eq(1), unit.error.code.eq(code), unit.error.index.eq(index), failed.eq(1)]
        return failed


def _delay(m, value, cycles, name, *, reset=False):
    """Return ``value`` of ``cycles`` cycles ago."""
    for cycle in range(1, cycles + 1):
        register = Signal.like(value, name=f"{name}{cycle}", reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
    return value
