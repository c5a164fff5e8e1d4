"""Random graphs on the simulated RTL of a configuration, beside the golden executor."""

import numpy as np

from celosia.sim.executor import Executor
from celosia.sim.graphs import random_graph, random_inputs
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.driver import Driver, create_transport
from celosia.tools.errors import DoesNotFit


def golden_runs(config, count, *, refused=DoesNotFit):
    """Run ``count`` random graphs, but those that are ``refused``, each on two inputs; compare outputs, return what the driver tells of each run."""
    runs = []
    with create_transport("verilator", config) as transport:
        for seed in range(count):
            graph = random_graph(seed)
            try:
                program = compile_graph(graph, config)
            except refused:
                continue
            driver, golden = Driver(transport, config), Executor(config, program)
            driver.load(program)
            for n in range(2):
                inputs = {name: batch[n] for name, batch in random_inputs(graph, seed).items()}
                outputs, stats = driver.run(inputs)
                expected = golden.run(inputs)
                assert all(np.array_equal(outputs[name], expected[name]) for name in expected), seed
                assert stats.cycles > 0
                runs.append(stats)
    return runs
