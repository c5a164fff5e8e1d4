"""Pass 'emit': memory images, listings and layers."""

import dataclasses

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.rtl.isa import AddParams, ChannelParams, Opcode, unpack
from celosia.sim.executor import Executor, instructions_of
from celosia.sim.graphs import GraphBuilder, random_graph, random_inputs
from celosia.tools.compiler.constants import ParamImage, TableImage, WeightImage
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.compiler.sinks import assemble, listing, statistics

TEST, MAC64, MAC256 = (PRESETS[name] for name in ("test", "mac64", "mac256"))


def test_rows_of_a_weight_tile_lie_in_the_banks_the_loader_reads():
    image = WeightImage(MAC64)
    tile = np.arange(64, dtype=np.int8).reshape(1, 8, 8)
    assert image.add(tile) == 0
    words = image.image()
    assert words.shape == (1, MAC64.load_cycles, MAC64.weight_rows, 8)
    for row in range(8):
        assert (words[0, row % MAC64.load_cycles, row // MAC64.load_cycles] == tile[0, row]).all()


def test_equal_constants_are_stored_once():
    image = WeightImage(TEST)
    first, second = np.ones((2, 4, 4), np.int8), np.zeros((3, 4, 4), np.int8)
    assert [image.add(tiles) for tiles in (first, second, first.copy(), second)] == [0, 2, 0, 2]
    tables = TableImage(TEST)
    assert [tables.add(np.full(256, n, np.int8)) for n in (5, -5, 5)] == [0, 1, 0]
    assert tables.image()[1, 0] == 251


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_parameters_have_the_fields_of_the_instruction_set(lanes):
    config = dataclasses.replace(TEST, lanes=lanes)
    image = ParamImage(config)
    channels = np.array([[-5, 7, 1 << 31, 0], [1 << 23, (1 << 24) - 1, 0, 1 << 23], [0, 63, 0, 33]])
    assert image.add_channels(channels) == 0
    entry = image.add_addition(-3, 1 << 26, -(1 << 38))
    words = image.image()
    for channel in range(4):
        low, high = words.reshape(-1, 2)[channel].tolist()
        fields = unpack(ChannelParams, low | high << 32)
        assert fields["bias"] % (1 << 32) == channels[0, channel] % (1 << 32)
        assert (fields["mantissa"], fields["shift"]) == (channels[1, channel], channels[2, channel])
    assert entry == config.beats
    raw = int.from_bytes(words[entry:].tobytes()[:16], "little")
    fields = unpack(AddParams, raw)
    assert (fields["k_result"], fields["k_operand"], fields["k_zero"]) == (-3, 1 << 26, -(1 << 38))


def test_a_small_program_memory_gets_a_program_of_larger_tiles_with_the_same_results():
    builder = GraphBuilder(0)
    graph = builder.graph(builder.conv(builder.conv(builder.input(8, 12, 10), 12, kernel=(3, 3), pads=(1, 1, 1, 1)), 8))
    roomy = dataclasses.replace(TEST, acc_depth=128)
    many = instructions_of(compile_graph(graph, roomy))
    small = dataclasses.replace(roomy, program_depth=len(many) // 2)
    few = compile_graph(graph, small)
    assert len(instructions_of(few)) < len(many) // 2
    inputs = random_inputs(graph, 0)
    outputs = [Executor(config, compile_graph(graph, config)).run(inputs) for config in (roomy, small)]
    for name, array in outputs[0].items():
        assert np.array_equal(array, outputs[1][name])


@pytest.mark.parametrize("seed", range(10))
def test_a_listing_assembles_back_to_the_same_binary(seed):
    program = compile_graph(random_graph(seed), MAC64)
    text = listing(program)
    assert (assemble(text) == program.instructions).all()
    assert all(layer.name in text for layer in program.layers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EXECUTE\nJUMP start=1", "line 1: 'EXECUTE' is not an instruction: ExecuteInstruction.tile_rows must be given"),
        ("END\n; fine\nJUMP start=1", "line 3: 'JUMP start=1' is not an instruction"),
        ("END wait_load", "line 1"),
        ("STORE tile_rows=1 tile_cols=1 blocks=1 slot=16", "must be between 0 and 15, not 16"),
    ],
)
def test_text_that_is_no_listing_is_refused_with_its_line(text, message):
    with pytest.raises(ValueError, match=message):
        assemble(text)


def test_layers_cover_the_program_in_order():
    program = compile_graph(random_graph(17), MAC64)
    ends = [0]
    for layer in program.layers:
        assert layer.instructions[0] == ends[-1]
        ends.append(layer.instructions[1])
    assert ends[-1] == len(program.instructions) - 1
    assert instructions_of(program)[-1].opcode == Opcode.END


def test_statistics_count_what_the_units_have_to_do():
    builder = GraphBuilder(0)
    y = builder.conv(builder.input(3, 32, 32), 16, kernel=(3, 3), pads=(1, 1, 1, 1))
    program = compile_graph(builder.graph(builder.conv(y, 32, kernel=(3, 3), pads=(1, 1, 1, 1))), MAC256)
    total, layers = statistics(program, MAC256)
    assert total.counts == {"END": 1, "EXECUTE": 24, "STORE": 24, "UNFOLD": 8, "FILL": 0, "TRANSFER": 0}
    assert [sink.execute_cycles for sink in layers] == [2 * 1024, 9 * 1024 * 2]
    assert total.store_cycles == 1024 + 2048
    assert total.unfold_words == 2048
    assert [layer.macs for layer in program.layers] == [1024 * 27 * 16, 1024 * 144 * 32]
