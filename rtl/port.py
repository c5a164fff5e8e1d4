"""The memory port: bursts between the engine and what lies outside of it.

An adapter beside the engine makes the system's bus of it. Bursts are in order: data come and go in the order of the requests, and so do the
answers to writes.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["BURST_BYTES", "MAX_BEATS", "Burst", "MemoryPortSignature", "MemoryReadSignature", "MemoryWriteSignature", "burst_beats"]

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
