"""The memory port of the simulated engine: random TRANSFERs and whole streamed networks beside the golden executor, whatever the memory's timing."""

import dataclasses
import random

import numpy as np
import onnx
import pytest
from random_graphs import build, random_recipe

from celosia.rtl.config import PRESETS
from celosia.rtl.csr import REGISTERS, WINDOWS, memory_shapes
from celosia.rtl.isa import ErrorCode, Instruction, Memory, Opcode, Unit, encode
from celosia.sim.executor import Executor
from celosia.sim.external import MemoryTiming
from celosia.sim.footprint import entry_bytes
from celosia.sim.transport import TransportError
from celosia.tools.check import check_outputs, summary
from celosia.tools.driver import Driver, create_transport
from celosia.tools.errors import DoesNotFit, EngineError
from celosia.tools.program import EngineSegment, Program
from celosia.tools.session import InferenceSession

PORT = PRESETS["test_port"]
SMALL = dataclasses.replace(PORT, name="small", act_depth=256, weight_tiles=40, param_depth=64, program_depth=64)
WIDE = dataclasses.replace(
    PRESETS["mac256_port"], name="wide", rows=8, cols=8, weight_rows=2, lanes=4, memory_bytes=8, act_depth=512, weight_tiles=32, acc_depth=64,
    param_depth=32, program_depth=32, tables=1, unfold_streams=4,
)  # fmt: skip
LIMIT = 300_000
IMAGE, TOTAL = 1 << 14, 1 << 15
TIMINGS = [MemoryTiming(), MemoryTiming(latency=1), MemoryTiming(stalls=7), MemoryTiming(latency=3, gap=2, stalls=99)]


def program_of(config, instructions, memory, total=TOTAL):
    words = np.frombuffer(b"".join(encode(i).to_bytes(32, "little") for i in instructions), "<u4").reshape(-1, 8)
    return Program(
        name="transfers", digest=config.digest, config=config.to_json(), instructions=words, params=np.zeros((0, 2 * config.lanes), np.uint32),
        inputs=(), outputs=(), layers=(), weights=np.zeros((0, config.load_cycles, config.weight_rows, config.cols), np.int8),
        tables=np.zeros((0, 256), np.uint8), memory=memory, memory_bytes=total,
    )  # fmt: skip


def random_transfer(rng, config):
    """Return a legal TRANSFER."""
    memory = rng.choice([Memory.ACTIVATIONS] * 3 + [Memory.WEIGHTS, Memory.PARAMS])
    depth = {Memory.ACTIVATIONS: config.act_depth, Memory.WEIGHTS: config.weight_depth, Memory.PARAMS: config.param_depth}[memory]
    kind = rng.choice(["read", "write", "constant"]) if memory is Memory.ACTIVATIONS else "read"
    size = entry_bytes(config)[memory]
    while True:
        run, rows, planes = rng.choice([1, 2, 7, 40, 100]), rng.choice([1, 1, 2, 5]), rng.choice([1, 1, 3])
        steps = [rng.randrange(0, 60) for _ in range(4)]
        span = run + (rows - 1) * steps[0] + (planes - 1) * steps[1]
        outside = (run * size + (rows - 1) * steps[2] * config.memory_bytes + (planes - 1) * steps[3] * config.memory_bytes) + size
        if span <= depth and outside < TOTAL - IMAGE:
            break
    low, high = (IMAGE, TOTAL - outside) if kind == "write" or rng.random() < 0.3 else (0, IMAGE - outside)
    return Instruction(
        Opcode.TRANSFER, memory=memory, write=int(kind == "write"), constant=int(kind == "constant"), pad=rng.randrange(256),
        external=rng.randrange(low, high) // config.memory_bytes * config.memory_bytes, local=rng.randrange(depth - span + 1), run=run, rows=rows,
        planes=planes, local_row_step=steps[0], local_plane_step=steps[1], external_row_step=steps[2] * config.memory_bytes,
        external_plane_step=steps[3] * config.memory_bytes,
    )  # fmt: skip


