"""What goes into the device: PLL, reset, the engine behind its link, LEDs.

::

    oscillator ─► PLL ─► clock and reset
    UART or SPI ◄──────► LinkedEngine ─► LEDs: idle, busy, error
"""

from amaranth.hdl import *
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer

from celosia.rtl.linked import LinkedEngine

__all__ = ["WAKE_CYCLES", "BoardTop"]

WAKE_CYCLES = 1024
"""Cycles in reset after the PLL has locked. The block RAM of an iCE40 reads as zeroes for some microseconds after configuration."""


class BoardTop(Elaboratable):
    """Everything on one board.

    Parameters
    ----------
    board : Board
    core : wiring.Component, optional
        What is built instead of the board's engine: with the pins of its link, ``running`` and ``failed``.
    """

    def __init__(self, board, core=None):
        self.board = board
        self.core = core

    def elaborate(self, platform):
        m = Module()
        board = self.board
        self._clock(m, board.new_pll())
        m.submodules.core = core = self.core or LinkedEngine(
            board.config, link=board.link, divisor=board.divisor, multiplier=board.family.multiplier
        )
        pins = platform.request(board.link, 0, dir="-")
        for name, direction in LINES[board.link].items():
            m.submodules[name] = buffer = io.Buffer(direction, getattr(pins, name))
            inside = getattr(core, name)
            m.d.comb += inside.eq(buffer.i) if direction == "i" else buffer.o.eq(inside)

        states = {"idle": ~core.running & ~core.failed, "busy": core.running, "error": core.failed}
        leds = {}
        for name, (resource, number, *part) in board.leds.items():
            if (resource, number) not in leds:
                leds[resource, number] = platform.request(resource, number, dir="-")
            led = leds[resource, number]
            m.submodules[f"led_{name}"] = buffer = io.Buffer("o", getattr(led, *part) if part else led)
            m.d.comb += buffer.o.eq(states[name])
        return m

    def _clock(self, m, pll):
        """Make the domain ``sync``: in reset until the PLL has locked, and :data:`WAKE_CYCLES` longer."""
        m.submodules.pll = pll
        m.domains.wake = wake = ClockDomain(local=True)
        m.domains.sync = sync = ClockDomain()
        waited, awake = Signal(range(WAKE_CYCLES)), Signal()
        m.submodules.locked = ResetSynchronizer(~pll.locked, domain="wake")
        m.d.wake += [waited.eq(waited + 1), awake.eq(awake | (waited == WAKE_CYCLES - 1))]
        m.d.comb += [wake.clk.eq(pll.clk), sync.clk.eq(pll.clk), sync.rst.eq(~awake)]


LINES = {
    "uart": {"rx": "i", "tx": "o"},
    "spi": {"sck": "i", "copi": "i", "cs_n": "i", "cipo": "o"},
}
"""Pins of each link, as the platform's resource has them, with their direction."""
