"""The execute unit: runs EXECUTE instructions on the array, into the accumulators.

::

    queue ─► AddressGenerator ─┬─► issue ─┬─► activation memory ─► pad ─► Array ─► Accumulator ◄─ store unit
                               │          └─► RowLoader ─► weight memory ─► ┘           ▲
                               └─► tags ────────────────────────────────────────────────┘

A pixel is issued when its weight tile can follow it and its accumulator entry is free; from then on everything runs at fixed
distances, :data:`ISSUE_TO_WORD` cycles to the array and the array's latency to the accumulators. What the accumulators must know of it
waits in a memory, together with the number of its instruction and what is wrong with it: an error is reported when its turn comes.
"""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.accumulator import Accumulator, timing
from celosia.rtl.address import AddressGenerator
from celosia.rtl.array import Array, array_latency
from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import ACT_READ_LATENCY, AccReadSignature, ActReadSignature, UnitSignature, WeightReadSignature
from celosia.rtl.isa import ErrorCode
from celosia.rtl.rows import sum_width
from celosia.rtl.weights import LOAD_LATENCY, RowLoader

__all__ = ["ISSUE_TO_WORD", "Execute", "execute_latency"]

ISSUE_TO_WORD = 2 + ACT_READ_LATENCY
"""Cycles from the issue of a pixel to its word at the array: address register, memory, and the register behind padding."""

# The weights of a tile leave their memory in step with the pixel that needs them, and reach the array one cycle before its word.
assert LOAD_LATENCY + 1 == ISSUE_TO_WORD


def execute_latency(rows, multiplier="portable", pipelining=1):
    """Return the cycles from the issue of the last pixel to ``done``."""
    sums, distance = timing(pipelining)
    return ISSUE_TO_WORD + array_latency(rows, multiplier) - sums + distance - 1


