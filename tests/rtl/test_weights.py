"""Row loader: row r of a tile leaves r cycles after row 0, one tile per load_cycles cycles, when it is taken."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.weights import LOAD_LATENCY, RowLoader

COLS, TILES = 3, 16


def run(dut, tiles, weights, waits):
    """Take tile ``n`` ``waits[n]`` cycles after ``ready``. Return what arrived, and when."""
    load_cycles, banks = dut.load_cycles, dut.weight_rows
    seen, loads = {}, []

    async def memory(ctx):
        async for _, _, *addresses in ctx.tick().sample(*(read.addr for read in dut.reads)):
            for bank, (read, addr) in enumerate(zip(dut.reads, addresses)):
                ctx.set(read.data, [int(w) for w in weights[addr // load_cycles, bank * load_cycles + addr % load_cycles]])

    async def bench(ctx):
        left, taken = waits[0], 0
        for cycle in range(len(tiles) * (load_cycles + max(waits) + 4) + 3 * load_cycles * banks):
            ready = ctx.get(dut.ready)
            take = bool(ready and left == 0 and taken < len(tiles))
            ctx.set(dut.tile, tiles[taken] if take else 0)
            ctx.set(dut.taken, take)
            if take:
                taken += 1
                left = waits[taken] if taken < len(tiles) else None
            elif ready and left:
                left -= 1
            seen[cycle] = [[ctx.get(dut.weights[bank][col]) for col in range(COLS)] for bank in range(banks)]
            if ctx.get(dut.load):
                loads.append(cycle)
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_process(memory)
    sim.add_testbench(bench)
    sim.run()
    rows = range(load_cycles * banks)
    return [[seen[start + row][row // load_cycles] for row in rows] for start in loads], loads


@pytest.mark.parametrize("banks, load_cycles", [(1, 4), (2, 2), (2, 4), (4, 2)])
@pytest.mark.parametrize("slow", [0, 7])
def test_tiles_arrive_whole_and_in_order(banks, load_cycles, slow):
    rng = np.random.default_rng(banks + slow)
    weights = rng.integers(-128, 128, (TILES, banks * load_cycles, COLS))
    tiles = [int(tile) for tile in rng.integers(0, TILES, 20)]
    dut = RowLoader(cols=COLS, weight_rows=banks, load_cycles=load_cycles, weight_tiles=TILES)
    arrived, loads = run(dut, tiles, weights, [int(wait) for wait in rng.integers(0, slow + 1, 20)])
    assert np.array_equal(arrived, weights[tiles])
    if not slow:
        assert loads[0] == LOAD_LATENCY and (np.diff(loads) == load_cycles).all()


def test_tile_waits_until_it_is_taken():
    dut = RowLoader(cols=COLS, weight_rows=2, load_cycles=2, weight_tiles=TILES)
    _, loads = run(dut, [1, 2, 3], np.zeros((TILES, 4, COLS), int), [5, 30, 0])
    assert loads[0] == 5 + LOAD_LATENCY
    assert loads[1] - loads[0] == 30 + 2 and loads[2] - loads[1] == 2

