"""The register map as data, and the bank made from it."""

import pytest
from amaranth.sim import Simulator

from celosia.rtl.config import PRESETS
from celosia.rtl.csr import (
    CSR_READ_LATENCY,
    DEBUG,
    REGISTERS,
    WINDOWS,
    Access,
    CsrBank,
    CsrField,
    Register,
    identity,
    registers_of,
)
from celosia.rtl.isa import ISA_VERSION

FIELDS = (CsrField("low", 0, 4, "a"), CsrField("high", 24, 8, "b"))
SMALL = tuple(Register(access.value, 4 * n, access, FIELDS, "r") for n, access in enumerate(Access))


def simulate(bank, bench):
    simulator = Simulator(bank)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()


async def write(ctx, bank, offset, value):
    ctx.set(bank.bus.addr, offset // 4)
    ctx.set(bank.bus.w_data, value)
    ctx.set(bank.bus.we, 1)
    await ctx.tick()
    ctx.set(bank.bus.we, 0)


async def read(ctx, bank, offset):
    ctx.set(bank.bus.addr, offset // 4)
    ctx.set(bank.bus.re, 1)
    await ctx.tick().repeat(CSR_READ_LATENCY)
    value = ctx.get(bank.bus.r_data)
    ctx.set(bank.bus.re, 0)
    await ctx.tick()
    assert ctx.get(bank.bus.r_data) == 0
    return value


def test_offsets_are_those_of_the_documents():
    assert {name: REGISTERS[name].offset for name in ("ID", "VERSION", "DIGEST", "CONTROL", "STATUS", "ERROR", "CYCLES")} == {
        "ID": 0x00, "VERSION": 0x04, "DIGEST": 0x08, "CONTROL": 0x28, "STATUS": 0x2C, "ERROR": 0x30, "CYCLES": 0x40,
    }  # fmt: skip
    assert {name: window.base for name, window in WINDOWS.items()} == {
        "csr": 0, "program": 0x100000, "weights": 0x200000, "params": 0x300000, "tables": 0x400000, "activations": 0x500000,
    }  # fmt: skip


def test_fields_of_a_register_do_not_overlap():
    for register in REGISTERS.values():
        used = [bit for field in register.fields for bit in range(field.offset, field.offset + field.width)]
        assert len(used) == len(set(used)) and max(used) < 32, register.name


def test_identity_holds_every_knob():
    facts = identity(PRESETS["mac256"])
    assert facts["ID"].to_bytes(4, "little") == b"CELO"
    assert facts["VERSION"] == ISA_VERSION
    assert facts["CONFIG_ARRAY"] == 0x10041010
    assert facts["CONFIG_ACT"] == 8192


def test_pack_refuses_unknown_and_too_large_fields():
    with pytest.raises(ValueError, match=r"STATUS\.bsy must be a field"):
        REGISTERS["STATUS"].pack(bsy=1)
    with pytest.raises(ValueError, match=r"STATUS\.busy must be a field that holds 2"):
        REGISTERS["STATUS"].pack(busy=2)
    assert REGISTERS["ERROR"].unpack(REGISTERS["ERROR"].pack(code=5, unit=2, index=77)) == {"code": 5, "unit": 2, "index": 77}


def test_rw_keeps_only_bits_of_fields():
    bank = CsrBank(registers=SMALL)

    async def bench(ctx):
        await write(ctx, bank, 8, 0xFFFFFFFF)
        assert await read(ctx, bank, 8) == 0xFF00000F
        assert ctx.get(bank.rw.high) == 0xFF
        await write(ctx, bank, 8, 0x12345678)
        assert await read(ctx, bank, 8) == 0x12000008

    simulate(bank, bench)


def test_w_is_seen_for_one_cycle_and_reads_as_nothing_new():
    bank = CsrBank(registers=SMALL)

    async def bench(ctx):
        ctx.set(bank.bus.addr, 1)
        ctx.set(bank.bus.w_data, 0x12000035)
        assert ctx.get(bank.w.low) == 0
        ctx.set(bank.bus.we, 1)
        assert (ctx.get(bank.w.low), ctx.get(bank.w.high)) == (5, 0x12)
        await ctx.tick()
        ctx.set(bank.bus.we, 0)
        assert (ctx.get(bank.w.low), ctx.get(bank.w.high)) == (0, 0)
        assert await read(ctx, bank, 4) == 0

    simulate(bank, bench)


def test_rw1c_clears_written_ones_and_setting_wins():
    bank = CsrBank(registers=SMALL)

    async def bench(ctx):
        ctx.set(bank.rw1c_set.low, 0b0111)
        await ctx.tick()
        ctx.set(bank.rw1c_set.low, 0b0100)
        await write(ctx, bank, 12, 0b0101)
        ctx.set(bank.rw1c_set.low, 0)
        assert await read(ctx, bank, 12) == 0b0110

    simulate(bank, bench)


def test_r_shows_the_engine():
    bank = CsrBank(registers=SMALL)

    async def bench(ctx):
        for value in (0xAB000001, 0x12000003):
            ctx.set(bank.r, bank.registers[0].unpack(value))
            assert await read(ctx, bank, 0) == value & 0xFF00000F
            await write(ctx, bank, 0, 0)
            assert await read(ctx, bank, 0) == value & 0xFF00000F

    simulate(bank, bench)


def test_kept_registers_hold_their_first_value_until_something_inside_changes_it():
    bank = CsrBank(registers=(*SMALL, Register("other", 16, Access.R, FIELDS, "r")), kept={"R": 0xAB000001, "other": 7})
    kept = bank.kept

    async def bench(ctx):
        assert await read(ctx, bank, 0) == 0xAB000001
        await write(ctx, bank, 0, 0)
        assert (await read(ctx, bank, 0), await read(ctx, bank, 16)) == (0xAB000001, 7)
        ctx.set(kept.use, 1)
        ctx.set(kept.addr, 4)
        await ctx.tick()
        ctx.set(kept.use, 0)
        await ctx.tick()
        assert ctx.get(kept.data) == 7
        ctx.set(kept.w_addr, 4)
        ctx.set(kept.w_data, 9)
        ctx.set(kept.w_en, 1)
        await ctx.tick()
        ctx.set(kept.w_en, 0)
        assert (await read(ctx, bank, 0), await read(ctx, bank, 16)) == (0xAB000001, 9)
        ctx.set(kept.use, 1)
        await ctx.tick()
        ctx.set(kept.clear, 1)
        await ctx.tick()
        assert ctx.get(kept.data) == 0

    simulate(bank, bench)


def test_left_out_debug_registers_exist_and_say_nothing():
    assert DEBUG == ("LOAD_QUEUE", "LOAD_TOKENS", "EXECUTE_QUEUE", "EXECUTE_TOKENS", "STORE_QUEUE", "STORE_TOKENS",
                     "TRANSFER_QUEUE", "TRANSFER_TOKENS")  # fmt: skip
    assert set(DEBUG) < set(REGISTERS)


def test_only_an_engine_with_a_memory_port_has_its_registers():
    names = [{register.name for register in registers_of(PRESETS[name])} for name in ("test", "test_port")]
    assert names[1] == set(REGISTERS)
    assert names[1] - names[0] == {
        "MEMORY_BASE", "PROGRAM_ADDRESS", "PROGRAM_LENGTH", "TRANSFER_BUSY", "TRANSFER_WAIT", "TRANSFER_STALL", "TRANSFER_READ",
        "TRANSFER_WRITTEN", "TRANSFER_QUEUE", "TRANSFER_TOKENS",
    }  # fmt: skip


def test_only_register_addresses_are_mapped():
    bank = CsrBank(registers=(*SMALL, Register("far", 24, Access.R, FIELDS, "r")))

    async def bench(ctx):
        for addr, mapped in enumerate((1, 1, 1, 1, 0, 0, 1, 0)):
            ctx.set(bank.bus.addr, addr)
            assert ctx.get(bank.bus.mapped) == mapped

    simulate(bank, bench)


def test_offsets_must_differ():
    with pytest.raises(ValueError, match="offsets must be different multiples of four"):
        CsrBank(registers=(SMALL[0], SMALL[0]))
