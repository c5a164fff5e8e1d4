"""Execute unit: accumulators equal to the golden executor's, cycle counts, errors that name the instruction."""

from functools import partial

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.accumulator import timing
from celosia.rtl.execute import Execute, execute_latency
from celosia.rtl.interfaces import ACT_READ_LATENCY, acc_read_latency
from celosia.rtl.isa import ErrorCode, encode
from celosia.sim.benches.stimuli import make, random_execute, random_machine, small_engine

SHAPES = [
    dict(rows=4, cols=4, weight_rows=1),
    dict(rows=4, cols=4, weight_rows=2),
    dict(rows=8, cols=4, weight_rows=2),
    dict(rows=8, cols=2, weight_rows=1),
    dict(rows=8, cols=4, weight_rows=2, depthwise_rows=3, act_banks=4),
    dict(rows=4, cols=4, weight_rows=2, depthwise_rows=0),
]
UNPIPELINED = dict(rows=4, cols=4, weight_rows=1, lanes=1, combine=0, lane_cycles=4, depthwise_rows=0, pipelining=0)
SMALL = [
    UNPIPELINED,
    UNPIPELINED | dict(weight_rows=2, maximum=0, acc_depth=63),
    UNPIPELINED | dict(maximum=0, acc_depth=130),
]
"""Accumulators twice over, with and without an entry that stays zero, and in two banks."""


