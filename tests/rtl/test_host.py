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

    def __init__(self, readable=None, registered=True):
        self.host = Host(readable=readable, registered=registered)
        self.csr = CsrBank(kept=identity(CONFIG))
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


def simulate(test, readable=None):
    for registered in (True, False):
        bench = Bench(readable, registered)
        simulator = Simulator(bench)
        simulator.add_clock(1e-8)

        async def run(ctx, bench=bench):
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


@pytest.mark.parametrize("sel", [0, 1, 6, 7, 14])
def test_a_write_of_less_than_a_word_answers_err_and_changes_nothing(sel):
    async def test(ctx, bench, bus):
        for addr, kept in ((WINDOWS["params"].base, 0x11223344), (REGISTERS["PROGRAM_START"].offset, 0x3344)):
            await bus.write(addr, 0x11223344)
            with pytest.raises(WishboneError, match="err"):
                await bus.write(addr, 0xAABBCCDD, sel=sel)
            assert await bus.read(addr) == kept

    simulate(test)


def test_memories_that_are_not_shown_are_written_and_answer_err_to_reads():
    async def test(ctx, bench, bus):
        for name in ("program", "params"):
            await bus.write(WINDOWS[name].base, 7)
            with pytest.raises(WishboneError, match="err"):
                await bus.read(WINDOWS[name].base)
        ctx.set(bench.params.read.addr, 0)
        await ctx.tick()
        assert ctx.get(bench.params.read.data) & 0xFFFFFFFF == 7
        assert await bus.read(REGISTERS["ID"].offset) == identity(CONFIG)["ID"]

    simulate(test, readable=["activations"])


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


def test_accesses_take_the_cycles_that_are_documented():
    async def test(ctx, bench, bus):
        for access, address, cycles in (
            (bus.write(WINDOWS["program"].base, 1), "write", Host.WRITE_CYCLES),
            (bus.read(WINDOWS["program"].base), "read", Host.READ_CYCLES),
            (bus.read(REGISTERS["ID"].offset), "register", Host.REGISTER_CYCLES),
        ):
            before = bus.cycles
            await access
            assert bus.cycles - before == cycles - (address != "write" and not bench.host.registered), address

    simulate(test)
