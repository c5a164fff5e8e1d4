"""The compiler's back half: programs on the golden executor against the graph's own arithmetic, and real networks against
ONNX Runtime."""

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from celosia.rtl.config import PRESETS, EngineConfig
from celosia.sim import reference
from celosia.sim.executor import Executor
from celosia.sim.graphs import GraphBuilder, matmul_graph, random_graph, random_inputs
from celosia.tools.compiler.importer import session_options
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.compiler.pipeline import PASSES, compile_graph, compile_model, describe
from celosia.tools.compiler.sinks import statistics
from celosia.tools.errors import DoesNotFit, UnsupportedOperator
from celosia.tools.program import EngineSegment

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
UNEVEN = EngineConfig(
    name="uneven", rows=8, cols=4, weight_rows=2, lanes=1, act_depth=8192, act_banks=2, weight_tiles=8192,
    acc_depth=32, param_depth=2048, tables=4, program_depth=4096, unfold_streams=3,
)  # fmt: skip
WIDE = dataclasses.replace(UNEVEN, name="wide", rows=64, cols=16, lanes=4, unfold_streams=5, act_depth=4096, depthwise_rows=2)
MAC256 = PRESETS["mac256"]
CONFIGS = [PRESETS["test"], UNEVEN, PRESETS["mac64"], MAC256, WIDE]


def compare(graph, config, options=None, *, seed=0):
    """Run the graph's program and compare every output with the reference; return the program."""
    program = compile_graph(graph, config, options)
    inputs = random_inputs(graph, seed)
    expected = reference.run(graph, {name: reference.from_onnx(array, graph.tensors[name]) for name, array in inputs.items()})
    outputs = Executor(config, program).run(inputs)
    for name, array in outputs.items():
        wanted = reference.to_onnx(expected[name], graph.tensors[name]).reshape(array.shape)
        assert array.dtype == wanted.dtype
        assert (array == wanted).all(), f"{np.count_nonzero(array != wanted)} of {array.size} elements of {name} differ"
    return program


