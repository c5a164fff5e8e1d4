"""Row loader: row r of a tile leaves r cycles after row 0, one tile per load_cycles cycles, when it is taken."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.weights import LOAD_LATENCY, RowLoader

COLS, TILES = 3, 16


def run(dut, tiles, weights, waits):
    """Request ``tiles``; take tile ``n`` ``waits[n]`` cycles after ``full``. Return what arrived, when, and errors."""
    load_cycles, banks = dut.load_cycles, dut.weight_rows
    seen, loads, errors = {}, [], []
    full_before = False

    async def memory(ctx):
        async for _, _, *addresses in ctx.tick().sample(*(read.addr for read in dut.reads)):
            for bank, (read, addr) in enumerate(zip(dut.reads, addresses)):
                ctx.set(read.data, [int(w) for w in weights[addr // load_cycles, bank * load_cycles + addr % load_cycles]])

    async def source(ctx):
        for n, tile in enumerate(tiles):
            ctx.set(dut.i.payload, {"tile": tile, "index": 40 + n})
            ctx.set(dut.i.valid, 1)
            while not (await ctx.tick().sample(dut.i.ready))[2]:
                pass
        ctx.set(dut.i.valid, 0)

    async def bench(ctx):
        nonlocal full_before
        left, taken = None, 0
        for cycle in range(len(tiles) * (load_cycles + max(waits) + 4) + 3 * load_cycles * banks):
            full = ctx.get(dut.full)
            if full and not full_before:
                left = waits[taken]
            take = bool(full and left == 0)
            ctx.set(dut.taken, take)
            taken += take
            left = None if left is None or take else left - 1
            full_before = full and not take
            seen[cycle] = [[ctx.get(dut.weights[bank][col]) for col in range(COLS)] for bank in range(banks)]
            if ctx.get(dut.load):
                loads.append(cycle)
            if ctx.get(dut.error):
                errors.append(ctx.get(dut.error_index))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_process(memory)
    sim.add_process(source)
    sim.add_testbench(bench)
    sim.run()
    rows = range(load_cycles * banks)
    return [[seen[start + row][row // load_cycles] for row in rows] for start in loads], loads, errors


@pytest.mark.parametrize("banks, load_cycles", [(1, 4), (2, 2), (2, 4), (4, 2)])
@pytest.mark.parametrize("slow", [0, 7])
def test_tiles_arrive_whole_and_in_order(banks, load_cycles, slow):
    rng = np.random.default_rng(banks + slow)
    weights = rng.integers(-128, 128, (TILES, banks * load_cycles, COLS))
    tiles = [int(tile) for tile in rng.integers(0, TILES, 20)]
    dut = RowLoader(cols=COLS, weight_rows=banks, load_cycles=load_cycles, weight_tiles=TILES)
    arrived, loads, errors = run(dut, tiles, weights, [int(wait) for wait in rng.integers(0, slow + 1, 20)])
    assert np.array_equal(arrived, weights[tiles]) and not errors
    if not slow:
        assert loads[0] <= 2 + LOAD_LATENCY and (np.diff(loads) == load_cycles).all()


def test_tile_waits_until_it_is_taken():
    dut = RowLoader(cols=COLS, weight_rows=2, load_cycles=2, weight_tiles=TILES)
    _, loads, _ = run(dut, [1, 2, 3], np.zeros((TILES, 4, COLS), int), [5, 30, 0])
    assert 5 + LOAD_LATENCY <= loads[0] <= 5 + 2 + LOAD_LATENCY
    assert loads[1] - loads[0] == 30 + 2 and loads[2] - loads[1] == 2


def test_tile_beyond_the_memory_is_not_loaded():
    for tile in (TILES, 65536):
        dut = RowLoader(cols=COLS, weight_rows=2, load_cycles=2, weight_tiles=TILES)
        _, loads, errors = run(dut, [TILES - 1, tile, 0], np.zeros((TILES, 4, COLS), int), [0, 0, 0])
        assert len(loads) == 1 and set(errors) == {41}
