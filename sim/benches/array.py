"""Bench of :class:`celosia.rtl.array.Array`: random tiles and words as fast as loading allows, noise wherever nothing is read.

Options: ``rows``, ``cols``, ``weight_rows``; ``gaps``, the probability of a cycle without a word; ``passes``.
"""

import cocotb
import numpy as np

from celosia.rtl.array import array_latency, sum_width
from celosia.sim.benches.clocked import options, start


@cocotb.test()
async def matrix_products(dut):
    given = options(rows=4, cols=4, weight_rows=1, gaps=0.0, passes=60)
    rows, cols, banks = given["rows"], given["cols"], given["weight_rows"]
    load_cycles, width = rows // banks, sum_width(rows)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)

    loads, switches, words, expected = {}, set(), {}, {}  # by cycle
    load, now = 0, 0
    for _ in range(given["passes"]):
        loads[load] = tile = rng.integers(-128, 128, (rows, cols))
        first = now = max(now, load + 1)
        switches.add(now)
        for _ in range(int(rng.integers(1, 2 * load_cycles + 1))):
            words[now] = rng.integers(-128, 128, rows)
            expected[now + array_latency(rows)] = list(words[now] @ tile)
            now += 1
            while rng.random() < given["gaps"]:
                now += 1
        load = max(first, load + load_cycles)

    cycles = await start(dut, word=0, switch=0, load=0, weights=0)
    for cycle in range(now + array_latency(rows) + 1):
        dut.load.value = cycle in loads
        dut.switch.value = cycle in switches
        dut.word.value = _pack(words.get(cycle, rng.integers(-128, 128, rows)))
        weights = rng.integers(-128, 128, (banks, cols))
        for row in range(rows):
            if cycle - row in loads:
                weights[row // load_cycles] = loads[cycle - row][row]
        dut.weights.value = _pack(weights.reshape(-1))
        await cycles.sample()
        if cycle in expected:
            value = dut.sums.value.to_unsigned()
            sums = [value >> width * col & (1 << width) - 1 for col in range(cols)]
            assert [s - (s >> width - 1 << width) for s in sums] == expected[cycle], f"cycle {cycle}"
        await cycles.drive()


def _pack(values):
    return int.from_bytes(values.astype(np.int8).tobytes(), "little")
