"""Bench of :class:`celosia.rtl.multiplier.Multiplier`: a product every cycle, LATENCY cycles after its operands.

Options: ``width_a``, ``width_b``, ``count``; ``every`` for all pairs of operands.
"""

import cocotb
import numpy as np

from celosia.rtl.multiplier import LATENCY
from celosia.sim.benches.clocked import options, start


@cocotb.test()
async def products(dut):
    given = options(width_a=8, width_b=8, count=2000, every=False)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    widths = given["width_a"], given["width_b"]
    edges = [(a, b) for a in _edges(widths[0]) for b in _edges(widths[1])]
    rest = [tuple(int(rng.integers(-(1 << width - 1), 1 << width - 1)) for width in widths) for _ in range(given["count"])]
    operands = edges + rest
    if given["every"]:
        operands = [(a, b) for a in _range(widths[0]) for b in _range(widths[1])]
    cycles = await start(dut, a=0, b=0)
    for n in range(len(operands) + LATENCY):
        dut.a.value, dut.b.value = operands[min(n, len(operands) - 1)]
        await cycles.sample()
        if n >= LATENCY:
            a, b = operands[n - LATENCY]
            assert dut.p.value.to_signed() == a * b, f"{a} * {b}"
        await cycles.drive()


def _edges(width):
    return sorted({-(1 << width - 1), -1, 0, (1 << width - 1) - 1})


def _range(width):
    return range(-(1 << width - 1), 1 << width - 1)
