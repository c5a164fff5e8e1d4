"""Pass 'allocate': buffers that are alive together never share words."""

import dataclasses

import pytest

from celosia.rtl.config import PRESETS
from celosia.sim.graphs import GraphBuilder, random_graph
from celosia.tools.compiler.allocate import _place, allocate, lifetimes
from celosia.tools.compiler.layout import lay_out
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.compiler.schedule import schedule
from celosia.tools.compiler.tile import tile
from celosia.tools.errors import DoesNotFit

MAC64 = PRESETS["mac64"]


def plan_of(graph, config, **options):
    options = CompilerOptions(**options)
    return schedule(tile(lay_out(graph, config, options), config, options), config, options), options


def chain(length=6, channels=8):
    builder = GraphBuilder(0)
    last = builder.input(channels, 8, 8)
    for _ in range(length):
        last = builder.conv(last, channels, kernel=(3, 3), pads=(1, 1, 1, 1))
    return builder.graph(last)


@pytest.mark.parametrize("seed", range(40))
def test_buffers_alive_together_are_apart(seed):
    graph = random_graph(seed, nodes=8)
    for depth in (8192, 1024, 512, 256):
        config = dataclasses.replace(MAC64, act_depth=depth)
        plan, options = plan_of(graph, config)
        try:
            allocation = allocate(plan, config, options)
        except DoesNotFit:
            continue
        lives = lifetimes(plan, graph.outputs)
        assert set(allocation.addresses) >= set(lives)
        assert allocation.words <= depth
        for a, (first_a, last_a) in lives.items():
            for b, (first_b, last_b) in lives.items():
                if a < b and first_a <= last_b and first_b <= last_a:
                    start_a, start_b = allocation.addresses[a], allocation.addresses[b]
                    assert start_a + plan.buffers[a] <= start_b or start_b + plan.buffers[b] <= start_a


def test_memory_is_shared_only_where_it_is_short():
    plan, options = plan_of(chain(), MAC64)
    roomy = allocate(plan, MAC64, options)
    assert roomy.words == sum(plan.buffers.values())
    tight = dataclasses.replace(MAC64, act_depth=roomy.words - 2)
    assert allocate(plan, tight, options).words < roomy.words


def test_outputs_and_kept_tensors_live_to_the_end():
    graph = chain()
    plan, _ = plan_of(graph, MAC64)
    lives = lifetimes(plan, graph.outputs)
    assert lives["input0"][0] == -1
    assert lives[graph.outputs[0]][1] == len(plan.steps)
    options = CompilerOptions(keep=True)
    small = dataclasses.replace(MAC64, act_depth=256)
    with pytest.raises(DoesNotFit):
        allocate(plan, small, options)


def test_missing_bytes_are_named():
    plan, options = plan_of(chain(channels=64), MAC64)
    config = dataclasses.replace(MAC64, act_depth=1024)
    with pytest.raises(
        DoesNotFit, match=r"the activation memory is ([\d,]+) bytes too small: [\d,]+ needed .*, 8,192 available"
    ):
        allocate(plan, config, options)


def test_inputs_lie_low_where_the_load_unit_cannot_count_all_bytes():
    lives, buffers = {"a": (-1, 3), "b": (0, 3), "c": (0, 5)}, {"a": 10, "b": 100, "c": 50}
    assert _place(lives, buffers)[0]["a"] == 150
    addresses, words = _place(lives, buffers, low=("a",))
    assert addresses["a"] == 0 and words == 160
