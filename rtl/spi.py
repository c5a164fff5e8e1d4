"""SPI target that carries a byte stream in each direction, sampled with the engine's own clock."""

from amaranth.hdl import *
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from celosia.rtl.link import FLAG

__all__ = ["MIN_CLOCK_RATIO", "SpiTarget"]

MIN_CLOCK_RATIO = 8
"""Cycles of the engine's clock that a cycle of SCK lasts at least: CIPO follows the falling edge of SCK within four."""


class SpiTarget(wiring.Component):
    """SPI mode 0, most significant bit first, any number of bytes while CS is low.

    The controller gets a flag (:data:`celosia.rtl.link.FLAG`) where there is nothing to send, and a byte begun when CS rises is sent again from its
    first bit. A received byte that has not been taken before the next one is complete is lost.

    Members
    -------
    sck, copi, cs_n : ``In(1)``
        From the controller; asynchronous, at most the clock divided by :data:`MIN_CLOCK_RATIO`.
    cipo : ``Out(1)``
        To the controller.
    i : ``In(stream.Signature(8))``
        Bytes to send.
    o : ``Out(stream.Signature(8))``
        Received bytes.
    """

    sck: In(1)
    copi: In(1)
    cs_n: In(1, init=1)
    cipo: Out(1)
    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        sck, copi, cs_n = Signal(), Signal(), Signal(init=1)
        m.submodules.synchronize_sck = FFSynchronizer(self.sck, sck)
        m.submodules.synchronize_copi = FFSynchronizer(self.copi, copi)
        m.submodules.synchronize_cs = FFSynchronizer(self.cs_n, cs_n, init=1)
        before = Signal()
        m.d.sync += before.eq(sck)

        bit = Signal(3)
        received = Signal(7)
        byte = Signal(8, init=FLAG)
        sending = Signal(8, init=FLAG)
        m.d.comb += self.cipo.eq(sending[-1])
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(cs_n):
            m.d.sync += [bit.eq(0), sending.eq(byte)]
        with m.Elif(sck & ~before):
            m.d.sync += [received.eq(Cat(copi, received)), bit.eq(bit + 1)]
            with m.If((bit == 7) & (~self.o.valid | self.o.ready)):
                m.d.sync += [self.o.payload.eq(Cat(copi, received)), self.o.valid.eq(1)]
            with m.If(bit == 7):
                # The byte has been sent, as far as the controller sees it.
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += byte.eq(Mux(self.i.valid, self.i.payload, FLAG))
        with m.Elif(~sck & before):
            m.d.sync += sending.eq(Mux(bit == 0, byte, sending << 1))
        return m
