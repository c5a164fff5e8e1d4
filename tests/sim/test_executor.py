"""The golden executor against the instruction set's text, read literally: plain loops over bytes."""

import dataclasses

import numpy as np
import pytest

from celosia.rtl.config import PRESETS, EngineConfig
from celosia.rtl.isa import Combine, ErrorCode, Instruction, Opcode, encode
from celosia.sim import numerics
from celosia.sim.executor import Executor, GoldenError
from celosia.tools.errors import BadInput, BadProgram
from celosia.tools.program import Port, Program

TEST = PRESETS["test"]
UNEVEN = EngineConfig(
    name="uneven", rows=8, cols=4, weight_rows=2, lanes=1, act_depth=512, act_banks=2, weight_tiles=64,
    acc_depth=64, param_depth=64, tables=4, program_depth=64, unfold_streams=4, depthwise_rows=2,
)  # fmt: skip
CONFIGS = [TEST, UNEVEN, PRESETS["mac64"]]


def program(config, *instructions, end=True, **images):
    """Return a program of these instructions; images not given are empty."""
    words = [encode(i) if isinstance(i, Instruction) else i for i in instructions]
    words += [encode(Instruction(Opcode.END))] if end else []
    facts = {
        "weights": np.zeros((0, config.load_cycles, config.weight_rows, config.cols), np.int8),
        "params": np.zeros((0, 2 * config.lanes), np.uint32),
        "tables": np.zeros((0, 256), np.uint8),
        "inputs": (),
        "outputs": (),
    } | images
    image = np.frombuffer(b"".join(word.to_bytes(32, "little") for word in words), "<u4").reshape(-1, 8)
    return Program(name="p", digest=config.digest, config=config.to_json(), instructions=image, layers=(), **facts)


def random_machine(config, rng, *instructions):
    """Return an executor with random memories, and the weights as ``[tile, row, col]``."""
    tiles = rng.integers(-128, 128, (config.weight_tiles, config.rows, config.cols)).astype(np.int8)
    packed = tiles.reshape(-1, config.weight_rows, config.load_cycles, config.cols).transpose(0, 2, 1, 3)
    params = np.zeros((config.param_depth, config.lanes, 2), np.uint32)
    params[..., 0] = rng.integers(-1000, 1000, params.shape[:2]).astype(np.int32).view(np.uint32)
    params[..., 1] = rng.integers(1 << 23, 1 << 24, params.shape[:2]) | rng.integers(30, 34, params.shape[:2]) << 24
    tables = rng.integers(0, 256, (config.tables, 256)).astype(np.uint8)
    machine = Executor(
        config, program(config, *instructions, weights=packed, params=params.reshape(len(params), -1), tables=tables)
    )
    machine.act[:] = rng.integers(-128, 128, machine.act.shape)
    machine.acc[:] = rng.integers(-(1 << 20), 1 << 20, machine.acc.shape)
    return machine, tiles


def execute_by_hand(config, i, act, acc, tiles):
    """Run an EXECUTE as the instruction set says, one multiplication after the other."""
    touched = set()
    number = 0
    for ky in range(i.kernel_y):
        for kx in range(i.kernel_x):
            for b in range(i.blocks):
                tile = tiles[i.weights if i.hold else i.weights + number]
                number += 1
                for y in range(i.tile_rows):
                    for x in range(i.tile_cols):
                        iy, ix = i.y0 + y * i.stride_y + ky * i.dilation_y, i.x0 + x * i.stride_x + kx * i.dilation_x
                        if 0 <= iy < i.in_height and 0 <= ix < i.in_width:
                            at = i.start + y * i.row_step + x * i.stride_x + ky * i.ky_step + kx * i.dilation_x
                            word = act[(at + b * i.block_step) % 65536].astype(int)
                            word = word ^ -128 if i.unsigned else word
                        else:
                            word = np.full(config.rows, i.pad)
                        sums = [sum(int(word[r]) * int(tile[r, c]) for r in range(config.rows)) for c in range(config.cols)]
                        block = b if i.per_block else 0
                        entry = i.acc + (block * i.tile_rows + y) * i.tile_cols + x
                        old = acc[i.bank, entry].astype(int)
                        if entry not in touched and not i.accumulate:
                            new = np.array(sums)
                        else:
                            new = np.maximum(old, sums) if i.max else old + sums
                        touched.add(entry)
                        acc[i.bank, entry] = ((new + (1 << 31)) % (1 << 32)) - (1 << 31)