class Execute(wiring.Component):
    """The execute unit with array and accumulators.

    One pixel per cycle: without a bubble between passes of at least ``load_cycles`` and
    :func:`timing's <celosia.rtl.accumulator.timing>` ``distance`` pixels, nor between instructions if the next one waits while the last pass of the present
    one runs. Shorter passes take as many cycles as the larger of the two; with ``hold`` only the second counts, and only where sums are
    used again. Without ``pipelining`` an instruction is worked on from the payload, and accepted when it has ended.

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
    pause : In(1)
        No pixel is issued in this cycle, so that nothing is read in the next; never with an instruction of the depthwise mode, whose words
        must follow each other.
    pause_load : In(1)
        No pixel is issued in this cycle that needs another tile, so that no read of a tile begins in the next.
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
            "pause": In(1),
            "pause_load": In(1),
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
        m.submodules.addresses = addresses = AddressGenerator(
            act_depth=config.act_depth,
            acc_depth=config.acc_depth,
            weight_tiles=config.weight_tiles,
            program_depth=config.program_depth,
            distance=timing(config.pipelining).distance,
            image_rows=config.depthwise_rows,
            slots=config.slots,
            maximum=config.maximum,
            pipelining=config.pipelining,
        )
        m.submodules.loader = loader = RowLoader(
            cols=config.cols, weight_rows=config.weight_rows, load_cycles=config.load_cycles, weight_tiles=config.weight_tiles
        )
        m.submodules.array = array = Array(
            rows=config.rows,
            cols=config.cols,
            weight_rows=config.weight_rows,
            multiplier=self.multiplier,
            image_rows=config.depthwise_rows,
        )
        m.submodules.accumulator = accumulator = Accumulator(
            cols=config.cols,
            depth=config.acc_depth,
            width=sum_width(config.rows),
            pipelining=config.pipelining,
            maximum=config.maximum,
        )
        wiring.connect(m, wiring.flipped(self.unit.i), addresses.i)
        wiring.connect(m, wiring.flipped(self.acc), accumulator.read)
        for mine, read in zip(self.weights, loader.reads):
            wiring.connect(m, wiring.flipped(mine), read)

        issue, pixel = Signal(), addresses.o.payload
        m.d.comb += [
            addresses.o.ready.eq(((loader.ready & ~self.pause_load) | ~pixel.switch) & ~self.pause),
            issue.eq(addresses.o.valid & addresses.o.ready),
            loader.taken.eq(issue & pixel.switch),
            loader.tile.eq(addresses.tile),
            Value.cast(array.weights).eq(Value.cast(loader.weights)),
            array.load.eq(loader.load),
            Value.cast(accumulator.sums).eq(Value.cast(array.sums)),
            self.unit.trace.stall.eq(addresses.hazard | (addresses.o.valid & ~issue)),
        ]
        self._read(m, issue, addresses, array)
        self._update(m, issue, addresses, accumulator)
        return m

    def _read(self, m, issue, addresses, array):
        """Read the pixel's words, substitute the padding, and hand them to the array."""
        pixel, rows = addresses.o.payload, addresses.rows
        facts = {"padding": len(rows), "pad": 8, "unsigned": 1} if self.config.pipelining else {"padding": len(rows)}
        if self.config.depthwise_rows:
            facts |= {"slot": 3, "depthwise": 1}
        now = Signal(data.StructLayout(facts))
        m.d.comb += [now[name].eq(pixel[name]) for name in facts if name != "padding"]
        m.d.comb += now.padding.eq(Cat(row.padding for row in rows))
        now = _delay(m, now, ISSUE_TO_WORD - 1, "facts")[-1]
        if self.config.depthwise_rows:
            m.d.sync += [array.slot.eq(now.slot), array.depthwise.eq(now.depthwise)]
        pad, unsigned = (now.pad, now.unsigned) if self.config.pipelining else (pixel.pad, pixel.unsigned)
        for number, (row, act) in enumerate(zip(rows, self.acts)):
            # Wider than the memory only where the word is not read.
            m.d.sync += [act.addr.eq(row.addr[: ceil_log2(self.config.act_depth)]), act.valid.eq(issue & row.read)]
            for place, byte in enumerate(act.data):
                value = Signal(signed(8), name=f"word{number}_{place}", reset_less=True)
                m.d.sync += value.eq(Mux(now.padding[number], pad, Cat(byte[:7], byte[7] ^ unsigned)))
                m.d.comb += array.words[number][place].eq(value)

    def _update(self, m, issue, addresses, accumulator):
        """Update the accumulators with the tag of each pixel when its sums come; report what has ended, and errors."""
        unit, update = self.unit, accumulator.update
        to_sums, distance = timing(self.config.pipelining)
        cycles = ISSUE_TO_WORD + array_latency(self.config.rows, self.multiplier) - to_sums
        issued = [issue, *_delay(m, issue, cycles, "issued", reset=True)]  # n cycles ago

        # A word's tag goes in when the word comes to the output of the address generator; tags come out in the order of issue.
        attrs = {"no_rw_check": 1, "ram_style": "block"}
        tags = memory.Memory(shape=addresses.tag.shape(), depth=1 << ceil_log2(cycles + 1), init=[], attrs=attrs)
        m.submodules.tags = tags
        write, read = tags.write_port(), tags.read_port()
        tag = Signal.like(addresses.tag, reset_less=True)
        valid, wrong = Signal(), Signal()
        m.d.comb += valid.eq(issued[cycles])
        m.d.sync += write.addr.eq(write.addr + write.en)
        if self.config.pipelining:
            # Registers on both sides: block RAM may be far away.
            coming = Signal.like(addresses.tag, reset_less=True)
            m.d.sync += [coming.eq(addresses.tag), write.en.eq(addresses.tag_valid), read.addr.eq(read.addr + issued[cycles - 2])]
            m.d.comb += write.data.eq(coming)
            with m.If(issued[cycles - 1]):
                m.d.sync += tag.eq(read.data)
        else:
            m.d.comb += [write.data.eq(addresses.tag), write.en.eq(addresses.tag_valid), tag.eq(read.data)]
            m.d.sync += read.addr.eq(read.addr + issued[cycles - 1])
        m.d.comb += [getattr(update, name).eq(getattr(tag, name)) for name in ("entry", "bank", "overwrite", "max")]
        m.d.comb += [wrong.eq(tag.stop | tag.act_range), update.valid.eq(valid & tag.counts & ~wrong)]

        ended = valid & tag.last & ~wrong
        done = _delay(m, Cat(ended, tag.signal), distance - 1, "done", reset=True)
        busy = Cat(flags[0] for flags in done).any() | addresses.running
        if self.config.pipelining:  # where an instruction is taken before it has ended
            busy |= Cat(issued[-2:]).any() | write.en | (write.addr != read.addr)
        m.d.comb += [
            addresses.ended.eq(ended),
            Cat(unit.done.valid, unit.done.signal).eq(done[-1]),
            unit.idle.eq(~busy),
            unit.trace.busy.eq(busy),
            unit.trace.index.eq(tag.index),
        ]

        clash = Signal(range(cycles + 1))  # cycles until the tag of a pixel comes whose words lie in one bank
        if self.config.depthwise_rows > 1:
            with m.If(clash != 0):
                m.d.sync += clash.eq(clash - 1)
            with m.Elif(Cat(act.valid & ~act.ready for act in self.acts[1:]).any()):
                m.d.sync += clash.eq(cycles - 1)
        m.d.sync += [
            unit.error.valid.eq((valid & wrong) | (clash == 1) | accumulator.conflict),
            unit.error.code.eq(Mux(tag.stop, tag.signal, ErrorCode.ACT_RANGE)),
            unit.error.index.eq(tag.index),
        ]
        with m.If(clash == 1):
            m.d.sync += unit.error.code.eq(ErrorCode.ACT_CONFLICT)
        with m.If(accumulator.conflict):
            m.d.sync += unit.error.code.eq(ErrorCode.BANK_CONFLICT)


def _delay(m, value, cycles, name, *, reset=False):
    """Return ``value`` of 1, 2, … ``cycles`` cycles ago."""
    delayed = []
    for cycle in range(1, cycles + 1):
        register = Signal.like(value, name=f"{name}{cycle}", reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
        delayed.append(value)
    return delayed