@pytest.mark.parametrize("seed", range(150))
def test_random_graphs(seed):
    compare(random_graph(seed), CONFIGS[seed % len(CONFIGS)], CompilerOptions(keep=seed % 3 == 0), seed=seed)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize(
    "shape",
    [
        {"kernel": (3, 3), "pads": (1, 1, 1, 1)},
        {"kernel": (3, 3), "pads": (0, 1, 2, 1), "stride": (2, 1)},
        {"kernel": (2, 5), "pads": (1, 2, 0, 2), "dilation": (3, 1)},
        {"kernel": (3, 3), "pads": (2, 2, 2, 2), "dilation": (2, 2), "stride": (1, 3)},
        {"kernel": (1, 9)},
        {"kernel": (9, 9)},
        {"kernel": (1, 1), "stride": (2, 2)},
    ],
    ids=str,
)
@pytest.mark.parametrize("unsigned", [False, True])
def test_first_layers_unfold_their_input(config, shape, unsigned):
    builder = GraphBuilder(1)
    source = builder.input(3, 9, 10, unsigned=unsigned)
    program = compare(builder.graph(builder.conv(source, 5, **shape)), config)
    total, _ = statistics(program, config)
    assert total.counts["UNFOLD"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_inputs_that_several_kinds_of_nodes_read(config):
    builder = GraphBuilder(2)
    source = builder.input(5, 6, 7, unsigned=True)
    first = builder.conv(source, 5, kernel=(3, 3), pads=(1, 1, 1, 1), combine=builder.addition(source))
    second = builder.pool(source, "max", (2, 2))
    third = builder.conv(source, 3, kernel=(2, 2))
    compare(builder.graph((first, second, third)), config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("k", [3, 16, 37, 64, 130])
@pytest.mark.parametrize("unsigned", [False, True])
def test_matrices_and_vectors_of_any_width(config, k, unsigned):
    for rows in (1, 11):
        builder = GraphBuilder(k)
        hidden = builder.conv(builder.input(k, rows, 1, matrix=True, unsigned=unsigned), 21)
        compare(builder.graph(builder.conv(hidden, k, combine=builder.addition("input0"))), config)


@pytest.mark.parametrize("config", [UNEVEN, MAC256], ids=lambda config: config.name)
def test_kernels_of_more_than_64_taps_are_accumulated_in_parts(config):
    builder = GraphBuilder(3)
    x = builder.conv(builder.input(2, 70, 3), 3)
    y = builder.pool(x, "average", (70, 3))
    z = builder.pool(x, "max", (67, 1))
    compare(builder.graph((builder.conv(x, 4, kernel=(70, 3)), y, z)), config)


def test_more_than_256_input_blocks_are_accumulated_in_parts():
    compare(matmul_graph(3, 4 * 300, 5), dataclasses.replace(PRESETS["test"], act_depth=8192))


def test_average_pools_divide_by_the_pixels_inside_the_map():
    builder = GraphBuilder(4)
    x = builder.conv(builder.input(3, 7, 8), 6)
    y = builder.pool(x, "average", (3, 3), pads=(1, 1, 1, 1))
    z = builder.pool(x, "average", (3, 3), pads=(1, 1, 1, 1), include_pad=True)
    program = compare(builder.graph((y, z)), PRESETS["mac64"])
    layers = {layer.output: layer.instructions for layer in program.layers}
    assert layers[y][1] - layers[y][0] >= 2 * 9  # 3 × 3 areas of equal divisor
    assert layers[z][1] - layers[z][0] < 2 * 9


def test_short_memory_is_met_by_a_ring_of_unfolded_tiles():
    builder = GraphBuilder(5)
    y = builder.conv(builder.input(3, 24, 16), 8, kernel=(3, 3), pads=(1, 1, 1, 1))
    graph = builder.graph(y)
    config = PRESETS["mac64"]
    whole = compare(graph, config).act_words
    small = dataclasses.replace(config, act_depth=whole - 256)
    assert compare(graph, small).act_words <= small.act_depth
    with pytest.raises(DoesNotFit, match=r"the activation memory is [\d,]+ bytes too small: .* needed \(.* in use at once\)"):
        compile_graph(graph, dataclasses.replace(config, act_depth=128))


def test_what_does_not_fit_says_which_memory_lacks_how_many_bytes():
    graph = matmul_graph(1, 64, 64)
    config = PRESETS["test"]
    for knob, value, message in (
        ("weight_tiles", 200, "the weight memory is 896 bytes too small: 4,096 needed, 3,200 available"),
        ("param_depth", 16, "the parameter memory is 256 bytes too small: 512 needed, 256 available"),
        ("program_depth", 16, r"the program memory is \d+ bytes too small"),
    ):
        with pytest.raises(DoesNotFit, match=message):
            compile_graph(graph, dataclasses.replace(config, **{knob: value}))
    builder = GraphBuilder(6)
    last = builder.input(3)
    for _ in range(3):
        last = builder.copy(last, table=True)
    with pytest.raises(DoesNotFit, match="the table memory is 256 bytes too small: 768 needed, 512 available"):
        compile_graph(builder.graph(last), dataclasses.replace(config, tables=2))


def test_what_the_instructions_cannot_express_is_refused_with_the_reason():
    builder = GraphBuilder(7)
    wide = builder.graph(builder.conv(builder.input(1, 2, 5000), 1, kernel=(1, 3)))
    with pytest.raises(UnsupportedOperator, match="its input must have at most 4095 columns"):
        compile_graph(wide, MAC256)
    compare(matmul_graph(5, 70, 4), dataclasses.replace(WIDE, unfold_streams=1))  # rows of more than a word, one stream
    builder = GraphBuilder(7)
    builder.conv(builder.input(4), 4)
    builder.nodes[0] = dataclasses.replace(builder.nodes[0], bias=np.full(4, 2**31 - 1, np.int32))
    with pytest.raises(UnsupportedOperator, match="its sums can exceed 32 bits"):
        compile_graph(builder.graph("tensor0"), MAC256)


def test_dead_channels_with_huge_biases_are_exact():
    builder = GraphBuilder(8)
    builder.conv(builder.input(40), 6)
    node = builder.nodes[0]
    bias = np.array([1 << 30, -(1 << 30), 5, 1 << 29, 0, -7], np.int32)
    scale = np.array([2.0**-23, 2.0**-23, 1.8, 2.0**-36, 2.0**-50, 1.0], np.float32)
    builder.nodes[0] = dataclasses.replace(node, bias=bias, scale=scale, low=-128)
    compare(builder.graph("tensor0"), MAC256)


def test_matrix_product_keeps_the_array_busy():
    program = compare(matmul_graph(256, 256, 256), MAC256)
    total, _ = statistics(program, MAC256)
    assert total.execute_cycles == 256 * 256 * 256 // 256
    assert program.act_words == 2 * 256 * 16
    assert all(layer.macs == 256**3 for layer in program.layers)


def test_every_pass_is_shown_and_can_be_written_as_text():
    seen = {}
    compile_graph(random_graph(3), MAC256, observe=lambda name, result: seen.setdefault(name, describe(result)))
    assert tuple(seen) == PASSES[5:]
    assert all(isinstance(text, str) and text for text in seen.values())


def test_kept_tensors_become_outputs():
    graph = random_graph(8)
    names = [node.output for node in graph.nodes]
    program = compile_graph(graph, UNEVEN, CompilerOptions(keep=True))
    assert {port.name for port in program.outputs} == set(names)
    some = compile_graph(graph, UNEVEN, CompilerOptions(keep=(names[0],)))
    assert {port.name for port in some.outputs} == {names[0], *graph.outputs}


# Real networks --------------------------------------------------------------------------------------------------------


def run_model(model, config, feed):
    """Run a compiled model's segments; return all values by name, batch first."""
    values = dict(feed)
    for segment in model.segments:
        if isinstance(segment, EngineSegment):
            program = segment.program
            values |= Executor(config, program).run(
                {port.name: values[port.name].reshape(-1, *port.shape) for port in program.inputs}
            )
        else:
            session = onnxruntime.InferenceSession(segment.onnx, session_options(), providers=["CPUExecutionProvider"])
            count = len(next(iter(feed.values())))
            found = [
                session.run(list(segment.outputs), {name: values[name][i : i + 1] for name in segment.inputs})
                for i in range(count)
            ]
            values |= {name: np.concatenate(arrays) for name, arrays in zip(segment.outputs, zip(*found))}
    return values


@pytest.mark.skipif(not MODELS.exists(), reason="the collection of models is not beside the repository")
@pytest.mark.parametrize(
    ("name", "data", "engine", "count", "most_cycles"),
    [
        ("mlperf_ic_resnet8_int8", "ic_cifar10_200", "mac256", 20, 49_500),
        ("mlperf_ic_resnet8_int8", "ic_cifar10_200", "mac64", 5, 200_000),
        ("mlperf_ad_autoencoder_int8", "ad_windows_120", "mac256", 120, 4_200),
        ("mlperf_kws_dscnn_int8", "kws_12", "mac256", 12, 28_100),
    ],
)
def test_real_networks_equal_onnx_runtime(name, data, engine, count, most_cycles):
    config = PRESETS[engine]
    path = MODELS / f"{name}.onnx"
    session = onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    array = np.load(MODELS / "data" / f"{data}.npz")["input"][:count]
    expected = np.concatenate([session.run(None, {"input": array[i : i + 1]})[0] for i in range(count)])
    model = compile_model(path, config)
    values = run_model(model, config, {"input": array})
    assert (values["output"].reshape(expected.shape) == expected).all()
    cycles = sum(
        statistics(segment.program, config)[0].execute_cycles for segment in model.segments if isinstance(segment, EngineSegment)
    )
    assert cycles <= most_cycles
