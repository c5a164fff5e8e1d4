"""Frames of the link in hardware: :class:`Receiver` takes requests out of a byte stream, :class:`Sender` puts replies into one.

What a frame looks like is said in :mod:`celosia.rtl.link`.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from celosia.rtl.link import BUFFER_BYTES, CRC, ESCAPE, FLAG, FLIP, HEADER_BYTES

__all__ = ["Receiver", "ReplyByte", "Sender"]

_AFTER_HIGH_BYTE = CRC.compute([CRC.compute([]) >> 8]) >> 8 ^ CRC.compute([]) & 0xFF
"""A CRC that has been fed with its own high byte holds its low byte in the place of the high one, combined with this by exclusive or."""


class ReplyByte(data.Struct):
    """A byte of a reply's body, or with ``end`` its end, which carries no byte."""

    data: 8
    end: 1


class Receiver(wiring.Component):
    """Requests with the right CRC, in block RAM: one to be executed, and one that arrives meanwhile.

    Takes a byte per cycle, unless two requests are complete.

    Members
    -------
    i : ``In(stream.Signature(8))``
        Bytes from the line.
    o : ``Out(stream.Signature(8))``
        One item for each request: its bytes behind the header, with those of the CRC. Taking it makes the request readable from the next
        cycle on, until the next one is taken.
    addr, en : ``In``
        Read port: bytes behind the header are at 0 onwards, the header is at the four last addresses.
    r_data : ``Out(8)``
        The byte at ``addr`` one cycle after ``en``, until the next ``en``.
    """

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))
    addr: In(8)
    en: In(1)
    r_data: Out(8)

    def elaborate(self, platform):
        m = Module()
        # The two ports are always in different halves: Yosys needs no bypass between them.
        m.submodules.buffer = buffer = Memory(shape=8, depth=2 * BUFFER_BYTES, init=[], attrs={"no_rw_check": 1})
        write, read = buffer.write_port(), buffer.read_port()

        half = Signal()
        # From -HEADER_BYTES on, so that the bytes behind the header are counted from zero; negative while there is no whole header. What is too long
        # stops at a place where no request ends.
        place = Signal(9, init=-HEADER_BYTES % 512)
        too_long = Signal()
        escaped = Signal()
        complete = Signal()

        start = Signal()
        m.submodules.crc = crc = ResetInserter(start)(CRC.create())
        byte = self.i.payload ^ Mux(escaped, FLIP, 0)
        special = Signal()
        accept = Signal()
        m.d.comb += [
            special.eq((self.i.payload == FLAG) | (self.i.payload == ESCAPE)),
            too_long.eq(~place[8] & (place[2:8] == BUFFER_BYTES // 4 - 1)),
            accept.eq(self.i.valid & self.i.ready),
            self.i.ready.eq(~complete),
            self.o.valid.eq(complete),
            self.o.payload.eq(place),
            crc.data.eq(byte),
            crc.valid.eq(accept & ~special),
            write.addr.eq(Cat(place[:8], half)),
            write.data.eq(byte),
            write.en.eq(accept & ~special & ~too_long),
            read.addr.eq(Cat(self.addr, ~half)),
            read.en.eq(self.en),
            self.r_data.eq(read.data),
        ]
        with m.If(accept):
            with m.If(~special):
                m.d.sync += escaped.eq(0)
                with m.If(~too_long):
                    m.d.sync += place.eq(place + 1)
            with m.Elif(self.i.payload[1]):  # the flag
                with m.If(crc.match_detected & ~escaped & ~place[8]):
                    m.d.sync += complete.eq(1)
                with m.Else():
                    m.d.comb += start.eq(1)
            with m.Else():
                m.d.sync += escaped.eq(1)
        with m.If(self.o.valid & self.o.ready):
            m.d.comb += start.eq(1)
            m.d.sync += [complete.eq(0), half.eq(~half)]
        with m.If(start):
            m.d.sync += [place.eq(place.init), escaped.eq(0)]
        return m


class Sender(wiring.Component):
    """Frames around the bodies of replies: flags, escapes and CRC.

    Members
    -------
    i : ``In(stream.Signature(ReplyByte))``
        A body's bytes, then its end.
    o : ``Out(stream.Signature(8))``
        Bytes for the line.
    """

    i: In(stream.Signature(ReplyByte))
    o: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        start = Signal()
        m.submodules.crc = crc = ResetInserter(start)(CRC.create())
        raw = Signal(8)
        special = Signal()
        escaped = Signal()
        sent = Signal()
        closing = Signal()
        second = Signal()
        m.d.comb += [
            special.eq(((raw == FLAG) | (raw == ESCAPE)) & ~escaped),
            self.o.payload.eq(Mux(special, ESCAPE, raw ^ Mux(escaped, FLIP, 0))),
            sent.eq(self.o.ready & ~special),
            raw.eq(Mux(closing, crc.crc[8:] ^ Mux(second, _AFTER_HIGH_BYTE, 0), self.i.payload.data)),
            crc.data.eq(raw),
        ]

        def byte_goes():
            m.d.comb += self.o.valid.eq(1)
            with m.If(self.o.ready):
                m.d.sync += escaped.eq(special)

        with m.FSM():
            with m.State("open"):
                m.d.comb += [self.o.payload.eq(FLAG), self.o.valid.eq(self.i.valid)]
                with m.If(self.i.valid & self.o.ready):
                    m.next = "body"
            with m.State("body"):
                with m.If(self.i.valid & self.i.payload.end):
                    m.next = "high byte"
                with m.Elif(self.i.valid):
                    byte_goes()
                    m.d.comb += [self.i.ready.eq(sent), crc.valid.eq(sent)]
            with m.State("high byte"):
                byte_goes()
                m.d.comb += [closing.eq(1), crc.valid.eq(sent)]
                with m.If(sent):
                    m.next = "low byte"
            with m.State("low byte"):
                byte_goes()
                m.d.comb += [closing.eq(1), second.eq(1)]
                with m.If(sent):
                    m.next = "close"
            with m.State("close"):
                m.d.comb += [self.o.payload.eq(FLAG), self.o.valid.eq(1), start.eq(1)]
                with m.If(self.o.ready):
                    m.d.comb += self.i.ready.eq(1)
                    m.next = "open"
        return m
