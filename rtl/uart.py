"""Asynchronous serial line: eight data bits, no parity, one stop bit."""

from amaranth.hdl import *
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["MIN_DIVISOR", "Uart"]

MIN_DIVISOR = 4
"""Least number of clock cycles of a bit: with so few the two clocks may differ by 1 %, from twelve on by 3 %."""


class Uart(wiring.Component):
    """Both directions of a line, least significant bit first.

    A received bit is sampled in its middle. A byte without its stop bit is dropped, and what arrives while a byte waits to be taken is lost:
    there is no buffer, and frames have their own check.

    Parameters
    ----------
    divisor : int
        Clock cycles of a bit, :data:`MIN_DIVISOR` or more: the clock divided by the baud rate.

    Members
    -------
    rx : ``In(1)``
        From the host; asynchronous.
    tx : ``Out(1)``
        To the host.
    i : ``In(stream.Signature(8))``
        Bytes to send.
    o : ``Out(stream.Signature(8))``
        Received bytes.
    """

    def __init__(self, *, divisor):
        if divisor < MIN_DIVISOR:
            raise ValueError(f"divisor must be at least {MIN_DIVISOR}, not {divisor}")
        self.divisor = divisor
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform):
        m = Module()

        # Start bit, byte and stop bit run through the register; the stop bit stays at its end and says that the line is free.
        sending = Signal(10, init=1)
        left = Signal(range(self.divisor))
        m.d.comb += [self.tx.eq(sending[0]), self.i.ready.eq((left == 0) & ~sending[1:].any())]
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.Else():
            with m.If(sending[1:].any()):
                m.d.sync += sending.eq(sending >> 1)
            with m.Elif(self.i.valid):
                m.d.sync += sending.eq(Cat(0, self.i.payload, 1))
            with m.If(~self.i.ready | self.i.valid):
                m.d.sync += left.eq(self.divisor - 1)

        rx = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, rx, init=1)
        # The start bit's zero runs through ones; when it has reached the end, the stop bit follows.
        received = Signal(9)
        receiving = Signal()
        until = Signal(range(self.divisor))
        m.d.comb += self.o.payload.eq(received[1:])
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(~receiving):
            with m.If(~rx & ~self.o.valid):
                m.d.sync += [receiving.eq(1), received.eq(-1), until.eq((self.divisor - 1) // 2 - 1)]
        with m.Elif(until != 0):
            m.d.sync += until.eq(until - 1)
        with m.Elif(received[0]):
            m.d.sync += [received.eq(Cat(received[1:], rx)), until.eq(self.divisor - 1)]
            with m.If(received.all() & rx):  # what looked like a start bit was too short for one
                m.d.sync += receiving.eq(0)
        with m.Else():
            m.d.sync += [receiving.eq(0), self.o.valid.eq(rx)]
        return m
