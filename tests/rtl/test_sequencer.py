"""Fetch, queues, tokens and errors, with stub units that take and finish instructions after given times."""

import random

import pytest
from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal
from amaranth.lib import memory
from amaranth.sim import Simulator

from celosia.rtl.fetch import has_reserved_bits
from celosia.rtl.gate import unit_names
from celosia.rtl.interfaces import InstructionPart, next_instruction
from celosia.rtl.isa import (
    INSTRUCTION_BITS,
    TOKEN_BITS,
    UNITS,
    ErrorCode,
    Instruction,
    Opcode,
    Unit,
    encode,
    opcodes,
    zero_bits,
)
from celosia.rtl.sequencer import Sequencer

DEPTH = 64
END = Instruction(Opcode.END)
WAITS = 0xFFFFFF0


def load(**fields):
    sizes = dict.fromkeys(("kernel_y", "streams", "last_streams", "groups", "tile_rows", "tile_cols", "inside"), 1)
    return Instruction(Opcode.UNFOLD, **(sizes | fields))


def execute(**fields):
    return Instruction(Opcode.EXECUTE, **(dict.fromkeys(("tile_rows", "tile_cols", "kernel_y", "kernel_x", "blocks"), 1) | fields))


def store(**fields):
    return Instruction(Opcode.STORE, **(dict.fromkeys(("tile_rows", "tile_cols", "blocks"), 1) | fields))


def transfer(**fields):
    return Instruction(Opcode.TRANSFER, **(dict.fromkeys(("run", "rows", "planes"), 1) | fields))


class Bench(Elaboratable):
    """The sequencer with a program memory that is ready in the cycles ``ready`` says, over and over again."""

    def __init__(self, words, depth, bits, ready, memory_bytes=0):
        self.depth = depth
        self.ready = ready
        self.sequencer = Sequencer(program_depth=depth, queue_depth=2, fetch_bits=bits, memory_bytes=memory_bytes)
        self.bits = bits
        self.parts = INSTRUCTION_BITS // bits
        instructions = [number_of(word) for word in words]
        self.words = [word >> bits * n & (1 << bits) - 1 for word in instructions for n in range(self.parts)]

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = self.sequencer
        m.submodules.program = program = memory.Memory(shape=self.bits, depth=self.depth * self.parts, init=self.words)
        read = program.read_port()
        port = self.sequencer.program
        cycle = Signal(range(len(self.ready)))
        valid = Signal()
        m.d.sync += [cycle.eq(Mux(cycle == len(self.ready) - 1, 0, cycle + 1)), valid.eq(port.valid & port.ready)]
        m.d.comb += [
            port.ready.eq(Cat(Const(bit, 1) for bit in self.ready).bit_select(cycle, 1)),
            read.addr.eq(port.addr),
            port.data.eq(Mux(valid, read.data, (1 << self.bits) - 1)),
        ]
        return m


def number_of(word):
    return encode(word) if isinstance(word, Instruction) else word


def unit_of(word):
    """Return the unit of an instruction, or None if its opcode is illegal."""
    opcode = number_of(word) & 15
    return UNITS[Opcode(opcode)] if opcode in {code.value for code in Opcode} else None


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


def simulate(*words, latency=lambda unit, index: 3, first=0, limit=2000, fail=None, runs=1, abort_at=None, depth=DEPTH, bits=32, ready=(1,),
             memory_bytes=0):
    """Run a program on stubs that take one instruction at a time and finish it later; return the last run's :class:`Result`."""
    bench = Bench(words, depth, bits, ready, memory_bytes)
    sequencer = bench.sequencer
    units = [Unit[name.upper()] for name in unit_names(memory_bytes)]
    results = []

    async def bench_process(ctx):
        for _ in range(runs):
            result = Result()
            results.append(result)
            ctx.set(sequencer.first, first)
            ctx.set(sequencer.start, 1)
            await ctx.tick()
            ctx.set(sequencer.start, 0)
            work = dict.fromkeys(units)
            offered = dict.fromkeys(work)
            coming = {unit: [(n, number_of(word)) for n, word in enumerate(words) if n >= first and unit_of(word) is unit] for unit in work}
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
                    ctx.set(port.error.index, held[3] if held else 0)
                    if finished:
                        result.events.append((cycle, "done", unit, held[1]))
                        work[unit] = None
                    elif held:
                        work[unit] = (held[0] - 1, *held[1:])
                for unit in work:
                    port = getattr(sequencer, unit.name.lower())
                    valid = ctx.get(port.i.valid)
                    assert valid or not offered[unit] or ctx.get(sequencer.unit_reset), "taken back"
                    offered[unit] = valid and not ctx.get(port.i.ready)
                    if valid:
                        payload = ctx.get(port.i.payload)
                        assert payload.instruction == coming[unit][0][1] & ~WAITS
                    if valid and not offered[unit]:
                        index, _ = coming[unit].pop(0)
                        result.events.append((cycle, "start", unit, index))
                        work[unit] = (latency(unit, index), index, payload.instruction >> 28 & 7, payload.index)
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
                for name in unit_names(memory_bytes)
            }

    simulator = Simulator(bench)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench_process)
    simulator.run()
    return results[-1]


