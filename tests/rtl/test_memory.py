"""The memories beside a model: concurrent traffic, priorities, byte masks, and the host's windows."""

import dataclasses
import random
from collections import deque

import pytest
from amaranth.sim import Simulator

from celosia.rtl.config import PRESETS
from celosia.rtl.interfaces import ACT_READ_LATENCY, ACT_WRITE_LATENCY, HostSignature
from celosia.rtl.memory import ActivationMemory, ParamMemory, ProgramMemory, WeightMemory

SMALL = dataclasses.replace(PRESETS["test"], depthwise_rows=0, act_depth=32, weight_tiles=3, param_depth=8, program_depth=16)
WIDE = dataclasses.replace(
    PRESETS["mac256"], act_depth=48, weight_tiles=3, param_depth=9, program_depth=17, weight_rows=2, lanes=4
)  # fmt: skip
NARROW = dataclasses.replace(SMALL, cols=1, lanes=1, weight_rows=1)
CONFIGS = [pytest.param(config, id=name) for name, config in (("small", SMALL), ("wide", WIDE), ("narrow", NARROW))]


def run(dut, *testbenches):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for testbench in testbenches:
        simulator.add_testbench(testbench)
    simulator.run()


def words_per_entry(size):
    words = 1
    while words * 4 < size:
        words *= 2
    return words


def random_mask(rng, config):
    """Any words, or slots where they are smaller."""
    group = min(4, config.cols)
    return sum((1 << group) - 1 << first for first in range(0, config.rows, group) if rng.random() < 0.5)


async def host_write(ctx, host, addr, value):
    ctx.set(host.addr, addr)
    ctx.set(host.we, 1)
    await ctx.tick()
    ctx.set(host.we, 0)
    ctx.set(host.w_data, value)  # follows, and the address stays
    await ctx.tick()
    ctx.set(host.w_data, 0)
    ctx.set(host.addr, addr ^ 1)
    await ctx.tick()  # a read may begin three cycles after a write


async def host_read(ctx, host, addr, longer=0):
    assert ctx.get(host.r_data) == 0
    ctx.set(host.addr, addr)
    ctx.set(host.re, 1)
    await ctx.tick().repeat(HostSignature.READ_LATENCY + longer)
    value = ctx.get(host.r_data)
    ctx.set(host.re, 0)
    await ctx.tick()
    return value


@pytest.mark.parametrize("banks, image_rows", [(1, 0), (2, 2), (4, 3)])
@pytest.mark.parametrize("rate", [0.3, 0.9], ids=["idle", "busy"])
def test_activation_traffic_equals_the_model_and_is_served_in_the_order_of_priority(banks, image_rows, rate):
    config = dataclasses.replace(SMALL, act_banks=banks, depthwise_rows=image_rows)
    readers = ("execute", *(f"execute{row}" for row in range(1, image_rows)), "store", "load")
    dut = ActivationMemory(config=config)
    rng = random.Random(banks * 100 + int(rate * 10))
    model = [[0] * config.rows for _ in range(config.act_depth)]
    seen = set()

    async def testbench(ctx):
        reads = {unit: getattr(dut, f"read_{unit}") for unit in readers}
        writes = {unit: getattr(dut, f"write_{unit}") for unit in ("store", "load")}
        due, behind = [], None  # (cycle, unit, value); the store unit's last write
        landing = deque(maxlen=ACT_WRITE_LATENCY)  # addresses of writes that not every read sees yet
        for cycle in range(1500):
            addresses, write_addresses = {}, {}
            for unit, port in writes.items():
                valid = rng.random() < rate
                addr = rng.randrange(config.act_depth)
                data, mask = [rng.randrange(256) for _ in range(config.rows)], random_mask(rng, config)
                ctx.set(port.payload, {"addr": addr, "data": data, "mask": mask})
                ctx.set(port.valid, valid)
                if valid:
                    write_addresses[unit] = (addr, data, mask)
            landing.append({taken for taken, _, _ in write_addresses.values()})
            for unit, port in reads.items():
                addr = rng.randrange(config.act_depth)
                valid = rng.random() < rate and not any(addr in taken for taken in landing)
                ctx.set(port.addr, addr)
                ctx.set(port.valid, valid)
                if valid:
                    addresses[unit] = addr
            busy = set()
            for unit in readers:
                if unit in addresses:
                    bank = addresses[unit] % banks
                    assert ctx.get(reads[unit].ready) == (bank not in busy), (cycle, unit)
                    seen.add((unit, bank in busy))
                    if bank not in busy:
                        due.append((cycle + ACT_READ_LATENCY, unit, list(model[addresses[unit]])))
                    busy.add(bank)
            # The store unit's write meets the load unit's one cycle after it was taken.
            assert ctx.get(writes["store"].ready)
            meeting = [behind] if behind else []
            if "load" in write_addresses:
                refused = behind is not None and behind[0] % banks == write_addresses["load"][0] % banks
                assert ctx.get(writes["load"].ready) != refused, cycle
                seen.add(("write load", refused))
                meeting += [] if refused else [write_addresses["load"]]
            for addr, data, mask in meeting:
                model[addr] = [new if mask >> n & 1 else old for n, (new, old) in enumerate(zip(data, model[addr]))]
            behind = write_addresses.get("store")
            await ctx.tick()
            for when, unit, value in due:
                if when == cycle + 1:
                    assert list(ctx.get(reads[unit].data)) == value, (cycle, unit)

    run(dut, testbench)
    assert seen == {(unit, late) for unit in readers for late in (False, True)} - {("execute", True)} | {
        ("write load", False), ("write load", True)
    }  # fmt: skip