def depthwise_by_hand(config, i, act, acc, tiles):
    """Run an EXECUTE with ``depthwise`` as the instruction set says, one multiplication after the other."""
    touched = set()
    rows, taps = config.depthwise_rows, config.depthwise_taps
    width = i.tile_cols * i.stride_x + i.gap

    def word(ky, kx, b, j, y, w):
        while w >= width and y + 1 < i.tile_rows:
            y, w = y + 1, w - width
        if w >= width + i.tail:
            return np.zeros(config.rows, int)  # the weights must be zero
        iy, ix = i.y0 + y * i.stride_y + (ky * rows + j) * i.dilation_y, i.x0 + kx * i.dilation_x + w
        if not (0 <= iy < i.in_height and 0 <= ix < i.in_width):
            return np.full(config.rows, i.pad)
        at = i.start + y * i.row_step + (ky * rows + j) * i.ky_step + kx * i.dilation_x + w + b * i.block_step
        value = act[at % 65536].astype(int)
        return value ^ -128 if i.unsigned else value

    for number, (ky, kx, b) in enumerate(np.ndindex(i.kernel_y, i.kernel_x, i.blocks)):
        tile = tiles[i.weights if i.hold else i.weights + number].astype(int)
        for y, x in np.ndindex(i.tile_rows, i.tile_cols):
            sums = np.zeros(config.cols, int)
            for r in range(config.rows):
                j, k = divmod(r, taps)
                if j < rows:
                    sums += tile[r] * word(ky, kx, b, j, y, x * i.stride_x + k)[i.slot * config.cols :][: config.cols]
                else:
                    sums += tile[r] * word(ky, kx, b, 0, y, x * i.stride_x)[r]
            entry = i.acc + ((b if i.per_block else 0) * i.tile_rows + y) * i.tile_cols + x
            old = acc[i.bank, entry].astype(int)
            new = sums if entry not in touched and not i.accumulate else np.maximum(old, sums) if i.max else old + sums
            touched.add(entry)
            acc[i.bank, entry] = ((new + (1 << 31)) % (1 << 32)) - (1 << 31)


def random_execute(config, rng):
    height, width, blocks = (int(n) for n in rng.integers(1, 6, 3))
    tile_rows, tile_cols = (int(n) for n in rng.integers(1, 4, 2))
    start = int(rng.integers(-20, 20))
    return Instruction(
        Opcode.EXECUTE,
        weights=int(rng.integers(0, 8)),
        start=start % 65536,
        y0=int(rng.integers(-3, 3)),
        x0=int(rng.integers(-3, 3)),
        in_height=height,
        in_width=width,
        tile_rows=tile_rows,
        tile_cols=tile_cols,
        kernel_y=int(rng.integers(1, 4)),
        kernel_x=int(rng.integers(1, 3)),
        blocks=min(blocks, 3),
        stride_y=int(rng.integers(1, 3)),
        stride_x=int(rng.integers(1, 3)),
        dilation_y=int(rng.integers(1, 3)),
        dilation_x=int(rng.integers(1, 3)),
        row_step=width,
        ky_step=width,
        block_step=30,
        pad=int(rng.integers(-128, 128)),
        acc=int(rng.integers(0, 8)),
        **{flag: int(rng.integers(0, 2)) for flag in ("bank", "unsigned", "hold", "per_block", "accumulate", "max")},
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(40))
def test_execute_equals_the_instruction_sets_text(config, seed):
    rng = np.random.default_rng(seed)
    i = random_execute(config, rng)
    machine, tiles = random_machine(config, rng)
    # Every address is a small offset from word 200, so that nothing falls outside the memory.
    i = i.replace(start=200 + (i.start + 20) % 65536 % 40)
    acc = machine.acc[0].copy()
    execute_by_hand(config, i, machine.act[0], acc, tiles)
    before = machine.act.copy()
    machine.run_execute(0, i)
    assert (machine.acc[0] == acc).all()
    assert (machine.act == before).all()


