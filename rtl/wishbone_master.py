"""The memory port as a Wishbone master.

Source: OpenCores, *Wishbone B4*, chapter 4, registered feedback bus cycles: incrementing bursts of classic cycles. A slave that ignores ``cti`` sees
single accesses behind each other, and answers them as well.
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from celosia.rtl.port import Burst, MemoryPortSignature

__all__ = ["WishboneBurstSignature", "WishboneMaster"]

INCREMENTING, END_OF_BURST = 0b010, 0b111
ADDRESS_BITS = 32


class WishboneBurstSignature(wiring.Signature):
    """Wishbone with registered feedback, from the master's side; ``adr`` counts words of ``data_width`` bits."""

    def __init__(self, *, data_width):
        super().__init__({
            "cyc": Out(1),
            "stb": Out(1),
            "we": Out(1),
            "adr": Out(ADDRESS_BITS - exact_log2(data_width // 8)),
            "sel": Out(data_width // 8),
            "cti": Out(3),
            "bte": Out(2),
            "dat_w": Out(data_width),
            "dat_r": In(data_width),
            "ack": In(1),
            "err": In(1),
        })


class WishboneMaster(wiring.Component):
    """One burst at a time: Wishbone has no requests ahead of their data. Reads and writes take turns where both are wanted.

    A beat that is read waits in a register until the engine takes it, and ``stb`` is low meanwhile; so is it while a beat to write is awaited. A beat
    takes a cycle where slave and engine keep up.

    Parameters
    ----------
    memory_bytes : int
        Bytes of a beat.

    Members
    -------
    port : ``In(MemoryPortSignature)``
        The engine's.
    bus : ``Out(WishboneBurstSignature)``
    """

    def __init__(self, *, memory_bytes):
        self.memory_bytes = memory_bytes
        super().__init__({
            "port": In(MemoryPortSignature(memory_bytes=memory_bytes)),
            "bus": Out(WishboneBurstSignature(data_width=8 * memory_bytes)),
        })

    def elaborate(self, platform):
        m = Module()
        read, write, bus = self.port.read, self.port.write, self.bus
        burst, last = Signal(Burst), Signal()
        answered, failed = Signal(), Signal()
        writes_next = Signal()
        m.d.comb += [
            last.eq(burst.beats == 0),
            answered.eq(bus.stb & (bus.ack | bus.err)),
            bus.adr.eq(burst.addr[exact_log2(self.memory_bytes) :]),
            bus.cti.eq(Mux(last, END_OF_BURST, INCREMENTING)),
            bus.dat_w.eq(write.data.payload.data),
            bus.sel.eq(~0),
        ]
        with m.If(answered):
            m.d.sync += [burst.addr.eq(burst.addr + self.memory_bytes), burst.beats.eq(burst.beats - 1)]

        with m.If(read.data.ready):
            m.d.sync += read.data.valid.eq(0)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += failed.eq(0)
                with m.If(write.request.valid & (writes_next | ~read.request.valid)):
                    m.d.comb += write.request.ready.eq(1)
                    m.d.sync += [burst.eq(write.request.payload), writes_next.eq(0)]
                    m.next = "write"
                with m.Elif(read.request.valid):
                    m.d.comb += read.request.ready.eq(1)
                    m.d.sync += [burst.eq(read.request.payload), writes_next.eq(1)]
                    m.next = "read"
            with m.State("read"):
                m.d.comb += [bus.cyc.eq(1), bus.stb.eq(~read.data.valid | read.data.ready)]
                with m.If(answered):
                    m.d.sync += [read.data.valid.eq(1), read.data.payload.data.eq(bus.dat_r)]
                    m.d.sync += [read.data.payload.last.eq(last), read.data.payload.error.eq(bus.err)]
                    with m.If(last):
                        m.next = "idle"
            with m.State("write"):
                m.d.comb += [bus.cyc.eq(1), bus.we.eq(1), bus.stb.eq(write.data.valid & write.data.payload.enable)]
                m.d.comb += write.data.ready.eq(answered | ~write.data.payload.enable)
                with m.If(write.data.valid & write.data.ready):
                    m.d.sync += failed.eq(failed | answered & bus.err)
                    with m.If(write.data.payload.last):
                        m.next = "answer"
                with m.If(write.data.valid & ~write.data.payload.enable):  # nothing to write: only counted
                    m.d.sync += [burst.addr.eq(burst.addr + self.memory_bytes), burst.beats.eq(burst.beats - 1)]
            with m.State("answer"):
                m.d.comb += [write.done.valid.eq(1), write.done.payload.error.eq(failed)]
                with m.If(write.done.ready):
                    m.next = "idle"
        return m