def read_window(transport, config, name):
    shape = memory_shapes(config)[name]
    data = transport.read(WINDOWS[name].base, shape.entries * shape.stride // 4).view(np.uint8).reshape(shape.entries, shape.stride)
    return data[:, : shape.entry_bytes]


@pytest.mark.parametrize("config", [PORT, SMALL, WIDE], ids=lambda config: config.name)
@pytest.mark.parametrize("timing", TIMINGS, ids=str)
def test_random_transfers_are_those_of_the_golden_executor(config, timing):
    rng = random.Random(timing.stalls + timing.latency)
    memory = np.frombuffer(rng.randbytes(IMAGE), np.uint8)
    instructions = [random_transfer(rng, config) for _ in range(60)] + [Instruction(Opcode.END)]
    program = program_of(config, instructions, memory)
    executor = Executor(config, program)
    executor.execute()
    with create_transport("verilator", config, memory=timing) as transport:
        driver = Driver(transport, config)
        shape = memory_shapes(config)["activations"]
        transport.write(WINDOWS["activations"].base, np.zeros(shape.entries * shape.stride // 4, np.uint32))
        for name in ("weights", "params"):
            shape = memory_shapes(config)[name]
            transport.write(WINDOWS[name].base, np.zeros(shape.entries * shape.stride // 4, np.uint32))
        driver.load(program)
        _, stats = driver.run({}, limit=LIMIT)
        assert (transport.read_memory(IMAGE, TOTAL - IMAGE) == executor.external[0]).all()
        assert (read_window(transport, config, "activations") == executor.act[0].view(np.uint8)).all()
        assert (read_window(transport, config, "params") == executor.params.view(np.uint8).reshape(config.param_depth, -1)).all()
        weights = executor.weights[0].reshape(config.weight_tiles, config.weight_rows, config.load_cycles, config.cols).swapaxes(1, 2)
        assert (read_window(transport, config, "weights") == weights.view(np.uint8).reshape(config.weight_depth, -1)).all()
        beats = sum(
            i.run * i.rows * i.planes * entry_bytes(config)[i.memory] // config.memory_bytes for i in instructions[:-1] if not i.constant and not i.write
        )
        assert transport.read32(REGISTERS["TRANSFER_READ"].offset) == beats
        assert stats.instructions == len(instructions) and stats.units["transfer"].busy > beats
        assert {name for name, *_ in stats.events} == {"transfer"}


ONE = {"run": 1, "rows": 1, "planes": 1}


@pytest.mark.parametrize("fields, code, index", [
    ({"external": 2}, ErrorCode.ILLEGAL_FIELD, 1),
    ({"memory": Memory.WEIGHTS, "write": 1}, ErrorCode.ILLEGAL_FIELD, 1),
    ({"write": 1, "constant": 1}, ErrorCode.ILLEGAL_FIELD, 1),
    ({"memory": 3}, ErrorCode.ILLEGAL_FIELD, 1),
    ({"local": SMALL.act_depth - 1, "run": 2}, ErrorCode.ACT_RANGE, 1),
    ({"local": SMALL.act_depth - 1, "run": 2, "write": 1}, ErrorCode.ACT_RANGE, 1),
    ({"memory": Memory.WEIGHTS, "local": SMALL.weight_depth}, ErrorCode.WEIGHT_RANGE, 1),
    ({"memory": Memory.PARAMS, "local": SMALL.param_depth}, ErrorCode.PARAM_RANGE, 1),
    ({"external": 1 << 20}, ErrorCode.MEMORY_ERROR, 1),
    ({"external": 1 << 20, "write": 1}, ErrorCode.MEMORY_ERROR, 1),
    ({"external": TOTAL - 8, "run": 20, "write": 1}, ErrorCode.MEMORY_ERROR, 1),
])  # fmt: skip
def test_a_transfer_that_cannot_be_stops_the_engine_and_it_runs_again(fields, code, index):
    long = Instruction(Opcode.TRANSFER, **ONE | {"run": 200})
    bad = Instruction(Opcode.TRANSFER, **(ONE | fields))
    memory = np.arange(IMAGE, dtype=np.uint64).astype(np.uint8)
    with create_transport("verilator", SMALL, memory=MemoryTiming(stalls=3)) as transport:
        driver = Driver(transport, SMALL)
        for _ in range(2):
            driver.load(program_of(SMALL, [long, bad, long, Instruction(Opcode.END)], memory))
            with pytest.raises(EngineError, match=f"instruction {index} .*transfer unit: {code.name}"):
                driver.run({}, limit=LIMIT)
            assert driver._fields("ERROR")["unit"] == Unit.TRANSFER.value
        good = [Instruction(Opcode.TRANSFER, **ONE | {"run": 100, "external": 64}), Instruction(Opcode.END)]
        driver.load(program_of(SMALL, good, memory))
        driver.run({}, limit=LIMIT)
        assert (read_window(transport, SMALL, "activations")[:100].reshape(-1) == memory[64:464]).all()


def test_a_stopped_run_leaves_nothing_at_the_port():
    """Whatever was on its way when the engine was reset is thrown away or finished, and memory is not written with garbage."""
    rng = random.Random(5)
    memory = np.frombuffer(rng.randbytes(IMAGE), np.uint8)
    fetch = Instruction(Opcode.TRANSFER, **ONE | {"run": 256})
    put = Instruction(Opcode.TRANSFER, **ONE | {"run": 256, "external": IMAGE, "write": 1})
    with create_transport("verilator", SMALL, memory=MemoryTiming(latency=25, stalls=11)) as transport:
        driver = Driver(transport, SMALL)
        driver.load(program_of(SMALL, [fetch, put, Instruction(Opcode.END)], memory))
        for cycles in (60, 100, 180, 300, 400, 500, 600, 700):
            transport.write32(REGISTERS["CONTROL"].offset, 1)
            transport.wait(cycles)
            driver.reset()
            written = transport.read_memory(IMAGE, 1024)
            assert ((written == memory[:1024]) | (written == 0)).all()
            driver.run({}, limit=LIMIT)
            assert (transport.read_memory(IMAGE, 1024) == memory[:1024]).all()
            transport.write_memory(IMAGE, np.zeros(1024, np.uint8))


@pytest.mark.parametrize("timing", TIMINGS, ids=str)
def test_a_program_longer_than_the_program_memory_comes_from_external_memory(timing):
    rng = random.Random(1)
    memory = np.frombuffer(rng.randbytes(IMAGE), np.uint8)
    instructions = [random_transfer(rng, SMALL) for _ in range(3 * SMALL.program_depth + 5)] + [Instruction(Opcode.END)]
    program = program_of(SMALL, instructions, memory)
    executor = Executor(SMALL, program)
    executor.execute()
    with create_transport("verilator", SMALL, memory=timing) as transport:
        driver = Driver(transport, SMALL)
        driver.load(program)
        _, stats = driver.run({}, limit=LIMIT)
        assert stats.instructions == len(instructions)
        assert (transport.read_memory(IMAGE, TOTAL - IMAGE) == executor.external[0]).all()


@pytest.mark.parametrize("timing", TIMINGS[:3:2], ids=str)
def test_streamed_networks_are_equal_to_onnx_runtime(timing, tmp_path):
    config = dataclasses.replace(SMALL, program_depth=1024)
    streamed = 0
    for seed in range(12):
        model, inputs = build(random_recipe(seed))
        path = tmp_path / f"random{seed}.onnx"
        onnx.save(model, path)
        try:
            session = InferenceSession(path, config, "verilator", workers=1, memory=timing)
        except DoesNotFit:
            continue
        programs = [segment.program for segment in session.model.segments if isinstance(segment, EngineSegment)]
        if not any(program.memory_bytes for program in programs):
            continue
        streamed += 1
        one = {name: array[:2] if array.ndim else array for name, array in inputs.items()}
        assert not summary(check_outputs(session, path, one, session.run(None, one)))[1], seed
    assert streamed >= 2


@pytest.mark.parametrize("kind", ["icarus", "amaranth"])
def test_a_simulator_without_external_memory_says_so(kind, tmp_path):
    model, inputs = build(random_recipe(3))
    onnx.save(model, tmp_path / "random.onnx")
    session = InferenceSession(tmp_path / "random.onnx", SMALL, kind)
    with pytest.raises(EngineError, match="needs external memory, and here is none that the host reaches"):
        session.run(None, inputs)


def test_beyond_external_memory_nothing_is_written():
    with create_transport("verilator", SMALL) as transport:
        transport.create_memory(64)
        with pytest.raises(TransportError, match="refused to write address 0x000040"):
            transport.write_memory(32, np.zeros(64, np.uint8))


@pytest.mark.parametrize("text, problem", [("latency", "not by 'latency'"), ("late=3", "not by 'late=3'"), ("latency=0", "between 1 and 1000"), ("gap=-1", "not by")])
def test_a_timing_that_cannot_be_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        MemoryTiming.parse(text)


def test_a_timing_is_read():
    assert MemoryTiming.parse("latency=7,stalls=3") == MemoryTiming(latency=7, stalls=3)
    with pytest.raises(ValueError, match="divisor of the port's 16, not 5"):
        MemoryTiming(bytes=5).beat_cycles(16)
