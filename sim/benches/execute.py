"""Bench of :class:`celosia.rtl.execute.Execute`: random instructions leave the golden executor's sums in the accumulators.

Options: ``config``, the engine's JSON; ``idle``, the probability that the queue is empty; ``reading``, the probability that the
store unit reads in a cycle, always the bank that execution does not use; ``count`` of instructions per bank.
"""

from collections import deque

import cocotb
import numpy as np

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import ACT_READ_LATENCY, acc_read_latency
from celosia.rtl.isa import INSTRUCTION_BITS, encode
from celosia.sim.benches.clocked import Source, options, start
from celosia.sim.benches.stimuli import make, random_execute, random_machine

LIMIT = 20000


@cocotb.test()
async def sums_equal_golden(dut):
    given = options(config=EngineConfig.load("test").to_json(), idle=0.0, reading=0.0, count=30)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    config = EngineConfig.from_json(given["config"])
    golden = random_machine(config, rng)
    banks = range(config.weight_rows)
    weights = {f"weight{bank}_data": 0 for bank in banks}
    acts = ["act", *(f"act{row}" for row in range(1, config.depthwise_rows))]
    reads = {f"{act}_{part}": value for act in acts for part, value in (("ready", 1), ("data", 0))}
    cycles = await start(dut, unit_i_valid=0, acc_en=0, acc_bank=0, acc_addr=0, pause=0, pause_load=0, **reads, **weights)
    source = Source(dut, "unit_i", idle=given["idle"], rng=rng)
    source.start(cycles)
    activations = (_activations(dut, cycles, golden, rng, act) for act in acts)
    for memory in (*activations, *(_weights(dut, cycles, golden, bank) for bank in banks)):
        cocotb.start_soon(memory)
    store = _Store(dut, golden, rng)

    clear = [make(tile_cols=config.acc_depth, bank=bank) for bank in range(2)]  # memories may start unknown
    await _execute(dut, cycles, source, store, golden, clear)
    for bank in (0, 1, 0):
        # While one bank is filled the store unit may read the other, whose contents are those of before.
        store.bank, store.probability = 1 - bank, given["reading"]
        instructions = [random_execute(rng, config, bank=bank) for _ in range(given["count"])]
        await _execute(dut, cycles, source, store, golden, instructions)
        store.bank, store.probability = bank, 1.0
        for _ in range(4 * config.acc_depth):
            await store.cycle(cycles)
    assert store.checked > 8 * config.acc_depth


async def _execute(dut, cycles, source, store, golden, instructions):
    """Run ``instructions`` on both; return once they are done."""
    source.queue.extend(encode(instruction) | index << INSTRUCTION_BITS for index, instruction in enumerate(instructions))
    done = []
    for _ in range(LIMIT):
        signals = await store.cycle(cycles)
        if signals & 1:
            done.append(signals >> 1)
        if len(done) == len(instructions):
            break
    assert done == [i.signal_load | i.signal_store << 2 for i in instructions]
    for index, instruction in enumerate(instructions):
        golden.run_execute(index, instruction)
    assert dut.unit_idle.value == 1


async def _activations(dut, cycles, golden, rng, act):
    address, valid, data = (getattr(dut, f"{act}_{part}") for part in ("addr", "valid", "data"))
    pipe = deque([None] * ACT_READ_LATENCY)
    while True:
        await cycles.sample()
        pipe.append(address.value.to_unsigned() if valid.value == 1 else None)
        await cycles.drive()
        addr = pipe[1]
        pipe.popleft()
        word = golden.act[0, addr].tobytes() if addr is not None else rng.bytes(golden.config.rows)
        data.value = int.from_bytes(word, "little")


async def _weights(dut, cycles, golden, bank):
    port, load_cycles = (getattr(dut, f"weight{bank}_{part}") for part in ("addr", "data")), golden.config.load_cycles
    addr, data = port
    while True:
        await cycles.sample()
        tile, entry = divmod(addr.value.to_unsigned(), load_cycles)
        await cycles.drive()
        data.value = int.from_bytes(golden.weights[0, tile, bank * load_cycles + entry].tobytes(), "little")


class _Store:
    """Reads random entries of ``bank`` and compares them with the golden executor."""

    def __init__(self, dut, golden, rng):
        self.dut, self.golden, self.rng, self.probability = dut, golden, rng, 0.0
        self.bank, self.checked = 0, 0
        self.pipe = deque([None] * acc_read_latency(golden.config.pipelining))

    async def cycle(self, cycles):
        """Spend one cycle; return the bits of ``done``."""
        reading = self.rng.random() < self.probability
        entry = int(self.rng.integers(0, self.golden.config.acc_depth))
        self.dut.acc_en.value, self.dut.acc_bank.value, self.dut.acc_addr.value = int(reading), self.bank, entry
        self.pipe.append(self.golden.acc[0, self.bank, entry].tobytes() if reading else None)
        await cycles.sample()
        expected = self.pipe.popleft()
        if expected is not None:
            assert self.dut.acc_data.value.to_unsigned() == int.from_bytes(expected, "little")
            self.checked += 1
        assert not self.dut.unit_error.value.to_unsigned() & 1, "the unit reports an error"
        done = self.dut.unit_done.value.to_unsigned()
        await cycles.drive()
        return done
