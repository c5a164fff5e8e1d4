"""What the units of a simulated engine did, made from the ``timeline`` port of :class:`celosia.rtl.top.Top`."""

import numpy as np
from amaranth.lib import data

from celosia.rtl.gate import unit_names
from celosia.rtl.isa import Unit
from celosia.rtl.sequencer import EngineTrace

__all__ = ["EVENT", "TIMELINE", "events_of"]

EVENT = np.dtype([(name, np.uint32) for name in ("unit", "index", "start", "end", "stall", "wait")])
"""One instruction in one unit: number of the unit (:class:`celosia.rtl.isa.Unit`), instruction, first cycle after the doorbell and
one past the last, cycles in between without progress, cycles before in which the unit was free and the instruction lacked tokens."""


NAMES = unit_names(True)
NUMBERS = tuple(getattr(Unit, name.upper()).value for name in NAMES)


def _places():
    layout = data.Layout.cast(EngineTrace)
    trace = data.Layout.cast(layout[NAMES[0]].shape)
    waiting = data.Layout.cast(layout["waiting"].shape)
    places = {name: [layout[unit].offset + trace[name].offset for unit in NAMES] for name in ("busy", "stall", "index")}
    return places | {"waiting": [layout["waiting"].offset + waiting[unit].offset for unit in NAMES]}


TIMELINE = _places()
"""Positions of the units' bits in the port, by what they say."""


def events_of(changes, end):
    """Return an array of :data:`EVENT` in the order of their ends.

    Parameters
    ----------
    changes : iterable of (int, int)
        Cycle and value of the port, from the first cycle of the run on; cycles between hold the last value.
    end : int
        The run's number of cycles.
    """
    events = []
    current = [None] * len(NAMES)
    waited = [0] * len(NAMES)
    changes = list(changes)
    for number, (cycle, value) in enumerate(changes):
        length = (changes[number + 1][0] if number + 1 < len(changes) else end) - cycle
        for unit in range(len(NAMES)):
            bits = {name: value >> places[unit] for name, places in TIMELINE.items()}
            busy, index = bits["busy"] & 1, bits["index"] & 0xFFFF
            if current[unit] and not (busy and current[unit][1] == index):
                events.append((*current[unit][:3], cycle, *current[unit][3:]))
                current[unit] = None
            if busy and current[unit] is None:
                current[unit] = [NUMBERS[unit], index, cycle, 0, waited[unit]]
                waited[unit] = 0
            if busy:
                current[unit][3] += length * (bits["stall"] & 1)
            else:
                waited[unit] += length * (bits["waiting"] & 1)
    events += [(*event[:3], end, *event[3:]) for event in current if event]
    return np.array(events, EVENT)
