"""The performance counters: where an inference's cycles went.

The counts lie in the register bank's block RAM. One adder visits them in turn::

    event ─► low bits, one set for each counter ─┐
                                                 ▼
    register bank's memory ─► word ─► low bits replaced, carry added ─► register bank's memory

The low bits count on by themselves. A visit finds in memory those of the visit before: if they were larger, a carry is due.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.csr import CSR_READ_LATENCY, REGISTERS, KeptSignature
from celosia.rtl.gate import unit_names
from celosia.rtl.sequencer import EngineTrace

__all__ = ["COUNTERS", "Counters", "counters_of"]



def counters_of(memory_port, *, units=True):
    """Return the names of the counters' registers, which follow each other in the map."""
    names = [f"{unit.upper()}_{what}" for unit in unit_names(memory_port) for what in ("BUSY", "WAIT", "STALL")] if units else []
    moved = ["TRANSFER_READ", "TRANSFER_WRITTEN"] if memory_port and units else []
    return ("CYCLES", "INSTRUCTIONS", *names, *moved)


COUNTERS = counters_of(True)
"""All of them."""

_FIRST = REGISTERS[COUNTERS[0]].offset // 4
assert [REGISTERS[name].offset // 4 - _FIRST for name in COUNTERS] == list(range(len(COUNTERS)))


class Counters(wiring.Component):
    """32-bit counters of the present or last run; they wrap silently after 2^32 cycles.

    A count in memory is exact from two rounds of ``len(counters) + 1`` cycles after ``busy`` on; before, it is that of the last visit.

    Parameters
    ----------
    units : bool
        Whether the units' cycles are counted, or only ``CYCLES`` and ``INSTRUCTIONS``.
    memory_port : bool
        Whether there is a transfer unit.

    Members
    -------
    clear : ``In(1)``
        A run begins: count from zero.
    busy : ``In(1)``
        A run is on; counts ``CYCLES``.
    fetched : ``In(1)``
        Counts ``INSTRUCTIONS``.
    trace : ``In(EngineTrace)``
        Counts the units' cycles.
    moved : ``In(2)``
        Counts ``TRANSFER_READ`` and ``TRANSFER_WRITTEN``.
    kept : ``Out(KeptSignature)``
        The register bank's memory.
    """

    def __init__(self, *, units=True, memory_port=False):
        self.counters = counters_of(memory_port, units=units)
        width = (max(register.offset for register in REGISTERS.values()) // 4).bit_length()
        super().__init__({
            "clear": In(1),
            "busy": In(1),
            "fetched": In(1),
            "trace": In(EngineTrace),
            "moved": In(2),
            "kept": Out(KeptSignature(addr_width=width)),
        })

    def elaborate(self, platform):
        m = Module()
        kept, count = self.kept, len(self.counters)
        events = {"CYCLES": self.busy, "INSTRUCTIONS": self.fetched, "TRANSFER_READ": self.moved[0], "TRANSFER_WRITTEN": self.moved[1]}
        for name in unit_names(True):
            unit, upper = self.trace[name], name.upper()
            events |= {f"{upper}_BUSY": unit.busy, f"{upper}_WAIT": self.trace.waiting[name], f"{upper}_STALL": unit.stall}

        # A round visits each counter once, and then the host reads. The first one after `clear` takes what it reads for zero.
        bits = (count + 1).bit_length()
        assert 2 * (count + 1) + 4 <= CSR_READ_LATENCY
        number = Signal(range(count + 1))
        turns, late = Signal(count + 1, init=1), Signal(count + 1)
        clearing = Signal(init=1)
        m.d.sync += [number.eq(number + 1), turns.eq(turns.rotate_left(1)), late.eq(turns)]
        with m.If(turns[-1]):
            m.d.sync += [number.eq(0), clearing.eq(0)]
        with m.If(self.clear):
            m.d.sync += [number.eq(0), turns.eq(1), clearing.eq(1)]

        lows = []
        for name in self.counters:
            event, low = Signal(name=f"{name}_event"), Signal(bits, name=f"{name}_low")
            # The events come out of the units' control logic; a register keeps the counters out of its paths.
            m.d.sync += event.eq(events[name] & self.busy)
            with m.If(event):
                m.d.sync += low.eq(low + 1)
            with m.If(self.clear):
                m.d.sync += [event.eq(0), low.eq(0)]
            lows.append(low)

        low, w_number, cleared = Signal(bits), [Signal.like(number, name=f"number{n}") for n in range(2)], Signal()
        visited = Signal()
        m.d.sync += [
            low.eq(reduce(or_, [Mux(late[n], value, 0) for n, value in enumerate(lows)])),
            cleared.eq(clearing & kept.use),
            w_number[0].eq(number),
            w_number[1].eq(w_number[0]),
            visited.eq(~late[-1]),
        ]
        m.d.comb += [
            kept.use.eq(~turns[-1]),
            kept.addr.eq(_FIRST + number),
            kept.clear.eq(cleared),
            kept.w_en.eq(visited),
            kept.w_addr.eq(_FIRST + w_number[1]),
            kept.w_data.eq(Cat(low, kept.data[bits:] + (low < kept.data[:bits]))),
        ]
        return m
