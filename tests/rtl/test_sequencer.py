"""Fetch, queues, tokens and errors, with stub units that take and finish instructions after given times."""

import random

import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.lib import memory
from amaranth.sim import Simulator

from celosia.rtl.isa import INSTRUCTION_BITS, TOKEN_BITS, ErrorCode, Instruction, Opcode, Unit, encode
from celosia.rtl.sequencer import Sequencer

DEPTH = 64
END = Instruction(Opcode.END)


def load(**fields):
    sizes = dict.fromkeys(("kernel_y", "streams", "last_streams", "groups", "tile_rows", "tile_cols", "inside"), 1)
    return Instruction(Opcode.UNFOLD, **(sizes | fields))


def execute(**fields):
    return Instruction(Opcode.EXECUTE, **(dict.fromkeys(("tile_rows", "tile_cols", "kernel_y", "kernel_x", "blocks"), 1) | fields))


def store(**fields):
    return Instruction(Opcode.STORE, **(dict.fromkeys(("tile_rows", "tile_cols", "blocks"), 1) | fields))


class Bench(Elaboratable):
    def __init__(self, words, depth):
        self.depth = depth
        self.sequencer = Sequencer(program_depth=depth, queue_depth=2)
        self.words = [encode(word) if isinstance(word, Instruction) else word for word in words]

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = self.sequencer
        m.submodules.program = program = memory.Memory(shape=INSTRUCTION_BITS, depth=self.depth, init=self.words)
        read = program.read_port()
        port = self.sequencer.program
        m.d.comb += [read.addr.eq(port.addr), read.en.eq(port.en), port.data.eq(read.data)]
        return m


class Result:
    def __init__(self):
        self.events = []  # (cycle, "start" or "done", unit, index)
        self.cycles = None
        self.error = None
        self.fetched = 0

    def order(self):
        return [event[1:] for event in self.events]

    def when(self, what, index):
        return next(cycle for cycle, kind, _, number in self.events if (kind, number) == (what, index))


def simulate(*words, latency=lambda unit, index: 3, first=0, limit=2000, fail=None, runs=1, abort_at=None, depth=DEPTH):
    """Run a program on stubs that keep one instruction each; return the last run's :class:`Result`."""
    bench = Bench(words, depth)
    sequencer = bench.sequencer
    results = []

    async def bench_process(ctx):
        for _ in range(runs):
            result = Result()
            results.append(result)
            ctx.set(sequencer.first, first)
            ctx.set(sequencer.start, 1)
            await ctx.tick()
            ctx.set(sequencer.start, 0)
            work = {Unit.LOAD: None, Unit.EXECUTE: None, Unit.STORE: None}
            for cycle in range(limit):
                ctx.set(sequencer.abort, cycle == abort_at and len(results) == 1)
                for unit in work:
                    port = getattr(sequencer, unit.name.lower())
                    held = work[unit]
                    if ctx.get(sequencer.unit_reset):
                        held = work[unit] = None
                    finished = held is not None and held[0] == 0
                    ctx.set(port.i.ready, held is None)
                    ctx.set(port.idle, held is None)
                    ctx.set(port.done.valid, finished)
                    ctx.set(port.done.signal.as_value(), held[2] if finished else 0)
                    ctx.set(port.error.valid, finished and fail == held[1])
                    ctx.set(port.error.code, ErrorCode.ACT_RANGE)
                    ctx.set(port.error.index, held[1] if held else 0)
                    if finished:
                        result.events.append((cycle, "done", unit, held[1]))
                        work[unit] = None
                    elif held:
                        work[unit] = (held[0] - 1, *held[1:])
                for unit in work:
                    port = getattr(sequencer, unit.name.lower())
                    if ctx.get(port.i.valid) and ctx.get(port.i.ready):
                        payload = ctx.get(port.i.payload)
                        index, signal = payload.index, payload.instruction >> 28 & 7
                        result.events.append((cycle, "start", unit, index))
                        work[unit] = (latency(unit, index), index, signal)
                result.fetched += ctx.get(sequencer.fetched)
                await ctx.tick()
                ctx.set(sequencer.abort, 0)
                if not ctx.get(sequencer.busy):
                    result.cycles = cycle + 1
                    break
            else:
                raise AssertionError("the sequencer did not come to an end")
            error = ctx.get(sequencer.error)
            result.error = (ErrorCode(error.code), Unit(error.unit), error.index)
            aborted = abort_at is not None and len(results) == 1
            assert ctx.get(sequencer.done) == (result.error[0] is ErrorCode.NONE and not aborted)
            result.state = {
                name: (ctx.get(getattr(sequencer, f"{name}_state")), list(ctx.get(getattr(sequencer, f"{name}_tokens"))))
                for name in ("load", "execute", "store")
            }

    simulator = Simulator(bench)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench_process)
    simulator.run()
    return results[-1]


