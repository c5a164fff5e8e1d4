"""The load unit beside a model of ``UNFOLD``: shapes, alignments, pads, stalls on both sides, errors, and cycle counts."""

import dataclasses

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.config import PRESETS
from celosia.rtl.interfaces import ACT_READ_LATENCY
from celosia.rtl.isa import ErrorCode, Instruction, Opcode, encode
from celosia.rtl.load import LOAD_OVERHEAD, Load
from celosia.rtl.serial_load import STEP_CYCLES, TAP_ROW_CYCLES, SerialLoad
from celosia.sim.benches.load_cases import random_unfold

CONFIGS = {
    "4 rows": PRESETS["test"],
    "8 rows": PRESETS["mac64"],
    "8 rows, 3 streams": dataclasses.replace(PRESETS["mac64"], unfold_streams=3),
    "8 rows, 1 stream": dataclasses.replace(PRESETS["mac64"], unfold_streams=1),
    "16 rows": PRESETS["mac256"],
    "16 rows, 16 streams": dataclasses.replace(PRESETS["mac256"], unfold_streams=16, act_depth=5000),
}  # fmt: skip
SERIAL = {
    "4 rows, serial": dataclasses.replace(PRESETS["test"], unfold_streams=1, fill=0),
    "8 rows, serial": dataclasses.replace(PRESETS["mac64"], unfold_streams=1, fill=0, act_depth=5000),
    "16 rows, serial": dataclasses.replace(PRESETS["mac256"], unfold_streams=1, fill=0),
}


def unfold(i, memory):
    """Return the bytes of ``memory`` (words × rows) after ``i``, as the instruction set describes it."""
    rows = memory.shape[1]
    columns = rows // i.streams
    source = memory.reshape(-1)
    result = memory.copy()
    address, dest = i.start, i.dest
    for y in range(i.tile_rows):
        firsts = []
        for tap_row in range(i.groups * i.streams):
            firsts.append(address)
            address += i.row_step if (tap_row + 1) % i.kernel_y else i.channel_step
        address = firsts[-1] + i.tile_step
        for g in range(i.groups):
            for x in range(i.tile_cols):
                word = np.full(rows, i.pad, np.uint8)
                for s in range(i.streams):
                    tap_row = g * i.streams + s
                    iy = i.y0 + y * i.stride_y + tap_row % i.kernel_y
                    exists = 0 <= (iy + 4096) % 8192 - 4096 < i.in_height and (g < i.groups - 1 or s < i.last_streams)
                    for kx in range(columns):
                        column = x * i.stride_x + kx - i.left
                        if exists and 0 <= column < i.inside:
                            word[s * columns + kx] = source[(firsts[tap_row] + column) % (1 << 20)]
                result[dest % (1 << 16)] = word
                dest += 1
    return result


