"""After synthesis: the netlist that nextpnr is given computes the integers of the golden executor and of ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest

from celosia.boards.catalog import find
from celosia.boards.netlist import netlist
from celosia.sim.executor import Executor
from celosia.sim.graphs import GraphBuilder, random_inputs
from celosia.sim.transport import VerilatorTransport
from celosia.tools import backends
from celosia.tools.compiler.importer import session_options
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.demo import IMAGES, MODEL
from celosia.tools.driver import Driver
from celosia.tools.session import InferenceSession, engine_config


def network(config):
    """Return a convolution, a depthwise one, two poolings, a table, and a dense layer, of a few channels."""
    builder = GraphBuilder(5)
    last = builder.conv(builder.input(3, 9, 8), 6, kernel=(3, 3), pads=(1, 1, 1, 1), unsigned=True)
    last = builder.conv(last, 6, kernel=(3, 3), stride=(2, 2), group=6)
    last = builder.copy(builder.pool(last, "max" if config.maximum else "average", (2, 2)), table=True)
    x = builder.tensors[last]
    last = builder.pool(last, "average", (x.height, x.width))
    return builder.graph(builder.conv(last, 10))


@pytest.mark.parametrize(
    "engine, board", [("test", "ulx3s_12f"), ("icebreaker", "icebreaker"), pytest.param("test", "icebreaker", marks=pytest.mark.slow)]
)
def test_cells_compute_the_same_integers(engine, board, tmp_path, monkeypatch):
    config, board = engine_config(engine), find(board)
    text = netlist(config, board.family, board.platform.device)
    with VerilatorTransport(config, text=text, cache=tmp_path) as transport:
        graph = network(config)
        program, feed = compile_graph(graph, config), random_inputs(graph, 5)
        driver = Driver(transport, config)
        driver.load(program)
        expected = Executor(config, program).run(feed)
        for n in range(2):
            outputs, _ = driver.run({name: array[n] for name, array in feed.items()})
            for name, array in expected.items():
                np.testing.assert_array_equal(outputs[name], array[n])

    monkeypatch.setattr(backends, "create_transport", lambda kind, config, on_build: VerilatorTransport(config, text=text, cache=tmp_path))
    images = {"image": np.load(IMAGES)["image"][:3]}
    reference = onnxruntime.InferenceSession(MODEL, session_options())
    (logits,) = InferenceSession(MODEL, config, workers=1).run(None, images)
    np.testing.assert_array_equal(logits, np.concatenate([reference.run(None, {"image": image[None]})[0] for image in images["image"]]))
