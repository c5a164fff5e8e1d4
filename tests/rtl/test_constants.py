"""The memory of all constants beside a model, and in whole engines: random graphs give the golden integers."""

import dataclasses
import random

import pytest
from amaranth.sim import Simulator
from golden_runs import golden_runs

from celosia.rtl.config import PRESETS
from celosia.rtl.constants import ConstantMemory, places
from celosia.rtl.interfaces import HostSignature
from celosia.tools.errors import DoesNotFit, UnsupportedOperator

CONFIG = dataclasses.replace(
    PRESETS["test"], name="constants", constant_ports=1, fill=0, act_ports=1, act_banks=1, depthwise_rows=0, lanes=1, lane_cycles=4,
    combine=0, param_depth=1024, debug=0,
)  # fmt: skip
SMALL = dataclasses.replace(CONFIG, weight_tiles=5, param_depth=11, program_depth=16)
GRAPHS = 24


def run(dut, testbench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()


async def host_write(ctx, host, addr, value):
    ctx.set(host.addr, addr)
    ctx.set(host.we, 1)
    await ctx.tick()
    ctx.set(host.we, 0)
    ctx.set(host.w_data, value)
    await ctx.tick()
    ctx.set(host.w_data, 0)
    ctx.set(host.addr, addr ^ 1)
    await ctx.tick()


async def host_read(ctx, host, addr):
    assert ctx.get(host.r_data) == 0
    ctx.set(host.addr, addr)
    ctx.set(host.re, 1)
    await ctx.tick().repeat(HostSignature.READ_LATENCY)
    value = ctx.get(host.r_data)
    ctx.set(host.re, 0)
    await ctx.tick()
    return value


@pytest.mark.parametrize("config", [CONFIG, SMALL, dataclasses.replace(SMALL, program_depth=2048, weight_tiles=2048)])
def test_windows_lie_behind_each_other_and_their_addresses_are_joined_with_them(config):
    taken = set()
    for first, words in places(config).values():
        for word in range(words):
            assert first | word == first + word
        taken |= set(range(first, first + words))
    assert len(taken) == sum(words for _, words in places(config).values())


@pytest.mark.parametrize("debug", [0, 1])
def test_the_hosts_windows_hold_what_was_written_and_ignore_what_is_beyond(debug):
    dut = ConstantMemory(config=dataclasses.replace(SMALL, debug=debug))
    rng = random.Random(debug)
    hosts = {name: getattr(dut, f"host_{name}") for name in places(SMALL)}
    ports = {"weights": dut.weights, "params": dut.params, "program": dut.program}

    async def testbench(ctx):
        model = {name: {} for name in hosts}
        addresses = [(name, addr) for name, (_, words) in places(SMALL).items() for addr in [*range(words + 3), 1 << 19]]
        rng.shuffle(addresses)
        for name, addr in addresses:
            value = rng.getrandbits(32)
            await host_write(ctx, hosts[name], addr, value)
            if addr < places(SMALL)[name][1]:
                model[name][addr] = value
        for name, addr in addresses:
            if debug:
                assert await host_read(ctx, hosts[name], addr) == model[name].get(addr, 0)
            elif addr in model[name]:
                enable = ports[name].en if name == "weights" else ports[name].valid
                ctx.set(ports[name].addr, addr)
                ctx.set(enable, 1)
                await ctx.tick()
                ctx.set(enable, 0)
                assert int(ctx.get(ports[name].data.as_value() if name == "weights" else ports[name].data)) == model[name][addr]

    run(dut, testbench)


@pytest.mark.parametrize("rates", [(1, 1, 1), (0.3, 0.5, 0.9), (0.05, 0.1, 0.1), (0, 1, 1)], ids=["always", "often", "some", "no tiles"])
def test_everyone_is_served_in_order_tiles_at_once_and_second_halves_behind_the_first(rates):
    dut = ConstantMemory(config=SMALL)
    rng = random.Random(5)

    async def testbench(ctx):
        model = {}
        for name, (_, words) in places(SMALL).items():
            for addr in range(words):
                model[name, addr] = rng.getrandbits(32)
                await host_write(ctx, getattr(dut, f"host_{name}"), addr, model[name, addr])
        tile, row, param, part, waited, paused = None, 0, None, None, 0, False
        due, served = {}, dict.fromkeys(("weights", "params", "program"), 0)
        for now in range(3000):
            # A tile is read row by row, a parameter from its even word on.
            if tile is None and not paused and rng.random() < rates[0]:
                tile, row = rng.randrange(SMALL.weight_tiles), 0
            if param is None and rng.random() < rates[1]:
                param = 2 * rng.randrange(SMALL.param_depth)
            if part is None and rng.random() < rates[2]:
                part = rng.randrange(SMALL.program_depth * 8)
            for port, enable, addr in (
                (dut.weights, dut.weights.en, None if tile is None else tile * SMALL.rows + row),
                (dut.params, dut.params.valid, param),
                (dut.program, dut.program.valid, part),
            ):
                ctx.set(enable, addr is not None)
                ctx.set(port.addr, rng.getrandbits(14) if addr is None else addr)
            params_ready, program_ready = ctx.get(dut.params.ready), ctx.get(dut.program.ready)
            paused = ctx.get(dut.pause_load)
            assert paused == (param is not None and param % 2 == 0)
            due = {}
            if tile is not None:
                due["weights"] = model["weights", tile * SMALL.rows + row]
                tile, row = (tile, row + 1) if row < SMALL.rows - 1 else (None, 0)
            if param is not None:
                assert params_ready == (not due)
                waited = 0 if params_ready else waited + 1
                assert waited <= SMALL.rows and (param % 2 == 0 or params_ready), "it waits for more than a tile"
                if params_ready:
                    due["params"] = model["params", param]
                    param = param + 1 if param % 2 == 0 else None
            if part is not None:
                assert program_ready == (not due and not ctx.get(dut.params.valid))
                if program_ready:
                    due["program"] = model["program", part]
                    part = None
            await ctx.tick()
            for name, value in due.items():
                served[name] += 1
                data = getattr(dut, name).data
                assert int(ctx.get(data.as_value() if name == "weights" else data)) == value, (now, name)
        assert all(served[name] > 50 for name, rate in zip(served, rates) if rate and (rates[1] < 1 or name != "program"))

    run(dut, testbench)


def test_random_graphs_on_an_engine_of_single_port_memories_give_the_golden_integers():
    assert len(golden_runs(CONFIG, GRAPHS, refused=(DoesNotFit, UnsupportedOperator))) > 2 * (GRAPHS // 3)
