"""The performance counters: where an inference's cycles went."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.gate import UNIT_NAMES
from celosia.rtl.sequencer import EngineTrace

__all__ = ["COUNTERS", "Counters"]

COUNTERS = ("cycles", "instructions", *(f"{unit}_{what}" for unit in UNIT_NAMES for what in ("busy", "wait", "stall")))
"""Names of the counters: the registers' in lower case."""


class Counters(wiring.Component):
    """32-bit counters of the present or last run; they wrap silently after 2^32 cycles.

    Members
    -------
    clear : ``In(1)``
        A run begins: zero in the next cycle.
    busy : ``In(1)``
        A run is on; counts ``cycles``.
    fetched : ``In(1)``
        Counts ``instructions``.
    trace : ``In(EngineTrace)``
        Counts the units' cycles. A cycle that comes before the end of ``busy`` is counted one cycle later, still in time for the host.
    (counter) : ``Out(32)``, one for each of :data:`COUNTERS`
    """

    def __init__(self):
        super().__init__({
            "clear": In(1),
            "busy": In(1),
            "fetched": In(1),
            "trace": In(EngineTrace),
            **{name: Out(32) for name in COUNTERS},
        })

    def elaborate(self, platform):
        m = Module()
        events = {"cycles": self.busy, "instructions": self.fetched}
        for name in UNIT_NAMES:
            unit = self.trace[name]
            events |= {f"{name}_busy": unit.busy, f"{name}_wait": self.trace.waiting[name], f"{name}_stall": unit.stall}
        for name in COUNTERS:
            counter, event = getattr(self, name), Signal(name=f"{name}_event")
            # The events come out of the units' control logic; a register keeps the counters out of its paths.
            m.d.sync += event.eq(events[name] & self.busy)
            with m.If(self.clear):
                m.d.sync += [counter.eq(0), event.eq(0)]
            with m.Elif(event):
                m.d.sync += counter.eq(counter + 1)
        return m
