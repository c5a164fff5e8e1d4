"""Array: products of words and tiles, depthwise filters, weights that switch with the wavefront, no cycle lost between tiles."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.array import Array, array_latency


def run(dut, passes, gaps, rng):
    """Stream ``passes`` of ``(tile, words)``, or ``(tile, words of all image rows, slot)`` for the depthwise mode, as fast as
    loading allows; return the sums in order and the cycles used."""
    load_cycles = dut.rows // dut.weight_rows
    loads, words, slots, wanted = {}, {}, {}, set()  # by cycle
    now = 1
    for tile, pixels, *slot in passes:
        first = now
        loads[now - 1] = tile
        wanted |= set(range(now, now + len(pixels) - dut.rows // dut.image_rows + 1)) if slot else set()
        for word in pixels:
            words[now] = word.reshape(-1, dut.rows)
            slots[now] = (1, slot[0]) if slot else (0, 7)
            wanted |= set() if slot else {now}
            now += 1 + (int(rng.integers(0, 3)) if gaps and not slot else 0)
        now = max(now, first + load_cycles)
    sums = []

    async def bench(ctx):
        for cycle in range(now + array_latency(dut.rows) + 1):
            ctx.set(dut.load, cycle in loads)
            mode = slots.get(cycle, (int(rng.integers(0, 2)), 0))
            ctx.set(dut.depthwise, mode[0])
            ctx.set(dut.slot, mode[1])
            noise = rng.integers(-128, 128, (len(dut.words), dut.rows))
            for port, word in zip(dut.words, [*words.get(cycle, noise), *noise[1:]]):
                for row in range(dut.rows):
                    ctx.set(port[row], int(word[row]))
            for bank in range(dut.weight_rows):
                values = rng.integers(-128, 128, dut.cols)
                for age in range(load_cycles):
                    row = bank * load_cycles + age
                    if cycle - row in loads:
                        values = loads[cycle - row][row]
                for col in range(dut.cols):
                    ctx.set(dut.weights[bank][col], int(values[col]))
            if cycle - array_latency(dut.rows) in wanted:
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


def filtered(dut, tile, words, slot):
    """Return the sums of a depthwise pass: those that have all their words."""
    taps = dut.rows // dut.image_rows
    channels = words[..., slot * dut.cols : (slot + 1) * dut.cols]
    used = taps * dut.image_rows
    sums = [
        sum(tile[row] * channels[n + row % taps, row // taps] for row in range(used)) + words[n, 0, used:] @ tile[used:]
        for n in range(len(words) - taps + 1)
    ]
    return np.array(sums)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("rows, cols, image_rows", [(4, 4, 2), (8, 4, 3), (8, 2, 1), (4, 1, 3)])
def test_depthwise_passes_filter_each_column_among_products(rows, cols, image_rows, gaps):
    rng = np.random.default_rng(rows * cols + image_rows + gaps)
    dut = Array(rows=rows, cols=cols, weight_rows=2, multiplier="portable", image_rows=image_rows)
    passes, expected = [], []
    for length in rng.integers(1, 20, 16):
        ((tile, words),) = stimulus(rows, cols, [length], rng)
        if rng.random() < 0.6:
            slot = int(rng.integers(0, rows // cols))
            words = rng.integers(-128, 128, (length + rows // image_rows - 1, image_rows, rows))
            passes.append((tile, words, slot))
            expected.append(filtered(dut, tile, words, slot))
        else:
            passes.append((tile, words))
            expected.append(words @ tile)
    sums, _ = run(dut, passes, gaps, rng)
    assert np.array_equal(sums, np.concatenate(expected))


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
