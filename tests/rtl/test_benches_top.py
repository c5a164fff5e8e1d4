"""The whole engine's cocotb bench: what the driver said and heard, replayed at another pace on Verilator and on Icarus."""

import dataclasses
import json

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.rtl.csr import WINDOWS
from celosia.rtl.top import Top
from celosia.sim.benches.runner import SIMULATORS, run
from celosia.sim.executor import Executor
from celosia.sim.graphs import GraphBuilder, random_inputs
from celosia.sim.transport import VerilatorTransport
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.driver import Driver

CONFIG = dataclasses.replace(
    PRESETS["test"], name="bench", act_depth=512, weight_tiles=64, param_depth=32, program_depth=128, acc_depth=16
)


class Recording(VerilatorTransport):
    """Keeps every access, with the words that were read."""

    def __init__(self, config):
        super().__init__(config)
        self.steps = []

    def write(self, address, words):
        super().write(address, words)
        self.steps.append(("write", address, np.asarray(words).tolist()))

    def read(self, address, count):
        words = super().read(address, count)
        self.steps.append(("read", address, words.tolist()))
        return words

    def wait(self, limit):
        self.steps.append(("wait", 20_000))
        return super().wait(limit)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A file with the conversation of one inference that unfolds, convolves with stride and padding, looks up, adds and pools."""
    builder = GraphBuilder(3)
    image = builder.input(3, 7, 6, unsigned=True)
    first = builder.conv(image, 6, kernel=(3, 3), pads=(1, 1, 1, 1))
    second = builder.conv(first, 6, kernel=(3, 2), pads=(1, 1, 1, 0), table=np.arange(-128, 128, dtype=np.int8)[::-1].copy())
    third = builder.conv(second, 6, combine=builder.addition(first))
    graph = builder.graph(builder.pool(third, "max", (2, 2), stride=(2, 1)))
    program = compile_graph(graph, CONFIG)
    inputs = {name: batch[0] for name, batch in random_inputs(graph, 5).items()}
    with Recording(CONFIG) as transport:
        driver = Driver(transport, CONFIG)
        # Icarus starts with unknown memories, and the driver reads bytes of channels that do not exist.
        transport.write(WINDOWS["activations"].base, np.zeros(CONFIG.act_bytes // 4, np.uint32))
        driver.load(program)
        outputs, stats = driver.run(inputs)
    assert stats.cycles > 0
    for name, value in Executor(CONFIG, program).run(inputs).items():
        np.testing.assert_array_equal(outputs[name], value)
    path = tmp_path_factory.mktemp("bench") / "steps.json"
    path.write_text(json.dumps(transport.steps))
    return path


@pytest.mark.parametrize("idle", [0, 0.5])
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_engine_answers_as_recorded(simulator, idle, steps):
    run(Top(CONFIG), "top", simulator=simulator, seed=4, steps=str(steps), idle=idle)
