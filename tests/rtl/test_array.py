"""Array: products of words and tiles, weights that switch with the wavefront, and no cycle lost between tiles."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.array import Array, array_latency


def run(dut, passes, gaps, rng):
    """Stream ``passes`` of ``(tile, words)`` as fast as loading allows; return the sums in order and the cycles used."""
    load_cycles = dut.rows // dut.weight_rows
    loads, switches, words = {}, {}, {}  # by cycle
    start, now = 0, 0
    for tile, pixels in passes:
        loads[start] = tile
        now = max(now, start + 1)
        switches[now] = True
        first = now
        for word in pixels:
            words[now] = word
            now += 1 + (int(rng.integers(0, 3)) if gaps else 0)
        start = max(first, start + load_cycles)
    sums = []

    async def bench(ctx):
        for cycle in range(now + array_latency(dut.rows) + 1):
            ctx.set(dut.load, cycle in loads)
            ctx.set(dut.switch, cycle in switches)
            word = words.get(cycle, rng.integers(-128, 128, dut.rows))
            for row in range(dut.rows):
                ctx.set(dut.word[row], int(word[row]))
            for bank in range(dut.weight_rows):
                values = rng.integers(-128, 128, dut.cols)
                for age in range(load_cycles):
                    row = bank * load_cycles + age
                    if cycle - row in loads:
                        values = loads[cycle - row][row]
                for col in range(dut.cols):
                    ctx.set(dut.weights[bank][col], int(values[col]))
            if cycle - array_latency(dut.rows) in words:
                sums.append([ctx.get(dut.sums[col]) for col in range(dut.cols)])
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    return np.array(sums), now


def stimulus(rows, cols, lengths, rng):
    return [(rng.integers(-128, 128, (rows, cols)), rng.integers(-128, 128, (n, rows))) for n in lengths]


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("rows, cols, weight_rows", [(4, 4, 1), (4, 4, 2), (8, 4, 2)])
def test_sums_equal_matrix_product(rows, cols, weight_rows, gaps):
    rng = np.random.default_rng(rows + cols + weight_rows + gaps)
    passes = stimulus(rows, cols, [1, 1, 2, 9, 1, 4, 3, 17, 1, 1, 5], rng)
    dut = Array(rows=rows, cols=cols, weight_rows=weight_rows, multiplier="portable")
    sums, _ = run(dut, passes, gaps, rng)
    assert np.array_equal(sums, np.concatenate([words @ tile for tile, words in passes]))


def test_largest_sums_do_not_wrap():
    tile, words = np.full((8, 2), -128), np.full((3, 8), -128)
    dut = Array(rows=8, cols=2, weight_rows=2, multiplier="portable")
    sums, _ = run(dut, [(tile, words), (tile, words + 255)], False, np.random.default_rng(0))
    assert (sums[:3] == 8 * 128 * 128).all() and (sums[3:] == -8 * 128 * 127).all()


def test_passes_as_long_as_a_load_follow_without_bubble():
    rng = np.random.default_rng(3)
    dut = Array(rows=4, cols=4, weight_rows=1, multiplier="portable")
    passes = stimulus(4, 4, [4] * 10, rng)
    sums, cycles = run(dut, passes, False, rng)
    assert np.array_equal(sums, np.concatenate([words @ tile for tile, words in passes]))
    assert cycles == 1 + 10 * 4
