"""Pass 'layout': where tensors lie and how inputs are unfolded."""

import pytest

from celosia.rtl.config import PRESETS
from celosia.sim.graphs import GraphBuilder
from celosia.tools.compiler.layout import View, lay_out
from celosia.tools.compiler.options import CompilerOptions

MAC256 = PRESETS["mac256"]


def layout_of(builder, outputs, config=MAC256):
    return lay_out(builder.graph(outputs), config, CompilerOptions())


def test_maps_are_blocked_and_matrices_keep_their_rows():
    builder = GraphBuilder(0)
    y = builder.conv(builder.input(3, 4, 5), 20)
    m = builder.conv(builder.input(32, 7, 1, matrix=True), 33)
    places = layout_of(builder, (y, m)).placements
    assert places[y].view == View(height=4, width=5, row_step=5, block_step=20, blocks=2)
    assert places[y].words == 40
    assert places[m].view == View(height=7, width=1, row_step=3, block_step=1, blocks=3)
    assert places[m].words == 21


def test_inputs_stay_dense_and_vectors_need_no_unfolding():
    builder = GraphBuilder(0)
    vector, matrix, ragged, image = (
        builder.input(40),
        builder.input(32, 7, 1, matrix=True),
        builder.input(33, 7, 1, matrix=True),
        builder.input(3, 5, 5),
    )
    outputs = [builder.conv(name, 4) for name in (vector, matrix, ragged, image)]
    layout = layout_of(builder, tuple(outputs))
    assert all(layout.placements[name].dense for name in (vector, matrix, ragged, image))
    assert layout.placements[vector].words == 3
    assert layout.placements[matrix].view.row_step == 2
    assert set(layout.unfolds) == set(outputs[2:])
    assert layout.placements[ragged].words == -(-33 * 7 // 16) + 1  # whole words are read past the last row


@pytest.mark.parametrize(
    ("channels", "kernel", "dilation", "streams", "groups", "folds"),
    [
        (3, (3, 3), (1, 1), 5, 2, (True, True)),  # 27 taps in two passes
        (1, (10, 4), (1, 1), 4, 3, (True, True)),  # 40 taps in three
        (1, (1, 1), (1, 1), 1, 1, (True, True)),
        (3, (3, 3), (2, 1), 3, 1, (False, True)),  # rows of dilated kernels are walked by the array
        (3, (3, 3), (1, 2), 3, 1, (False, False)),
        (3, (1, 40), (1, 1), 3, 1, (False, False)),  # wider than a word
    ],
)
def test_taps_are_packed_onto_the_rows(channels, kernel, dilation, streams, groups, folds):
    builder = GraphBuilder(0)
    y = builder.conv(builder.input(channels, 20, 60), 16, kernel=kernel, dilation=dilation)
    unfold = layout_of(builder, y).unfolds[y]
    assert (unfold.streams, unfold.groups) == (streams, groups)
    assert (unfold.fold_y, unfold.fold_x) == folds


def test_only_nodes_that_are_no_convolutions_read_a_blocked_copy():
    builder = GraphBuilder(0)
    x = builder.input(3, 8, 8)
    y, z = builder.conv(x, 3, kernel=(3, 3)), builder.pool(x, "max", (2, 2))
    layout = layout_of(builder, (y, z))
    copy, first, second = layout.graph.nodes
    assert copy.output in layout.copies
    assert (first.input, second.input) == (x, copy.output)


def test_unsigned_vectors_are_copied_before_they_are_added():
    for unsigned in (False, True):
        builder = GraphBuilder(0)
        x = builder.input(20, unsigned=unsigned)
        layout = layout_of(builder, builder.conv(x, 20, combine=builder.addition(x)))
        assert bool(layout.copies) == unsigned


def test_flattening_needs_contiguous_rows_and_few_pixels():
    view = View(height=6, width=7, row_step=7, block_step=42, blocks=2)
    assert view.flattened() == View(height=42, width=1, row_step=1, block_step=42, blocks=2)
    assert View(height=6, width=7, row_step=8, block_step=48, blocks=2).flattened() is None
    assert View(height=64, width=64, row_step=64, block_step=4096, blocks=1).flattened() is None
