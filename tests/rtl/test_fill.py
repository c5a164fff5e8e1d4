"""Filling weight tiles beside the golden executor: random instructions, refused reads, errors, and cycle counts."""

import dataclasses

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.config import PRESETS
from celosia.rtl.interfaces import ACT_READ_LATENCY
from celosia.rtl.isa import ErrorCode, Instruction, Opcode, encode
from celosia.rtl.load import FILL_OVERHEAD, Load
from celosia.sim.benches.load_cases import random_fill
from celosia.sim.benches.stimuli import random_machine
from celosia.sim.executor import GoldenError

CONFIGS = {
    "test": dataclasses.replace(PRESETS["test"], act_depth=256, weight_tiles=16),
    "8 × 2, one bank": dataclasses.replace(PRESETS["mac64"], act_depth=100, weight_tiles=7, cols=2, lanes=2, weight_rows=1),
    "16 × 8": dataclasses.replace(PRESETS["mac256"], act_depth=500, weight_tiles=30, cols=8, lanes=8),
}


def simulate(config, instructions, act, *, refuse=0.0, seed=0):
    """Return ``(weights, cycles of each, error)``; a row that is not written shows as the byte 0x5A."""
    dut = Load(config=config)
    rng = np.random.default_rng(seed)
    weights = np.full((config.weight_tiles, config.rows, config.cols), 0x5A, np.int8)
    cycles, errors = [], []

    async def testbench(ctx):
        arriving = [None] * (ACT_READ_LATENCY - 1)
        for instruction in instructions:
            assert ctx.get(dut.unit.i.ready)
            ctx.set(dut.unit.i.payload.instruction, encode(instruction))
            ctx.set(dut.unit.i.valid, 1)
            for cycle in range(3000):
                ctx.set(dut.read.ready, rng.random() >= refuse)
                fetched = None
                assert not ctx.get(dut.write.valid)
                if ctx.get(dut.read.valid):
                    assert ctx.get(dut.read.addr) < config.act_depth
                    fetched = act[ctx.get(dut.read.addr)] if ctx.get(dut.read.ready) else None
                arriving.append(fetched)
                if enable := config.fill and ctx.get(dut.fill.en):
                    assert enable.bit_count() == 1
                    tile, entry = divmod(ctx.get(dut.fill.addr), config.load_cycles)
                    weights[tile, (enable.bit_length() - 1) * config.load_cycles + entry] = list(ctx.get(dut.fill.data))
                done, error = ctx.get(dut.unit.done.valid), ErrorCode(ctx.get(dut.unit.error.code))
                failed = ctx.get(dut.unit.error.valid)
                await ctx.tick()
                ctx.set(dut.unit.i.valid, 0)
                ctx.set(dut.unit.i.payload.instruction, 0)
                word = arriving.pop(0)
                ctx.set(dut.read.data, list(rng.bytes(config.rows)) if word is None else [int(n) & 255 for n in word])
                if failed:
                    errors.append(error)
                if done or errors:
                    cycles.append(cycle)
                    break
            else:
                raise AssertionError("not finished")
            if errors:
                return

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return weights, cycles, errors


@pytest.mark.parametrize("refuse", [0.0, 0.6])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tiles_equal_the_golden_executors_and_nothing_else_is_written(config, refuse):
    rng = np.random.default_rng(int(10 * refuse) + config.cols)
    golden = random_machine(config, rng)
    golden.weights[:] = 0x5A
    instructions = [random_fill(rng, config) for _ in range(12)]
    weights, cycles, errors = simulate(config, instructions, golden.act[0], refuse=refuse)
    for instruction in instructions:
        golden.run_load(0, instruction)
    assert not errors
    assert (weights == golden.weights[0]).all()
    if not refuse:
        assert cycles == [i.tiles * config.rows + FILL_OVERHEAD for i in instructions]


@pytest.mark.parametrize("changes, code", [
    ({"rows": 9}, ErrorCode.ILLEGAL_FIELD),
    ({"slot": 4}, ErrorCode.ILLEGAL_FIELD),
    ({"weights": 6}, ErrorCode.WEIGHT_RANGE),
    ({"weights": 0xFFFF}, ErrorCode.WEIGHT_RANGE),
    ({"weights": 6, "source": 100 * 8}, ErrorCode.ACT_RANGE),
    ({"weights": 6, "source": 92 * 8}, ErrorCode.WEIGHT_RANGE),
    ({"source": 85 * 8}, ErrorCode.ACT_RANGE),
    ({"source": 0xFFFF8}, ErrorCode.ACT_RANGE),
    ({"source": 85 * 8, "rows": 7}, ErrorCode.NONE),
    ({"weights": 5, "source": 84 * 8, "slot": 3}, ErrorCode.NONE),
    ({"source": 0xFFFC0, "rows": 1}, ErrorCode.ACT_RANGE),
])  # fmt: skip
def test_errors_are_those_of_the_golden_executor(changes, code):
    check_error(CONFIGS["8 × 2, one bank"], changes, code)


def test_an_engine_built_without_refuses_it():
    check_error(dataclasses.replace(CONFIGS["8 × 2, one bank"], fill=0), {}, ErrorCode.ILLEGAL_FIELD)


def check_error(config, changes, code):
    fields = {"weights": 0, "tiles": 2, "rows": 8, "source": 0, "row_step": 8, "slot": 0}
    instruction = Instruction(Opcode.FILL, **(fields | changes))
    golden = random_machine(config, np.random.default_rng(3))
    _, _, errors = simulate(config, [instruction], golden.act[0])
    assert errors == ([] if code is ErrorCode.NONE else [code])
    if code is ErrorCode.NONE:
        golden.run_load(0, instruction)
    else:
        with pytest.raises(GoldenError) as error:
            golden.run_load(0, instruction)
        assert error.value.code is code
