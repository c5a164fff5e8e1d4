"""Wishbone to registers and memories."""

import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from celosia.rtl.config import PRESETS
from celosia.rtl.csr import REGISTERS, WINDOWS, CsrBank, identity
from celosia.rtl.host import Host
from celosia.rtl.memory import ParamMemory, ProgramMemory
from celosia.sim.wishbone import Wishbone, WishboneError

CONFIG = PRESETS["test"]


class Bench(Elaboratable):
    """A host with a register bank and two memories of different entry widths."""

    def __init__(self):
        self.host = Host()
        self.csr = CsrBank(constants=identity(CONFIG))
        self.program = ProgramMemory(config=CONFIG)
        self.params = ParamMemory(config=CONFIG)

    def elaborate(self, platform):
        m = Module()
        m.submodules.host, m.submodules.csr = self.host, self.csr
        m.submodules.program, m.submodules.params = self.program, self.params
        wiring.connect(m, self.host.csr, self.csr.bus)
        wiring.connect(m, self.host.program, self.program.host)
        wiring.connect(m, self.host.params, self.params.host)
        return m


def simulate(test):
    bench = Bench()
    simulator = Simulator(bench)
    simulator.add_clock(1e-8)

    async def run(ctx):
        await test(ctx, bench, Wishbone(ctx, bench.host.bus))

    simulator.add_testbench(run)
    simulator.run()


def test_constant_registers_identify_the_engine():
    async def test(ctx, bench, bus):
        for name, value in identity(CONFIG).items():
            assert await bus.read(REGISTERS[name].offset) == value, name

    simulate(test)


def test_memories_return_what_was_written_beside_guard_words():
    async def test(ctx, bench, bus):
        words = {WINDOWS["program"].base + 4 * n: 0x01020304 * n + 7 for n in range(20)}
        words |= {WINDOWS["params"].base + 4 * n: 0xF0E0D0C0 - n for n in range(20)}
        for addr, value in words.items():
            await bus.write(addr, value)
        for addr, value in words.items():
            assert await bus.read(addr) == value, hex(addr)
        assert await bus.read(WINDOWS["program"].base + 80) == 0

    simulate(test)


def test_byte_selects_write_only_their_bytes():
    async def test(ctx, bench, bus):
        base = WINDOWS["params"].base
        await bus.write(base, 0x11223344)
        await bus.write(base, 0xAABBCCDD, sel=0b0110)
        assert await bus.read(base) == 0x11BBCC44

    simulate(test)


@pytest.mark.parametrize("addr", [
    max(register.offset for register in REGISTERS.values()) + 4, 0x4000, 0x80000, 6 << 20, 7 << 20,
])  # fmt: skip
def test_an_address_of_nothing_answers_err(addr):
    async def test(ctx, bench, bus):
        with pytest.raises(WishboneError, match="err"):
            await bus.read(addr)
        with pytest.raises(WishboneError, match="err"):
            await bus.write(addr, 0)

    simulate(test)


def test_memory_access_while_busy_answers_err_and_changes_nothing():
    async def test(ctx, bench, bus):
        base = WINDOWS["program"].base
        await bus.write(base, 5)
        ctx.set(bench.host.busy, 1)
        with pytest.raises(WishboneError):
            await bus.write(base, 6)
        with pytest.raises(WishboneError):
            await bus.read(base)
        assert await bus.read(REGISTERS["VERSION"].offset) == identity(CONFIG)["VERSION"]
        ctx.set(bench.host.busy, 0)
        assert await bus.read(base) == 5

    simulate(test)


def test_beyond_a_memory_reads_zero_and_writes_nothing():
    async def test(ctx, bench, bus):
        base = WINDOWS["program"].base
        await bus.write(base, 9)
        await bus.write(base + 32 * CONFIG.program_depth, 1)
        assert await bus.read(base + 32 * CONFIG.program_depth) == 0
        assert await bus.read(base) == 9

    simulate(test)


def test_a_write_takes_three_cycles_and_a_read_eight():
    async def test(ctx, bench, bus):
        await bus.write(WINDOWS["program"].base, 1)
        assert bus.cycles == 3
        await bus.read(WINDOWS["program"].base)
        assert bus.cycles == 11

    simulate(test)
