"""Bench of :class:`celosia.rtl.requantizer.Requantizer`: equal to the golden function, one row of elements every cycle.

Options: ``lanes``, ``count`` of pairs of each kind.
"""

import cocotb
import numpy as np

from celosia.rtl.requantizer import CONTROL_LATENCY, LATENCY
from celosia.sim.benches.clocked import options, start
from celosia.sim.numerics import channel_params, requantize
from celosia.sim.pairs import edge_pairs, random_controls, random_pairs, tie_pairs


@cocotb.test()
async def results_equal_golden(dut):
    given = options(lanes=4, count=10_000)
    lanes = given["lanes"]
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    corners = edge_pairs()
    chosen = rng.choice(len(corners[0]), given["count"])
    parts = [random_pairs(rng, given["count"]), tie_pairs(rng, given["count"]), [values[chosen] for values in corners]]
    count = 3 * given["count"] // lanes * lanes
    acc, bias, scale = (np.concatenate(column)[:count].reshape(-1, lanes) for column in zip(*parts))
    mantissa, shift = channel_params(scale)
    controls = random_controls(rng, len(acc))
    expected = requantize(acc, bias, mantissa, shift, *(controls[:, n, None] for n in range(3)))
    sums = [int.from_bytes(row.tobytes(), "little") for row in acc.astype("<i4")]
    entries = [int.from_bytes(row.tobytes(), "little") for row in ((bias & 0xFFFFFFFF) | mantissa << 32 | shift << 56).astype("<i8")]

    cycles = await start(dut, acc=0, params=0, raw=0, multiply=0, operand=0, operand_zero=0, zero_point=0, low=0, high=0, late=0)
    for cycle in range(len(sums) + LATENCY):
        if cycle < len(sums):
            dut.acc.value, dut.params.value = sums[cycle], entries[cycle]
        if 0 <= (row := cycle - CONTROL_LATENCY) < len(sums):
            for port, value in zip((dut.zero_point, dut.low, dut.high), controls[row].tolist()):
                port.value = value
        await cycles.sample()
        if (row := cycle - LATENCY) >= 0:
            got = np.frombuffer(dut.result.value.to_unsigned().to_bytes(lanes, "little"), np.int8)
            assert np.array_equal(got, expected[row]), f"{acc[row]} + {bias[row]}, scales {scale[row]}, controls {controls[row]}"
        await cycles.drive()
