"""The whole engine through its host port, compiled with Verilator: identity, runs, and every way to stop."""

import numpy as np
import pytest

from celosia.rtl.config import PRESETS, BadConfig, EngineConfig
from celosia.rtl.csr import REGISTERS, WINDOWS, identity, memory_shapes
from celosia.rtl.isa import ErrorCode, Instruction, Opcode, Unit, encode
from celosia.rtl.top import Top
from celosia.sim.transport import TransportError, VerilatorTransport

CONFIG = PRESETS["test"]
END = Instruction(Opcode.END)
LIMIT = 10_000


def execute(**fields):
    sizes = {"tile_rows": 2, "tile_cols": 3, "kernel_y": 1, "kernel_x": 1, "blocks": 1, "in_height": 9, "in_width": 9}
    return Instruction(Opcode.EXECUTE, **({"stride_y": 1, "stride_x": 1, "row_step": 9} | sizes | fields))


def store(**fields):
    return Instruction(Opcode.STORE, **({"tile_rows": 2, "tile_cols": 3, "blocks": 1, "row_step": 3, "col_step": 1, "dest": 100} | fields))


@pytest.fixture(scope="module")
def engine():
    transport = VerilatorTransport(CONFIG)
    transport.write32(REGISTERS["IRQ_ENABLE"].offset, 3)
    return transport


def load(engine, words, first=0):
    words = [encode(word) if isinstance(word, Instruction) else word for word in words]
    data = np.array([word >> 32 * n & 0xFFFFFFFF for word in words for n in range(8)], np.uint32)
    engine.write(WINDOWS["program"].base + 32 * first, data)


def get(engine, name):
    return REGISTERS[name].unpack(engine.read32(REGISTERS[name].offset))


def run(engine, *words, first=0):
    """Run a program; return (code, unit, index)."""
    load(engine, words, first)
    engine.write32(REGISTERS["PROGRAM_START"].offset, first)
    engine.write32(REGISTERS["IRQ_STATUS"].offset, 3)
    engine.write32(REGISTERS["CONTROL"].offset, 1)
    assert engine.wait(LIMIT), "the engine did not stop"
    status, error = get(engine, "STATUS"), get(engine, "ERROR")
    failed = error["code"] != 0
    assert status == {"busy": 0, "done": not failed, "error": failed}
    assert get(engine, "IRQ_STATUS") == {"done": not failed, "error": failed}
    return ErrorCode(error["code"]), Unit(error["unit"]), error["index"]


def test_registers_identify_the_engine(engine):
    for name, value in identity(CONFIG).items():
        assert engine.read32(REGISTERS[name].offset) == value, name