def test_an_empty_program_ends_at_once():
    result = simulate(END)
    assert result.error[0] is ErrorCode.NONE
    assert result.cycles <= 6
    assert result.fetched == 1


def test_each_opcode_goes_to_its_unit_and_units_run_concurrently():
    result = simulate(load(), execute(), store(), END, latency=lambda unit, index: 20)
    assert [event[1:] for event in result.events[:3]] == [
        ("start", Unit.LOAD, 0), ("start", Unit.EXECUTE, 1), ("start", Unit.STORE, 2),
    ]  # fmt: skip
    assert result.cycles < 40


def test_fetch_takes_an_instruction_every_other_cycle():
    words = [load(), execute(), store()] * 12
    result = simulate(*words, END, latency=lambda unit, index: 0)
    assert result.error[0] is ErrorCode.NONE
    assert result.fetched == 37
    assert result.cycles <= 2 * 37 + 8


def test_an_instruction_starts_only_when_its_tokens_have_come():
    result = simulate(
        execute(signal_store=1), execute(signal_store=1), store(wait_execute=2), END, latency=lambda unit, index: 10
    )
    assert result.when("start", 2) > result.when("done", 1)
    assert result.when("start", 2) <= result.when("done", 1) + 2
    assert result.error[0] is ErrorCode.NONE


def test_a_chain_through_all_units_runs_in_order():
    result = simulate(
        load(signal_execute=1), execute(wait_load=1, signal_store=1), store(wait_execute=1, signal_load=1),
        load(wait_store=1), END,
    )  # fmt: skip
    assert [index for kind, _, index in result.order() if kind == "done"] == [0, 1, 2, 3]


def test_a_program_may_start_anywhere():
    result = simulate(0, 0, 0, load(), END, first=3)
    assert result.order() == [("start", Unit.LOAD, 3), ("done", Unit.LOAD, 3)]


def test_end_waits_until_every_unit_has_finished():
    result = simulate(load(), store(), END, latency=lambda unit, index: 50)
    assert result.error[0] is ErrorCode.NONE
    assert result.cycles > result.when("done", 1)


@pytest.mark.parametrize("opcode", [0, 6, 15])
def test_an_illegal_opcode_stops_the_engine(opcode):
    assert simulate(load(), opcode, END).error == (ErrorCode.ILLEGAL_OPCODE, Unit.SEQUENCER, 1)


@pytest.mark.parametrize("word", [
    encode(execute()) | 1 << 31, encode(store()) | 1 << 31, encode(load()) | 1 << 254,
    encode(END) | 1 << 32, encode(END) | 1 << 200, encode(END) | 1 << 4,
    encode(load(wait_load=1)), encode(execute(wait_execute=128)), encode(store(signal_store=1)), encode(END) | 1 << 28,
])  # fmt: skip
def test_reserved_bits_and_tokens_to_itself_stop_the_engine(word):
    assert simulate(load(), load(), word, END).error == (ErrorCode.RESERVED_BITS, Unit.SEQUENCER, 2)


def test_bits_next_to_reserved_ones_are_free():
    used = {execute: 255, store: 217, load: 232}
    for make, bit in used.items():
        assert simulate(encode(make()) | 1 << bit, END).error[0] is ErrorCode.NONE


def test_running_past_the_program_memory_stops_the_engine():
    assert simulate(*[load()] * DEPTH, latency=lambda unit, index: 0).error == (ErrorCode.PROGRAM_RANGE, Unit.SEQUENCER, DEPTH)
    assert simulate(END, first=DEPTH).error == (ErrorCode.PROGRAM_RANGE, Unit.SEQUENCER, DEPTH)
    assert simulate(END, first=65535).error == (ErrorCode.PROGRAM_RANGE, Unit.SEQUENCER, 65535)


