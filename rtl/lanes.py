"""The load unit's shift register: bytes of several tap rows enter at their places and move down to make words of kernel taps.

With 8 lanes and two streams of four columns each (lane 0 on the left)::

    lane     0 ◄─ 1 ◄─ 2 ◄─ 3 ◄─ stream 0    4 ◄─ 5 ◄─ 6 ◄─ 7 ◄─ stream 1

Each number of streams has its own number of columns, as many as fit: few lanes take a stream for any of them.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.isa import UnfoldInstruction

__all__ = ["LANES_LATENCY", "TapLanes"]

LANES_LATENCY = 2
"""Advances from a step's bytes to the word they complete."""


class TapLanes(wiring.Component):
    """``rows`` lanes of one byte behind ``streams`` byte streams.

    Parameters
    ----------
    rows : int
    streams : int

    Members
    -------
    advance : ``In(1)``
        Nothing moves while low.
    step : ``In(1)``
        Take ``bytes`` in.
    bytes : ``In(ArrayLayout(8, streams))``
        Zero unless ``inside``.
    inside : ``In(1)``
        Take ``bytes``, otherwise ``pad``.
    streams_used : ``In``
        As in the instruction (minus one), constant from the cycle before the first step until the last word is out.
    pad : ``In(8)``
        Constant like ``streams_used``.
    word : ``Out(ArrayLayout(8, rows))``
        The lanes, :data:`LANES_LATENCY` advances later. All of them are those of the present row after ``rows // (streams_used + 1)`` steps.
    """

    def __init__(self, *, rows, streams):
        if not 1 <= streams <= rows:
            raise ValueError(f"streams must be between 1 and {rows}, not {streams}")
        self.rows = rows
        self.streams = streams
        super().__init__({
            "advance": In(1),
            "step": In(1),
            "bytes": In(data.ArrayLayout(8, streams)),
            "inside": In(1),
            "streams_used": In(UnfoldInstruction.as_shape()["streams"].shape),
            "pad": In(8),
            "word": Out(data.ArrayLayout(8, rows)),
        })

    def elaborate(self, platform):
        m = Module()
        used = {count: Signal(name=f"streams_are_{count}") for count in range(1, self.streams + 1)}
        m.d.sync += [signal.eq(self.streams_used == count - 1) for count, signal in used.items()]

        entering = Signal(data.ArrayLayout(8, self.streams), reset_less=True)
        shift = Signal()
        with m.If(self.advance):
            m.d.sync += shift.eq(self.step)
            for n in range(self.streams):
                m.d.sync += entering[n].eq(self.bytes[n] | Mux(self.inside, 0, self.pad))

        with m.If(self.advance & shift):
            for lane in range(self.rows):
                following = self.word[lane + 1] if lane + 1 < self.rows else self.pad
                chosen = {}  # the numbers of streams for which the lane takes a stream, by its number, or the pad, None
                for count in used:
                    columns = self.rows // count
                    stream, place = divmod(lane, columns)
                    if stream >= count:
                        if lane + 1 < self.rows:
                            chosen.setdefault(None, []).append(used[count])
                    elif place == columns - 1:
                        chosen.setdefault(stream, []).append(used[count])
                inputs = [(Cat(flags).any(), self.pad if n is None else entering[n]) for n, flags in chosen.items()]
                inputs.append((~Cat(flag for flags in chosen.values() for flag in flags).any(), following))
                m.d.sync += self.word[lane].eq(reduce(or_, [Mux(flag, value, 0) for flag, value in inputs]))
        return m
