"""The activation memory of one port beside a model, and in whole engines: random graphs give the golden integers."""

import dataclasses
import random

import pytest
from amaranth.sim import Simulator
from golden_runs import golden_runs

from celosia.rtl.config import PRESETS
from celosia.rtl.interfaces import ACT_READ_LATENCY, ACT_WRITE_LATENCY
from celosia.rtl.oneport import OnePortActivationMemory

CONFIG = dataclasses.replace(PRESETS["test"], name="oneport", act_ports=1, act_banks=1, depthwise_rows=0, counters=0, debug=0)
SMALL = dataclasses.replace(CONFIG, act_depth=64)
SERIAL = dataclasses.replace(SMALL, lanes=1, lane_cycles=4, combine=0)
GRAPHS = 30


class Asker:
    """A unit's port: asks now and then, and stays with what it asks until it is served."""

    def __init__(self, port, rng, rate):
        self.port, self.rng, self.rate = port, rng, rate
        self.asks = None
        self.waited = 0

    def drive(self, ctx, propose, may=True):
        if self.asks is None and may and self.rng.random() < self.rate:
            self.asks, self.waited = propose(), 0
        ctx.set(self.port.valid, self.asks is not None)
        if self.asks is not None:
            if hasattr(self.port, "payload"):
                ctx.set(self.port.payload, dict(zip(("addr", "data", "mask"), self.asks)))
            else:
                ctx.set(self.port.addr, self.asks)

    def served(self, ctx):
        """Return what has been served in this cycle, if anything."""
        done = None
        if self.asks is not None:
            self.waited += 1
            if ctx.get(self.port.ready):
                done, self.asks = self.asks, None
        return done


@pytest.mark.parametrize("rates", [(1, 0.5, 0.3, 0.3, 0.3), (1, 1, 1, 1, 1), (0.5, 0.2, 0.2, 0.5, 0.5)], ids=["often", "always", "some"])
@pytest.mark.parametrize("config", [SMALL, SERIAL], ids=["store unit goes on", "store unit waits"])
def test_everyone_is_served_in_order_and_the_execute_unit_is_never_refused(rates, config):
    dut = OnePortActivationMemory(config=config)
    rng = random.Random(4)
    model = [[0] * SMALL.rows for _ in range(SMALL.act_depth)]

    async def testbench(ctx):
        execute, store_w, load_w, store_r, load_r = (
            Asker(port, rng, rate)
            for port, rate in zip((dut.read_execute, dut.write_store, dut.write_load, dut.read_store, dut.read_load), rates)
        )
        readers, writers = (execute, store_r, load_r), (store_w, load_w)
        due, fresh, paused, last_store = [], {}, False, -9

        def unwritten():
            """An address that no write has changed lately or is about to."""
            taken = {addr for addr, cycle in fresh.items() if now - cycle <= ACT_WRITE_LATENCY}
            taken |= {asker.asks[0] for asker in writers if asker.asks}
            return rng.choice([addr for addr in range(SMALL.act_depth) if addr not in taken])

        def word():
            # What a unit waits to read does not change meanwhile: tokens see to that. Neither do two units write the same word.
            taken = {asker.asks for asker in readers} | {asker.asks[0] for asker in writers if asker.asks}
            taken |= {addr for addr, cycle in fresh.items() if now - cycle <= ACT_WRITE_LATENCY}
            addr = rng.choice([addr for addr in range(SMALL.act_depth) if addr not in taken])
            return addr, [rng.randrange(256) for _ in range(SMALL.rows)], rng.choice((0, 15))

        for now in range(3000):
            store_w.drive(ctx, word, may=now - last_store >= 2)
            load_w.drive(ctx, word)
            for reader in (store_r, load_r):
                reader.drive(ctx, unwritten)
            execute.drive(ctx, unwritten, may=not paused)
            assert ctx.get(dut.read_execute.ready)
            paused = ctx.get(dut.pause)
            order = [asker for asker in (load_w, store_r, load_r) if asker.asks is not None]
            ready = [ctx.get(asker.port.ready) for asker in order]
            assert sum(ready) <= (execute.asks is None) and sum(ready[1:]) == 0, "out of order"
            reading = execute.asks is not None
            for reader in readers:
                addr = reader.served(ctx)
                if addr is not None:
                    due.append((now + ACT_READ_LATENCY, reader, list(model[addr])))
            for writer in writers:
                if writer is store_w and writer.asks:
                    ready = ctx.get(writer.port.ready)
                    assert ready == (config is SMALL or not reading), "the store unit's write was refused"
                    last_store = now if ready else last_store
                done = writer.served(ctx)
                if done:
                    addr, data, mask = done
                    fresh[addr] = now
                    model[addr] = data if mask else model[addr]
            assert store_w.waited <= (1 if config is SMALL else 2) and (rates[1] == 1 or load_w.waited < 40)
            await ctx.tick()
            for when, reader, value in due:
                if when == now + 1:
                    assert list(ctx.get(reader.port.data)) == value, now
            due = [item for item in due if item[0] > now + 1]

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()


def test_random_graphs_on_an_engine_of_one_port_give_the_golden_integers():
    runs = golden_runs(CONFIG, GRAPHS)
    assert len(runs) > GRAPHS and all(stats.units is None for stats in runs)