def test_the_last_place_of_the_program_memory_can_be_end():
    assert simulate(*[load()] * (DEPTH - 1), END, latency=lambda unit, index: 0).error[0] is ErrorCode.NONE


def test_tokens_left_at_end_stop_the_engine():
    assert simulate(load(signal_execute=1), END).error == (ErrorCode.TOKENS_LEFT, Unit.SEQUENCER, 1)


def test_an_error_of_a_unit_names_its_instruction():
    assert simulate(load(), load(), execute(), END, fail=1).error == (ErrorCode.ACT_RANGE, Unit.LOAD, 1)


@pytest.mark.parametrize("words, unit, index", [
    ([execute(), execute(wait_store=1), END], Unit.EXECUTE, 1),  # at END
    ([store(wait_load=1), *[store()] * 5, END], Unit.STORE, 0),  # fetch blocked by a full queue
    ([load(wait_execute=1, signal_execute=1), execute(wait_load=1, signal_load=1), END], Unit.LOAD, 0),  # a ring
])  # fmt: skip
def test_a_deadlock_is_found_and_its_tokens_can_be_read(words, unit, index):
    result = simulate(*words)
    assert result.error == (ErrorCode.DEADLOCK, unit, index)
    state, _ = result.state[unit.name.lower()]
    assert (state.index, state.waiting) == (index, 1)


def test_a_long_instruction_is_no_deadlock():
    result = simulate(load(signal_execute=1), execute(wait_load=1), END, latency=lambda unit, index: 200)
    assert result.error[0] is ErrorCode.NONE


def test_a_token_too_many_names_its_sender():
    fits = (1 << TOKEN_BITS) - 1
    result = simulate(*[load(signal_execute=1)] * (fits + 1), END, latency=lambda unit, index: 0, limit=5000, depth=1100)
    assert result.error == (ErrorCode.TOKEN_OVERFLOW, Unit.LOAD, fits)


@pytest.mark.parametrize("bad", [[0], [load(signal_store=1), END], [execute(wait_load=1), END]])
def test_the_engine_runs_again_after_an_error(bad):
    result = simulate(*bad, runs=2)
    again = simulate(*bad)
    assert result.error == again.error and result.cycles == again.cycles


def test_abort_stops_and_the_next_start_finds_everything_empty():
    words = [load(signal_execute=1), execute(wait_load=1), store(), END]
    result = simulate(*words, runs=2, abort_at=9)
    assert result.error[0] is ErrorCode.NONE
    assert result.order() == simulate(*words).order()


@pytest.mark.parametrize("seed", range(6))
def test_random_legal_programs_end_with_every_instruction_run_once_and_in_order(seed):
    rng = random.Random(seed)
    makers = {Unit.LOAD: load, Unit.EXECUTE: execute, Unit.STORE: store}
    plan = [rng.choice(list(makers)) for _ in range(40)]
    fields = [{} for _ in plan]
    pairs = []
    for later, unit in enumerate(plan):  # edges from earlier to later instructions, one token each, so that it cannot deadlock
        earlier = rng.randrange(later) if later else 0
        sent = f"signal_{unit.name.lower()}"
        if plan[earlier] is not unit and not fields[earlier].get(sent):
            # A receiver's tokens are anonymous: an edge is only sound if no later instruction has taken it already.
            if all(not (a > earlier and plan[a] is plan[earlier] and plan[b] is unit) for a, b in pairs):
                fields[earlier][sent] = 1
                wait = f"wait_{plan[earlier].name.lower()}"
                fields[later][wait] = fields[later].get(wait, 0) + 1
                pairs.append((earlier, later))
    delays = [rng.randrange(12) for _ in plan]
    result = simulate(*[makers[u](**f) for u, f in zip(plan, fields)], END, latency=lambda unit, index: delays[index])
    assert result.error[0] is ErrorCode.NONE, f"seed {seed}: {result.error}"
    assert sorted(index for kind, _, index in result.order() if kind == "done") == list(range(len(plan)))
    for unit in makers:
        ran = [index for kind, who, index in result.order() if kind == "start" and who is unit]
        assert ran == sorted(ran)
    for earlier, later in pairs:
        assert result.when("start", later) > result.when("done", earlier), f"seed {seed}: {earlier} → {later}"
