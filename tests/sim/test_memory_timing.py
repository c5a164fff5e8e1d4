"""Results do not depend on the memory's timing: every network from elsewhere under 20 patterns of random stalls, on a chip that most do not fit."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.sim.external import MemoryTiming
from celosia.tools.check import check_outputs, summary
from celosia.tools.errors import DoesNotFit
from celosia.tools.program import EngineSegment
from celosia.tools.session import InferenceSession

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
NAMES = sorted(path.stem for path in MODELS.glob("*.onnx") if not path.stem.endswith("_float"))
SMALL = dataclasses.replace(PRESETS["mac256_port"], name="small_port", act_depth=2048, weight_tiles=128, param_depth=128)
PATTERNS = 20

pytestmark = pytest.mark.skipif(not MODELS.exists(), reason="these models are not part of the project")


def check(name, patterns):
    """Run a network under so many patterns of stalls; return the cycles of each run, those without stalls first."""
    path = MODELS / f"{name}.onnx"
    session = None
    for config in (SMALL, PRESETS["mac256_port"]):
        try:
            session = InferenceSession(path, config, workers=1)
            break
        except DoesNotFit as problem:
            reason = str(problem)
    if session is None:
        pytest.skip(reason)
    if not any(isinstance(segment, EngineSegment) and segment.program.memory_bytes for segment in session.model.segments):
        patterns = min(patterns, 1)  # nothing goes through the port
    rng = np.random.default_rng(1)
    feed = {}
    for argument in session.get_inputs():
        dtype = argument.type[len("tensor(") : -1]
        shape = [1 if not isinstance(size, int) or size < 1 else size for size in argument.shape]
        values = rng.integers(0, 256, shape).astype(np.uint8)
        feed[argument.name] = values.view(np.int8) if dtype == "int8" else values if dtype == "uint8" else rng.normal(size=shape).astype("float32")
    first = session.run(None, feed)
    assert not summary(check_outputs(session, path, feed, first))[1]
    cycles = [session.report.cycles]
    for seed in range(1, patterns + 1):
        session.memory = MemoryTiming(latency=1 + 13 * seed % 97, gap=seed % 3, stalls=seed)
        again = session.run(None, feed)
        assert all((one == other).all() for one, other in zip(first, again, strict=True)), seed
        cycles.append(session.report.cycles)
    return cycles


@pytest.mark.parametrize("name", ["digits_cnn_s8s8pc", "mlperf_ic_resnet8_int8"])
def test_two_networks_give_the_same_under_stalls(name):
    cycles = check(name, 3)
    assert min(cycles) < max(cycles) or len(cycles) < 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_network_gives_the_same_under_stalls(name):
    print(name, *check(name, PATTERNS))
