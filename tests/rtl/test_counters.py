"""The counters beside a model, through the register bank."""

import random

import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from celosia.rtl.config import PRESETS
from celosia.rtl.counters import COUNTERS, Counters, counters_of
from celosia.rtl.csr import CSR_READ_LATENCY, REGISTERS, CsrBank, identity
from celosia.rtl.gate import unit_names

SEED = 11


class Bench(Elaboratable):
    def __init__(self, units, port=True):
        self.counters = Counters(units=units, memory_port=port)
        self.csr = CsrBank(kept=identity(PRESETS["test"]) | dict.fromkeys(COUNTERS, 0))

    def elaborate(self, platform):
        m = Module()
        m.submodules.counters, m.submodules.csr = self.counters, self.csr
        wiring.connect(m, self.counters.kept, self.csr.kept)
        return m

    async def get(self, ctx, name):
        ctx.set(self.csr.bus.addr, REGISTERS[name].offset // 4)
        ctx.set(self.csr.bus.re, 1)
        await ctx.tick().repeat(CSR_READ_LATENCY)
        value = ctx.get(self.csr.bus.r_data)
        ctx.set(self.csr.bus.re, 0)
        await ctx.tick()
        return value


async def play(ctx, dut, rng, cycles, rate):
    """Let random events happen for some cycles of a run; return the counts."""
    counts = dict.fromkeys(COUNTERS, 0)
    ctx.set(dut.clear, 1)
    await ctx.tick()
    ctx.set(dut.clear, 0)
    ctx.set(dut.busy, 1)
    for _ in range(cycles):
        happens = {name: rng.random() < rate for name in COUNTERS} | {"CYCLES": True}
        ctx.set(dut.fetched, happens["INSTRUCTIONS"])
        ctx.set(dut.moved, happens["TRANSFER_READ"] | happens["TRANSFER_WRITTEN"] << 1)
        for name in unit_names(True):
            ctx.set(dut.trace[name].busy, happens[f"{name.upper()}_BUSY"])
            ctx.set(dut.trace[name].stall, happens[f"{name.upper()}_STALL"])
            ctx.set(dut.trace.waiting[name], happens[f"{name.upper()}_WAIT"])
        for name in COUNTERS:
            counts[name] += happens[name]
        await ctx.tick()
    ctx.set(dut.busy, 0)  # events go on, and count no more
    return counts


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("port", [True, False])
@pytest.mark.parametrize("rate", [0.3, 1], ids=["some", "always"])
def test_counts_are_exact_as_soon_as_the_run_is_over(units, port, rate):
    bench = Bench(units, port)
    rng = random.Random(SEED)

    async def testbench(ctx):
        for cycles in (0, 1, 5, 13, 14, 60, 333, 1000):
            counts = await play(ctx, bench.counters, rng, cycles, rate)
            # The doorbell's answer takes cycles of its own; here the host asks in the very next one, and then for the others.
            names = list(counters_of(port, units=units))
            rng.shuffle(names)
            for name in names:
                assert await bench.get(ctx, name) == counts[name], (cycles, name)
            for name in set(COUNTERS) - set(names):
                assert await bench.get(ctx, name) == 0
            for name, value in identity(PRESETS["test"]).items():
                if rng.random() < 0.3:
                    assert await bench.get(ctx, name) == value

    simulator = Simulator(bench)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()


def test_a_count_read_during_a_run_is_at_most_two_rounds_old_and_carries_ripple():
    bench = Bench(True)

    async def testbench(ctx):
        ctx.set(bench.counters.clear, 1)
        await ctx.tick()
        ctx.set(bench.counters.clear, 0)
        ctx.set(bench.counters.busy, 1)
        now = 0
        for _ in range(400):
            ctx.set(bench.csr.bus.addr, REGISTERS["CYCLES"].offset // 4)
            ctx.set(bench.csr.bus.re, 1)
            await ctx.tick().repeat(CSR_READ_LATENCY)
            now += CSR_READ_LATENCY
            assert now - CSR_READ_LATENCY <= ctx.get(bench.csr.bus.r_data) <= now
            ctx.set(bench.csr.bus.re, 0)
            await ctx.tick()
            now += 1

    simulator = Simulator(bench)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()
