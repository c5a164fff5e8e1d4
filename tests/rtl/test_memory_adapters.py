"""The memory port's bus adapters between random bursts and a slave model: data, order, errors, and the rules of each bus, under random pauses."""

import random

import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from celosia.rtl.axi4 import Axi4Master
from celosia.rtl.port import burst_beats
from celosia.rtl.wishbone_master import END_OF_BURST, INCREMENTING, WishboneMaster

SIZE = 1 << 14
BAD = SIZE // 2
"""From this byte on a slave answers with an error."""
PAUSES = {"never": 0, "some": 0.3, "mostly": 0.8}


class Watch:
    """Refuses a channel whose valid or payload changes before it was taken."""

    def __init__(self):
        self.held = {}

    def __call__(self, name, valid, ready, payload):
        if name in self.held:
            assert valid and payload == self.held[name], f"{name} was taken back or changed"
        self.held.pop(name, None)
        if valid and not ready:
            self.held[name] = payload


def bursts(rng, size, count, errors):
    """Return random bursts ``(addr, beats)`` that keep the port's limits."""
    found, longest = [], burst_beats(size)
    for _ in range(count):
        beats = rng.choice([1, 1, 2, 3, 7, 16, rng.randrange(1, longest + 1) if len(found) < 4 else 5])
        block = longest * size
        base = rng.randrange((SIZE if errors else BAD) // block) * block
        found.append((base + rng.randrange(longest - beats + 1) * size, beats))
    return found


def run(dut, slave, *, size, seed, pause, errors=False, count=16):
    """Let the port read and write at the same time; compare with a model of memory. What is read is the old or a new value where writes are under way."""
    rng = random.Random(seed)
    memory = bytearray(rng.randbytes(SIZE))
    reads, writes = bursts(rng, size, count, errors), bursts(rng, size, count, errors)
    old = bytes(memory)
    written, got = {}, []
    port = dut.port

    async def deadline(ctx):
        await ctx.tick().repeat(100_000)
        raise AssertionError("it stands still")

    async def requests(ctx, request, wanted):
        for addr, beats in wanted:
            while rng.random() < pause:
                await ctx.tick()
            ctx.set(request.payload.addr, addr)
            ctx.set(request.payload.beats, beats - 1)
            ctx.set(request.valid, 1)
            await ctx.tick().until(request.ready)
            ctx.set(request.valid, 0)

    async def read_requests(ctx):
        await requests(ctx, port.read.request, reads)

    async def read_data(ctx):
        for addr, beats in reads:
            for n in range(beats):
                while rng.random() < pause:
                    await ctx.tick()
                ctx.set(port.read.data.ready, 1)
                payload, = await ctx.tick().sample(port.read.data.payload).until(port.read.data.valid)
                ctx.set(port.read.data.ready, 0)
                place = addr + n * size
                assert payload.last == (n == beats - 1)
                assert payload.error == (place >= BAD)
                if not payload.error:
                    fresh = {int.from_bytes(old[place : place + size], "little"), *written.get(place, ())}
                    assert payload.data in fresh, hex(place)
                got.append(place)

    async def write_all(ctx):
        for addr, beats in writes:
            await requests(ctx, port.write.request, [(addr, beats)])
            failed = False
            for n in range(beats):
                while rng.random() < pause:
                    await ctx.tick()
                value, enable, place = rng.getrandbits(8 * size), rng.random() < 0.8, addr + n * size
                if enable:
                    written.setdefault(place, []).append(value)
                    failed |= place >= BAD
                ctx.set(port.write.data.payload.data, value)
                ctx.set(port.write.data.payload.enable, enable)
                ctx.set(port.write.data.payload.last, n == beats - 1)
                ctx.set(port.write.data.valid, 1)
                await ctx.tick().until(port.write.data.ready)
                ctx.set(port.write.data.valid, 0)
            ctx.set(port.write.done.ready, 1)
            error, = await ctx.tick().sample(port.write.done.payload.error).until(port.write.done.valid)
            ctx.set(port.write.done.ready, 0)
            assert error == failed
            for n in range(beats):  # what reads after it sees what it has written
                place = addr + n * size
                if place in written and place < BAD:
                    assert int.from_bytes(memory[place : place + size], "little") == written[place][-1]

    m = Module()
    m.domains.sync = ClockDomain()  # which the combinational one has not
    m.submodules.dut = dut
    simulator = Simulator(m)
    simulator.add_clock(1e-8)
    simulator.add_testbench(slave(dut, memory, size, rng, pause), background=True)
    for testbench in (read_requests, read_data, write_all):
        simulator.add_testbench(testbench)
    simulator.add_testbench(deadline, background=True)
    simulator.run()
    assert len(got) == sum(beats for _, beats in reads)


def axi_slave(dut, memory, size, rng, pause):
    axi = dut.axi

    async def serve(ctx):
        watch, reads, writes, answers = Watch(), [], [], []
        r = b = None
        while True:
            ready = {name: rng.random() >= pause for name in ("ar", "aw", "w")}
            for name, value in ready.items():
                ctx.set(getattr(axi, f"{name}ready"), value)
            if r is None and reads and rng.random() >= pause:
                addr, left = reads.pop(0)
                bad = addr >= BAD
                r = (0 if bad else int.from_bytes(memory[addr : addr + size], "little"), 2 if bad else 0, left == 1)
                if left > 1:
                    reads.insert(0, (addr + size, left - 1))
            ctx.set(axi.rvalid, r is not None)
            if r is not None:
                for name, value in zip(("rdata", "rresp", "rlast"), r):
                    ctx.set(getattr(axi, name), value)
            if b is None and answers and rng.random() >= pause:
                b = answers.pop(0)
            ctx.set(axi.bvalid, b is not None)
            ctx.set(axi.bresp, b or 0)
            sampled = await ctx.tick().sample(
                axi.arvalid, axi.araddr, axi.arlen, axi.arsize, axi.arburst, axi.awvalid, axi.awaddr, axi.awlen, axi.awburst, axi.wvalid, axi.wdata,
                axi.wstrb, axi.wlast, axi.rready, axi.bready,
            )  # fmt: skip
            _, _, arvalid, araddr, arlen, arsize, arburst, awvalid, awaddr, awlen, awburst, wvalid, wdata, wstrb, wlast, rready, bready = sampled
            watch("ar", arvalid, ready["ar"], (araddr, arlen))
            watch("aw", awvalid, ready["aw"], (awaddr, awlen))
            watch("w", wvalid, ready["w"], (wdata, wstrb, wlast))
            if arvalid and ready["ar"]:
                assert (1 << arsize, arburst) == (size, 1) and araddr // 4096 == (araddr + (arlen + 1) * size - 1) // 4096
                reads.append((araddr, arlen + 1))
            if awvalid and ready["aw"]:
                assert awburst == 1 and awaddr // 4096 == (awaddr + (awlen + 1) * size - 1) // 4096
                writes.append([awaddr, awlen + 1, 0])
            if wvalid and ready["w"]:
                burst = writes[0]
                assert wlast == (burst[1] == 1) and wstrb in (0, (1 << size) - 1)
                if wstrb and burst[0] < BAD:
                    memory[burst[0] : burst[0] + size] = wdata.to_bytes(size, "little")
                burst[2] |= 2 * bool(wstrb and burst[0] >= BAD)
                burst[0], burst[1] = burst[0] + size, burst[1] - 1
                if wlast:
                    answers.append(writes.pop(0)[2])
            if r is not None and rready:
                r = None
            if b is not None and bready:
                b = None

    return serve


def wishbone_slave(dut, memory, size, rng, pause):
    bus = dut.bus

    async def serve(ctx):
        waiting, expected = None, None
        while True:
            # Outputs of the present cycle; the answer belongs to it.
            await ctx.delay(4e-9)
            stb, cyc, we = ctx.get(bus.stb), ctx.get(bus.cyc), ctx.get(bus.we)
            place, cti = ctx.get(bus.adr) * size, ctx.get(bus.cti)
            assert cyc or not stb
            if stb:
                now = (place, we, cti, ctx.get(bus.dat_w) if we else 0)
                assert waiting in (None, now), "the request has changed before its answer"
                assert expected in (None, place), "the burst has left its order"
                assert cti in (INCREMENTING, END_OF_BURST) and ctx.get(bus.bte) == 0
            else:
                assert waiting is None, "the request was taken back"
            answer = bool(stb and rng.random() >= pause)
            bad = place >= BAD
            ctx.set(bus.ack, answer and not bad)
            ctx.set(bus.err, answer and bad)
            ctx.set(bus.dat_r, int.from_bytes(memory[place : place + size], "little") if answer and not we and not bad else rng.getrandbits(8 * size))
            waiting = None if answer or not stb else now
            if answer:
                if we and not bad:
                    memory[place : place + size] = now[3].to_bytes(size, "little")
                expected = None if cti == END_OF_BURST or we else place + size
            await ctx.tick()

    return serve


CASES = [pytest.param(Axi4Master, axi_slave, id="axi4"), pytest.param(WishboneMaster, wishbone_slave, id="wishbone")]


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("pause", PAUSES.values(), ids=PAUSES.keys())
@pytest.mark.parametrize("master, slave", CASES)
def test_bursts_arrive_whole_and_in_order(master, slave, pause, size):
    run(master(memory_bytes=size), slave, size=size, seed=size, pause=pause)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("master, slave", CASES)
def test_errors_come_with_the_beats_and_bursts_that_they_belong_to(master, slave, seed):
    run(master(memory_bytes=8), slave, size=8, seed=seed, pause=0.3, errors=True)
