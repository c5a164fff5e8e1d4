"""Requests in, Wishbone accesses and replies out: at any pace, and whatever else is on the line."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.bridge import Bridge
from celosia.rtl.link import ESCAPE, FLAG, MAX_WORDS, WRITE, Deframer, frame, read_request, write_request

REFUSED = 0x700080
"""From this byte address on, the slave of these tests answers ``err``."""


def words(*values):
    return np.array(values, np.uint32)


class Line:
    """A bridge with a slave of words behind it; ``talk`` sends bytes and returns the bodies of the replies."""

    def __init__(self, test, *, idle=0.0, stall=0.0, seed=1):
        self.dut = Bridge()
        self.rng = np.random.default_rng(seed)
        self.idle, self.stall = idle, stall
        self.memory = {}
        self.writes = []
        self.deframer = Deframer()
        self.sent = bytearray()
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-8)

        async def run(ctx):
            self.ctx = ctx
            await test(self)

        simulator.add_testbench(run)
        simulator.add_testbench(self.slave, background=True)
        simulator.add_testbench(self.sink, background=True)
        simulator.run()

    async def slave(self, ctx):
        bus = self.dut.bus
        while True:
            await ctx.tick()
            if not (ctx.get(bus.cyc) and ctx.get(bus.stb)):
                continue
            for _ in range(int(self.rng.integers(0, 6))):
                await ctx.tick()
            address = 4 * ctx.get(bus.adr)
            if address >= REFUSED:
                ctx.set(bus.err, 1)
            elif ctx.get(bus.we):
                assert ctx.get(bus.sel) == 15
                self.memory[address] = ctx.get(bus.dat_w)
                self.writes.append(address)
                ctx.set(bus.ack, 1)
            else:
                ctx.set(bus.dat_r, self.memory.get(address, 0))
                ctx.set(bus.ack, 1)
            await ctx.tick()
            ctx.set(bus.ack, 0)
            ctx.set(bus.err, 0)
            ctx.set(bus.dat_r, 0xDEADBEEF)

    async def sink(self, ctx):
        o = self.dut.o
        while True:
            ctx.set(o.ready, self.rng.random() >= self.stall)
            *_, valid, ready, payload = await ctx.tick().sample(o.valid, o.ready, o.payload)
            if valid and ready:
                self.sent.append(payload)

    async def talk(self, data, *, settle=True):
        ctx, i = self.ctx, self.dut.i
        for byte in data:
            while self.rng.random() < self.idle:
                ctx.set(i.valid, 0)
                await ctx.tick()
            ctx.set(i.valid, 1)
            ctx.set(i.payload, byte)
            await ctx.tick().until(i.ready)
        ctx.set(i.valid, 0)
        if settle:
            await ctx.tick().repeat(3)
            while ctx.get(self.dut.busy):
                await ctx.tick()
            await ctx.tick()
        replies = self.deframer.feed(bytes(self.sent))
        self.sent.clear()
        assert not self.deframer.broken
        return replies


@pytest.mark.parametrize("idle, stall", [(0, 0), (0.5, 0), (0, 0.7), (0.3, 0.3)])
def test_words_come_back_as_they_were_written(idle, stall):
    async def test(line):
        data = line.rng.integers(0, 1 << 32, MAX_WORDS, dtype=np.uint32)
        data[:3] = 0x7E7D7E7D, 0x5E5D5E5D, 0x7E7E7E7E
        assert await line.talk(frame(write_request(0x7E, 0x123404, data))) == [bytes([WRITE | 0x7E])]
        assert line.writes == [0x123404 + 4 * n for n in range(MAX_WORDS)]
        assert await line.talk(frame(read_request(0x7D, 0x123404, MAX_WORDS))) == [b"\x7d" + data.tobytes()]
        assert await line.talk(frame(read_request(3, 0x123408, 1))) == [b"\x03" + data[1:2].tobytes()]

    Line(test, idle=idle, stall=stall)


@pytest.mark.parametrize("stall", [0, 0.6])
def test_requests_may_follow_each_other_without_a_pause(stall):
    async def test(line):
        requests = [write_request(n, 0x2FFF00 + 8 * n, words(n, ~n & 0xFFFFFFFF)) for n in range(20)]
        requests += [read_request(20 + n, 0x2FFF00 + 8 * n, 2) for n in range(20)]
        replies = await line.talk(b"".join(map(frame, requests)))
        assert replies[:20] == [bytes([WRITE | n]) for n in range(20)]
        assert replies[20:] == [bytes([20 + n]) + words(n, ~n & 0xFFFFFFFF).tobytes() for n in range(20)]

    Line(test, stall=stall)


def test_a_refused_access_ends_the_request_and_the_reply_says_so():
    async def test(line):
        assert await line.talk(frame(write_request(1, REFUSED - 8, words(1, 2, 3, 4)))) == [b"\x01"]
        assert line.writes == [REFUSED - 8, REFUSED - 4]
        assert await line.talk(frame(read_request(2, REFUSED - 8, 4))) == [b"\x02" + words(1, 2).tobytes()]
        assert await line.talk(frame(read_request(3, REFUSED, 1))) == [b"\x03"]
        assert await line.talk(frame(write_request(4, REFUSED, words(5)))) == [b"\x04"]
        assert await line.talk(frame(write_request(5, 16, words(7)))) == [bytes([WRITE | 5])]

    Line(test)


def test_a_repeated_write_is_answered_again_and_not_executed():
    async def test(line):
        request = frame(write_request(9, 0x24, words(1, 2)))
        for _ in range(3):
            assert await line.talk(request) == [bytes([WRITE | 9])]
        assert line.writes == [0x24, 0x28]
        assert await line.talk(frame(read_request(9, 0x24, 2))) == [b"\x09" + words(1, 2).tobytes()]
        assert await line.talk(frame(write_request(9, 0x24, words(5)))) == [bytes([WRITE | 9])]
        assert line.writes == [0x24, 0x28, 0x24]
        refused = frame(write_request(10, REFUSED - 4, words(1, 2)))
        assert await line.talk(refused + refused) == [b"\x0a"] * 2
        assert line.writes[3:] == [REFUSED - 4] * 2  # nothing was completed, so it is no repetition

    Line(test)


def test_a_read_is_executed_as_often_as_it_comes():
    async def test(line):
        line.memory[4] = 1
        request = frame(read_request(9, 4, 1))
        assert await line.talk(request) == [b"\x09" + words(1).tobytes()]
        line.memory[4] = 2
        assert await line.talk(request) == [b"\x09" + words(2).tobytes()]

    Line(test)


@pytest.mark.parametrize("damage", ["flip", "drop", "insert", "cut"])
def test_a_damaged_request_does_nothing_and_the_next_one_is_executed(damage):
    async def test(line):
        good = frame(read_request(99, 8, 1))
        for number in range(40):
            request = frame(write_request(number, 8, line.rng.integers(0, 1 << 32, 5, dtype=np.uint32)))
            place = int(line.rng.integers(1, len(request) - 1))
            if damage == "flip":
                changed = request[place] ^ 1 << int(line.rng.integers(0, 8))
                request = request[:place] + bytes([changed]) + request[place + 1 :]
            elif damage == "drop":
                request = request[:place] + request[place + 1 :]
            elif damage == "insert":
                request = request[:place] + bytes(line.rng.integers(0, 126, 1, dtype=np.uint8)) + request[place:]
            else:
                request = request[:place]
            assert await line.talk(request + good) == [b"\x63" + bytes(4)], (number, place)
        assert not line.writes

    Line(test, seed=5)


def test_noise_is_ignored_and_a_request_behind_it_is_executed():
    async def test(line):
        for number in range(20):
            noise = bytes(line.rng.integers(0, 256, int(line.rng.integers(1, 700)), dtype=np.uint8))
            assert await line.talk(noise + frame(write_request(number, 4 * number, words(7)))) == [bytes([WRITE | number])]
        assert len(line.writes) == 20

    Line(test, seed=6)


@pytest.mark.parametrize("body", [
    b"", b"\x00", b"\x80", b"\x80\x00\x00", b"\x80\x00\x00\x00\x01", b"\x80\x00\x00\x00\x01\x02\x03", b"\x00\x00\x00\x00", b"\x00\x00\x00\x00\x01\x00",
    write_request(0, 0, words(*range(MAX_WORDS))) + bytes(4), write_request(0, 0, words(*range(MAX_WORDS))) + bytes(300),
    write_request(0, 0, words(*range(MAX_WORDS))) + bytes(256 + 12),
])  # fmt: skip
def test_a_request_of_a_wrong_length_is_ignored(body):
    async def test(line):
        assert await line.talk(frame(body) + frame(read_request(1, 8, 1))) == [b"\x01" + bytes(4)]
        assert not line.writes

    Line(test)


def test_a_request_stays_in_its_256_words():
    async def test(line):
        body = write_request(1, 0x200000, words(1, 2, 3))
        await line.talk(frame(body[:1] + b"\xfe" + body[2:]))
        assert line.writes == [0x2003F8, 0x2003FC, 0x200000]

    Line(test)


def test_flags_may_be_shared_or_repeated_and_an_escaped_flag_aborts():
    async def test(line):
        first, second = frame(read_request(1, 8, 1)), frame(read_request(2, 8, 1))
        idle = bytes([FLAG] * 9)
        assert await line.talk(first[:-1] + second) == [b"\x01" + bytes(4), b"\x02" + bytes(4)]
        assert await line.talk(idle + first + idle + second) == [b"\x01" + bytes(4), b"\x02" + bytes(4)]
        assert await line.talk(first[:-1] + bytes([ESCAPE]) + second) == [b"\x02" + bytes(4)]

    Line(test)


def test_a_word_is_written_in_seven_cycles_of_a_slave_like_the_engines():
    """The docstring's figures are what the speed of simulated boards rests on; the slave here needs 2 to 7 cycles an access."""

    async def test(line):
        await line.talk(frame(write_request(1, 0, words(*range(MAX_WORDS)))), settle=False)
        cycles = 0
        while line.ctx.get(line.dut.busy):
            await line.ctx.tick()
            cycles += 1
        assert MAX_WORDS * 5 < cycles < MAX_WORDS * 12

    Line(test)