def test_execute_and_store_are_ready_without_being_asked():
    dut = ActivationMemory(config=SMALL)

    async def testbench(ctx):
        assert ctx.get(dut.read_execute.ready) and ctx.get(dut.write_store.ready)

    run(dut, testbench)


def test_a_write_is_visible_to_a_read_after_its_latency():
    dut = ActivationMemory(config=SMALL)

    async def testbench(ctx):
        for addr in (3, 8):
            ctx.set(dut.write_load.payload, {"addr": addr, "data": [addr, 2, 3, 4], "mask": 15})
            ctx.set(dut.write_load.valid, 1)
            await ctx.tick()
            ctx.set(dut.write_load.valid, 0)
            await ctx.tick().repeat(ACT_WRITE_LATENCY - 1)
            for unit in ("execute", "store", "load"):
                ctx.set(getattr(dut, f"read_{unit}").addr, addr)
            ctx.set(dut.read_execute.valid, 1)
            await ctx.tick().repeat(ACT_READ_LATENCY)
            assert list(ctx.get(dut.read_execute.data)) == [addr, 2, 3, 4]

    run(dut, testbench)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", [ActivationMemory, WeightMemory, ParamMemory, ProgramMemory])
def test_host_window_holds_what_was_written_and_ignores_what_is_beyond(kind, config):
    dut = kind(config=config)
    size, depth = {
        ActivationMemory: (config.rows, config.act_depth),
        WeightMemory: (config.weight_rows * config.cols, config.weight_depth),
        ParamMemory: (8 * config.lanes, config.param_depth),
        ProgramMemory: (32, config.program_depth),
    }[kind]
    words = words_per_entry(size)
    rng = random.Random(7)
    model = {}

    def expected(addr):
        value = model.get(addr, 0) if addr < depth * words else 0
        return value & (1 << 8 * min(4, size)) - 1

    async def testbench(ctx):
        for addr in range(depth * words):
            model[addr] = rng.getrandbits(32)
            await host_write(ctx, dut.host, addr, model[addr])
        for _ in range(300):
            addr = rng.randrange(depth * words + 2) if rng.random() < 0.9 else rng.randrange(1 << 20)
            if rng.random() < 0.5:
                model[addr] = rng.getrandbits(32)
                await host_write(ctx, dut.host, addr, model[addr])
            else:
                assert await host_read(ctx, dut.host, addr, longer=rng.randrange(3)) == expected(addr), addr
        for addr in [*range(depth * words), depth * words, depth * words + 1, (1 << 20) - 1]:
            assert await host_read(ctx, dut.host, addr) == expected(addr), addr

    run(dut, testbench)


