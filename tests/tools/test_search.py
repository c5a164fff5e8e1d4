"""The compiler keeps the program with the fewest predicted cycles."""

from celosia.rtl.config import PRESETS
from celosia.sim.cycles import predict
from celosia.sim.executor import instructions_of
from celosia.sim.graphs import GraphBuilder
from celosia.tools.compiler import search
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.compiler.pipeline import compile_graph

MAC256 = PRESETS["mac256"]


def graph(size):
    builder = GraphBuilder(0)
    y = builder.conv(builder.input(3, size, size), 16, kernel=(3, 3), stride=(2, 2), pads=(0, 0, 1, 1))
    y = builder.conv(y, 16, kernel=(3, 3), pads=(1, 1, 1, 1), group=16)
    return builder.graph(builder.conv(y, 32))


def cycles(graph, **options):
    return predict(instructions_of(compile_graph(graph, MAC256, CompilerOptions(**options))), MAC256).cycles


def test_the_best_of_the_candidates_is_kept():
    network = graph(96)
    plain = cycles(network, search=False)
    others = [cycles(network, search=False, **changes) for changes in search.CANDIDATES]
    assert min(others) < plain * (1 - search.GAIN)
    assert cycles(network) == min(others)


def test_small_networks_are_compiled_once(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("compiled again")

    monkeypatch.setattr(search, "replace", refuse)
    assert cycles(graph(16)) < search.SMALLEST