class Run:
    """One simulation: feed ``instructions``, wait until the unit is idle (or has stopped), read the accumulators."""

    def __init__(self, executor, instructions, rng, *, idle=0.0, pause=0.0, store_reads=(), limit=20000):
        self.dut = dut = Execute(config=executor.config)
        self.executor, self.instructions, self.rng = executor, instructions, rng
        self.done, self.reads, self.switches, self.error, self.stalls = [], [], [], None, 0
        self.idle, self.pause, self.limit, self.store_reads = idle, pause, limit, dict(store_reads)
        sim = Simulator(dut)
        sim.add_clock(1e-8)
        sim.add_process(self.source)
        for row in range(len(dut.acts)):
            sim.add_process(partial(self.act, row=row))
        for bank in range(executor.config.weight_rows):
            sim.add_process(partial(self.weights, bank=bank))
        sim.add_testbench(self.monitor)
        sim.run()

    async def source(self, ctx):
        for index, instruction in enumerate(self.instructions):
            while self.rng.random() < self.idle:
                await ctx.tick()
            ctx.set(self.dut.unit.i.payload, {"instruction": encode(instruction), "index": 100 + index})
            ctx.set(self.dut.unit.i.valid, 1)
            while not (await ctx.tick().sample(self.dut.unit.i.ready))[2]:
                pass
            ctx.set(self.dut.unit.i.valid, 0)

    async def act(self, ctx, row):
        act = self.dut.acts[row]
        pipe = [None] * (ACT_READ_LATENCY - 1)
        async for _, _, valid, addr in ctx.tick().sample(act.valid, act.addr):
            pipe.insert(0, addr if valid else None)
            word = self.rng.integers(0, 256, self.executor.config.rows) if pipe[-1] is None else self.executor.act[0, pipe[-1]]
            pipe.pop()
            ctx.set(act.data, [int(byte) & 255 for byte in word])

    async def weights(self, ctx, bank):
        port, cycles = self.dut.weights[bank], self.executor.config.load_cycles
        async for _, _, addr in ctx.tick().sample(port.addr):
            row = self.executor.weights[0, addr // cycles, bank * cycles + addr % cycles]
            ctx.set(port.data, [int(weight) for weight in row])

    async def monitor(self, ctx):
        unit, acc = self.dut.unit, self.dut.acc
        for act in self.dut.acts:
            ctx.set(act.ready, 1)
        accepted = completed = pausing = 0
        for cycle in range(self.limit):
            assert not (pausing and ctx.get(self.dut.act.valid))
            pausing = self.rng.random() < self.pause
            ctx.set(self.dut.pause, pausing)
            if cycle in self.store_reads:
                ctx.set(acc.bank, self.store_reads[cycle])
            ctx.set(acc.en, cycle in self.store_reads)
            if ctx.get(unit.done.valid):
                signal = ctx.get(unit.done.signal)
                self.done.append((cycle, signal.load, signal.store))
            if ctx.get(self.dut.act.valid):
                self.reads.append(cycle)
            self.stalls += ctx.get(unit.trace.stall)
            if ctx.get(unit.error.valid):
                self.error = (ctx.get(unit.error.code), ctx.get(unit.error.index))
                return
            if len(self.done) == len(self.instructions):
                break
            # Without pipelining the unit works on an instruction before it accepts it.
            assert ctx.get(unit.idle) == (accepted == completed) or not (self.executor.config.pipelining or ctx.get(unit.idle))
            accepted += ctx.get(unit.i.valid & unit.i.ready)
            completed = len(self.done)
            # The memory: the first of two reads in a bank is served.
            banks, values = self.executor.config.act_banks, [(ctx.get(act.valid), ctx.get(act.addr)) for act in self.dut.acts]
            for n, (act, (_, addr)) in enumerate(zip(self.dut.acts, values)):
                ctx.set(act.ready, not any(valid and (addr - other) % banks == 0 for valid, other in values[:n]))
            await ctx.tick()
        else:
            raise AssertionError(f"{len(self.done)} of {len(self.instructions)} instructions in {self.limit} cycles")
        # `done` is high now: reads of the next cycles must see everything.
        self.acc = np.zeros_like(self.executor.acc[0])
        places = list(np.ndindex(self.acc.shape[:2]))[::-1]
        latency = acc_read_latency(self.executor.config.pipelining)
        for n in range(len(places) + latency):
            await ctx.tick()
            if n < len(places):
                ctx.set(acc.en, 1)
                ctx.set(acc.bank, places[n][0])
                ctx.set(acc.addr, places[n][1])
            if n >= latency:
                self.acc[places[n - latency]] = [ctx.get(acc.data[col]) for col in range(self.acc.shape[2])]
        assert ctx.get(unit.idle)


def check(executor, instructions, rng, **options):
    run = Run(executor, instructions, rng, **options)
    for index, instruction in enumerate(instructions):
        executor.run_execute(index, instruction)
    assert run.error is None
    assert [done[1:] for done in run.done] == [(i.signal_load, i.signal_store) for i in instructions]
    assert np.array_equal(run.acc, executor.acc[0])
    return run


@pytest.mark.parametrize("idle", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES + SMALL, ids=lambda shape: "-".join(map(str, shape.values())))
@pytest.mark.parametrize("seed", range(2))
def test_random_instructions_equal_golden(shape, seed, idle):
    rng = np.random.default_rng(seed)
    config = small_engine(**shape)
    executor = random_machine(config, rng)
    clear = [make(tile_cols=config.acc_depth, bank=bank) for bank in range(2)]  # defined contents for what accumulates
    check(executor, clear + [random_execute(rng, config) for _ in range(30)], rng, idle=idle)


def test_pauses_change_nothing_but_the_time():
    rng = np.random.default_rng(4)
    config = small_engine(**SHAPES[-1])
    clear = [make(tile_cols=config.acc_depth, bank=bank) for bank in range(2)]
    instructions = clear + [random_execute(rng, config) for _ in range(20)]
    check(random_machine(config, rng), instructions, rng, idle=0.2, pause=0.4)


def test_single_pixels_and_single_taps_equal_golden():
    rng = np.random.default_rng(5)
    executor = random_machine(small_engine(**SHAPES[2]), rng)
    instructions = [make(start=n, weights=n % 7, acc=n % 3, accumulate=int(n > 6), max=n % 2) for n in range(24)]
    check(executor, instructions, rng)


def test_pooling_keeps_one_tile_and_takes_the_maximum_per_block():
    rng = np.random.default_rng(6)
    executor = random_machine(small_engine(**SHAPES[1]), rng)
    pool = make(hold=1, per_block=1, max=1, kernel_y=3, kernel_x=3, blocks=3, tile_rows=2, tile_cols=4, stride_y=2, stride_x=2,
                y0=-1, x0=-1, start=20, row_step=10, ky_step=10, block_step=50, in_height=5, in_width=10, pad=-128)  # fmt: skip
    check(executor, [pool, pool.replace(bank=1, per_block=0)], rng)


@pytest.mark.parametrize("shape", SHAPES + SMALL, ids=lambda shape: "-".join(map(str, shape.values())))
def test_fully_connected_takes_one_tile_per_load(shape):
    rng = np.random.default_rng(7)
    config = small_engine(**shape)
    rate = max(config.load_cycles, timing(config.pipelining).distance)  # one sum cannot be used more often
    layer = make(blocks=20, block_step=1)
    run = check(random_machine(config, rng), [layer, layer.replace(weights=20, acc=1)], rng)
    gaps = np.diff(run.reads[1:])
    if not config.pipelining:
        gaps = np.delete(gaps, 18)  # an instruction begins when the one before has ended
    assert gaps.max() == rate and (gaps != rate).sum() <= 1


@pytest.mark.parametrize("shape", SHAPES + SMALL, ids=lambda shape: "-".join(map(str, shape.values())))
def test_no_bubble_between_passes_and_instructions(shape):
    rng = np.random.default_rng(8)
    config = small_engine(**shape)
    pixels = max(config.load_cycles, timing(config.pipelining).distance)
    instructions = [
        make(tile_cols=pixels, kernel_x=3, blocks=2), make(tile_cols=pixels, acc=9, blocks=2, weights=4),
        make(tile_rows=pixels, bank=1), make(tile_cols=pixels, hold=1, kernel_y=4), make(tile_cols=pixels),
    ]  # fmt: skip
    run = check(random_machine(config, rng), instructions, rng)
    assert len(run.reads) == pixels * (6 + 2 + 1 + 4 + 1)
    gaps, ends = np.diff(run.reads), pixels * np.cumsum([6, 2, 1, 4]) - 1
    assert (gaps == 1).all() if config.pipelining else (np.flatnonzero(gaps > 1) == ends).all()
    # One cycle from the issue to the read.
    assert run.done[-1][0] - run.reads[-1] == execute_latency(config.rows, pipelining=config.pipelining) - 1


@pytest.mark.parametrize("code, fields", [
    (ErrorCode.ACT_RANGE, {"start": 250, "tile_cols": 8, "stride_x": 1}),
    (ErrorCode.ACT_RANGE, {"start": 65535}),
    (ErrorCode.ACC_RANGE, {"acc": 60, "tile_rows": 5}),
    (ErrorCode.ACC_RANGE, {"tile_rows": 1024, "tile_cols": 1024}),
    (ErrorCode.ACC_RANGE, {"acc": 60, "per_block": 1, "hold": 1, "blocks": 5}),
    (ErrorCode.WEIGHT_RANGE, {"weights": 60, "blocks": 5}),
    (ErrorCode.WEIGHT_RANGE, {"weights": 65535}),
    (ErrorCode.ACT_RANGE, {"start": 248, "ky_step": 9, "depthwise": 1, "stride_x": 1}),
    (ErrorCode.ACT_CONFLICT, {"ky_step": 2, "depthwise": 1, "stride_x": 1}),
    (ErrorCode.ILLEGAL_FIELD, {"depthwise": 1, "stride_x": 1, "slot": 1}),
    (ErrorCode.ILLEGAL_FIELD, {"depthwise": 1}),
])  # fmt: skip
def test_access_beyond_a_memory_stops_with_the_instruction(code, fields):
    rng = np.random.default_rng(9)
    run = Run(random_machine(small_engine(**SHAPES[0]), rng), [make(tile_cols=8), make(**fields), make()], rng)
    assert run.error == (code, 101)
    assert len(run.done) <= 1


def test_depthwise_without_the_mode_is_illegal():
    rng = np.random.default_rng(9)
    run = Run(random_machine(small_engine(**SHAPES[-1]), rng), [make(), make(depthwise=1, stride_x=1), make()], rng)
    assert run.error == (ErrorCode.ILLEGAL_FIELD, 101)


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=lambda shape: "-".join(map(str, shape.values())))
def test_depthwise_passes_follow_without_bubble(shape):
    """A 3 × 3 convolution of padding 1 whose rows share the padding between them."""
    rng = np.random.default_rng(12)
    config = small_engine(**shape)
    groups = -(-3 // config.depthwise_rows)
    layer = make(depthwise=1, per_block=1, blocks=2, tile_rows=4, tile_cols=5, stride_x=1, stride_y=1, dilation_y=1, x0=-1, y0=-1,
                 in_height=4, in_width=5, gap=1, tail=2, row_step=7, ky_step=7, block_step=40, start=30, kernel_y=groups)  # fmt: skip
    run = check(random_machine(config, rng), [layer, layer.replace(bank=1)], rng)
    passes = 4 * groups
    waits = 3 * (passes // 2) * (groups - 1)  # passes that add wait for the sums of the one before
    assert run.done[-1][0] - run.done[0][0] <= passes // 2 * (4 * 6 + 2) + waits


def test_maximum_without_it_is_illegal():
    rng = np.random.default_rng(9)
    run = Run(random_machine(small_engine(**SMALL[1]), rng), [make(), make(max=1), make()], rng)
    assert run.error == (ErrorCode.ILLEGAL_FIELD, 101)


def test_padding_is_never_out_of_range():
    rng = np.random.default_rng(10)
    check(random_machine(small_engine(**SHAPES[0]), rng), [make(start=65535, tile_cols=3, y0=-1, pad=7)], rng)


def test_reading_the_bank_in_use_stops_with_the_instruction():
    rng = np.random.default_rng(11)
    config = small_engine(**SHAPES[0])
    instructions = [make(tile_cols=30), make(tile_cols=30, bank=1)]
    check(random_machine(config, rng), instructions, rng, store_reads={25: 1, 26: 1})
    run = Run(random_machine(config, rng), instructions, rng, store_reads={25: 0})
    assert run.error == (ErrorCode.BANK_CONFLICT, 100)
    run = Run(random_machine(config, rng), instructions, rng, store_reads={60: 1})
    assert run.error == (ErrorCode.BANK_CONFLICT, 101)