@pytest.mark.parametrize("config", CONFIGS)
def test_reads_through_the_activation_window_and_through_a_unit_agree(config):
    dut = ActivationMemory(config=config)
    words = config.rows // 4

    async def testbench(ctx):
        for addr in range(config.act_depth):
            for word in range(words):
                await host_write(ctx, dut.host, addr * words + word, 0x03020100 + 0x04040404 * word ^ addr)
        for addr in range(config.act_depth):
            ctx.set(dut.read_execute.addr, addr)
            ctx.set(dut.read_execute.valid, 1)
            await ctx.tick().repeat(ACT_READ_LATENCY)
            assert list(ctx.get(dut.read_execute.data)) == [n ^ (addr if n % 4 == 0 else 0) for n in range(config.rows)]

    run(dut, testbench)


@pytest.mark.parametrize("config", CONFIGS)
def test_weight_banks_are_read_at_addresses_of_their_own_one_cycle_later(config):
    dut = WeightMemory(config=config)
    size = config.weight_rows * config.cols
    words = words_per_entry(size)
    rng = random.Random(11)
    image = [[rng.randrange(256) for _ in range(size)] for _ in range(config.weight_depth)]

    async def testbench(ctx):
        for entry, values in enumerate(image):
            padded = values + [0] * (words * 4 - size)
            for word in range(words):
                await host_write(ctx, dut.host, entry * words + word, int.from_bytes(padded[4 * word : 4 * word + 4], "little"))
        for _ in range(100):
            addresses = [rng.randrange(config.weight_depth) for _ in dut.reads]
            for port, addr in zip(dut.reads, addresses):
                ctx.set(port.addr, addr)
            await ctx.tick()
            for bank, (port, addr) in enumerate(zip(dut.reads, addresses)):
                expected = image[addr][bank * config.cols : (bank + 1) * config.cols]
                assert [value & 255 for value in ctx.get(port.data)] == expected

    run(dut, testbench)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_load_unit_writes_one_bank_of_the_weight_memory(config):
    dut = WeightMemory(config=config)
    rng = random.Random(12)
    image = [[[0] * config.cols for _ in range(config.weight_depth)] for _ in dut.reads]

    async def testbench(ctx):
        for _ in range(200):
            bank, entry = rng.randrange(config.weight_rows), rng.randrange(config.weight_depth)
            row = [rng.randrange(-128, 128) for _ in range(config.cols)]
            writing = rng.random() < 0.7
            ctx.set(dut.write.en, writing << bank)
            ctx.set(dut.write.addr, entry)
            ctx.set(dut.write.data, row)
            ctx.set(dut.reads[bank].addr, entry)
            await ctx.tick()
            if writing:
                image[bank][entry] = row
            ctx.set(dut.write.en, 0)
            await ctx.tick()
            assert list(ctx.get(dut.reads[bank].data)) == image[bank][entry]
        for bank, port in enumerate(dut.reads):
            for entry in range(config.weight_depth):
                ctx.set(port.addr, entry)
                await ctx.tick()
                assert list(ctx.get(port.data)) == image[bank][entry]

    run(dut, testbench)


@pytest.mark.parametrize("kind, bits", [(ParamMemory, 32), *((ProgramMemory, bits) for bits in (32, 64, 128, 256))])
def test_entries_are_read_one_cycle_later(kind, bits):
    dut = kind(config=dataclasses.replace(SMALL, fetch_bits=bits))
    size = len(dut.read.data) // 8
    words = words_per_entry(size)

    async def testbench(ctx):
        for addr in range(4 * words):
            await host_write(ctx, dut.host, addr, addr * 0x01010101)
        for entry in (2, 0, 3, 1):
            expected = sum((entry * words + word) * 0x01010101 << 32 * word for word in range(words))
            ctx.set(dut.read.addr, entry)
            if kind is ProgramMemory:
                ctx.set(dut.read.valid, 1)
                assert ctx.get(dut.read.ready)
            await ctx.tick()
            assert ctx.get(dut.read.data) == expected

    run(dut, testbench)
