"""The host link's end in the engine: requests from a byte stream become accesses of a Wishbone master.

::

    bytes ─► Receiver ─► executor ─► Sender ─► bytes
             (buffer)       │
                            ▼
                         Wishbone

Throughput is that of the line; on its own the bridge takes a byte per cycle, writes a word in seven cycles at the engine's host port and reads
one in twelve.
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
        address = Signal(24)
        word = Signal(32)
        size = Signal(8)
        place = Signal(8)  # of the request's byte in ``byte``
        step = Signal()
        done = Signal(6)  # words
        index = Signal(2)  # of the word's byte that is being sent
        reply = sender.i
        m.d.comb += [
            receiver.addr.eq(place + step),
            receiver.en.eq(1),
            bus.adr.eq(address),
            bus.sel.eq(0b1111),
            bus.dat_w.eq(Cat(word[8:], byte)),
            bus.we.eq(writes),
            bus.stb.eq(bus.cyc),
        ]
        m.d.sync += place.eq(place + step)
        with m.If(bus.ack):
            m.d.sync += [address.eq(address + 1), done.eq(done + 1)]

        with m.FSM() as fsm:
            with m.State("idle"):
                m.d.comb += receiver.o.ready.eq(1)
                m.d.sync += [place.eq(-HEADER_BYTES), size.eq(receiver.o.payload)]
                with m.If(receiver.o.valid):
                    m.next = "look"
            with m.State("look"):
                m.next = "control"
            with m.State("control"):
                m.d.comb += step.eq(1)
                # A body of words for a write, of one byte for a read; and the two bytes of the CRC.
                with m.If(size[:2] != Mux(byte[-1], 2, 3)):
                    m.next = "idle"
                with m.Elif(writes & (byte == control)):
                    m.next = "reply"
                with m.Else():
                    m.d.sync += [control.eq(byte), done.eq(0)]
                    m.next = "address"
            with m.State("address"):
                m.d.comb += step.eq(1)
                m.d.sync += address.eq(Cat(address[8:], byte))
                with m.If(place[:2] == 3):
                    with m.If(writes):
                        m.next = "write"
                    with m.Else():
                        m.next = "reply"
            with m.State("write"):
                with m.If(done == size[2:]):
                    m.next = "reply"
                with m.Elif(place[:2] != 3):
                    m.d.comb += step.eq(1)
                    m.d.sync += word.eq(Cat(word[8:], byte))
                with m.Else():
                    m.d.comb += [bus.cyc.eq(1), step.eq(bus.ack)]
                    with m.If(bus.err):
                        m.next = "reply"
            with m.State("reply"):
                m.d.comb += [reply.valid.eq(1), reply.payload.data.eq(control)]
                with m.If(reply.ready):
                    with m.If(writes):
                        m.next = "count"
                    with m.Else():
                        m.next = "read"
            with m.State("count"):
                m.d.comb += [reply.valid.eq(1), reply.payload.data.eq(done)]
                with m.If(reply.ready):
                    m.next = "end"
            with m.State("read"):
                m.d.sync += word.eq(bus.dat_r)
                with m.If(done == byte):
                    m.next = "end"
                with m.Else():
                    m.d.comb += bus.cyc.eq(1)
                    with m.If(bus.err):
                        m.next = "end"
                    with m.Elif(bus.ack):
                        m.next = "send"
            with m.State("send"):
                m.d.comb += [reply.valid.eq(1), reply.payload.data.eq(word)]
                with m.If(reply.ready):
                    m.d.sync += [word.eq(word[8:]), index.eq(index + 1)]
                    with m.If(index == 3):
                        m.next = "read"
            with m.State("end"):
                m.d.comb += [reply.valid.eq(1), reply.payload.end.eq(1)]
                with m.If(reply.ready):
                    m.next = "idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("idle") | receiver.o.valid)
        return m