def steps(i, config):
    return i.tile_rows * i.groups * max((i.tile_cols - 1) * i.stride_x + config.rows // i.streams, i.left + i.inside)


@dataclasses.dataclass
class Outcome:
    memory: np.ndarray
    cycles: list = dataclasses.field(default_factory=list)  # per instruction, accepted to done
    signals: list = dataclasses.field(default_factory=list)
    error: tuple = None
    stalls: int = 0


def simulate(config, instructions, memory, *, rng=None, gap=0.0, refuse_reads=0.0, refuse_writes=0.0, limit=60_000):
    """Run ``instructions`` on the unit; the probabilities are those of a cycle without an instruction, a read, a write."""
    dut = (SerialLoad if config.serial_load else Load)(config=config)
    keeps = not config.serial_load  # a copy of the instruction
    outcome = Outcome(memory.copy())
    rng = rng or np.random.default_rng(0)

    def chance(probability):
        return probability > 0 and rng.random() < probability

    async def testbench(ctx):
        unit, read, write = dut.unit, dut.read, dut.write
        waiting = list(enumerate(instructions))
        started = 0
        arriving = [None] * (ACT_READ_LATENCY - 1)  # what appears after the coming edges
        last_write = None
        last_cycle = limit
        for cycle in range(limit):
            if waiting and not ctx.get(unit.i.valid) and not chance(gap):
                index, instruction = waiting[0]
                ctx.set(unit.i.payload, {"instruction": encode(instruction), "index": index + 100})
                ctx.set(unit.i.valid, 1)
                offered = cycle
            ctx.set(read.ready, not chance(refuse_reads))
            ctx.set(write.ready, not chance(refuse_writes))
            taken = ctx.get(unit.i.valid) and ctx.get(unit.i.ready)
            if taken:
                assert ctx.get(unit.idle) == keeps
                waiting.pop(0)
                started = cycle if keeps else offered
            fetched = None
            if ctx.get(read.valid):
                assert ctx.get(read.addr) < config.act_depth
                if ctx.get(read.ready):
                    fetched = outcome.memory[ctx.get(read.addr)].copy()
            if ctx.get(write.valid):
                now = ctx.get(write.payload.addr), list(ctx.get(write.payload.data))
                assert now[0] < config.act_depth and ctx.get(write.payload.mask) == (1 << config.rows) - 1
                assert last_write in (None, now), "a refused write must stay"
                last_write = now
                if ctx.get(write.ready):
                    outcome.memory[now[0]] = now[1]
                    last_write = None
            else:
                assert last_write is None
            outcome.stalls += ctx.get(unit.trace.stall)
            if ctx.get(unit.done.valid):
                outcome.cycles.append(cycle - started)
                outcome.signals.append(ctx.get(unit.done.signal.as_value()))
            if ctx.get(unit.error.valid):
                assert outcome.error is None
                outcome.error = ErrorCode(ctx.get(unit.error.code)), ctx.get(unit.error.index)
                last_cycle = cycle + 200
            arriving.append(fetched)
            await ctx.tick()
            word = arriving.pop(0)
            ctx.set(read.data, list(rng.bytes(config.rows) if word is None else map(int, word)))
            if taken:
                ctx.set(unit.i.valid, 0)
                ctx.set(unit.i.payload, {"instruction": 0, "index": 0})
            if cycle > last_cycle or len(outcome.cycles) == len(instructions):
                return
        raise AssertionError(f"not finished after {limit} cycles")

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return outcome


def random_memory(rng, config):
    return rng.integers(0, 256, (config.act_depth, config.rows), dtype=np.uint8)


def check(config, instructions, rng, **options):
    memory = random_memory(rng, config)
    outcome = simulate(config, instructions, memory, rng=rng, **options)
    for instruction in instructions:
        memory = unfold(instruction, memory)
    wrong = np.argwhere(outcome.memory != memory)
    assert not wrong.size, f"{len(wrong)} bytes differ, the first at word, byte {wrong[0]}; {instructions}"
    assert outcome.signals == [i.signal_load | i.signal_execute << 1 | i.signal_store << 2 for i in instructions]
    return outcome


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", (CONFIGS | SERIAL).values(), ids=CONFIGS | SERIAL)
def test_random_instructions_write_what_the_model_writes_and_nothing_else(config, seed):
    rng = np.random.default_rng(seed)
    check(config, [random_unfold(rng, config) for _ in range(5 if config.serial_load else 12)], rng)


@pytest.mark.parametrize("gap", [0, 0.9], ids=["back to back", "idle between"])
@pytest.mark.parametrize("refuse_reads", [0, 0.5, 0.9])
@pytest.mark.parametrize("refuse_writes", [0, 0.5, 0.9])
def test_stalls_on_either_side_change_no_byte(gap, refuse_reads, refuse_writes):
    rng = np.random.default_rng(int(gap * 1000 + refuse_reads * 100 + refuse_writes * 10))
    config = CONFIGS["8 rows"]
    instructions = [random_unfold(rng, config) for _ in range(4)]
    check(config, instructions, rng, gap=gap, refuse_reads=refuse_reads, refuse_writes=refuse_writes)


@pytest.mark.parametrize("streams", range(1, 17))
def test_every_number_of_streams(streams):
    config = CONFIGS["16 rows, 16 streams"]
    rng = np.random.default_rng(streams)
    check(config, [Instruction(
        Opcode.UNFOLD, start=(1003 - 2 * 21) % (1 << 20), dest=3000, kernel_y=streams, streams=streams, groups=2, last_streams=streams,
        tile_rows=3, tile_cols=9, y0=-2, stride_y=2, stride_x=2, in_height=8, left=2, inside=21, row_step=21,
        channel_step=(9 - streams) * 21 % (1 << 20), tile_step=(2 - 8 - streams + 1) * 21 % (1 << 20), pad=0x5A,
    )], rng)  # fmt: skip


def first_layer(config=CONFIGS["16 rows"], *, tile_rows=32):
    """A 3 × 3 layer on 3 × 32 × 32 with padding 1, nine tap rows, in two groups of five or one by one."""
    layer = Instruction(
        Opcode.UNFOLD, start=(-32) % (1 << 20), dest=4096, kernel_y=3, streams=5, groups=2, last_streams=4, tile_rows=tile_rows,
        tile_cols=32, y0=-1, stride_y=1, stride_x=1, in_height=32, left=1, inside=32, row_step=32, channel_step=1024 - 64,
        tile_step=(32 - 3 * 1024) % (1 << 20), pad=0x80,
    )  # fmt: skip
    one_by_one = {"streams": 1, "groups": 9, "last_streams": 1, "tile_step": (32 - 2 * 1024 - 64) % (1 << 20)}
    return layer.replace(**one_by_one) if config.serial_load else layer


def test_first_layer_of_a_cifar_network_takes_one_cycle_per_step():
    config = CONFIGS["16 rows"]
    instruction = first_layer()
    outcome = check(config, [instruction], np.random.default_rng(5))
    assert steps(instruction, config) == 32 * 2 * 34
    assert outcome.cycles == [steps(instruction, config) + LOAD_OVERHEAD + 2 * instruction.streams - instruction.left]


def test_one_word_takes_the_overhead_stated():
    one = Instruction(
        Opcode.UNFOLD, start=0, dest=2000, kernel_y=1, streams=1, groups=1, last_streams=1, tile_rows=1, tile_cols=1, stride_x=1,
        in_height=1, inside=1,
    )  # fmt: skip
    outcome = check(CONFIGS["8 rows"], [one, one], np.random.default_rng(5))
    assert outcome.cycles == [8 + LOAD_OVERHEAD + 2] * 2


def test_the_serial_unit_takes_the_cycles_stated():
    config = SERIAL["16 rows, serial"]
    instruction = first_layer(config, tile_rows=2)
    outcome = check(config, [instruction] * 2, np.random.default_rng(5))
    words, rows_read = 2 * 9 * 32, 2 * 9 - 3
    assert outcome.cycles == [2 * 9 * (TAP_ROW_CYCLES + (31 + 16) * STEP_CYCLES) + words + rows_read * 32] * 2


@pytest.mark.parametrize("gap, refuse_reads, refuse_writes", [(0, 0.6, 0), (0.9, 0, 0.9), (0, 0.6, 0.6)])
def test_stalls_change_no_byte_of_the_serial_unit(gap, refuse_reads, refuse_writes):
    config = SERIAL["8 rows, serial"]
    rng = np.random.default_rng(int(10 * refuse_writes))
    instructions = [random_unfold(rng, config) for _ in range(2)]
    check(config, instructions, rng, gap=gap, refuse_reads=refuse_reads, refuse_writes=refuse_writes)


@pytest.mark.parametrize("changes, code", [
    ({"streams": 9}, ErrorCode.ILLEGAL_FIELD),
    ({"streams": 32}, ErrorCode.ILLEGAL_FIELD),
    ({"stride_x": 0}, ErrorCode.ILLEGAL_FIELD),
    ({"dest": 8192 - 127}, ErrorCode.ACT_RANGE),
    ({"dest": 0xFFFF, "tile_rows": 1}, ErrorCode.ACT_RANGE),
    ({"start": 8192 * 16 - 3 * 1024 - 32 + 1}, ErrorCode.ACT_RANGE),
    ({"start": (-33) % (1 << 20)}, ErrorCode.ACT_RANGE),
    ({"channel_step": 0xFFFFF}, ErrorCode.ACT_RANGE),
])  # fmt: skip
def test_errors_name_the_instruction_and_stop_the_unit(changes, code):
    config = CONFIGS["16 rows"]
    whole = first_layer()
    bad = whole.replace(**({"tile_rows": 2} | changes)) if "start" not in changes else whole.replace(**changes)
    check_error(config, bad, code)


LAST_ROWS = {"start": 8192 * 16 - 2 * 1024 - 64, "y0": 30}  # the last byte read is the memory's last


@pytest.mark.parametrize("changes, code", [
    ({"streams": 2}, ErrorCode.ILLEGAL_FIELD),
    ({"stride_x": 0}, ErrorCode.ILLEGAL_FIELD),
    ({"dest": 8192 - 575}, ErrorCode.ACT_RANGE),
    ({"dest": 0xFFFF}, ErrorCode.ACT_RANGE),
    (LAST_ROWS | {"start": LAST_ROWS["start"] + 1}, ErrorCode.ACT_RANGE),
    (LAST_ROWS | {"start": LAST_ROWS["start"] + 1, "tile_cols": 1}, ErrorCode.ACT_RANGE),
    ({"start": (-33) % (1 << 20)}, ErrorCode.ACT_RANGE),
])  # fmt: skip
def test_errors_of_the_serial_unit_are_the_same(changes, code):
    config = SERIAL["16 rows, serial"]
    check_error(config, first_layer(config, tile_rows=2).replace(**changes), code)


def test_the_serial_unit_refuses_to_fill():
    fill = Instruction(Opcode.FILL, weights=0, tiles=1, rows=1, source=0, row_step=16)
    check_error(SERIAL["16 rows, serial"], fill, ErrorCode.ILLEGAL_FIELD)


def check_error(config, bad, code):
    good = first_layer(config, tile_rows=1).replace(dest=4000)
    rng = np.random.default_rng(1)
    memory = random_memory(rng, config)
    outcome = simulate(config, [good, bad], memory, rng=rng)
    assert outcome.error == (code, 101)
    assert len(outcome.cycles) == 1
    written = set(np.argwhere(outcome.memory != memory)[:, 0]) - {4000 + n for n in range(good.groups * 32)}
    assert written <= ({bad.dest + n for n in range(2048)} if code == ErrorCode.ACT_RANGE else set())


@pytest.mark.parametrize("changes", [
    {"dest": 8192 - 2048},
    {"start": 8192 * 16 - 3 * 1024 - 32},
    {"streams": 8, "last_streams": 1},
    {"left": 1024},
    {"left": 1024, "tile_cols": 1200, "tile_rows": 1},
    {"inside": 200},
    {"y0": -4096},
    {"y0": 4095},
    {"stride_y": 0},
    {"tile_cols": 70, "tile_rows": 2, "stride_x": 15},
])  # fmt: skip
def test_values_at_the_edge_of_their_range_work(changes):
    config = CONFIGS["16 rows"]
    check(config, [first_layer(tile_rows=changes.get("tile_rows", 32 if "dest" in changes or "start" in changes else 2))
                   .replace(**changes)], np.random.default_rng(2))  # fmt: skip


@pytest.mark.parametrize("changes", [
    {"dest": 8192 - 9 * 32},
    LAST_ROWS | {"tile_rows": 2},
    {"last_streams": 32},
    {"left": 300, "tile_cols": 400, "groups": 2},
    {"left": 4095, "groups": 1, "tile_cols": 1},
    {"inside": 200},
    {"y0": -4096},
    {"y0": 4095},
    {"stride_y": 0, "tile_rows": 2},
    {"tile_cols": 70, "stride_x": 15},
])  # fmt: skip
def test_values_at_the_edge_work_in_the_serial_unit(changes):
    config = SERIAL["16 rows, serial"]
    check(config, [first_layer(config, tile_rows=1).replace(**changes)], np.random.default_rng(2))