@pytest.mark.parametrize("config", [*CONFIGS, PRESETS["mac256"]], ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(20))
def test_depthwise_execute_equals_the_instruction_sets_text(config, seed):
    rng = np.random.default_rng(seed)
    steps = {"stride_x": int(rng.integers(1, 4)), "gap": int(rng.integers(0, 8)), "tail": int(rng.integers(0, 8))}
    i = random_execute(config, rng).replace(
        depthwise=1, slot=int(rng.integers(0, config.slots)), start=200, ky_step=2 * int(rng.integers(0, 8)) + 1, **steps
    )
    machine, tiles = random_machine(config, rng)
    acc = machine.acc[0].copy()
    depthwise_by_hand(config, i, machine.act[0], acc, tiles)
    machine.run_execute(0, i)
    assert (machine.acc[0] == acc).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(40))
def test_store_equals_the_instruction_sets_text(config, seed):
    rng = np.random.default_rng(seed)
    blocks, rows, cols = (int(n) for n in rng.integers(1, 4, 3))
    i = Instruction(
        Opcode.STORE,
        dest=100,
        row_step=5,
        block_step=40,
        col_step=int(rng.integers(1, 3)),
        slot=int(rng.integers(0, config.slots)),
        tile_rows=rows,
        tile_cols=cols,
        blocks=blocks,
        acc=7,
        bank=int(rng.integers(0, 2)),
        params=3,
        zero_point=int(rng.integers(-128, 128)),
        low=-100,
        high=90,
        table=1,
        operand=300,
        operand_row_step=int(rng.integers(0, 6)),
        operand_block_step=int(rng.integers(0, 50)),
        combine=int(rng.integers(0, 5)),
        combine_params=0,
        combine_low=-120,
        combine_high=120,
        raw=int(rng.integers(1, 5)) if rng.random() < 0.3 else 0,
        **{flag: int(rng.integers(0, 2)) for flag in ("advance", "use_table", "operand_still")},
    )
    machine, _ = random_machine(config, rng)
    k = [int(rng.integers(0, 1 << 24)), -int(rng.integers(0, 1 << 24)), int(rng.integers(-(1 << 30), 1 << 30))]
    word = k[0] | (k[1] % (1 << 28)) << 28 | (k[2] % (1 << 40)) << 56
    machine.params.reshape(-1)[:4] = np.frombuffer(word.to_bytes(16, "little"), np.uint32)
    expected = machine.act[0].copy()
    entries = machine.acc[0, i.bank]
    for b in range(blocks):
        for y in range(rows):
            for x in range(cols):
                offset = b * i.block_step + y * i.row_step + x * i.col_step
                for c in range(config.cols):
                    channel = c + (b * config.cols if i.advance else 0)
                    low, high = machine.params[i.params + channel // config.lanes].reshape(-1, 2)[channel % config.lanes]
                    byte = i.slot * config.cols + c
                    place = i.operand + b * i.operand_block_step + y * i.operand_row_step + (0 if i.operand_still else x * i.col_step)
                    operand = int(machine.act[0, place, byte])
                    total = int(entries[i.acc + (b * rows + y) * cols + x, c]) + int(np.uint32(low).astype(np.int32))
                    if i.combine == Combine.MUL:
                        total = ((total + (1 << 17)) % (1 << 18) - (1 << 17)) * (operand - i.combine_low)
                    elif i.raw:
                        total = int(np.uint8(total >> 8 * (i.raw - 1) & 255).astype(np.int8))
                    mantissa, shift = int(high) & 0xFFFFFF, int(high) >> 24 & 63
                    value = numerics.requantize(
                        total, 0, mantissa, shift, i.zero_point, i.low, i.high, late=i.combine == Combine.MUL
                    )
                    if i.use_table:
                        value = machine.tables[i.table][int(value) % 256]
                    if i.combine == Combine.ADD:
                        value = numerics.add_residual(value, operand, *k, i.combine_low, i.combine_high)
                    elif i.combine in (Combine.MIN, Combine.MAX):
                        choose = min if i.combine == Combine.MIN else max
                        value = min(max(choose(int(value), operand), i.combine_low), i.combine_high)
                    expected[i.dest + offset, byte] = value
    machine.run_store(0, i)
    assert (machine.act[0] == expected).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(40))
