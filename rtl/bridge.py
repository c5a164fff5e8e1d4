"""The host link's end in the engine: requests from a byte stream become accesses of a Wishbone master.

::

    bytes ─► Receiver ─► executor ─► Sender ─► bytes
             (buffer)       │
                            ▼
                         Wishbone

Throughput is that of the line; on its own the bridge takes a byte per cycle, and writes a word in seven cycles at the engine's host port.
"""

from amaranth.hdl import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.csr import ADDRESS_BITS
from celosia.rtl.framing import Receiver, Sender
from celosia.rtl.host import WishboneSignature
from celosia.rtl.link import HEADER_BYTES

__all__ = ["Bridge"]


class Bridge(wiring.Component):
    """Executes the requests of :mod:`celosia.rtl.link` one after the other.

    The slave must answer every access with ``ack`` or ``err``, as the engine does.

    Members
    -------
    i : ``In(stream.Signature(8))``
        Bytes from the host. It is not ready only while one request is executed and another one is complete.
    o : ``Out(stream.Signature(8))``
        Bytes to the host.
    bus : ``Out(WishboneSignature)``
        The engine's host port.
    busy : ``Out(1)``
        High while a request waits or is executed, until the last byte of its reply has been taken.
    """

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))
    bus: Out(WishboneSignature(addr_width=ADDRESS_BITS - 2))
    busy: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = Receiver()
        m.submodules.sender = sender = Sender()
        wiring.connect(m, wiring.flipped(self.i), receiver.i)
        wiring.connect(m, sender.o, wiring.flipped(self.o))
        bus, byte = self.bus, receiver.r_data

        control = Signal(8)
        writes = control[-1]
        # The control byte is that of a write that has been executed to its end; the request is its repetition.
        whole, again = Signal(), Signal()
        low, high = Signal(8), Signal(16)  # of the address
        word = Signal(32)
        size = Signal(8)
        # Of the request's byte that ``fetch`` reads, counted from behind the header; in a read's end, words read.
        place = Signal(8)
        fetch, step = Signal(), Signal()
        index = Signal(2)  # of the word's byte that is being sent
        all_read = Signal()  # found a cycle early: block RAM is slow
        reply = sender.i
        m.d.comb += [
            receiver.addr.eq(place),
            receiver.en.eq(fetch),
            bus.adr.eq(Cat(low, high)),
            bus.sel.eq(0b1111),
            bus.dat_w.eq(Cat(word[8:], byte)),
            bus.we.eq(writes),
            bus.stb.eq(bus.cyc),
        ]
        m.d.sync += [place.eq(place + step), all_read.eq(place == byte)]
        with m.If(bus.ack):
            m.d.sync += low.eq(low + 1)

        def next_byte():
            m.d.comb += [fetch.eq(1), step.eq(1)]

        with m.FSM() as fsm:
            with m.State("idle"):
                m.d.comb += receiver.o.ready.eq(1)
                m.d.sync += [place.eq(-HEADER_BYTES), size.eq(receiver.o.payload)]
                with m.If(receiver.o.valid):
                    m.next = "look"
            with m.State("look"):
                next_byte()
                m.next = "control"
            with m.State("control"):
                next_byte()
                m.d.sync += [control.eq(byte), whole.eq(0), again.eq(whole & (byte == control))]
                m.next = "address"
                # A body of words for a write, of one byte for a read; and the two bytes of the CRC.
                with m.If(size[:2] != Mux(byte[-1], 2, 3)):
                    m.next = "idle"
            with m.State("address"):
                m.d.comb += [fetch.eq(1), step.eq(writes | (place != 0))]
                m.d.sync += [low.eq(high), high.eq(Cat(high[8:], byte))]
                with m.If(place == 0):
                    with m.If(writes):
                        m.next = "write"
                    with m.Else():
                        m.next = "reply"
            with m.State("write"):
                with m.If(place[:2] == 0):
                    m.d.comb += bus.cyc.eq(~again)
                    with m.If(bus.ack | again):
                        next_byte()
                    with m.If(bus.err):
                        m.next = "reply"
                with m.Elif((place[:2] == 1) & (place[2:] == size[2:])):
                    m.d.sync += whole.eq(1)
                    m.next = "reply"
                with m.Else():
                    next_byte()
                    m.d.sync += word.eq(Cat(word[8:], byte))
            with m.State("reply"):
                m.d.comb += [reply.valid.eq(1), reply.payload.data.eq(Cat(control[:-1], whole))]
                with m.If(reply.ready):
                    m.next = "read"
                    with m.If(writes):
                        m.next = "end"
            with m.State("read"):
                m.d.sync += word.eq(bus.dat_r)
                with m.If(all_read):
                    m.next = "end"
                with m.Else():
                    m.d.comb += [bus.cyc.eq(1), step.eq(bus.ack)]
                    with m.If(bus.err):
                        m.next = "end"
                    with m.Elif(bus.ack):
                        m.next = "send"
            with m.State("send"):
                m.d.comb += [reply.valid.eq(1), reply.payload.data.eq(word)]
                with m.If(reply.ready):
                    m.d.sync += [word.eq(Cat(word[8:], byte)), index.eq(index + 1)]
                    with m.If(index == 3):
                        m.next = "read"
            with m.State("end"):
                m.d.comb += [reply.valid.eq(1), reply.payload.end.eq(1)]
                with m.If(reply.ready):
                    m.next = "idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("idle") | receiver.o.valid)
        return m
