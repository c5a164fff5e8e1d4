"""Rearrangements: their cutting into moves, what lies in place, and that programs compute what the intermediate representation says."""

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.sim import reference
from celosia.sim.executor import Executor
from celosia.sim.graphs import GraphBuilder, random_inputs
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.compiler.rearrange import cover

CONFIGS = [PRESETS["test"], PRESETS["mac64"], PRESETS["mac256"]]


def check(builder, outputs, config, **options):
    """Compile, run on the golden executor, compare with the interpreter; return the layers' instruction counts by output."""
    graph = builder.graph(outputs)
    program = compile_graph(graph, config, CompilerOptions(**options))
    feed = random_inputs(graph, 7)
    found = Executor(config, program).run(feed)
    wanted = reference.run(graph, {name: reference.from_onnx(array, graph.tensors[name]) for name, array in feed.items()})
    for name in graph.outputs:
        assert np.array_equal(found[name], reference.to_onnx(wanted[name], graph.tensors[name])), name
    return {layer.output: layer.instructions[1] - layer.instructions[0] for layer in program.layers}


MOVES = {
    "slice": (lambda i: i[:, 1:5, 2:6], 0),
    "aligned channels": (lambda i: i[len(i) // 2 :], 0),
    "other channels": (lambda i: i[1 : 1 + len(i) // 2], 3),
    "steps": (lambda i: i[:, ::2, ::3], 2),
    "repeated": (lambda i: i.repeat(2, 1).repeat(2, 2), 16),
    "transposed": (lambda i: i.transpose(0, 2, 1), 2),
    "reversed": (lambda i: i[:, ::-1, ::-1], 4),
    "reflected": (lambda i: np.pad(i, ((0, 0), (2, 1), (1, 2)), mode="reflect"), 40),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_common_moves_take_few_instructions(config, move):
    function, most = MOVES[move]
    builder = GraphBuilder(1)
    source = builder.conv(builder.input(3, 6, 6), 2 * config.rows, low=-128)
    _, index = builder.places(source)
    index = np.ascontiguousarray(function(index))
    moved = builder.rearrange([source], np.zeros_like(index), index, low=-128)
    last = builder.conv(moved, 4, kernel=(2, 2))
    count = check(builder, (moved, last), config).get(moved, 0)
    assert count <= most if config.acc_depth > 64 or not most else count


@pytest.mark.parametrize("seed", range(30))
def test_random_rearrangements(seed):
    rng = np.random.default_rng(seed)
    config = CONFIGS[seed % 3]
    builder = GraphBuilder(seed)
    size = tuple(int(n) for n in rng.integers(1, 7, 2))
    sources = [builder.input(int(rng.integers(1, 2 * config.rows)), *size, unsigned=bool(seed % 2))]
    for _ in range(int(rng.integers(0, 3))):
        sources.append(builder.conv(sources[0], int(rng.choice([config.rows, 3, config.rows + 1])), low=-128))
    parts, indices = zip(*(builder.places(source, part) for part, source in enumerate(sources)), strict=True)
    axis = int(rng.integers(0, 3)) if len({array.shape for array in parts}) == 1 else 0
    part, index = np.concatenate(parts, axis), np.concatenate(indices, axis)
    if rng.random() < 0.6:
        axes = 0, *(int(a) for a in rng.permutation([1, 2]))
        step = int(rng.choice([1, 1, 2]))
        part, index = (np.ascontiguousarray(array.transpose(axes)[::step]) for array in (part, index))
    if rng.random() < 0.5:
        pads = [(int(a), int(b)) for a, b in rng.integers(0, 3, (3, 2))]
        part, index = np.pad(part, pads, constant_values=-1), np.pad(index, pads, constant_values=int(rng.integers(-128, 128)))
    if rng.random() < 0.2:  # without any order
        order = rng.permutation(part.size)
        part, index = part.ravel()[order].reshape(part.shape), index.ravel()[order].reshape(part.shape)
    extra = {"table": rng.integers(-128, 128, 256).astype(np.int8)} if rng.random() < 0.3 else {}
    moved = builder.rearrange(sources, part, index, rescaled=bool(rng.random() < 0.4), **extra)
    last = builder.conv(moved, 5)
    check(builder, (moved, last) if seed % 2 else last, config)


def test_parts_of_parts_are_written_in_place():
    config = PRESETS["test"]
    builder = GraphBuilder(2)
    x = builder.input(3, 5, 5)
    first, second, third = (builder.conv(x, channels, kernel=(3, 3), pads=(1, 1, 1, 1)) for channels in (4, 8, 3))

    def joined(*sources):
        return builder.rearrange(sources, *(np.concatenate(arrays) for arrays in zip(*map(builder.places, sources, (0, 1)))), low=-128)

    inner = joined(first, second)
    outer = joined(inner, third)
    part, index = builder.places(outer)
    cut = builder.rearrange([outer], part[4:12, 1:, 2:], index[4:12, 1:, 2:], low=-128)
    total = builder.copy(cut, combine=builder.addition(cut), low=-128)
    layers = check(builder, (inner, total, outer), config)
    assert not {inner, outer, cut} & layers.keys()


def test_boxes_cover_every_cell_once():
    rng = np.random.default_rng(3)
    for _ in range(40):
        shape = tuple(int(n) for n in rng.integers(1, 8, 3))
        mask = rng.random(shape) < rng.choice([0.3, 0.9, 1])
        block, row, column = np.ogrid[: shape[0], : shape[1], : shape[2]]
        dest = block * 60 + row * 8 + column
        steps = rng.choice([0, 1, 3, 20, -2], 3)
        source = block * steps[0] + row * steps[1] + column // int(rng.integers(1, 3)) * steps[2] + 500
        seen = np.zeros(shape, int)
        for box in cover(mask, [source], dest, 20):
            seen[box.cells] += 1
            counts = np.indices(box.sizes())
            for words in (source, dest):
                walked = words[box.origin] + sum(step * count for step, count in zip(box.steps(words), counts))
                assert sorted(walked.ravel()) == sorted(words[box.cells].ravel())
            assert np.prod(box.sizes()) <= 20
        assert (seen == mask).all()