def test_unfold_equals_the_instruction_sets_text(config, seed):
    rng = np.random.default_rng(seed)
    channels, kernel_y, height, inside = (int(n) for n in rng.integers(1, 5, 4))
    streams = int(rng.integers(1, config.unfold_streams + 1))
    groups = -(-channels * kernel_y // streams)
    i = Instruction(
        Opcode.UNFOLD,
        start=0,
        dest=300,
        kernel_y=kernel_y,
        streams=streams,
        groups=groups,
        last_streams=channels * kernel_y - (groups - 1) * streams,
        tile_rows=int(rng.integers(1, 4)),
        tile_cols=int(rng.integers(1, 5)),
        y0=int(rng.integers(-2, 2)),
        left=int(rng.integers(0, 3)),
        inside=inside,
        stride_y=int(rng.integers(1, 3)),
        stride_x=int(rng.integers(1, 3)),
        in_height=height,
        row_step=inside,
        channel_step=(height - kernel_y + 1) * inside % (1 << 20),
        pad=int(rng.integers(0, 256)),
    )
    source = 77
    last = groups * streams - 1
    tile_step = (i.stride_y - last // kernel_y * height - last % kernel_y) * inside
    i = i.replace(start=(source + i.y0 * inside) % (1 << 20), tile_step=tile_step % (1 << 20))
    machine, _ = random_machine(config, rng)
    dense, expected = machine.act[0].reshape(-1).copy(), machine.act[0].copy()
    columns = config.rows // streams
    for n, (y, g, x) in enumerate(np.ndindex(i.tile_rows, groups, i.tile_cols)):
        word = np.full(config.rows, np.uint8(i.pad).astype(np.int8))
        for s in range(streams):
            channel, ky = divmod(g * streams + s, kernel_y)
            for kx in range(columns):
                iy, ix = i.y0 + y * i.stride_y + ky, x * i.stride_x + kx - i.left
                if channel < channels and 0 <= iy < height and 0 <= ix < inside:
                    word[s * columns + kx] = dense[source + channel * height * inside + iy * inside + ix]
        expected[i.dest + n] = word
    machine.run_load(0, i)
    assert (machine.act[0] == expected).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(20))
def test_fill_equals_the_instruction_sets_text(config, seed):
    rng = np.random.default_rng(seed)
    i = Instruction(
        Opcode.FILL,
        weights=int(rng.integers(0, 20)),
        tiles=int(rng.integers(1, 5)),
        rows=int(rng.integers(1, config.rows + 1)),
        source=int(rng.integers(0, 100)) * config.rows,
        row_step=int(rng.integers(0, 9)) * config.rows,
        slot=int(rng.integers(0, config.slots)),
    )
    address = i.source // config.rows
    machine, tiles = random_machine(config, rng)
    for t in range(i.tiles):
        for r in range(config.rows):
            word = machine.act[0, address] if r < i.rows else np.zeros(config.rows)
            tiles[i.weights + t, r] = word[i.slot * config.cols : (i.slot + 1) * config.cols]
            address += i.row_step // config.rows
    machine.run_load(0, i)
    assert (machine.weights[0] == tiles).all()


def test_inferences_run_at_once_have_filled_weights_of_their_own():
    fill = Instruction(Opcode.FILL, tiles=1, rows=4, row_step=4)
    machine = Executor(TEST, program(TEST, fill))
    machine.reset(3)
    machine.act[:, :4] = np.random.default_rng(0).integers(-128, 128, (3, 4, 4))
    machine.execute()
    machine.run_execute(0, EXECUTE.replace(in_height=4, tile_rows=4, stride_y=1, row_step=1))
    squares = machine.act[:, :4].astype(int) @ machine.act[:, :4].astype(int)
    assert (machine.acc[:, 0, :4] == squares).all()


SIZES = {"tile_rows": 1, "tile_cols": 1, "kernel_y": 1, "kernel_x": 1, "blocks": 1}
EXECUTE = Instruction(Opcode.EXECUTE, in_height=1, in_width=1, **SIZES)
STORE = Instruction(Opcode.STORE, tile_rows=1, tile_cols=1, blocks=1)
UNFOLD = Instruction(
    Opcode.UNFOLD, kernel_y=1, streams=1, groups=1, last_streams=1, tile_rows=1, tile_cols=1, stride_x=1, in_height=1, inside=1
)

FILL = Instruction(Opcode.FILL, tiles=1, rows=1)


@pytest.mark.parametrize(
    ("code", "instruction"),
    [
        (ErrorCode.ILLEGAL_OPCODE, 0),
        (ErrorCode.RESERVED_BITS, encode(EXECUTE) | 1 << 31),
        (ErrorCode.RESERVED_BITS, encode(UNFOLD) | 1 << 255),
        (ErrorCode.RESERVED_BITS, EXECUTE.replace(signal_transfer=1)),
        (ErrorCode.RESERVED_BITS, STORE.replace(wait_transfer=1)),
        (ErrorCode.ACT_RANGE, EXECUTE.replace(start=TEST.act_depth)),
        (ErrorCode.ACT_RANGE, EXECUTE.replace(start=TEST.act_depth, depthwise=1, stride_x=1)),
        (ErrorCode.ACT_CONFLICT, EXECUTE.replace(in_height=2, dilation_y=1, ky_step=2, depthwise=1, stride_x=1)),
        (ErrorCode.ILLEGAL_FIELD, EXECUTE.replace(depthwise=1, stride_x=1, slot=1)),
        (ErrorCode.ILLEGAL_FIELD, EXECUTE.replace(depthwise=1)),
        (ErrorCode.ACT_RANGE, STORE.replace(dest=TEST.act_depth)),
        (ErrorCode.ACT_RANGE, STORE.replace(operand=TEST.act_depth, combine=Combine.MIN)),
        (ErrorCode.ACT_RANGE, UNFOLD.replace(dest=TEST.act_depth)),
        (ErrorCode.ACT_RANGE, UNFOLD.replace(start=TEST.act_bytes)),
        (ErrorCode.ACT_RANGE, FILL.replace(source=TEST.act_bytes)),
        (ErrorCode.WEIGHT_RANGE, FILL.replace(weights=TEST.weight_tiles)),
        (ErrorCode.ILLEGAL_FIELD, FILL.replace(rows=TEST.rows + 1)),
        (ErrorCode.ILLEGAL_FIELD, FILL.replace(slot=1)),
        (ErrorCode.WEIGHT_RANGE, EXECUTE.replace(weights=TEST.weight_tiles)),
        (ErrorCode.ACC_RANGE, EXECUTE.replace(acc=TEST.acc_depth)),
        (ErrorCode.ACC_RANGE, STORE.replace(acc=TEST.acc_depth)),
        (ErrorCode.PARAM_RANGE, STORE.replace(params=TEST.param_depth - 1)),
        (ErrorCode.PARAM_RANGE, STORE.replace(combine=Combine.ADD, combine_params=TEST.param_depth)),
        (ErrorCode.ILLEGAL_FIELD, STORE.replace(slot=1)),
        (ErrorCode.ILLEGAL_FIELD, STORE.replace(combine=5)),
        (ErrorCode.ILLEGAL_FIELD, STORE.replace(raw=5)),
        (ErrorCode.ILLEGAL_FIELD, STORE.replace(use_table=1, table=TEST.tables)),
        (ErrorCode.ILLEGAL_FIELD, UNFOLD.replace(stride_x=0)),
        (ErrorCode.ILLEGAL_FIELD, UNFOLD.replace(streams=5)),
        (ErrorCode.DEADLOCK, EXECUTE.replace(wait_store=1)),
        (ErrorCode.TOKENS_LEFT, EXECUTE.replace(signal_store=1)),
    ],
)
def test_errors_have_the_hardwares_code_and_the_instructions_number(code, instruction):
    machine = Executor(TEST, program(TEST, EXECUTE, instruction))
    with pytest.raises(GoldenError) as caught:
        machine.execute()
    assert caught.value.code == code
    assert caught.value.index == (2 if code == ErrorCode.TOKENS_LEFT else 1)


def test_depthwise_needs_the_mode():
    config = dataclasses.replace(TEST, depthwise_rows=0)
    machine = Executor(config, program(config, EXECUTE.replace(depthwise=1, stride_x=1)))
    with pytest.raises(GoldenError, match="ILLEGAL_FIELD: no depthwise mode"):
        machine.execute()


def test_maximum_needs_the_knob():
    config = dataclasses.replace(TEST, maximum=0)
    machine = Executor(config, program(config, EXECUTE.replace(max=1)))
    with pytest.raises(GoldenError, match="ILLEGAL_FIELD: no maximum"):
        machine.execute()


def test_padding_is_never_out_of_range():
    Executor(TEST, program(TEST, EXECUTE.replace(start=TEST.act_depth, y0=-1))).execute()


def test_a_program_without_end_runs_past_its_last_instruction():
    with pytest.raises(GoldenError, match="instruction 1: PROGRAM_RANGE"):
        Executor(TEST, program(TEST, EXECUTE, end=False)).execute()


def test_a_full_queue_in_front_of_a_missing_token_is_a_deadlock():
    waiting = EXECUTE.replace(wait_store=1)
    late = [STORE.replace(signal_execute=1)] * (TEST.queue_depth + 1)
    with pytest.raises(GoldenError, match="queue in front of a waiting instruction is full"):
        Executor(TEST, program(TEST, *[waiting] * (TEST.queue_depth + 1), *late)).execute()
    Executor(TEST, program(TEST, *[waiting] * TEST.queue_depth, *late[1:])).execute()


def test_too_many_tokens_overflow():
    with pytest.raises(GoldenError, match="TOKEN_OVERFLOW"):
        Executor(TEST, program(TEST, *[EXECUTE.replace(signal_store=1)] * 1023, EXECUTE.replace(signal_store=1))).execute()


def echo(config, *, unsigned=False, shape=(3, 2, 2)):
    """A program that copies nothing: its output is the blocked image of its input."""
    port = Port(
        name="x",
        shape=shape,
        unsigned=unsigned,
        layout="blocked",
        address=5,
        channels=shape[0],
        height=shape[1],
        width=shape[2],
        block_step=4,
        row_step=2,
    )
    return program(config, inputs=(port,), outputs=(dataclasses.replace(port, name="y"),))


@pytest.mark.parametrize("unsigned", [False, True])
def test_inputs_and_outputs_keep_dtype_and_batch(unsigned):
    machine = Executor(TEST, echo(TEST, unsigned=unsigned))
    x = np.arange(24).reshape(2, 3, 2, 2).astype(np.uint8 if unsigned else np.int8)
    batch = machine.run({"x": x})["y"]
    assert batch.dtype == x.dtype
    assert (batch == x).all()
    assert (machine.run({"x": x[1]})["y"] == x[1]).all()
    assert machine.run({"x": x[1]})["y"].shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((3, 2, 2), np.uint8)}, "input 'x' must be int8, not uint8"),
        ({"x": np.zeros((3, 2, 3), np.int8)}, r"input 'x' must have shape \[3, 2, 2\] or one more leading axis"),
    ],
)
def test_inputs_that_do_not_match_are_refused(inputs, message):
    with pytest.raises(BadInput, match=message):
        Executor(TEST, echo(TEST)).run(inputs)


def test_a_program_for_another_engine_is_refused():
    with pytest.raises(BadProgram, match="compiled for another engine"):
        Executor(PRESETS["mac64"], program(TEST))
