"""The verifier proves good programs and catches each kind of bad one."""

import dataclasses

import pytest

from celosia.rtl.config import PRESETS
from celosia.rtl.isa import Opcode
from celosia.sim.graphs import GraphBuilder, random_graph
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.compiler.tokens import add_tokens
from celosia.tools.compiler.verify import VerificationError, verify, verify_tokens

TEST, MAC64, MAC256 = (PRESETS[name] for name in ("test", "mac64", "mac256"))


def emission_of(graph, config=MAC64):
    seen = {}
    compile_graph(graph, config, observe=lambda name, result: seen.setdefault(name, result))
    return seen["emit"]


def residual():
    builder = GraphBuilder(0)
    a = builder.conv(builder.input(3, 12, 12), 16, kernel=(3, 3), pads=(1, 1, 1, 1))
    b = builder.conv(a, 16, kernel=(3, 3), pads=(1, 1, 1, 1))
    return builder.graph(builder.conv(b, 16, kernel=(3, 3), pads=(1, 1, 1, 1), combine=builder.addition(a)))


WAITS = ("wait_load", "wait_execute", "wait_store")
SIGNALS = ("signal_load", "signal_execute", "signal_store")


@pytest.mark.parametrize("seed", [None, 3, 9, 21])
def test_no_token_can_be_left_out(seed):
    emission = emission_of(residual() if seed is None else random_graph(seed), TEST)
    instructions = list(emission.instructions)
    removed = 0
    for index, instruction in enumerate(instructions):
        for name in (*WAITS, *SIGNALS):
            if getattr(instruction, name):
                changed = [*instructions]
                changed[index] = instruction.replace(**{name: 0})
                with pytest.raises(VerificationError, match="after pass 'emit': instruction"):
                    verify(dataclasses.replace(emission, instructions=tuple(changed)), TEST)
                removed += 1
    assert removed


@pytest.mark.parametrize("seed", [None, 3, 9, 21])
def test_no_pair_of_wait_and_signal_can_be_left_out(seed):
    emission = emission_of(residual() if seed is None else random_graph(seed), TEST)
    instructions = list(emission.instructions)
    units = {Opcode.UNFOLD: "load", Opcode.EXECUTE: "execute", Opcode.STORE: "store"}
    for target in ("load", "execute", "store"):
        for source in {"load", "execute", "store"} - {target}:
            sends = [n for n, i in enumerate(instructions) if units.get(i.opcode) == source and i.fields[f"signal_{target}"]]
            takes = [n for n, i in enumerate(instructions) if units.get(i.opcode) == target and i.fields[f"wait_{source}"]]
            assert len(sends) == len(takes)
            for send, take in zip(sends, takes):
                changed = [*instructions]
                changed[send] = changed[send].replace(**{f"signal_{target}": 0})
                changed[take] = changed[take].replace(**{f"wait_{source}": 0})
                with pytest.raises(VerificationError, match=r"nothing makes it wait|uses accumulator bank"):
                    verify(dataclasses.replace(emission, instructions=tuple(changed)), TEST)


def test_buffers_that_overlap_are_found():
    emission = emission_of(residual())
    allocation = emission.allocation
    addresses = dict(allocation.addresses)
    names = [node.output for node in allocation.schedule.tiling.layout.graph.nodes]
    overlapping = dataclasses.replace(allocation, addresses=addresses | {names[1]: addresses[names[0]]})

    from celosia.tools.compiler.emit import emit
    from celosia.tools.compiler.options import CompilerOptions

    with pytest.raises(VerificationError, match=r"wants 'tensor0' in word \d+, which holds 'tensor1'"):
        verify(emit(overlapping, MAC64, CompilerOptions()), MAC64)


def test_words_nobody_wrote_are_found():
    emission = emission_of(residual())
    index = next(n for n, i in enumerate(emission.instructions) if i.opcode == Opcode.EXECUTE)
    changed = list(emission.instructions)
    changed[index] = changed[index].replace(start=MAC64.act_depth - 200)
    with pytest.raises(VerificationError, match="which holds 'nothing'"):
        verify(dataclasses.replace(emission, instructions=tuple(changed)), MAC64)


def test_addresses_beyond_the_memory_are_found():
    emission = emission_of(residual())
    index = next(n for n, i in enumerate(emission.instructions) if i.opcode == Opcode.STORE)
    changed = list(emission.instructions)
    changed[index] = changed[index].replace(dest=MAC64.act_depth)
    with pytest.raises(VerificationError, match=r"writes word \d+ of 8192"):
        verify(dataclasses.replace(emission, instructions=tuple(changed)), MAC64)


def test_surplus_tokens_are_found():
    emission = emission_of(residual())
    changed = list(emission.instructions)
    index = next(n for n in range(len(changed))[::-1] if changed[n].opcode == Opcode.STORE)
    changed[index] = changed[index].replace(signal_execute=1)
    with pytest.raises(VerificationError, match="1 tokens from store to execute are never taken"):
        verify(dataclasses.replace(emission, instructions=tuple(changed)), MAC64)


def test_a_store_that_reads_the_result_of_the_store_before_it_waits_for_its_end():
    builder = GraphBuilder(0)
    a = builder.conv(builder.input(8), 8)
    emission = emission_of(builder.graph(builder.conv(a, 8, combine=builder.addition(a))))
    executes = [i for i in emission.instructions if i.opcode == Opcode.EXECUTE]
    assert executes[-1].wait_store == 1
    bare = [i.replace(**{name: 0 for name in (*WAITS, *SIGNALS) if name in i.fields}) for i in emission.instructions[:-1]]
    verify_tokens([*add_tokens(bare, MAC64), emission.instructions[-1]], MAC64)


def test_tokens_never_pile_up_beyond_the_counters():
    # A load unit that the array has told nothing could finish all its work first.
    builder = GraphBuilder(0)
    graph = builder.graph(builder.conv(builder.input(1, 40, 40), 4))
    emission = emission_of(graph, MAC256)
    unfold = next(i for i in emission.instructions if i.opcode == Opcode.UNFOLD)
    many = [unfold.replace(signal_execute=1, wait_execute=0, wait_store=0)] * 1024
    with pytest.raises(VerificationError, match="more than 1023 tokens for the execute unit"):
        verify_tokens([*many, emission.instructions[-1]], MAC256)
