"""The memory port: bursts between the engine and what lies outside of it.

An adapter beside the engine makes the system's bus of it. Bursts are in order: data come and go in the order of the requests, and so do the
answers to writes.
"""

from amaranth.hdl import *
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["BURST_BYTES", "MAX_BEATS", "Burst", "MemoryPort", "MemoryPortSignature", "MemoryReadSignature", "MemoryWriteSignature", "burst_beats"]

MAX_BEATS = 256
"""Beats of the longest burst, as in AXI4."""

BURST_BYTES = 4096
"""No burst crosses a multiple of this, as in AXI4."""


def burst_beats(memory_bytes):
    """Return the beats of the longest burst of a port; no burst crosses a multiple of so many."""
    return min(MAX_BEATS, BURST_BYTES // memory_bytes)


class Burst(data.Struct):
    """``beats`` plus one beats from byte ``addr`` on, a multiple of the port's ``memory_bytes``."""

    addr: 32
    beats: 8


class MemoryReadSignature(wiring.Signature):
    """Reading, from the engine's side: a burst is asked for with ``request``, and its beats come as ``data``, the final one with ``last``.

    ``error`` says that the beat's bytes mean nothing.
    """

    def __init__(self, *, memory_bytes):
        beat = data.StructLayout({"data": 8 * memory_bytes, "last": 1, "error": 1})
        super().__init__({"request": Out(stream.Signature(Burst)), "data": In(stream.Signature(beat))})


class MemoryWriteSignature(wiring.Signature):
    """Writing, from the engine's side: a burst is announced with ``request``, its beats follow as ``data``, none before the announcement has been
    taken; for every burst there is one ``done``, when what reads after it sees what it has written. A beat without ``enable`` leaves memory as it is.
    """

    def __init__(self, *, memory_bytes):
        beat = data.StructLayout({"data": 8 * memory_bytes, "enable": 1, "last": 1})
        super().__init__({
            "request": Out(stream.Signature(Burst)),
            "data": Out(stream.Signature(beat)),
            "done": In(stream.Signature(data.StructLayout({"error": 1}))),
        })


class MemoryPortSignature(wiring.Signature):
    """The memory port, from the engine's side."""

    def __init__(self, *, memory_bytes):
        super().__init__({
            "read": Out(MemoryReadSignature(memory_bytes=memory_bytes)),
            "write": Out(MemoryWriteSignature(memory_bytes=memory_bytes)),
        })


class MemoryPort(wiring.Component):
    """Joins those that use the memory port, and finishes what a stopped run has begun. Not to be reset between runs.

    A request passes through a register. Requests to read for the program go first; their bursts are short.

    Parameters
    ----------
    memory_bytes : int

    Members
    -------
    program : ``In(MemoryReadSignature)``
        The prefetcher's.
    transfer : ``In(MemoryPortSignature)``
        The transfer unit's. ``last`` and ``enable`` of what it writes are made here.
    memory : ``Out(MemoryPortSignature)``
    flush : ``In(1)``
        No program runs. Data that come are thrown away, bursts to write that have been announced are completed with beats that leave memory as it is,
        and nothing new begins before all that has been answered.
    """

    IN_FLIGHT = 32
    """Bursts to read that have been asked for and have not ended; likewise bursts to write."""

    def __init__(self, *, memory_bytes):
        self.memory_bytes = memory_bytes
        super().__init__({
            "program": In(MemoryReadSignature(memory_bytes=memory_bytes)),
            "transfer": In(MemoryPortSignature(memory_bytes=memory_bytes)),
            "memory": Out(MemoryPortSignature(memory_bytes=memory_bytes)),
            "flush": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        draining = Signal(init=1)
        quiet = self._reads(m, draining) & self._writes(m, draining)
        with m.If(self.flush):
            m.d.sync += draining.eq(1)
        with m.Elif(quiet):
            m.d.sync += draining.eq(0)
        return m

    def _reads(self, m, draining):
        """Build the way of reads; return whether nothing is on its way."""
        request, beat = self.memory.read.request, self.memory.read.data
        users = [self.program, self.transfer.read]
        m.submodules.owners = owners = fifo.SyncFIFO(width=1, depth=self.IN_FLIGHT)  # of the bursts, by their number in `users`
        open_ = Signal()
        m.d.comb += open_.eq(~draining & ~self.flush & owners.w_rdy & (~request.valid | request.ready))
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        for number, user in reversed(list(enumerate(users))):
            with m.If(open_ & user.request.valid):
                m.d.sync += [request.valid.eq(1), request.payload.eq(user.request.payload)]
                m.d.comb += [owners.w_en.eq(1), owners.w_data.eq(number)]
        m.d.comb += [
            users[0].request.ready.eq(open_),
            users[1].request.ready.eq(open_ & ~users[0].request.valid),
            owners.r_en.eq(beat.valid & beat.ready & beat.payload.last),
        ]
        with m.If(draining | self.flush):
            m.d.comb += beat.ready.eq(1)
        for number, user in enumerate(users):
            m.d.comb += user.data.payload.eq(beat.payload)
            with m.If(~(draining | self.flush) & (owners.r_data == number)):
                m.d.comb += [user.data.valid.eq(beat.valid), beat.ready.eq(user.data.ready)]
        return ~owners.r_rdy & ~request.valid

    def _writes(self, m, draining):
        """Build the way of writes; return whether nothing is on its way."""
        unit, memory = self.transfer.write, self.memory.write
        m.submodules.lengths = lengths = fifo.SyncFIFO(width=len(memory.request.payload.beats), depth=4)  # of announced bursts
        stopped, open_, unanswered = Signal(), Signal(), Signal(range(self.IN_FLIGHT + 1))
        m.d.comb += [
            stopped.eq(draining | self.flush),
            open_.eq(~stopped & (unanswered != self.IN_FLIGHT) & ~memory.request.valid & lengths.w_rdy),
            unit.request.ready.eq(open_),
            lengths.w_en.eq(memory.request.valid & memory.request.ready),
            lengths.w_data.eq(memory.request.payload.beats),
            unit.done.valid.eq(memory.done.valid & ~stopped),
            unit.done.payload.eq(memory.done.payload),
            memory.done.ready.eq(1),
        ]
        with m.If(memory.request.ready):
            m.d.sync += memory.request.valid.eq(0)
        with m.If(open_ & unit.request.valid):
            m.d.sync += [memory.request.valid.eq(1), memory.request.payload.eq(unit.request.payload)]
        m.d.sync += unanswered.eq(unanswered + (open_ & unit.request.valid) - memory.done.valid)

        # Beats pass through a register: what has been offered must stay.
        number, free, comes = Signal.like(memory.request.payload.beats), Signal(), Signal()
        beat = memory.data
        m.d.comb += [
            free.eq((~beat.valid | beat.ready) & lengths.r_rdy),
            unit.data.ready.eq(free & ~stopped),
            comes.eq(free & (unit.data.valid | stopped)),
            lengths.r_en.eq(comes & (number == lengths.r_data)),
        ]
        with m.If(beat.ready):
            m.d.sync += beat.valid.eq(0)
        with m.If(comes):
            m.d.sync += [
                beat.valid.eq(1),
                beat.payload.data.eq(unit.data.payload.data),
                beat.payload.enable.eq(~stopped),
                beat.payload.last.eq(lengths.r_en),
                number.eq(Mux(lengths.r_en, 0, number + 1)),
            ]
        return ~memory.request.valid & (unanswered == 0)