def test_every_memory_keeps_what_the_host_writes(engine):
    rng = np.random.default_rng(1)
    for name, shape in memory_shapes(CONFIG).items():
        words = rng.integers(0, 1 << (8 if name == "tables" else 32), shape.entries * shape.stride // 4, np.uint32)
        engine.write(WINDOWS[name].base, words)
        assert (engine.read(WINDOWS[name].base, len(words)) == words).all(), name


def test_a_small_program_computes_and_counts(engine):
    # One 1×1 layer: identity weights, scale 1/2, so each byte is halved, to even at ties.
    image = np.arange(-18, 18, dtype=np.int8).reshape(9, 4)
    image[1, 1] = 101
    engine.write(WINDOWS["activations"].base, image.reshape(-1).view(np.uint32))
    engine.write(WINDOWS["weights"].base, np.eye(4, dtype=np.int8).reshape(-1).view(np.uint32))
    params = np.array([0, 1 << 23 | 24 << 24] * 4, np.uint32)
    engine.write(WINDOWS["params"].base, params)
    program = [
        execute(tile_rows=1, tile_cols=9, signal_store=1),
        store(tile_rows=1, tile_cols=9, wait_execute=1, low=-128, high=127),
        END,
    ]
    assert run(engine, *program)[0] is ErrorCode.NONE
    result = engine.read(WINDOWS["activations"].base + 100 * CONFIG.rows, 9).view(np.int8).reshape(9, 4)
    assert (result == np.rint(image / 2)).all()
    cycles = get(engine, "CYCLES")["value"]
    assert 20 < cycles < 120
    assert get(engine, "INSTRUCTIONS")["value"] == 3
    assert 0 < get(engine, "STORE_WAIT")["value"] < cycles
    assert 9 <= get(engine, "EXECUTE_BUSY")["value"] < cycles


def test_counters_begin_again_with_each_run(engine):
    program = (execute(), END)
    run(engine, *program)
    first = get(engine, "CYCLES"), get(engine, "INSTRUCTIONS")
    run(engine, *program)
    assert (get(engine, "CYCLES"), get(engine, "INSTRUCTIONS")) == first


def test_memories_belong_to_the_units_while_busy(engine):
    load(engine, [execute(tile_rows=8, tile_cols=8, kernel_y=60, kernel_x=60, hold=1), END])
    engine.write32(REGISTERS["PROGRAM_START"].offset, 0)
    engine.write32(REGISTERS["CONTROL"].offset, 1)
    with pytest.raises(TransportError, match="refused to write address 0x500000"):
        engine.write32(WINDOWS["activations"].base, 1)
    assert get(engine, "STATUS")["busy"] == 1
    engine.write32(REGISTERS["CONTROL"].offset, 2)
    assert get(engine, "STATUS") == {"busy": 0, "done": 0, "error": 0}
    engine.write32(WINDOWS["activations"].base, 1)
    assert run(engine, END)[0] is ErrorCode.NONE


UNFOLD = Instruction(
    Opcode.UNFOLD, kernel_y=1, streams=1, groups=1, last_streams=1, tile_rows=1, tile_cols=1, in_height=1, inside=1, stride_x=1, dest=50,
)  # fmt: skip


FILL = Instruction(Opcode.FILL, tiles=2, rows=4, row_step=4, weights=8)


@pytest.mark.parametrize("words, expected", [
    ((execute(), 0), (ErrorCode.ILLEGAL_OPCODE, Unit.SEQUENCER, 1)),
    ((execute(), 7), (ErrorCode.ILLEGAL_OPCODE, Unit.SEQUENCER, 1)),
    ((encode(execute()) | 1 << 31, END), (ErrorCode.RESERVED_BITS, Unit.SEQUENCER, 0)),
    ((encode(END) | 1 << 200,), (ErrorCode.RESERVED_BITS, Unit.SEQUENCER, 0)),
    ((execute(signal_transfer=1), END), (ErrorCode.RESERVED_BITS, Unit.SEQUENCER, 0)),
    ((execute(), store(wait_transfer=1), END), (ErrorCode.RESERVED_BITS, Unit.SEQUENCER, 1)),
    ((execute(signal_store=1), END), (ErrorCode.TOKENS_LEFT, Unit.SEQUENCER, 1)),
    ((execute(), store(wait_execute=1), END), (ErrorCode.DEADLOCK, Unit.STORE, 1)),
    ((UNFOLD.replace(wait_store=1), execute(), END), (ErrorCode.DEADLOCK, Unit.LOAD, 0)),
    ((execute(start=CONFIG.act_depth),), (ErrorCode.ACT_RANGE, Unit.EXECUTE, 0)),
    ((execute(), execute(weights=CONFIG.weight_tiles), END), (ErrorCode.WEIGHT_RANGE, Unit.EXECUTE, 1)),
    ((execute(acc=CONFIG.acc_depth - 1), END), (ErrorCode.ACC_RANGE, Unit.EXECUTE, 0)),
    ((store(dest=CONFIG.act_depth - 1), END), (ErrorCode.ACT_RANGE, Unit.STORE, 0)),
    ((store(acc=CONFIG.acc_depth), END), (ErrorCode.ACC_RANGE, Unit.STORE, 0)),
    ((store(params=CONFIG.param_depth), END), (ErrorCode.PARAM_RANGE, Unit.STORE, 0)),
    ((store(use_table=1, table=CONFIG.tables), END), (ErrorCode.ILLEGAL_FIELD, Unit.STORE, 0)),
    ((store(slot=CONFIG.slots), END), (ErrorCode.ILLEGAL_FIELD, Unit.STORE, 0)),
    ((UNFOLD.replace(dest=CONFIG.act_depth), END), (ErrorCode.ACT_RANGE, Unit.LOAD, 0)),
    ((UNFOLD.replace(start=CONFIG.act_bytes), END), (ErrorCode.ACT_RANGE, Unit.LOAD, 0)),
    ((UNFOLD.replace(streams=5), END), (ErrorCode.ILLEGAL_FIELD, Unit.LOAD, 0)),
    ((FILL.replace(rows=5), END), (ErrorCode.ILLEGAL_FIELD, Unit.LOAD, 0)),
    ((FILL.replace(slot=1), END), (ErrorCode.ILLEGAL_FIELD, Unit.LOAD, 0)),
    ((FILL, FILL.replace(weights=CONFIG.weight_tiles - 1), END), (ErrorCode.WEIGHT_RANGE, Unit.LOAD, 1)),
    ((FILL.replace(source=CONFIG.act_bytes - 7 * 4), END), (ErrorCode.ACT_RANGE, Unit.LOAD, 0)),
])  # fmt: skip
def test_a_bad_program_stops_with_its_cause_and_the_engine_runs_again(engine, words, expected):
    assert run(engine, *words) == expected
    assert run(engine, execute(), store(bank=1), UNFOLD, FILL, END)[0] is ErrorCode.NONE


def test_running_past_the_program_memory_stops(engine):
    last = CONFIG.program_depth - 1
    assert run(engine, execute(), first=last) == (ErrorCode.PROGRAM_RANGE, Unit.SEQUENCER, CONFIG.program_depth)
    assert run(engine, END, first=last)[0] is ErrorCode.NONE


def test_a_memory_larger_than_its_window_is_refused():
    config = EngineConfig.from_json(CONFIG.to_json().replace('"act_depth": 4096', '"act_depth": 65536').replace('"rows": 4', '"rows": 32'))
    with pytest.raises(BadConfig, match="the activations memory must fit into the host's window of 1,048,576 bytes, not take 2,097,152"):
        Top(config)
