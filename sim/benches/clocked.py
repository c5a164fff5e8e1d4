"""What benches share: options, clock and reset, and one way to drive and to sample.

Inputs change at the falling edge; outputs are sampled after they have settled from that, still before the rising edge::

    while True:
        await drive()          # falling edge: set inputs
        await sample()         # settled: read outputs

so that a value read is the one the next rising edge sees, in every simulator.
"""

import json
import os
from collections import deque

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from celosia.sim.benches.runner import OPTIONS

__all__ = ["Cycles", "Sink", "Source", "options", "start"]


def options(**defaults):
    """Return the options that :func:`celosia.sim.benches.runner.run` was given, over ``defaults``."""
    return defaults | json.loads(os.environ.get(OPTIONS, "{}"))


class Cycles:
    """The two moments of a cycle, of the clock of ``dut``."""

    def __init__(self, dut):
        self.dut = dut

    async def drive(self):
        """Wait for the moment at which inputs may change."""
        await FallingEdge(self.dut.clk)

    async def sample(self):
        """Wait until outputs have settled; call only after :meth:`drive`."""
        await ReadOnly()


async def start(dut, **inputs):
    """Start the clock, set ``inputs``, hold reset for two cycles, and return the :class:`Cycles`; at the driving moment."""
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    cycles = Cycles(dut)
    for name, value in inputs.items():
        getattr(dut, name).value = value
    dut.rst.value = 1
    for _ in range(2):
        await cycles.drive()
    dut.rst.value = 0
    return cycles


class Source:
    """Drives the stream ``<name>_valid``, ``<name>_ready``, ``<name>_payload``; pauses with probability ``idle``.

    Payloads are integers, put into ``queue``. While pausing, the payload is noise.
    """

    def __init__(self, dut, name, *, idle=0.0, rng):
        self.dut, self.name, self.idle, self.rng = dut, name, idle, rng
        self.queue = deque()
        self.accepted = 0
        self._port("valid").value = 0

    def _port(self, part):
        return getattr(self.dut, f"{self.name}_{part}")

    def start(self, cycles):
        """Run from the next driving moment on."""
        cocotb.start_soon(self._run(cycles))

    async def _run(self, cycles):
        payload = self._port("payload")
        while True:
            offering = bool(self.queue) and self.rng.random() >= self.idle
            self._port("valid").value = int(offering)
            payload.value = self.queue[0] if offering else int(self.rng.integers(0, 2)) * ((1 << len(payload)) - 1)
            taken = False
            while not taken:
                await cycles.sample()
                taken = not offering or self._port("ready").value == 1
                await cycles.drive()
            if offering:
                self.queue.popleft()
                self.accepted += 1


class Sink:
    """Takes the stream ``<name>_…`` into ``received``; not ready with probability ``stall``."""

    def __init__(self, dut, name, *, stall=0.0, rng):
        self.dut, self.name, self.stall, self.rng = dut, name, stall, rng
        self.received = []
        self._port("ready").value = 0

    def _port(self, part):
        return getattr(self.dut, f"{self.name}_{part}")

    def start(self, cycles):
        """Run from the next driving moment on."""
        cocotb.start_soon(self._run(cycles))

    async def _run(self, cycles):
        while True:
            ready = self.rng.random() >= self.stall
            self._port("ready").value = int(ready)
            await cycles.sample()
            if ready and self._port("valid").value == 1:
                self.received.append(self._port("payload").value.to_unsigned())
            await cycles.drive()
