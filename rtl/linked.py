"""The engine behind a host link: what a board's top connects to pins, and a simulated board to a pseudo-terminal."""

from amaranth.hdl import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.bridge import Bridge
from celosia.rtl.spi import SpiTarget
from celosia.rtl.top import Top
from celosia.rtl.uart import Uart

__all__ = ["LINKS", "LinkedEngine"]

LINKS = ("uart", "spi", "bytes")
"""What a :class:`LinkedEngine` can have: pins of a serial line, pins of an SPI target, or the byte streams themselves."""


class LinkedEngine(wiring.Component):
    """:class:`~celosia.rtl.top.Top` with a :class:`~celosia.rtl.bridge.Bridge` and its line.

    Parameters
    ----------
    config : EngineConfig
    link : str
        One of :data:`LINKS`.
    divisor : int, optional
        Of ``"uart"``, see :class:`~celosia.rtl.uart.Uart`.
    multiplier : str
        See :class:`~celosia.rtl.top.Top`.

    Members
    -------
    rx, tx; or sck, copi, cs_n, cipo; or i, o
        As of :class:`~celosia.rtl.uart.Uart`, :class:`~celosia.rtl.spi.SpiTarget`, :class:`~celosia.rtl.bridge.Bridge`.
    irq : ``Out(1)``
        As of ``Top``.
    busy : ``Out(1)``
        A request is executed or answered.
    running, failed : ``Out(1)``
        A program runs; the last one ended with an error.
    """

    def __init__(self, config, *, link, divisor=None, multiplier="portable"):
        if link not in LINKS:
            raise ValueError(f"link must be one of {', '.join(LINKS)}, not {link!r}")
        self.link = link
        self._engine = Top(config, multiplier=multiplier)
        self._line = {"uart": lambda: Uart(divisor=divisor), "spi": SpiTarget, "bytes": lambda: None}[link]()
        if self._line:
            pins = {name: member for name, member in self._line.signature.members.items() if name not in ("i", "o")}
        else:
            pins = {"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))}
        super().__init__(pins | {"irq": Out(1), "busy": Out(1), "running": Out(1), "failed": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = engine = self._engine
        m.submodules.bridge = bridge = Bridge()
        wiring.connect(m, bridge.bus, engine.bus)
        m.d.comb += [self.irq.eq(engine.irq), self.busy.eq(bridge.busy)]
        m.d.comb += [self.running.eq(engine.busy), self.failed.eq(engine.error & ~engine.busy)]
        if self._line is None:
            wiring.connect(m, wiring.flipped(self.i), bridge.i)
            wiring.connect(m, bridge.o, wiring.flipped(self.o))
            return m
        m.submodules.line = line = self._line
        wiring.connect(m, line.o, bridge.i)
        wiring.connect(m, bridge.o, line.i)
        for name, member in line.signature.members.items():
            if name not in ("i", "o"):
                inside, outside = getattr(line, name), getattr(self, name)
                m.d.comb += inside.eq(outside) if member.flow is In else outside.eq(inside)
        return m
