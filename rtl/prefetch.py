"""The prefetcher: brings the program of an engine with a memory port from external memory, ahead of fetch.

The program memory then is a ring: instruction ``i`` lies in place ``i % program_depth``. What waits in a queue is read from there again when its
unit wants it, so a place is free only when its instruction has been served. That is counted by regions, quarters of the ring: a region
is entered when none of its instructions waits.
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from celosia.rtl.interfaces import EntryWriteSignature
from celosia.rtl.isa import INSTRUCTION_BITS
from celosia.rtl.port import MemoryReadSignature

__all__ = ["AHEAD", "BURST", "Prefetch"]

BURST = 8
"""Instructions of a burst."""

AHEAD = 64
"""Instructions that are asked for ahead of fetch, or half of the program memory if that is less. More would keep the port busy when a program begins."""


class Prefetch(wiring.Component):
    """Fills the program memory. To be held in reset while no program runs.

    Parameters
    ----------
    program_depth : int
        Instructions in the program memory, a power of two, at least 16.
    fetch_bits : int
        Bits of an entry of the program memory.
    memory_bytes : int
        Bytes of a beat; at most those of an entry.

    Members
    -------
    start : ``In(1)``
        Begin with instruction ``first``.
    first : ``In(16)``
    address : ``In(32)``
        Byte of instruction 0 in external memory, a multiple of ``BURST`` instructions.
    length : ``In(17)``
        Instructions of the program. With 0 the program memory holds it as it is, and nothing is brought.
    index : ``In(16)``
        The instruction that fetch is about to scan.
    push : ``In(1)``
        It will be served later.
    consumed : ``In(1)``
        The instruction ``served`` has been read.
    served : ``In(16)``
    available : ``Out(1)``
        The instruction ``index`` is in the program memory, or is none of the program.
    blocked : ``Out(1)``
        Nothing is on its way, and the next burst's places hold an instruction that has not been served.
    failed : ``Out(1)``
        External memory has answered with an error.
    port : ``Out(MemoryReadSignature)``
    write : ``Out(EntryWriteSignature)``
        Of the program memory.
    """

    def __init__(self, *, program_depth, fetch_bits, memory_bytes):
        self.program_depth = program_depth
        self.fetch_bits = fetch_bits
        self.memory_bytes = memory_bytes
        self.entry_bits = exact_log2(program_depth * INSTRUCTION_BITS // fetch_bits)
        super().__init__({
            "start": In(1),
            "first": In(16),
            "address": In(32),
            "length": In(17),
            "index": In(16),
            "push": In(1),
            "consumed": In(1),
            "served": In(16),
            "available": Out(1),
            "blocked": Out(1),
            "failed": Out(1),
            "port": Out(MemoryReadSignature(memory_bytes=memory_bytes)),
            "write": Out(EntryWriteSignature(width=fetch_bits, addr_width=self.entry_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        request, beat = self.port.request, self.port.data
        regions = min(4, self.program_depth // BURST)
        size = exact_log2(self.program_depth // regions)
        begun, active = Signal(), Signal()
        requested, loaded = Signal(17), Signal(17)  # the first instruction not asked for, and not there; of whole bursts

        # Instructions that wait, by region.
        waiting = [Signal(range(self.program_depth), name=f"waiting{n}") for n in range(regions)]
        region = [value[size : size + exact_log2(regions)] for value in (self.index, self.served, requested)]
        for n, count in enumerate(waiting):
            more, fewer = self.push & (region[0] == n), self.consumed & (region[1] == n)
            with m.If(more ^ fewer):
                m.d.sync += count.eq(Mux(more, count + 1, count - 1))
        occupied = Signal()
        m.d.comb += occupied.eq(~requested[:size].any() & Array([count.any() for count in waiting])[region[2]])

        near, left = Signal(), Signal(signed(18))
        m.d.comb += [
            near.eq((requested - self.index).as_signed() < min(AHEAD, self.program_depth // 2)),
            left.eq(self.length - requested),
            request.valid.eq(active & near & (left > 0) & ~occupied & ~self.failed),
            request.payload.addr.eq(self.address + requested * (INSTRUCTION_BITS // 8)),
            request.payload.beats.eq(Mux(left < BURST, left[: exact_log2(BURST)], BURST) * (INSTRUCTION_BITS // 8 // self.memory_bytes) - 1),
            self.available.eq(~begun & ((self.length == 0) | (self.index < loaded) | (self.index >= self.length))),
            self.blocked.eq(active & near & (left > 0) & occupied & (requested == loaded)),
            beat.ready.eq(1),
        ]
        with m.If(request.valid & request.ready):
            m.d.sync += requested.eq(requested + BURST)

        # Beats become entries.
        beats = self.fetch_bits // 8 // self.memory_bytes
        entry, part = Signal(self.entry_bits), Signal(range(beats))
        gathered = Signal(self.fetch_bits)
        here = beat.valid & beat.ready
        m.d.comb += [
            self.write.en.eq(here & (part == beats - 1)),
            self.write.addr.eq(entry),
            self.write.data.eq(Cat(gathered, beat.payload.data)[-self.fetch_bits :]),
        ]
        with m.If(here):
            m.d.sync += [gathered.eq(self.write.data), part.eq(Mux(part == beats - 1, 0, part + 1)), entry.eq(entry + self.write.en)]
            with m.If(beat.payload.last & ~beat.payload.error & ~self.failed):
                m.d.sync += loaded.eq(loaded + BURST)
            with m.If(beat.payload.error):
                m.d.sync += self.failed.eq(1)

        m.d.sync += begun.eq(self.start)
        with m.If(self.start):
            first = Cat(Const(0, exact_log2(BURST)), self.first[exact_log2(BURST) :])
            m.d.sync += [active.eq(self.length != 0), requested.eq(first), loaded.eq(first)]
            m.d.sync += entry.eq(first << exact_log2(INSTRUCTION_BITS // self.fetch_bits))
        return m
