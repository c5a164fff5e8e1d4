"""The depthwise mode in the compiler: the same numbers as without it, in the passes it is meant to take."""

import dataclasses

import numpy as np
import pytest

from celosia.rtl.config import PRESETS, EngineConfig
from celosia.rtl.isa import Opcode
from celosia.sim import reference
from celosia.sim.executor import Executor, instructions_of
from celosia.sim.graphs import GraphBuilder, random_inputs
from celosia.tools.compiler.depthwise import stream
from celosia.tools.compiler.layout import lay_out
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.compiler.pieces import Filter
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.driver import Driver, create_transport

MAC256 = PRESETS["mac256"]
SLOTS = EngineConfig(
    name="slots", rows=8, cols=4, weight_rows=2, lanes=1, act_depth=8192, act_banks=4, weight_tiles=512,
    acc_depth=32, param_depth=512, tables=4, program_depth=4096, unfold_streams=3, depthwise_rows=3,
)  # fmt: skip
WIDE = dataclasses.replace(SLOTS, name="wide", rows=64, cols=16, lanes=4, depthwise_rows=1)
CONFIGS = [PRESETS["test"], SLOTS, PRESETS["mac64"], MAC256, WIDE]
CASES = {
    "same": {"kernel": (3, 3), "pads": (1, 1, 1, 1)},
    "strided": {"kernel": (3, 3), "pads": (0, 0, 1, 1), "stride": (2, 2)},
    "large": {"kernel": (7, 7), "pads": (3, 3, 3, 3)},
    "uneven": {"kernel": (5, 4), "pads": (2, 3, 1, 0), "stride": (1, 3)},
    "flat": {"kernel": (1, 9), "pads": (0, 4, 0, 4)},
    "tall": {"kernel": (9, 1), "stride": (2, 1)},
    "dilated in y": {"kernel": (3, 3), "dilation": (3, 1)},
    "dilated": {"kernel": (3, 3), "dilation": (2, 2)},
    "much padding": {"kernel": (2, 5), "pads": (1, 4, 1, 4)},
    "whole map": {"kernel": (10, 11)},
}


def executes(graph, config, *, seed=0):
    """Compare the graph's program with the reference; return its EXECUTEs."""
    program = compile_graph(graph, config)
    inputs = random_inputs(graph, seed)
    expected = reference.run(graph, {name: reference.from_onnx(array, graph.tensors[name]) for name, array in inputs.items()})
    outputs = Executor(config, program).run(inputs)
    for name, array in outputs.items():
        assert (array == reference.to_onnx(expected[name], graph.tensors[name]).reshape(array.shape)).all(), name
    return [i for i in instructions_of(program) if i.opcode == Opcode.EXECUTE]


def network(case, *, channels=21, kind="conv", size=(10, 11)):
    builder = GraphBuilder(3)
    x = builder.conv(builder.input(2, *size), channels)
    if kind == "conv":
        return builder.graph(builder.conv(x, channels, group=channels, **case))
    return builder.graph(builder.pool(x, "average", **case, include_pad=True))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", ["conv", "average"])
def test_filters_of_every_shape_equal_the_reference(config, case, kind):
    found = executes(network(CASES[case], kind=kind), config)
    # One image row per pass is no faster than one tap where the kernel has one column, or the output one pixel.
    slow = config is WIDE and case in ("tall", "whole map")
    assert any(i.depthwise for i in found) == (case != "dilated" and not slow)


@pytest.mark.parametrize("engine", ["test", "mac64", "mac256"])
@pytest.mark.parametrize("kind", ["conv", "average"])
def test_filters_on_the_simulated_engine_equal_golden(engine, kind):
    config, rng = PRESETS[engine], np.random.default_rng(0)
    with create_transport("verilator", config) as transport:
        driver = Driver(transport, config)
        for case in CASES.values():
            graph = network(case, channels=13, kind=kind, size=(10, 12))
            program = compile_graph(graph, config)
            inputs = {"input0": rng.integers(-128, 128, (2, 10, 12)).astype(np.int8)}
            expected = Executor(config, program).run(inputs)
            driver.load(program)
            outputs, _ = driver.run(inputs)
            assert all((outputs[name] == array).all() for name, array in expected.items())