@pytest.mark.parametrize("bits", [32, 64, 128, 256])
def test_an_empty_program_ends_at_once(bits):
    result = simulate(END, bits=bits)
    assert result.error[0] is ErrorCode.NONE
    assert result.cycles <= 10 + INSTRUCTION_BITS // bits
    assert result.fetched == 1


def test_each_opcode_goes_to_its_unit_and_units_run_concurrently():
    result = simulate(load(), execute(), store(), END, latency=lambda unit, index: 100)
    assert [event[1:] for event in result.events[:3]] == [
        ("start", Unit.LOAD, 0), ("start", Unit.EXECUTE, 1), ("start", Unit.STORE, 2),
    ]  # fmt: skip
    assert result.cycles < 200


@pytest.mark.parametrize("bits", [32, 64, 128, 256])
def test_fetch_takes_eight_cycles_for_an_instruction_and_one_for_each_part(bits):
    words = [execute(), store()] * 12
    result = simulate(*words, END, latency=lambda unit, index: 0, bits=bits)
    assert result.error[0] is ErrorCode.NONE
    assert result.fetched == 25
    assert result.cycles <= 25 * (8 + INSTRUCTION_BITS // bits) + 10


@pytest.mark.parametrize("bits", [32, 64, 128, 256])
def test_the_next_instruction_is_offered_when_it_can_be(bits):
    result = simulate(*[execute()] * 3, END, latency=lambda unit, index: 0 if index else 60, bits=bits)
    assert result.when("start", 2) - result.when("start", 1) == next_instruction(bits)


def test_an_instruction_starts_only_when_its_tokens_have_come():
    result = simulate(
        execute(signal_store=1), execute(signal_store=1), store(wait_execute=2), END, latency=lambda unit, index: 60
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


@pytest.mark.parametrize("opcode", [0, 6, 7, 15])
def test_an_illegal_opcode_stops_the_engine(opcode):
    assert simulate(load(), opcode, END).error == (ErrorCode.ILLEGAL_OPCODE, Unit.SEQUENCER, 1)


@pytest.mark.parametrize("word", [
    encode(execute()) | 1 << 31, encode(store()) | 1 << 31, encode(load()) | 1 << 254,
    encode(END) | 1 << 32, encode(END) | 1 << 200, encode(END) | 1 << 4,
    encode(load(wait_transfer=1)), encode(execute(wait_transfer=128)), encode(store(signal_transfer=1)), encode(END) | 1 << 28,
])  # fmt: skip
def test_reserved_bits_and_tokens_to_itself_stop_the_engine(word):
    assert simulate(load(), load(), word, END).error == (ErrorCode.RESERVED_BITS, Unit.SEQUENCER, 2)


def test_with_a_memory_port_every_unit_waits_for_every_other():
    makers = (load, execute, store, transfer)
    for n, first in enumerate(makers):
        for second in makers[:n] + makers[n + 1 :]:
            sent, wait = f"signal_{second.__name__}", f"wait_{first.__name__}"
            result = simulate(second(**{wait: 1}), first(**{sent: 1}), END, memory_bytes=4)
            assert result.error[0] is ErrorCode.NONE and [index for _, _, index in result.order()] == [1, 1, 0, 0]
            error = simulate(first(**{sent: 1}), END, memory_bytes=4).error
            assert error == (ErrorCode.TOKENS_LEFT, Unit.SEQUENCER, 1)
            error = simulate(first(), second(**{wait: 1}), END, memory_bytes=4).error
            assert error == (ErrorCode.DEADLOCK, Unit[second.__name__.upper()], 1)


def test_reserved_bits_are_found_behind_a_full_queue():
    words = [store(wait_load=1), store(), encode(store()) | 1 << 31, END]
    assert simulate(*words).error == (ErrorCode.RESERVED_BITS, Unit.SEQUENCER, 2)


@pytest.mark.parametrize("bits", [32, 64, 128, 256])
@pytest.mark.parametrize("port", [False, True])
def test_every_reserved_bit_counts_and_no_other(bits, port):
    m = Module()
    opcode, part, found = Signal(4), Signal(InstructionPart(bits=bits)), Signal()
    m.d.comb += found.eq(has_reserved_bits(opcode, part, port))

    async def testbench(ctx):
        for code in opcodes(port):
            ctx.set(opcode, code.value)
            reserved = set(zero_bits(code, port))
            for position in range(INSTRUCTION_BITS):
                ctx.set(part.number, position // bits)
                ctx.set(part.data, 1 << position % bits)
                await ctx.delay(1e-9)
                assert ctx.get(found) == (position in reserved), (code, position)

    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()


def test_bits_next_to_reserved_ones_are_free():
    used = {execute: 255, store: 217, load: 232}
    for make, bit in used.items():
        assert simulate(encode(make()) | 1 << bit, END).error[0] is ErrorCode.NONE


def test_running_past_the_program_memory_stops_the_engine():
    assert simulate(*[store()] * DEPTH, latency=lambda unit, index: 0, bits=128).error == (ErrorCode.PROGRAM_RANGE, Unit.SEQUENCER, DEPTH)
    assert simulate(END, first=DEPTH).error == (ErrorCode.PROGRAM_RANGE, Unit.SEQUENCER, DEPTH)
    assert simulate(END, first=65535).error == (ErrorCode.PROGRAM_RANGE, Unit.SEQUENCER, 65535)


def test_the_last_place_of_the_program_memory_can_be_end():
    assert simulate(*[store()] * (DEPTH - 1), END, latency=lambda unit, index: 0, bits=128).error[0] is ErrorCode.NONE


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
    bench = Bench([*[execute(signal_store=1)] * (fits + 1), *[execute()] * 8], fits + 9, 256, [1])
    sequencer, m = bench.sequencer, Module()
    m.submodules += bench
    unit = sequencer.execute
    m.d.comb += unit.i.ready.eq(1)
    m.d.sync += [unit.done.valid.eq(unit.i.valid), unit.done.signal.store.eq(1)]

    async def testbench(ctx):
        ctx.set(sequencer.start, 1)
        await ctx.tick()
        ctx.set(sequencer.start, 0)
        await ctx.tick().until(~sequencer.busy)
        error = ctx.get(sequencer.error)
        assert (error.code, error.unit, error.index) == (ErrorCode.TOKEN_OVERFLOW, Unit.EXECUTE, fits)
        assert list(ctx.get(sequencer.store_tokens)) == [0, 0, 0]

    simulator = Simulator(m)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()


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


@pytest.mark.parametrize("abort_at", [8, 11, 16, 18, 23])
def test_abort_in_the_middle_of_a_fetch_leaves_nothing_behind(abort_at):
    words = [load(signal_execute=1), execute(wait_load=1), store(), END]
    assert simulate(*words, runs=2, abort_at=abort_at).events == simulate(*words).events


@pytest.mark.parametrize("memory_bytes", [0, 4])
@pytest.mark.parametrize("seed", range(6))
def test_random_legal_programs_end_with_every_instruction_run_once_and_in_order(seed, memory_bytes):
    rng = random.Random(seed)
    makers = {Unit.LOAD: load, Unit.EXECUTE: execute, Unit.STORE: store} | ({Unit.TRANSFER: transfer} if memory_bytes else {})
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
    bits, ready = rng.choice([32, 64, 128, 256]), [1, *(rng.randrange(2) for _ in range(12))] if seed % 2 else [1]
    program = [makers[u](**f) for u, f in zip(plan, fields)]
    result = simulate(*program, END, latency=lambda unit, index: delays[index], bits=bits, ready=ready, memory_bytes=memory_bytes)
    assert result.error[0] is ErrorCode.NONE, f"seed {seed}: {result.error}"
    assert sorted(index for kind, _, index in result.order() if kind == "done") == list(range(len(plan)))
    for unit in makers:
        ran = [index for kind, who, index in result.order() if kind == "start" and who is unit]
        assert ran == sorted(ran)
    for earlier, later in pairs:
        assert result.when("start", later) > result.when("done", earlier), f"seed {seed}: {earlier} → {later}"
