"""The prefetcher beside a model of external memory and of fetch: every instruction is there when it is read, however late that is."""

import random

import pytest
from amaranth.sim import Simulator

from celosia.rtl.isa import INSTRUCTION_BITS
from celosia.rtl.prefetch import AHEAD, BURST, Prefetch

BASE = 4096


def simulate(length, *, depth=64, bits=128, size=16, seed=0, first=0, keep=0, error_at=None, limit=20_000):
    """Run a program of ``length`` instructions that fetch scans in order and reads again later; each may wait for up to ``keep`` later ones.

    Returns
    -------
    scanned : int
        Instructions scanned before the end, an error, or a block.
    ahead : int
        The most instructions by which requests were ahead of fetch.
    state : str
        ``"end"``, ``"failed"`` or ``"blocked"``.
    """
    rng = random.Random(seed)
    dut = Prefetch(program_depth=depth, fetch_bits=bits, memory_bytes=size)
    image = [rng.getrandbits(INSTRUCTION_BITS) for _ in range(length)]
    parts = INSTRUCTION_BITS // bits
    memory, bursts, most = {}, [], [0]
    result = {}

    async def external(ctx):
        while True:
            ctx.set(dut.port.request.ready, rng.random() < 0.7)
            beats = bursts[0] if bursts else None
            send = beats is not None and rng.random() < 0.7
            ctx.set(dut.port.data.valid, send)
            if send:
                address = beats[0]
                number, byte = divmod(address - BASE, INSTRUCTION_BITS // 8)
                assert number < length, "beyond the program"
                ctx.set(dut.port.data.payload.data, image[number] >> 8 * byte & (1 << 8 * size) - 1)
                ctx.set(dut.port.data.payload.last, len(beats) == 1)
                ctx.set(dut.port.data.payload.error, number == error_at)
            _, _, asked, taken, payload, en, addr, data = await ctx.tick().sample(
                dut.port.request.valid, dut.port.request.ready, dut.port.request.payload, dut.write.en, dut.write.addr, dut.write.data
            )
            if en:
                memory[addr] = data
            if send:
                beats.pop(0)
                if not beats:
                    bursts.pop(0)
            if asked and taken:
                count = payload.beats + 1
                assert payload.addr // 1024 == (payload.addr + count * size - 1) // 1024
                most[0] = max(most[0], (payload.addr - BASE) // 32 + BURST - ctx.get(dut.index))
                bursts.append([payload.addr + size * n for n in range(count)])

    def word(number):
        return sum(memory.get((number % depth) * parts + n, 0) << bits * n for n in range(parts))

    async def fetch(ctx):
        ctx.set(dut.length, length)
        ctx.set(dut.address, BASE)
        ctx.set(dut.first, first)
        ctx.set(dut.index, first)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        index, waiting, still = first, [], 0
        for _ in range(limit):
            await ctx.tick()
            ctx.set(dut.push, 0)
            ctx.set(dut.consumed, 0)
            if ctx.get(dut.failed) and not ctx.get(dut.available):
                result.update(state="failed", scanned=index)
                return
            still = still + 1 if ctx.get(dut.blocked) and not ctx.get(dut.available) else 0
            if still > 20 and keep > depth:
                result.update(state="blocked", scanned=index)
                return
            ready = [n for n, until in waiting if until <= index or index == length]
            if ready and rng.random() < 0.5:
                number = ready[0]
                assert word(number) == image[number], f"instruction {number} is overwritten"
                waiting = [pair for pair in waiting if pair[0] != number]
                ctx.set(dut.served, number)
                ctx.set(dut.consumed, 1)
            elif index == length and not waiting:
                assert ctx.get(dut.available)
                result.update(state="end", scanned=index)
                return
            if index < length and ctx.get(dut.available) and rng.random() < 0.4:
                assert word(index) == image[index], f"instruction {index} is not there"
                waiting.append((index, index + 1 + (rng.randrange(keep) if keep else 0)))
                ctx.set(dut.push, 1)
                await ctx.tick()
                ctx.set(dut.push, 0)
                ctx.set(dut.consumed, 0)
                index += 1
                ctx.set(dut.index, index)
        raise AssertionError(f"stands still at instruction {index} of {length}")

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(external, background=True)
    simulator.add_testbench(fetch)
    simulator.run()
    return result["scanned"], most[0], result["state"]


@pytest.mark.parametrize("bits, size", [(32, 4), (128, 4), (128, 16), (256, 32)])
@pytest.mark.parametrize("length", [1, 7, 8, 64, 500])
def test_every_instruction_is_there_when_it_is_read(bits, size, length):
    scanned, ahead, state = simulate(length, bits=bits, size=size, seed=length)
    assert (scanned, state) == (length, "end")
    assert ahead <= AHEAD + BURST


@pytest.mark.parametrize("depth", [16, 32, 128])
def test_instructions_that_wait_are_not_overwritten(depth):
    assert simulate(300, depth=depth, keep=depth // 4, seed=depth)[2] == "end"


def test_a_program_may_start_anywhere():
    assert simulate(200, first=77)[::2] == (200, "end")


def test_a_place_that_is_never_free_is_reported():
    assert simulate(300, depth=16, keep=1000)[2] == "blocked"


def test_an_error_is_reported_when_fetch_comes_to_it():
    scanned, _, state = simulate(100, error_at=50)
    assert state == "failed" and scanned <= 50


def test_without_a_length_nothing_is_asked_for():
    dut = Prefetch(program_depth=16, fetch_bits=128, memory_bytes=16)

    async def testbench(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for _ in range(20):
            await ctx.tick()
            assert ctx.get(dut.available) and not ctx.get(dut.port.request.valid)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()
