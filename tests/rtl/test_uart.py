"""The serial line against one written down bit by bit."""

import pytest
from amaranth.sim import Simulator

from celosia.rtl.uart import MIN_DIVISOR, Uart


def simulate(dut, *testbenches):
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    for testbench in testbenches:
        simulator.add_testbench(testbench)
    simulator.run()


def bits(byte, stop=1):
    return [0, *(byte >> n & 1 for n in range(8)), stop]


async def drive(ctx, dut, levels, cycles):
    """Put ``levels`` on the line, ``cycles`` (a real number) each."""
    passed = 0
    for number, level in enumerate(levels, 1):
        ctx.set(dut.rx, level)
        while passed < round(number * cycles):
            await ctx.tick()
            passed += 1


def received(divisor, levels, *, cycles=None, ready=lambda cycle: 1):
    """Return the bytes that a receiver makes of ``levels``."""
    dut = Uart(divisor=divisor)
    found = []
    ended = False

    async def line(ctx):
        nonlocal ended
        await drive(ctx, dut, [1, 1, *levels, 1, 1], cycles or divisor)
        ended = True

    async def sink(ctx):
        cycle = 0
        while not ended:
            ctx.set(dut.o.ready, ready(cycle))
            *_, valid, taken, payload = await ctx.tick().sample(dut.o.valid, dut.o.ready, dut.o.payload)
            if valid and taken:
                found.append(payload)
            cycle += 1

    simulate(dut, line, sink)
    return found


@pytest.mark.parametrize("divisor", [MIN_DIVISOR, 5, 12, 33])
def test_bytes_leave_as_start_data_and_stop_bits_and_nothing_between(divisor):
    dut = Uart(divisor=divisor)
    data = [0x00, 0xFF, 0x55, 0x7E, 0x01, 0x80]
    levels = []

    async def source(ctx):
        for byte in data:
            ctx.set(dut.i.valid, 1)
            ctx.set(dut.i.payload, byte)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def line(ctx):
        while ctx.get(dut.tx):
            await ctx.tick()
        for _ in range(10 * divisor * len(data) + 5):
            levels.append(ctx.get(dut.tx))
            await ctx.tick()

    simulate(dut, source, line)
    period = 10 * divisor
    for number, byte in enumerate(data):
        start = number * period
        assert levels[start : start + 10 * divisor] == [level for level in bits(byte) for _ in range(divisor)], number
    assert set(levels[len(data) * period :]) == {1}


@pytest.mark.parametrize("divisor, error", [
    (MIN_DIVISOR, -0.01), (MIN_DIVISOR, 0), (MIN_DIVISOR, 0.01), (5, -0.02), (5, 0.02), (12, -0.03), (12, 0.03), (33, -0.03), (33, 0.03),
])  # fmt: skip
def test_bytes_are_received_from_a_host_whose_clock_is_not_quite_the_same(divisor, error):
    data = [0x00, 0xFF, 0x55, 0xAA, 0x7E, 0x01, 0x80]
    levels = [level for byte in data for level in bits(byte)]
    assert received(divisor, levels, cycles=divisor * (1 + error)) == data


def test_a_byte_without_stop_bit_is_dropped_and_so_is_a_break():
    *garbage, last = received(8, [*bits(0x41, stop=0), *[1] * 10, *bits(0x42)])
    assert last == 0x42 and 0x41 not in garbage
    assert received(8, [0] * 30 + [1] * 10 + bits(0x43))[-1] == 0x43


def test_a_pulse_shorter_than_half_a_bit_is_no_start_bit():
    assert received(
        2 * MIN_DIVISOR, [0, 1, 1, 1, 1, 1, 1, 1, *[level for level in bits(0x44) for _ in range(4)]], cycles=2
    ) == [0x44]


def test_what_arrives_while_a_byte_waits_is_lost_and_the_line_recovers():
    levels = bits(1) + bits(2) + bits(3) + [1] * 12 + bits(4)
    assert received(8, levels, ready=lambda cycle: cycle > 260) == [1, 4]


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_a_divisor_too_small_to_find_the_middle_of_a_bit_is_refused():
    with pytest.raises(ValueError, match="divisor must be at least 4, not 3"):
        Uart(divisor=3)
