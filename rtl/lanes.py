"""The load unit's shift register: bytes of several tap rows enter at their places and move down to make words of kernel taps.

With ``kernel_x`` = 3, rows of 8 lanes and two streams (lane 0 on the left, ``p`` for pad)::

    lane     0 ◄─ 1 ◄─ 2 ◄─ stream 0    3 ◄─ 4 ◄─ 5 ◄─ stream 1    6 ◄─ 7 ◄─ p

Lane ``l`` takes lane ``l + 1`` or, where ``kernel_x`` divides ``l + 1``, a stream: only divisors of ``l + 1`` need an input.
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
    inside : ``In(streams)``
        Streams to take the byte of; the others take ``pad``.
    kernel_x : ``In``
        As in the instruction (minus one), constant from the cycle before the first step until the last word is out.
    pad : ``In(8)``
        Constant like ``kernel_x``.
    word : ``Out(ArrayLayout(8, rows))``
        The lanes, :data:`LANES_LATENCY` advances later. All of them are those of the present row after ``kernel_x`` steps.
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
            "inside": In(streams),
            "kernel_x": In(UnfoldInstruction.as_shape()["kernel_x"].shape),
            "pad": In(8),
            "word": Out(data.ArrayLayout(8, rows)),
        })

    def elaborate(self, platform):
        m = Module()
        widths = range(1, min(self.rows, 1 << len(self.kernel_x)) + 1)
        is_width = {width: Signal(name=f"kernel_x_is_{width}") for width in widths}
        m.d.sync += [signal.eq(self.kernel_x == width - 1) for width, signal in is_width.items()]

        entering = Signal(data.ArrayLayout(8, self.streams), reset_less=True)
        shift = Signal()
        with m.If(self.advance):
            m.d.sync += shift.eq(self.step)
            for n in range(self.streams):
                m.d.sync += entering[n].eq(Mux(self.inside[n], self.bytes[n], self.pad))

        with m.If(self.advance & shift):
            for lane in range(self.rows):
                following = self.word[lane + 1] if lane + 1 < self.rows else self.pad
                divisors = [width for width in widths if (lane + 1) % width == 0]
                sources = {width: (lane + 1) // width - 1 for width in divisors}
                inputs = [(is_width[width], entering[n]) for width, n in sources.items() if n < self.streams]
                beyond = [is_width[width] for width, n in sources.items() if n >= self.streams]
                if beyond:
                    inputs.append((Cat(beyond).any(), self.pad))
                inputs.append((~Cat(is_width[width] for width in divisors).any(), following))
                m.d.sync += self.word[lane].eq(reduce(or_, [Mux(chosen, value, 0) for chosen, value in inputs]))
        return m
