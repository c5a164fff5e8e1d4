"""Bench of :class:`celosia.rtl.serial_requantizer.SerialRequantizer`: equal to the golden function, one element every four cycles.

Options: ``count`` of pairs of each kind; ``raw``, the byte taken of all of them. One in ten cycles stands still.
"""

import cocotb
import numpy as np

from celosia.rtl.serial_requantizer import LATENCY, PERIOD
from celosia.sim.benches.clocked import options, start
from celosia.sim.numerics import channel_params, requantize, sum_byte
from celosia.sim.pairs import edge_pairs, random_pairs, tie_pairs


@cocotb.test()
async def results_equal_golden(dut):
    given = options(count=2_000, raw=0)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    corners = edge_pairs()
    chosen = rng.choice(len(corners[0]), given["count"])
    parts = [random_pairs(rng, given["count"]), tie_pairs(rng, given["count"]), [values[chosen] for values in corners]]
    acc, bias, scale = (np.concatenate(column) for column in zip(*parts))
    mantissa, shift = channel_params(scale)
    low, zero_point, high = np.sort(rng.integers(-128, 128, 3)).tolist() if given["raw"] else (-128, -7, 127)
    value, addend = (sum_byte(acc, bias, given["raw"] - 1), 0) if given["raw"] else (acc, bias)
    expected = requantize(value, addend, mantissa, shift, zero_point, low, high)
    entries = (bias.astype(object) & 0xFFFFFFFF) | mantissa.astype(object) << 32 | shift.astype(object) << 56

    cycles = await start(dut, acc=0, param=0, raw=given["raw"], zero_point=zero_point, low=low, high=high, phase=0, run=0)
    for cycle in range(PERIOD * len(acc) + LATENCY):
        number, phase = divmod(cycle, PERIOD)
        dut.phase.value, dut.run.value = phase, 0
        while rng.random() < 0.1:
            dut.acc.value, dut.param.value = int(rng.integers(-(1 << 31), 1 << 31)), int(rng.integers(1 << 32))
            await cycles.sample()
            await cycles.drive()
        dut.run.value = 1
        dut.acc.value, dut.param.value = int(rng.integers(-(1 << 31), 1 << 31)), int(rng.integers(1 << 32))
        if phase == PERIOD - 1 and number < len(acc):
            dut.acc.value, dut.param.value = int(acc[number]), int(entries[number]) & 0xFFFFFFFF
        elif phase == 0 and 1 <= number <= len(acc):
            dut.param.value = int(entries[number - 1]) >> 32
        await cycles.sample()
        late, phase = divmod(cycle - (PERIOD - 1) - LATENCY, PERIOD)
        if late >= 0:
            got = dut.result.value.to_signed()
            assert got == expected[late], f"{acc[late]} + {bias[late]}, scale {scale[late]}, {phase} cycles after it was there"
        await cycles.drive()
