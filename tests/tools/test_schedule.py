"""Pass 'schedule': the order of steps, banks, and rings of unfolded input."""

from itertools import groupby

from celosia.rtl.config import PRESETS
from celosia.rtl.isa import Opcode
from celosia.sim.graphs import GraphBuilder, random_graph
from celosia.tools.compiler.layout import lay_out
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.compiler.schedule import schedule
from celosia.tools.compiler.tile import tile

MAC256 = PRESETS["mac256"]


def schedule_of(graph, config=MAC256, *, slots=None, **options):
    options = CompilerOptions(**options)
    return schedule(tile(lay_out(graph, config, options), config, options), config, options, slots=slots)


def first_layer():
    builder = GraphBuilder(0)
    return builder.graph(builder.conv(builder.input(3, 32, 32), 16, kernel=(3, 3), pads=(1, 1, 1, 1)))


def test_banks_take_turns():
    for seed in range(20):
        steps = [step for step in schedule_of(random_graph(seed)).steps if step.opcode != Opcode.UNFOLD]
        runs = [(bank, [step.opcode for step in run]) for bank, run in groupby(steps, key=lambda step: step.fields["bank"])]
        assert [bank for bank, _ in runs] == [number % 2 for number in range(len(runs))]
        for _, opcodes in runs:
            executes = opcodes.count(Opcode.EXECUTE)
            assert opcodes == [Opcode.EXECUTE] * executes + [Opcode.STORE] * (len(opcodes) - executes)


def test_unfolding_runs_ahead_of_the_array():
    opcodes = [step.opcode.name[0] for step in schedule_of(first_layer()).steps]
    assert "".join(opcodes) == "UUUES" + "UES" * 5 + "ES" * 2
    opcodes = [step.opcode.name[0] for step in schedule_of(first_layer(), slots=2).steps]
    assert "".join(opcodes) == "UUES" + "UES" * 6 + "ES"


def test_a_ring_reuses_its_slots_in_turn():
    plan = schedule_of(first_layer(), slots=3)
    unfolds = [step.dest for step in plan.steps if step.opcode == Opcode.UNFOLD]
    executes = [step.source for step in plan.steps if step.opcode == Opcode.EXECUTE]
    assert [ref.offset for ref in unfolds] == [256 * (n % 3) for n in range(8)]
    assert executes == unfolds
    assert plan.buffers[unfolds[0].buffer] == 3 * 256


def test_every_step_knows_its_layer():
    graph = random_graph(5)
    layers = [step.layer for step in schedule_of(graph).steps]
    assert layers == sorted(layers)
    assert layers[-1] == len(schedule_of(graph).tiling.works) - 1
