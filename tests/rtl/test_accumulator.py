"""Accumulator: overwrite, add and maximum in both banks, the store unit's port, and the detection of bank conflicts."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.accumulator import Accumulator, timing
from celosia.rtl.interfaces import acc_read_latency

COLS, DEPTH, WIDTH = 3, 8, 20
DEEP = 257
"""More than are kept twice over."""
FORMS = [(pipelining, depth) for pipelining in (1, 0) for depth in (DEPTH, DEPTH + 1, DEEP)]
"""With more than :data:`DEPTH` there are entries that are never written."""


def run(schedule, depth=DEPTH, **knobs):
    """Run ``{cycle: {"update": …, "sums": …, "read": …}}``; return reads, cycles of ``written``, of ``conflict``."""
    dut = Accumulator(cols=COLS, depth=depth, width=WIDTH, **knobs)
    latency, delay = acc_read_latency(dut.pipelining), timing(dut.pipelining).sums
    reads, written, conflicts = {}, [], []

    async def bench(ctx):
        for cycle in range(max(schedule) + 8):
            step = schedule.get(cycle, {})
            ctx.set(dut.update, {"valid": 0, "bank": 1, "entry": 3} | step.get("update", {}))
            sums = schedule.get(cycle - delay, {}).get("sums", [12345] * COLS)
            for col in range(COLS):
                ctx.set(dut.sums[col], int(sums[col]))
            bank, entry = step.get("read", (0, 0))
            ctx.set(dut.read.en, "read" in step)
            ctx.set(dut.read.bank, bank)
            ctx.set(dut.read.addr, entry)
            if "read" in schedule.get(cycle - latency, {}):
                reads[cycle - latency] = [ctx.get(dut.read.data[col]) for col in range(COLS)]
            if ctx.get(dut.written):
                written.append(cycle)
            if ctx.get(dut.conflict):
                conflicts.append(cycle)
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    return reads, written, conflicts


def update(bank, entry, sums, **flags):
    return {"update": {"valid": 1, "bank": bank, "entry": entry, **flags}, "sums": sums}


@pytest.mark.parametrize("maximum", [1, 0])
@pytest.mark.parametrize("pipelining, depth", FORMS)
@pytest.mark.parametrize("seed", range(2))
def test_random_updates_equal_numpy(seed, pipelining, depth, maximum):
    distance = timing(pipelining).distance
    rng = np.random.default_rng(seed)
    acc = np.zeros((2, DEPTH, COLS), np.int32)
    schedule, used, expect, count = {}, {}, {}, 0
    for cycle in range(1000):
        step = {}
        bank, entry = int(rng.integers(0, 2)), int(rng.integers(0, DEPTH))
        overwrite = int(rng.random() < 0.2)
        if overwrite or cycle - used.get((bank, entry), -9) >= distance:
            low, high = -(1 << WIDTH - 1), (1 << WIDTH - 1)
            sums = rng.integers(low, high, COLS) if rng.random() < 0.5 else rng.integers(-3, 4, COLS)
            larger = int(rng.random() < 0.4) & maximum
            step = update(bank, entry, sums, overwrite=overwrite, max=larger)
            old = acc[bank, entry]
            acc[bank, entry] = sums if overwrite else np.maximum(old, sums) if larger else old + sums
            used[bank, entry] = cycle
            count += 1
        schedule[cycle] = step
    for n, (bank, entry) in enumerate(np.ndindex(2, DEPTH)):
        schedule[1010 + n] = {"read": (bank, entry)}
        expect[1010 + n] = list(acc[bank, entry])
    reads, written, conflicts = run(schedule, depth, pipelining=pipelining, maximum=maximum)
    assert reads == expect and len(written) == count and not conflicts


@pytest.mark.parametrize("pipelining, depth", FORMS)
def test_result_is_readable_in_the_cycle_after_written(pipelining, depth):
    sums, end = [1, -2, 3], 5 + timing(pipelining).distance
    reads, written, conflicts = run({5: update(1, 2, sums, overwrite=1), end: {"read": (1, 2)}}, depth, pipelining=pipelining)
    assert written == [end - 1] and reads == {end: sums} and not conflicts


@pytest.mark.parametrize("pipelining", [1, 0])
def test_sum_and_maximum_cover_32_bits(pipelining):
    distance = timing(pipelining).distance
    big = np.array([(1 << WIDTH - 1) - 1, -(1 << WIDTH - 1), 0])
    schedule = {0: update(0, 1, big, overwrite=1)}
    schedule |= {distance * n: update(0, 1, big) for n in range(1, 4097)}
    end = distance * 4097
    schedule[end + distance] = {"read": (0, 1)}
    schedule[end + 2 * distance] = update(0, 1, [0, 0, -1], max=1)
    schedule[end + 3 * distance] = {"read": (0, 1)}
    reads, _, _ = run(schedule, pipelining=pipelining)
    wrapped = (4097 * big).astype(np.int32)
    assert wrapped[0] < 0 < wrapped[1]
    assert list(reads.values()) == [list(wrapped), list(np.maximum(wrapped, [0, 0, -1]))]


@pytest.mark.parametrize("pipelining", [1, 0])
@pytest.mark.parametrize("offset", range(-1, 5))
def test_reading_a_bank_under_update_is_a_conflict(offset, pipelining):
    conflict = 0 <= offset < timing(pipelining).distance
    for bank in range(2):
        schedule = {4: update(bank, 0, [0] * COLS), 4 + offset: {"read": (bank, 7)}}
        schedule[4] |= update(bank, 0, [0] * COLS)
        _, _, conflicts = run(schedule, pipelining=pipelining)
        assert conflicts == ([4 + offset] if conflict else [])
        schedule[4 + offset] = schedule[4 + offset] | {"read": (1 - bank, 7)}
        _, _, conflicts = run(schedule, pipelining=pipelining)
        assert not conflicts
