"""Activation tables: the host writes all lanes' copies, lanes look up independently, the host reads back."""

import gc

import numpy as np
import pytest
from amaranth.sim import Simulator

from celosia.rtl.interfaces import TABLE_READ_LATENCY, HostSignature
from celosia.rtl.table import Tables

SEED = 5


def simulate(dut, bench):
    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()


async def write(ctx, host, addr, value):
    ctx.set(host.addr, addr)
    ctx.set(host.we, 1)
    await ctx.tick()
    ctx.set(host.we, 0)
    ctx.set(host.w_data, value)
    await ctx.tick()
    ctx.set(host.w_data, 0)


async def read(ctx, host, addr, longer=0):
    ctx.set(host.addr, addr)
    ctx.set(host.re, 1)
    await ctx.tick().repeat(HostSignature.READ_LATENCY + longer)
    value = ctx.get(host.r_data)
    ctx.set(host.re, 0)
    await ctx.tick()
    assert ctx.get(host.r_data) == 0
    return value


@pytest.mark.parametrize("tables, lanes", [(1, 1), (2, 2), (4, 4)])
def test_every_lane_looks_up_what_the_host_wrote(tables, lanes):
    rng = np.random.default_rng(SEED)
    content = rng.integers(0, 256, 256 * tables)
    lookups = rng.integers(0, 256 * tables, (400, lanes))
    dut = Tables(tables=tables, lanes=lanes)
    got = []

    async def bench(ctx):
        for addr, value in enumerate(content.tolist()):
            await write(ctx, dut.host, addr, value | 0x5A5A5A00)
        for cycle in range(len(lookups) + TABLE_READ_LATENCY):
            if cycle < len(lookups):
                for lane, addr in enumerate(lookups[cycle].tolist()):
                    ctx.set(dut.read.addr[lane], addr)
            if cycle >= TABLE_READ_LATENCY:
                got.append([ctx.get(dut.read.data[lane]) for lane in range(lanes)])
            await ctx.tick()

    simulate(dut, bench)
    assert np.array_equal(got, content[lookups])


def test_host_reads_bytes_back_for_as_long_as_it_asks():
    dut = Tables(tables=2, lanes=2)

    async def bench(ctx):
        for addr in (0, 255, 256, 511):
            await write(ctx, dut.host, addr, addr % 251 + 1)
        for lane in range(2):
            ctx.set(dut.read.addr[lane], 3)
        for addr in (0, 255, 256, 511):
            assert await read(ctx, dut.host, addr) == addr % 251 + 1
            assert await read(ctx, dut.host, addr, longer=5) == addr % 251 + 1

    simulate(dut, bench)


def test_tables_that_cannot_be_read_answer_zero_and_look_up():
    dut = Tables(tables=1, lanes=1, readable=False)

    async def bench(ctx):
        await write(ctx, dut.host, 7, 99)
        assert await read(ctx, dut.host, 7) == 0
        ctx.set(dut.read.addr[0], 7)
        await ctx.tick().repeat(TABLE_READ_LATENCY)
        assert ctx.get(dut.read.data[0]) == 99

    simulate(dut, bench)


def test_addresses_beyond_the_tables_are_ignored_and_read_as_zero():
    dut = Tables(tables=2, lanes=1)

    async def bench(ctx):
        await write(ctx, dut.host, 5, 99)
        for addr in (512 + 5, 1 << 19 | 5):
            await write(ctx, dut.host, addr, 11)
            assert await read(ctx, dut.host, addr) == 0
        assert await read(ctx, dut.host, 5) == 99

    simulate(dut, bench)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("wrong, text", [
    ({"tables": 17}, "tables must be between 1 and 16, not 17"),
    ({"lanes": 0}, "lanes must be between 1 and 64, not 0"),
])  # fmt: skip
def test_bad_parameters_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        Tables(**({"tables": 1, "lanes": 1} | wrong))
    gc.collect()  # of the refused component, while its warning is ignored
