"""Multiplier: exact products after LATENCY cycles, and one MULT18X18D with every register used in the ECP5 form."""

import gc

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from celosia.rtl.multiplier import LATENCY, Multiplier


def operands(width, count, rng):
    low, high = -(1 << width - 1), (1 << width - 1) - 1
    return [low, high, low, 0, -1, high] + [int(v) for v in rng.integers(low, high + 1, count)]


@pytest.mark.parametrize("width_a, width_b", [(8, 8), (18, 18), (9, 14), (1, 18)])
def test_product_appears_after_latency_cycles(width_a, width_b):
    rng = np.random.default_rng(1)
    dut = Multiplier(width_a=width_a, width_b=width_b, form="portable")
    a, b = operands(width_a, 200, rng), operands(width_b, 200, rng)[::-1]
    a[:2], b[:2] = [a[0], a[0]], [-(1 << width_b - 1), (1 << width_b - 1) - 1]
    products = []

    async def bench(ctx):
        for n in range(len(a) + LATENCY):
            if n < len(a):
                ctx.set(dut.a, a[n])
                ctx.set(dut.b, b[n])
            if n >= LATENCY:
                products.append(ctx.get(dut.p))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    assert products == [x * y for x, y in zip(a, b)]


def test_ecp5_form_is_one_primitive_with_one_control_set():
    text = verilog.convert(Multiplier(width_a=8, width_b=8, form="ecp5"), emit_src=False)
    assert text.count("MULT18X18D") == 1
    for register in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
        for line in ("CLK", "CE", "RST"):
            assert f'.REG_{register}_{line}("{line}0")' in text


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("wrong, text", [
    ({"width_a": 19}, "width_a must be between 1 and 18, not 19"),
    ({"form": "xilinx"}, "form must be one of portable, ecp5, .*, not 'xilinx'"),
])  # fmt: skip
def test_bad_parameters_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        Multiplier(**({"width_a": 8, "width_b": 8, "form": "portable"} | wrong))
    gc.collect()  # here, where the warning about the half-made component is ignored
