"""The cycle model against the RTL: cycles of whole programs, and what each unit does when."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from random_graphs import build, random_recipe

from celosia.rtl.config import PRESETS
from celosia.rtl.isa import Instruction, Opcode
from celosia.sim.cycles import predict
from celosia.sim.executor import instructions_of
from celosia.tools.compiler.pipeline import compile_model
from celosia.tools.demo import MODEL
from celosia.tools.driver import Driver, create_transport
from celosia.tools.errors import DoesNotFit, EngineError
from celosia.tools.program import EngineSegment
from celosia.tools.report import Event, attribute
from celosia.tools.session import engine_config

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"

ERROR = 0.03
SLACK = 30
"""Cycles that a prediction may be wrong besides: tiny programs last some hundred."""

LONG = 500
"""Cycles from which on a layer is looked at by itself."""


def programs(path, config):
    return [segment.program for segment in compile_model(path, config).segments if isinstance(segment, EngineSegment)]


def measure(program, config):
    """Return the statistics of a run with zeros: what the engine computes does not change its cycles."""
    with create_transport("verilator", config) as transport:
        driver = Driver(transport, config)
        driver.load(program)
        zeros = {port.name: np.zeros(port.shape, "uint8" if port.unsigned else "int8") for port in program.inputs}
        return driver.run(zeros, limit=10_000_000)[1]


def compare(program, config):
    """Return ``(cycles, predicted, [(cycles, predicted) of each layer])``."""
    stats, found = measure(program, config), predict(instructions_of(program), config)
    runs = (stats.events, stats.cycles), (found.timeline(), found.cycles)
    shares = [attribute([Event(*event) for event in events], program.layers, cycles)[0] for events, cycles in runs]
    return stats.cycles, found.cycles, list(zip(*shares))


def close(cycles, predicted, slack=SLACK):
    return abs(predicted - cycles) <= max(ERROR * cycles, slack)


@pytest.mark.parametrize("engine", ["test", "mac64", "mac256"])
def test_digits(engine):
    config = PRESETS[engine]
    (program,) = programs(MODEL, config)
    cycles, predicted, layers = compare(program, config)
    assert close(cycles, predicted, 0)
    assert all(close(*layer, 0) for layer in layers if layer[0] >= LONG)


@pytest.mark.parametrize("engine", ["test", "mac64"])
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed, engine, tmp_path):
    config = PRESETS[engine]
    onnx.save(build(random_recipe(seed))[0], tmp_path / "net.onnx")
    for program in programs(tmp_path / "net.onnx", config):
        cycles, predicted, _ = compare(program, config)
        assert close(cycles, predicted), (cycles, predicted)


@pytest.mark.slow
@pytest.mark.skipif(not MODELS.exists(), reason="these models are not part of the project")
@pytest.mark.parametrize("engine, of_layers", [("test", 0.04), ("mac64", 0.04), ("mac256", 0.02), ("mac256_port", 0.05), ("icebreaker", 0.1)])
@pytest.mark.parametrize("name", sorted(path.stem for path in MODELS.glob("*.onnx") if not path.stem.endswith("_float")))
def test_networks_from_elsewhere(name, engine, of_layers):
    config = engine_config(engine)
    try:
        parts = programs(MODELS / f"{name}.onnx", config)
    except DoesNotFit as problem:
        pytest.skip(str(problem))
    if not parts:
        pytest.skip("the engine runs no node of it")
    found = [compare(program, config) for program in parts]
    cycles, predicted = (sum(counts) for counts in list(zip(*found))[:2])
    assert abs(predicted - cycles) <= ERROR * cycles, (cycles, predicted)
    layers = [layer for *_, shares in found for layer in shares if layer[0] >= LONG]
    assert all(abs(predicted - cycles) <= of_layers * cycles for cycles, predicted in layers), layers


def instruction(opcode, **fields):
    sizes = {"tile_rows": 2, "tile_cols": 8, "blocks": 1}
    if opcode is Opcode.EXECUTE:
        sizes |= {"kernel_y": 1, "kernel_x": 1, "stride_y": 1, "stride_x": 1}
    return Instruction(opcode, **(sizes | fields))


def test_a_program_without_an_end_is_an_error():
    execute, store = instruction(Opcode.EXECUTE, signal_store=1), instruction(Opcode.STORE, wait_execute=1)
    assert predict([execute, store, Instruction(Opcode.END)], PRESETS["mac256"]).cycles > 0
    with pytest.raises(EngineError, match="no END"):
        predict([execute, store], PRESETS["mac256"])
    with pytest.raises(EngineError, match="instruction 1 waits for a token"):
        predict([execute, store.replace(wait_execute=2), Instruction(Opcode.END)], PRESETS["mac256"])


def test_events_are_those_of_a_simulation():
    config = PRESETS["mac256"]
    (program,) = programs(MODEL, config)
    found = predict(instructions_of(program), config)
    real = {(row["unit"], row["index"]): row for row in measure(program, config).trace}
    assert len(real) == len(found.events) == len(program.instructions) - 1
    exact = [all(row[key] == real[row["unit"], row["index"]][key] for key in ("start", "end", "wait")) for row in found.events]
    assert np.mean(exact) >= 0.9


def test_work_is_what_a_unit_takes_if_it_never_waits():
    config = PRESETS["mac256"]
    long = [instruction(Opcode.EXECUTE, tile_rows=8, kernel_x=3), instruction(Opcode.EXECUTE, tile_cols=1, blocks=5)]
    found = predict([*long, Instruction(Opcode.END)], config)
    assert found.work.tolist() == [3 * 64, 5 * 4, 0] and found.weights.tolist() == [0, 5 * 4 - 5 * 2, 0]
    assert found.share([*long, Instruction(Opcode.END)], range(2)) == {"load": 0, "execute": 3 * 64 + 5 * 4, "store": 0, "transfer": 0}
