"""Pass 'tile': the pieces cover the node exactly and fit the machine."""

import dataclasses

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.sim.graphs import GraphBuilder, random_graph
from celosia.tools.compiler.layout import lay_out
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.compiler.tile import tile

TEST, MAC64, MAC256 = (PRESETS[name] for name in ("test", "mac64", "mac256"))
UNEVEN = dataclasses.replace(MAC64, cols=2, lanes=2, acc_depth=32)


def tiling_of(graph, config, **options):
    options = CompilerOptions(**options)
    return tile(lay_out(graph, config, options), config, options)


@pytest.mark.parametrize("config", [TEST, MAC64, MAC256, UNEVEN], ids=["test", "mac64", "mac256", "uneven"])
@pytest.mark.parametrize("seed", range(30))
def test_pieces_cover_each_output_once_and_fit_a_bank(config, seed):
    for work in tiling_of(random_graph(seed, largest=20), config).works:
        pixels = np.zeros((work.dest.height, work.dest.width), int)
        for region in work.regions:
            pixels[region.y : region.y + region.height, region.x : region.x + region.width] += 1
            assert all(group.entries * region.pixels <= config.acc_depth for group in work.groups)
        assert (pixels == 1).all()
        columns = [column for group in work.groups for column in group.columns]
        covered = [(column.out_block + n, column.slot) for column in columns for n in range(column.out_blocks)]
        assert len(set(covered)) == len(covered)
        channels = config.cols * (1 + max(block * config.slots + slot for block, slot in covered))
        assert channels >= work.node.scale.size or work.node.operator == "AveragePool"


def test_layers_are_cut_so_that_the_next_one_can_start_early():
    builder = GraphBuilder(0)
    a = builder.conv(builder.input(3, 32, 32), 16, kernel=(3, 3), pads=(1, 1, 1, 1))
    b = builder.conv(a, 64, kernel=(3, 3), pads=(1, 1, 1, 1), stride=(4, 4))
    c = builder.conv(b, 64, kernel=(3, 3), pads=(1, 1, 1, 1))
    first, second, third = tiling_of(builder.graph(c), MAC256).works
    assert [region.pixels for region in first.regions] == [128] * 8
    assert [region.pixels for region in second.regions] == [16] * 4
    assert len(third.groups) == 4


def test_pointwise_layers_are_flattened():
    builder = GraphBuilder(0)
    x = builder.conv(builder.input(3, 9, 13), 16)
    work = tiling_of(builder.graph(builder.conv(x, 16)), MAC256).works[1]
    assert (work.dest.height, work.dest.width) == (117, 1)
    assert work.source.row_step == 1


def test_column_tiles_of_small_layers_share_a_bank():
    builder = GraphBuilder(0)
    work = tiling_of(builder.graph(builder.conv(builder.input(128), 128)), MAC256).works[0]
    assert [len(group.columns) for group in work.groups] == [3, 3, 2]


def test_rows_wider_than_a_bank_are_cut():
    builder = GraphBuilder(0)
    x = builder.conv(builder.input(1, 2, 200), 4)
    work = tiling_of(builder.graph(builder.conv(x, 4, kernel=(1, 3))), TEST).works[1]
    assert all(region.height == 1 and region.width <= 64 for region in work.regions)


def test_grouped_tiles_read_only_their_own_blocks():
    builder = GraphBuilder(0)
    x = builder.conv(builder.input(3, 8, 8), 64)
    work = tiling_of(builder.graph(builder.conv(x, 64, kernel=(3, 3), group=32)), MAC256).works[1]
    chunks = [column.chunks for group in work.groups for column in group.columns]
    assert [(chunk.block, chunk.blocks) for (chunk,) in chunks] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert all(chunk.passes == 9 for (chunk,) in chunks)


def test_windows_of_equal_divisor_form_areas():
    builder = GraphBuilder(0)
    x = builder.conv(builder.input(3, 6, 6), 4)
    work = tiling_of(builder.graph(builder.pool(x, "average", (3, 3), pads=(1, 1, 1, 1))), MAC256).works[1]
    assert {region.count for region in work.regions} == {4, 6, 9}
    assert sum(region.pixels for region in work.regions if region.count == 4) == 4
