"""An engine in Amaranth's own simulator: a third opinion, for programs of some thousand cycles."""

import numpy as np
from amaranth.sim import Simulator

from celosia.rtl.top import Top
from celosia.sim.events import EVENT, events_of
from celosia.sim.transport import Transport, TransportError
from celosia.sim.wishbone import Wishbone, WishboneError

__all__ = ["AmaranthTransport"]

_MOMENT = 1e-14
"""Seconds that pass between two calls: so few that the clock does not."""


class AmaranthTransport(Transport):
    """The component itself, without Verilog in between.

    Parameters
    ----------
    config : EngineConfig
    """

    def __init__(self, config, *, cache=None, on_build=lambda: None):
        self._top = Top(config)
        self._task = None
        self._result = None
        self._recording = False
        self._events = np.zeros(0, EVENT)
        self._simulator = Simulator(self._top)
        self._simulator.add_clock(1e-8)
        self._simulator.add_testbench(self._serve)

    def write(self, address, words):
        async def task(ctx, bus):
            for n, word in enumerate(np.asarray(words).tolist()):
                await self._access("write", address + 4 * n, bus.write(address + 4 * n, word))

        self._perform(task)

    def read(self, address, count):
        async def task(ctx, bus):
            return [await self._access("read", address + 4 * n, bus.read(address + 4 * n)) for n in range(count)]

        return np.array(self._perform(task), np.uint32)

    def wait(self, limit):
        async def task(ctx, bus):
            changes = []
            for cycle in range(limit):
                if ctx.get(self._top.irq):
                    break
                if self._recording:
                    value = ctx.get(self._top.timeline.as_value())
                    if not changes or changes[-1][1] != value:
                        changes.append((cycle, value))
                await ctx.tick()
            else:
                cycle = limit
            self._events = events_of(changes, cycle)
            return ctx.get(self._top.irq)

        return bool(self._perform(task))

    def record(self, on):
        self._recording = bool(on)

    def events(self):
        return self._events

    def close(self):
        self._simulator = None

    async def _access(self, verb, address, access):
        try:
            return await access
        except WishboneError:
            raise TransportError(verb, address) from None

    async def _serve(self, ctx):
        bus = Wishbone(ctx, self._top.bus)
        while True:
            if self._task is None:
                await ctx.delay(_MOMENT)
                continue
            task, self._task = self._task, None
            try:
                self._result = (await task(ctx, bus), None)
            except TransportError as error:
                self._result = (None, error)

    def _perform(self, task):
        self._task, self._result = task, None
        while self._result is None:
            self._simulator.advance()
        value, error = self._result
        if error:
            raise error
        return value
