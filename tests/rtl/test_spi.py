"""The SPI target against a controller in mode 0."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.link import FLAG
from celosia.rtl.spi import MIN_CLOCK_RATIO, SpiTarget


class Controller:
    """Clocks bytes in and out of a target; ``half`` engine cycles are half a cycle of SCK."""

    def __init__(self, test, *, half=MIN_CLOCK_RATIO // 2, replies=(), stall=lambda cycle: False):
        self.dut = dut = SpiTarget()
        self.half = half
        self.received = []
        simulator = Simulator(dut)
        simulator.add_clock(1e-8)

        async def run(ctx):
            self.ctx = ctx
            await ctx.tick().repeat(4)
            await test(self)
            await ctx.tick().repeat(4)

        async def source(ctx):
            for byte in replies:
                ctx.set(dut.i.valid, 1)
                ctx.set(dut.i.payload, byte)
                await ctx.tick().until(dut.i.ready)
            ctx.set(dut.i.valid, 0)

        async def sink(ctx):
            cycle = 0
            while True:
                ctx.set(dut.o.ready, not stall(cycle))
                *_, valid, ready, payload = await ctx.tick().sample(dut.o.valid, dut.o.ready, dut.o.payload)
                if valid and ready:
                    self.received.append(payload)
                cycle += 1

        simulator.add_testbench(run)
        simulator.add_testbench(source, background=True)
        simulator.add_testbench(sink, background=True)
        simulator.run()

    async def exchange(self, data, *, bits=None):
        """Send bytes under one CS, the last one only with its first ``bits``; return what came back, as a string of bits."""
        ctx, dut = self.ctx, self.dut
        ctx.set(dut.cs_n, 0)
        await ctx.tick().repeat(self.half)
        levels = [byte >> 7 - n & 1 for byte in data for n in range(8)][:bits]
        answer = ""
        for level in levels:
            ctx.set(dut.copi, level)
            await ctx.tick().repeat(self.half)
            ctx.set(dut.sck, 1)
            answer += str(ctx.get(dut.cipo))
            await ctx.tick().repeat(self.half)
            ctx.set(dut.sck, 0)
        await ctx.tick().repeat(self.half)
        ctx.set(dut.cs_n, 1)
        await ctx.tick().repeat(2 * self.half)
        return answer


def as_bytes(answer):
    return [int(answer[n : n + 8], 2) for n in range(0, len(answer), 8)]


def without_flags(data):
    return [byte for byte in data if byte != FLAG]


@pytest.mark.parametrize("half", [MIN_CLOCK_RATIO // 2, 5, 20])
def test_bytes_go_both_ways_with_flags_where_there_is_nothing_to_send(half):
    sent = np.random.default_rng(2).integers(0, 126, 20).tolist()
    replies = [0x00, 0xFF, 0x55, 0x01, 0x80]

    async def test(controller):
        answer = as_bytes(await controller.exchange(sent))
        assert without_flags(answer) == replies and len(answer) == 20

    assert Controller(test, half=half, replies=replies).received == sent


def test_transfers_of_any_length_lose_no_byte():
    replies = list(range(1, 30))

    async def test(controller):
        answer = []
        for length in (1, 1, 2, 3, 1, 5, 1, 1, 20):
            answer += as_bytes(await controller.exchange([0x11] * length))
        assert without_flags(answer) == replies

    assert Controller(test, replies=replies).received == [0x11] * 35


def test_a_byte_cut_short_is_dropped_in_one_direction_and_sent_again_in_the_other():
    replies = [0xA1, 0xA2, 0xA3]

    async def test(controller):
        first = as_bytes(await controller.exchange([1, 2]))
        await controller.exchange([0xFF], bits=5)
        rest = as_bytes(await controller.exchange([3, 4]))
        assert without_flags(first + rest) == replies

    assert Controller(test, replies=replies).received == [1, 2, 3, 4]


def test_a_byte_that_arrives_while_another_waits_is_lost():
    async def test(controller):
        await controller.exchange([1, 2, 3])
        await controller.ctx.tick().repeat(300)
        await controller.exchange([4])

    assert Controller(test, stall=lambda cycle: cycle < 400).received == [1, 4]
