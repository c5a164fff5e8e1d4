"""Bench of :class:`celosia.rtl.store.Store`: random instructions leave the activation memory as the golden executor does.

Options: ``config``, the engine's JSON; ``count`` of instructions. Runs with every combination of an idle queue and operand
reads that are not always accepted. The whole memory is compared, so whatever lies around the destinations guards them.
"""

import cocotb
import numpy as np

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import ACC_READ_LATENCY, ACT_READ_LATENCY, TABLE_READ_LATENCY, ActWrite
from celosia.rtl.isa import INSTRUCTION_BITS
from celosia.sim.benches.clocked import Source, options, start
from celosia.sim.benches.store_cases import CONFIGS, StoreCase

LIMIT = 20_000


class Memories:
    """The memories around the unit; data ports carry noise whenever they are not specified."""

    def __init__(self, dut, case, rng, *, busy_read):
        self.dut, self.case, self.rng = dut, case, rng
        self.busy, self.serial, self.writes = busy_read, case.config.lane_cycles > 1, 1
        self.act = case.act.copy()
        config = case.config
        write = ActWrite(rows=config.rows)
        self.fields = {name: (write[name].offset, write[name].width) for name in ("addr", "data", "mask")}
        self.params = case.params
        latencies = {"acc": ACC_READ_LATENCY, "operand": ACT_READ_LATENCY, "params": 1, "tables": TABLE_READ_LATENCY}
        self.waiting = {name: [None] * latency for name, latency in latencies.items()}
        self.bits = {"acc": 32 * config.cols, "operand": 8 * config.rows, "params": 64 * config.lanes, "tables": 8 * config.lanes}
        if self.serial:
            self.bits["params"] = 32
        self.even = False

    def drive(self):
        self.ready = int(self.rng.random() >= self.busy)
        self.dut.operand_ready.value = self.ready
        if self.serial:  # the operand's port is not used
            self.params_ready = int(self.even or self.rng.random() >= self.busy)
            self.writes = self.ready
            self.dut.params_ready.value, self.dut.write_ready.value = self.params_ready, self.writes
        for name, waiting in self.waiting.items():
            value = waiting.pop(0)
            if value is None:
                value = int.from_bytes(self.rng.bytes(self.bits[name] // 8), "little")
            getattr(self.dut, f"{name}_data").value = value

    def sample(self):
        dut, case, config = self.dut, self.case, self.case.config
        entry = None
        if dut.acc_en.value == 1:
            entry = case.acc[int(dut.acc_bank.value), dut.acc_addr.value.to_unsigned()].tobytes()
        self._answer("acc", entry)
        word = None
        if dut.operand_valid.value == 1 and self.ready:
            word = self.act[dut.operand_addr.value.to_unsigned()].tobytes()
        self._answer("operand", word)
        addr = dut.params_addr.value.to_unsigned() if dut.params_addr.value.is_resolvable else config.param_depth
        if self.serial:
            served = dut.params_valid.value == 1 and self.params_ready
            self.even = served and addr % 2 == 0
            word = self.params[addr >> 1] >> 32 * (addr & 1) & 0xFFFFFFFF if addr >> 1 < config.param_depth else None
            self.waiting["params"].append(word if served else None)
        else:
            self.waiting["params"].append(self.params[addr] if addr < config.param_depth else None)
        addrs = dut.tables_addr.value
        looked = None
        if addrs.is_resolvable:
            places = [addrs.to_unsigned() >> 12 * lane & 0xFFF for lane in range(config.lanes)]
            looked = bytes(case.tables.flat[place % case.tables.size] for place in places)
        self._answer("tables", looked)
        if dut.write_valid.value == 1 and self.writes:
            payload = dut.write_payload.value.to_unsigned()
            addr, data, mask = (payload >> offset & (1 << width) - 1 for offset, width in self.fields.values())
            chosen = [byte for byte in range(config.rows) if mask >> byte & 1]
            self.act[addr, chosen] = np.frombuffer(data.to_bytes(config.rows, "little"), np.int8)[chosen]

    def _answer(self, name, raw):
        self.waiting[name].append(None if raw is None else int.from_bytes(raw, "little"))


@cocotb.parametrize(idle=[0.0, 0.7], busy_read=[0.0, 0.5])
async def memory_equals_golden(dut, idle, busy_read):
    given = options(config=next(iter(CONFIGS.values())).to_json(), count=30)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    case = StoreCase(EngineConfig.from_json(given["config"]), rng, count=given["count"])
    memories = Memories(dut, case, rng, busy_read=busy_read)
    names = ("unit_i_valid", "acc_data", "operand_data", "operand_ready", "params_data", "tables_data")
    served = {"params_ready": 1} if memories.serial else {}
    cycles = await start(dut, write_ready=1, **served, **dict.fromkeys(names, 0))
    source = Source(dut, "unit_i", idle=idle, rng=rng)
    source.queue.extend(word | index << INSTRUCTION_BITS for index, word in enumerate(case.encoded))
    source.start(cycles)
    done = []
    for _ in range(LIMIT):
        memories.drive()
        await cycles.sample()
        memories.sample()
        assert dut.unit_error.value[0] == 0, "the unit reports an error"
        if dut.unit_done.value[0] == 1:
            done.append(dut.unit_done.value.to_unsigned() >> 1)
        await cycles.drive()
        if len(done) == len(case.instructions):
            break
    assert done == [i.signal_load | i.signal_execute << 1 | i.signal_store << 2 for i in case.instructions]
    wrong = np.argwhere(memories.act != case.expected)
    assert not len(wrong), f"{len(wrong)} bytes differ, first (word, byte) {wrong[0]}"
    await cycles.sample()
    assert dut.unit_idle.value == 1