@pytest.mark.parametrize("include_pad", [False, True])
def test_average_pools_whose_windows_differ(include_pad):
    builder = GraphBuilder(4)
    x = builder.conv(builder.input(2, 6, 7), 20)
    y = builder.pool(x, "average", (3, 3), pads=(1, 1, 1, 1), include_pad=include_pad)
    assert any(i.depthwise for i in executes(builder.graph(y), MAC256))


def test_residual_additions_read_maps_with_other_row_steps():
    builder = GraphBuilder(5)
    x = builder.conv(builder.input(3, 8, 8), 16)
    y = builder.conv(builder.conv(x, 16, kernel=(3, 3), pads=(1, 1, 1, 1), group=16), 16)
    z = builder.conv(y, 16, combine=builder.addition(x))
    executes(builder.graph(z), MAC256)


def test_a_multiplier_of_channels_takes_the_general_path():
    builder = GraphBuilder(6)
    x = builder.conv(builder.input(3, 8, 8), 4)
    y = builder.conv(x, 8, kernel=(3, 3), group=4)
    assert not any(i.depthwise for i in executes(builder.graph(y), MAC256))


def test_a_kernel_of_three_takes_one_pass_and_one_more_word_a_row():
    found = [i for i in executes(network(CASES["same"], channels=32), MAC256) if i.depthwise]
    assert {(i.kernel_y, i.kernel_x, i.blocks, i.gap, i.tail) for i in found} == {(1, 1, 2, 1, 1)}
    assert sum(i.tile_rows for i in found) == 10


def test_a_global_average_holds_its_ones():
    builder = GraphBuilder(7)
    x = builder.conv(builder.input(3, 25, 5), 64)
    found = [i for i in executes(builder.graph(builder.pool(x, "average", (25, 5))), MAC256) if i.depthwise]
    assert [(i.kernel_y, i.kernel_x, i.hold, i.accumulate) for i in found] == [(8, 1, 1, 0), (1, 1, 1, 1)]


def test_rows_that_are_read_side_by_side_lie_in_different_banks():
    graph = network(CASES["same"], size=(10, 12))
    views = {name: place.view for name, place in lay_out(graph, MAC256, CompilerOptions()).placements.items()}
    assert views["tensor0"].row_step == 13 and views["tensor1"].row_step == 12
    plain = dataclasses.replace(MAC256, depthwise_rows=0)
    assert lay_out(graph, plain, CompilerOptions()).placements["tensor0"].view.row_step == 12


def test_rows_move_together_where_memory_is_short():
    graph = network(CASES["same"], channels=16, size=(10, 12)).replace(outputs=("tensor0", "tensor1"))
    words = 120 + 120 + 9  # both maps, and what lies between the rows of one
    for depth, depthwise in ((words + 3, True), (words - 5, False)):
        config = dataclasses.replace(MAC256, act_depth=depth)
        assert any(i.depthwise for i in executes(graph, config)) == depthwise


@pytest.mark.parametrize(
    ("taps", "stride", "x", "width", "extent", "gap", "tail"),
    [
        (3, 1, -1, 10, 10, 1, 1),  # the padding right of a row is that left of the next
        (3, 1, 0, 8, 10, 2, 0),  # no padding
        (3, 1, -1, 5, 10, 2, 0),  # half a row
        (3, 2, 0, 5, 10, 1, 0),
        (3, 3, 0, 3, 10, 0, 0),
        (5, 1, -2, 10, 10, 2, 2),
        (5, 1, -1, 10, 10, 3, 1),
    ],
)
def test_neighbouring_rows_share_their_padding(taps, stride, x, width, extent, gap, tail):
    one = Filter(rows=3, taps=taps, groups_y=1, groups_x=1)
    assert stream(one, stride, x, width, extent) == (gap, tail)


def test_wide_weights_are_sums_of_narrow_ones():
    graph = network(CASES["same"])
    weight = graph.nodes[1].weight.astype(np.int16)
    weight[5, 0, 1, 1], weight[7, 0, 0, 2] = 200, -250
    wide = dataclasses.replace(graph.nodes[1], weight=weight)
    found = executes(graph.replace(nodes=(graph.nodes[0], wide)), MAC256)
    assert [i.accumulate for i in found if i.depthwise] == [0, 1] * (len([i for i in found if i.depthwise]) // 2)
