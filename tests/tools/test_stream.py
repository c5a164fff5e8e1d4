"""Networks larger than the chip: cut into parts, streamed through the memory port, equal to ONNX Runtime on the golden executor."""

import dataclasses

import numpy as np
import onnx
import pytest
from random_graphs import build, random_recipe

from celosia.rtl.config import PRESETS
from celosia.rtl.isa import ErrorCode, Instruction, Memory, Opcode, encode
from celosia.sim.executor import Executor, GoldenError
from celosia.tools.check import check_outputs, summary
from celosia.tools.compiler.stream import nest
from celosia.tools.errors import DoesNotFit
from celosia.tools.program import EngineSegment, Program
from celosia.tools.session import InferenceSession

PORT = PRESETS["test_port"]
TINY = dataclasses.replace(PORT, name="tiny", act_depth=256, weight_tiles=40, param_depth=64)


def run(seed, config, tmp_path):
    """Return whether a random network was streamed, and how many elements are wrong."""
    model, inputs = build(random_recipe(seed))
    path = tmp_path / f"random{seed}.onnx"
    onnx.save(model, path)
    session = InferenceSession(path, config, "golden", workers=1)
    programs = [segment.program for segment in session.model.segments if isinstance(segment, EngineSegment)]
    found = check_outputs(session, path, inputs, session.run(None, inputs))
    return any(program.memory_bytes for program in programs), summary(found)[1]


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_networks_on_a_tiny_chip_are_equal_to_onnx_runtime(first, tmp_path):
    streamed, refused = 0, 0
    for seed in range(first, first + 20):
        try:
            used, wrong = run(seed, TINY, tmp_path)
        except DoesNotFit:
            refused += 1
            continue
        assert not wrong, seed
        streamed += used
    assert streamed >= 2 and refused <= 8


def test_an_engine_without_a_port_says_what_is_missing(tmp_path):
    with pytest.raises(DoesNotFit, match="bytes too small"):
        for seed in range(60):
            run(seed, dataclasses.replace(TINY, memory_bytes=0), tmp_path)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 4, 5), (2, 1, 7), (4, 6, 1)])
def test_nested_loops_move_every_entry_of_a_box(sizes):
    for local in ((20, 5, 1), (4 * sizes[2] * sizes[1], sizes[2], 1)):
        dims = list(zip(sizes, (100, 10, 1), local))
        pairs = set()
        for external, start, run_, (rows, re, rl), (planes, pe, pl) in nest(dims):
            for p in range(planes):
                for r in range(rows):
                    for n in range(run_):
                        pairs.add((external + p * pe + r * re + n, start + p * pl + r * rl + n))
        ranges = [range(size) for size in sizes]
        assert pairs == {
            (a * 100 + b * 10 + c, a * local[0] + b * local[1] + c) for a in ranges[0] for b in ranges[1] for c in ranges[2]
        }


def transfers(*fields, memory=None, memory_bytes=1024):
    """Return an executor that has run these TRANSFERs."""
    instructions = [Instruction(Opcode.TRANSFER, **({"rows": 1, "planes": 1} | one)) for one in fields] + [Instruction(Opcode.END)]
    words = np.frombuffer(b"".join(encode(i).to_bytes(32, "little") for i in instructions), "<u4").reshape(-1, 8)
    nothing = np.zeros((0, 2 * PORT.lanes), np.uint32)
    program = Program(
        name="transfers", digest=PORT.digest, config=PORT.to_json(), instructions=words, params=nothing, inputs=(), outputs=(), layers=(),
        weights=np.zeros((0, PORT.load_cycles, PORT.weight_rows, PORT.cols), np.int8), tables=np.zeros((0, 256), np.uint8),
        memory=np.arange(256, dtype=np.uint8) if memory is None else memory, memory_bytes=memory_bytes,
    )  # fmt: skip
    executor = Executor(PORT, program)
    executor.execute()
    return executor


def test_activations_come_and_go():
    fetch = {"memory": Memory.ACTIVATIONS, "external": 8, "run": 2, "rows": 2, "external_row_step": 16, "local": 5, "local_row_step": 3}
    store = {"memory": Memory.ACTIVATIONS, "external": 512, "run": 5, "local": 5, "write": 1}
    executor = transfers(fetch, store)
    expected = np.concatenate([np.arange(8, 16), np.zeros(4), np.arange(24, 32)])
    assert np.array_equal(executor.act[0, 5:10].ravel(), expected)
    assert np.array_equal(executor.external[0, 256:276], expected)


def test_constant_words_and_parameters_and_weights():
    executor = transfers(
        {"memory": Memory.ACTIVATIONS, "local": 3, "run": 2, "constant": 1, "pad": 200},
        {"memory": Memory.PARAMS, "external": 16, "local": 1, "run": 1},
        {"memory": Memory.WEIGHTS, "external": 32, "local": PORT.load_cycles, "run": PORT.load_cycles},
    )
    assert (executor.act[0, 3:5] == np.int8(-56)).all()
    assert executor.params[1].tobytes() == bytes(range(16, 32))
    assert np.array_equal(executor.weights[0, 1], np.arange(32, 48).reshape(4, 4))


@pytest.mark.parametrize(
    "fields, code",
    [
        ({"memory": Memory.ACTIVATIONS, "external": 2, "run": 1}, ErrorCode.ILLEGAL_FIELD),
        ({"memory": Memory.WEIGHTS, "external": 0, "run": 1, "write": 1}, ErrorCode.ILLEGAL_FIELD),
        ({"memory": Memory.ACTIVATIONS, "local": PORT.act_depth - 1, "run": 2}, ErrorCode.ACT_RANGE),
        ({"memory": Memory.WEIGHTS, "local": PORT.weight_depth, "run": 1}, ErrorCode.WEIGHT_RANGE),
        ({"memory": Memory.PARAMS, "local": PORT.param_depth, "run": 1}, ErrorCode.PARAM_RANGE),
    ],
)
def test_a_transfer_that_cannot_be_stops_the_engine(fields, code):
    with pytest.raises(GoldenError) as caught:
        transfers(fields)
    assert caught.value.code is code
