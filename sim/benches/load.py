"""Bench of :class:`celosia.rtl.load.Load` and :class:`celosia.rtl.serial_load.SerialLoad`: random instructions leave activation and
weight memory as the golden executor does.

Options: ``config``, the engine's JSON; the probabilities of a cycle without an instruction (``idle``), without a read
(``refuse_reads``), without a write (``refuse_writes``); ``count`` of instructions. Both memories are compared whole: whatever lies
around the destinations guards them.
"""

from collections import deque

import cocotb
import numpy as np

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import ACT_READ_LATENCY, ActWrite
from celosia.rtl.isa import INSTRUCTION_BITS, encode
from celosia.sim.benches.clocked import Source, options, start
from celosia.sim.benches.load_cases import random_load
from celosia.sim.benches.stimuli import random_machine

LIMIT = 100_000


class Memory:
    """The memories around the unit; read data are noise whenever nothing was read for them."""

    def __init__(self, dut, config, act, weights, rng, *, refuse_reads, refuse_writes):
        self.dut, self.config, self.act, self.weights, self.rng = dut, config, act.copy(), weights.copy(), rng
        self.refuse_reads, self.refuse_writes = refuse_reads, refuse_writes
        self.arriving = deque([None] * ACT_READ_LATENCY)
        self.write = ActWrite(rows=config.rows)
        self.refused = None

    def drive(self):
        word = self.arriving.popleft()
        word = self.rng.bytes(self.config.rows) if word is None else word
        self.dut.read_data.value = int.from_bytes(word, "little")
        self.dut.read_ready.value = int(self.rng.random() >= self.refuse_reads)
        self.dut.write_ready.value = int(self.rng.random() >= self.refuse_writes)

    def sample(self):
        dut, config = self.dut, self.config
        if enable := config.fill and dut.fill_en.value.to_unsigned():
            assert enable.bit_count() == 1
            tile, entry = divmod(dut.fill_addr.value.to_unsigned(), config.load_cycles)
            row = (enable.bit_length() - 1) * config.load_cycles + entry
            self.weights[tile, row] = np.frombuffer(dut.fill_data.value.to_unsigned().to_bytes(config.cols, "little"), np.int8)
        reading = dut.read_valid.value == 1 and dut.read_ready.value == 1
        self.arriving.append(self.act[dut.read_addr.value.to_unsigned()].tobytes() if reading else None)
        if dut.write_valid.value == 0:
            assert self.refused is None, "a refused write was withdrawn"
            return
        payload = dut.write_payload.value.to_unsigned()
        assert self.refused in (None, payload), "a refused write changed"
        self.refused = payload
        if dut.write_ready.value == 1:
            self.refused = None
            addr, data, mask = (payload >> field.offset & (1 << field.width) - 1 for _, field in self.write)
            assert mask == (1 << self.config.rows) - 1
            self.act[addr] = np.frombuffer(data.to_bytes(self.config.rows, "little"), np.int8)


@cocotb.test()
async def memory_equals_golden(dut):
    given = options(config=EngineConfig.load("test").to_json(), idle=0.0, refuse_reads=0.0, refuse_writes=0.0, count=25)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    config = EngineConfig.from_json(given["config"])
    golden = random_machine(config, rng)
    memory = Memory(dut, config, golden.act[0], golden.weights[0], rng, refuse_reads=given["refuse_reads"],
                    refuse_writes=given["refuse_writes"])  # fmt: skip
    cycles = await start(dut, unit_i_valid=0, read_ready=0, read_data=0, write_ready=0)
    source = Source(dut, "unit_i", idle=given["idle"], rng=rng)
    instructions = [random_load(rng, config) for _ in range(given["count"])]
    source.queue.extend(encode(instruction) | index << INSTRUCTION_BITS for index, instruction in enumerate(instructions))
    source.start(cycles)
    signals = []
    for _ in range(LIMIT):
        memory.drive()
        await cycles.sample()
        memory.sample()
        assert not dut.unit_error.value.to_unsigned() & 1, "the unit reports an error"
        done = dut.unit_done.value.to_unsigned()
        if done & 1:
            signals.append(done >> 1)
            golden.run_load(len(signals) - 1, instructions[len(signals) - 1])
            assert np.array_equal(memory.act, golden.act[0]), f"memory differs after {instructions[len(signals) - 1]}"
            assert np.array_equal(memory.weights, golden.weights[0]), f"weights differ after {instructions[len(signals) - 1]}"
        if len(signals) == len(instructions):
            break
        await cycles.drive()
    assert signals == [i.signal_load | i.signal_execute << 1 | i.signal_store << 2 for i in instructions]
