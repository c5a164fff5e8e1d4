"""Requantiser: equal to the golden function on seeded and adversarial operands, at its public latency."""

import gc

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.requantizer import CONTROL_LATENCY, LATENCY, Requantizer
from celosia.sim.numerics import channel_params, multiply, requantize, sum_byte
from celosia.sim.pairs import edge_pairs, random_controls, random_pairs, tie_pairs

SEED = 4


def packed(values, width):
    """Return the integer whose ``width``-bit digits are ``values``, first one lowest."""
    return sum((int(value) & (1 << width) - 1) << width * n for n, value in enumerate(values))


def run(lanes, acc, bias, mantissa, shift, controls, *, front=None, operand=None, late=0):
    """Feed ``[cycles, lanes]`` operands, ``[cycles, 3]`` controls and ``front`` (raw, multiply, operand_zero), one row per cycle; return the
    results as int8."""
    dut = Requantizer(lanes=lanes, multiplier_form="portable")
    fields = (bias & 0xFFFFFFFF) | mantissa << 32 | shift << 56
    sums = [packed(row, 32) for row in acc]
    entries = [packed(row, 64) for row in fields]
    results = []

    async def bench(ctx):
        ctx.set(dut.late, late)
        for cycle in range(len(acc) + LATENCY):
            if cycle < len(acc):
                ctx.set(dut.acc.as_value(), sums[cycle])
                ctx.set(dut.params.as_value(), entries[cycle])
                if front is not None:
                    ctx.set(dut.operand.as_value(), packed(operand[cycle], 8))
                    for port, value in zip((dut.raw, dut.multiply, dut.operand_zero), front[cycle].tolist()):
                        ctx.set(port, value)
            if 0 <= (row := cycle - CONTROL_LATENCY) < len(acc):
                for port, value in zip((dut.zero_point, dut.low, dut.high), controls[row].tolist()):
                    ctx.set(port, value)
            if cycle >= LATENCY:
                results.append(ctx.get(dut.result.as_value()))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    return np.frombuffer(b"".join(word.to_bytes(lanes, "little") for word in results), np.int8).reshape(-1, lanes)


def compare(lanes, acc, bias, scale, rng, *, late=0):
    count = len(acc) // lanes * lanes
    acc, bias, scale = (values[:count].reshape(-1, lanes) for values in (acc, bias, scale))
    mantissa, shift = channel_params(scale)
    controls = random_controls(rng, len(acc))
    expected = requantize(acc, bias, mantissa, shift, *(controls[:, n, None] for n in range(3)), late=bool(late))
    got = run(lanes, acc, bias, mantissa, shift, controls, late=late)
    wrong = np.argwhere(got != expected)
    where = [(int(acc[r, c]), int(bias[r, c]), float(scale[r, c]), controls[r].tolist()) for r, c in wrong[:3]]
    assert not len(wrong), f"{len(wrong)} of {count} differ, first (acc, bias, scale, [zero_point, low, high]): {where}"


def test_rtl_equals_golden_on_100000_pairs():
    rng = np.random.default_rng(SEED)
    corners = edge_pairs()
    chosen = rng.choice(len(corners[0]), 10_000, replace=False)
    parts = [random_pairs(rng, 40_000), tie_pairs(rng, 50_000), [values[chosen] for values in corners]]
    compare(8, *(np.concatenate(columns) for columns in zip(*parts)), rng)


def test_ties_go_to_even_with_the_zero_point():
    rng = np.random.default_rng(SEED)
    corners = edge_pairs()
    chosen = rng.choice(len(corners[0]), 4_000, replace=False)
    parts = [random_pairs(rng, 8_000), tie_pairs(rng, 20_000), [values[chosen] for values in corners]]
    compare(8, *(np.concatenate(columns) for columns in zip(*parts)), rng, late=1)


@pytest.mark.parametrize("lanes", [1, 2])
def test_lanes_are_independent(lanes):
    rng = np.random.default_rng(SEED + lanes)
    compare(lanes, *tie_pairs(rng, 500 * lanes), rng)


def test_a_byte_of_the_sum_or_its_product_takes_its_place():
    rng = np.random.default_rng(SEED)
    cycles, lanes = 4000, 2
    acc = rng.integers(-(1 << 31), 1 << 31, (cycles, lanes)) >> rng.integers(0, 32, (cycles, lanes))
    bias = rng.integers(-1000, 1000, acc.shape)
    operand = rng.integers(-128, 128, acc.shape)
    front = np.stack([rng.integers(0, 5, cycles), rng.integers(0, 2, cycles), rng.integers(-128, 128, cycles)], axis=1)
    front[: cycles // 2, 0] = 0
    mantissa, shift = channel_params(np.exp2(rng.uniform(-20, 0, acc.shape)).astype(np.float32))
    controls = random_controls(rng, cycles)
    byte = np.stack([sum_byte(acc, bias, number) for number in range(4)])[np.maximum(front[:, 0] - 1, 0), np.arange(cycles)]
    raw = front[:, :1] > 0
    value, addend = np.where(raw, byte, acc), np.where(raw, 0, bias)
    product = multiply(acc, bias, operand, front[:, 2:])
    times = front[:, 1:2] > 0
    value, addend = np.where(times, product, value), np.where(times, 0, addend)
    expected = requantize(value, addend, mantissa, shift, *(controls[:, n, None] for n in range(3)))
    assert np.array_equal(run(lanes, acc, bias, mantissa, shift, controls, front=front, operand=operand), expected)


def test_mantissa_that_is_not_normalised_counts_as_zero():
    acc = np.array([[1 << 30]])
    got = run(1, acc, np.zeros_like(acc), np.array([[(1 << 23) - 1]]), np.array([[20]]), np.array([[5, -128, 127]]))
    assert got.tolist() == [[5]]


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("wrong, text", [
    ({"lanes": 0}, "lanes must be at least 1, not 0"),
    ({"multiplier_form": "booth"}, "multiplier_form must be one of portable, ecp5, .*, not 'booth'"),
])  # fmt: skip
def test_bad_parameters_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        Requantizer(**({"lanes": 1, "multiplier_form": "portable"} | wrong))
    gc.collect()  # of the refused component, while its warning is ignored
