"""Residual addition: equal to the golden function, at its public latency."""

import gc

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.add import CONTROL_LATENCY, FACTORS_LATENCY, LATENCY, Adder
from celosia.rtl.isa import ADD_FRACTION
from celosia.sim.numerics import ADD_LIMITS, add_residual

SEED = 3


def run(lanes, result, operand, constants, bounds, choices=None):
    """Feed ``[cycles, lanes]`` addends with one set of constants, bounds and choices (minimum, maximum) per cycle; return the sums."""
    dut = Adder(lanes=lanes, multiplier_form="portable")
    sums = []

    async def bench(ctx):
        for cycle in range(len(result) + LATENCY):
            if cycle < len(result):
                ctx.set(dut.result.as_value(), int.from_bytes(result[cycle].tobytes(), "little"))
                ctx.set(dut.operand.as_value(), int.from_bytes(operand[cycle].tobytes(), "little"))
                if choices is not None:
                    ctx.set(dut.minimum, int(choices[cycle, 0]))
                    ctx.set(dut.maximum, int(choices[cycle, 1]))
            if 0 <= (row := cycle - FACTORS_LATENCY) < len(result):
                ctx.set(dut.k_result, int(constants[row, 0]))
                ctx.set(dut.k_operand, int(constants[row, 1]))
            if 0 <= (row := cycle - CONTROL_LATENCY) < len(result):
                ctx.set(dut.k_zero_half, int(constants[row, 2]) + (1 << ADD_FRACTION - 1))
                ctx.set(dut.low, int(bounds[row, 0]))
                ctx.set(dut.high, int(bounds[row, 1]))
            if cycle >= LATENCY:
                sums.append(ctx.get(dut.sum.as_value()).to_bytes(lanes, "little"))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    return np.frombuffer(b"".join(sums), np.int8).reshape(-1, lanes)


def compare(lanes, result, operand, constants, bounds):
    got = run(lanes, result, operand, constants, bounds)
    expected = add_residual(result, operand, *(constants[:, n, None] for n in range(3)), bounds[:, :1], bounds[:, 1:])
    assert np.array_equal(got, expected), np.argwhere(got != expected)[:3]


def addends(rng, cycles, lanes):
    values = rng.integers(-128, 128, (2, cycles, lanes))
    extreme = rng.random(values.shape) < 0.2
    return np.where(extreme, rng.choice([-128, -1, 0, 1, 127], values.shape), values).astype(np.int8)


@pytest.mark.parametrize("lanes", [1, 4])
def test_sum_equals_golden(lanes):
    rng = np.random.default_rng(SEED)
    cycles = 3000
    constants = np.stack([rng.integers(-limit, limit, cycles) >> rng.integers(0, 8, cycles) for limit in ADD_LIMITS.values()], axis=1)
    constants[:1000, 2] >>= 8
    bounds = np.sort(rng.integers(-128, 128, (cycles, 2)), axis=1)
    bounds[rng.random(cycles) < 0.7] = -128, 127
    compare(lanes, *addends(rng, cycles, lanes), constants, bounds)


def test_ends_of_every_field():
    corners = [(a, b, c) for a in (-(1 << 27), (1 << 27) - 1) for b in (-(1 << 27), (1 << 27) - 1) for c in (-(1 << 39), (1 << 39) - 1, 0)]
    result, operand = (np.repeat(values, len(corners))[:, None] for values in np.array([(-128, -128), (127, -128), (127, 127)], np.int8).T)
    constants = np.tile(np.array(corners), (3, 1))
    compare(1, result, operand, constants, np.tile([-128, 127], (len(constants), 1)))


def test_ties_go_to_even_on_both_sides_of_zero():
    values = np.arange(-128, 128, dtype=np.int8)[:, None]
    half, unit = 1 << 23, 1 << 24
    for constants in ([half, 0, 0], [half, half, 0], [unit, unit, half], [-half, unit, unit], [half, 0, 1], [half, 0, -1]):
        compare(1, values, values[::-1].copy(), np.tile(constants, (256, 1)), np.tile([-128, 127], (256, 1)))


def test_smaller_or_larger_takes_the_place_of_the_result():
    rng = np.random.default_rng(SEED)
    result, operand = addends(rng, 2000, 2)
    choices = np.array([(0, 0), (1, 0), (0, 1)])[rng.integers(0, 3, len(result))]
    constants = np.stack([np.full(len(result), 1 << 24), *rng.integers(-1000, 1000, (2, len(result)))], axis=1)
    bounds = np.tile([-100, 127], (len(result), 1))
    got = run(2, result, operand, constants, bounds, choices)
    chosen = np.where(choices[:, :1], np.minimum(result, operand), np.where(choices[:, 1:], np.maximum(result, operand), result))
    assert np.array_equal(got, add_residual(chosen, operand, *(constants[:, n, None] for n in range(3)), -100, 127))


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("wrong, text", [
    ({"lanes": 0}, "lanes must be at least 1, not 0"),
    ({"multiplier_form": "booth"}, "multiplier_form must be one of portable, ecp5, .*, not 'booth'"),
])  # fmt: skip
def test_bad_parameters_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        Adder(**({"lanes": 1, "multiplier_form": "portable"} | wrong))
    gc.collect()  # of the refused component, while its warning is ignored
