"""Bench of :class:`celosia.rtl.memory.ActivationMemory`: concurrent traffic on all ports equals a model.

Options: ``config``, the engine's JSON; ``rate``, the probability that a port asks in a cycle; ``count`` of cycles.
"""

from collections import deque

import cocotb
import numpy as np

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import ACT_READ_LATENCY, ACT_WRITE_LATENCY, ActWrite, HostSignature
from celosia.sim.benches.clocked import options, start

WRITERS = ("store", "load")


def _port(dut, name, part):
    return getattr(dut, f"{name}_{part}")


@cocotb.test()
async def traffic_equals_the_model(dut):
    given = options(config=EngineConfig.load("test").to_json(), rate=0.7, count=4000)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    config = EngineConfig.from_json(given["config"])
    readers = ("execute", *(f"execute{row}" for row in range(1, config.depthwise_rows)), "store", "load")
    cycles = await _start(dut, readers)
    model = await _fill(dut, cycles, config, rng)
    layout = ActWrite(rows=config.rows)
    due, behind = [], None
    landing = deque(maxlen=ACT_WRITE_LATENCY)  # addresses of writes that not every read sees yet
    for cycle in range(given["count"]):
        writes, reads = {}, {}
        for unit in WRITERS:
            word = int(rng.integers(0, config.act_depth)), rng.bytes(config.rows), _mask(rng, config)
            asks = rng.random() < given["rate"]
            values = word[0], int.from_bytes(word[1], "little"), word[2]
            _port(dut, f"write_{unit}", "payload").value = sum(v << field.offset for v, (_, field) in zip(values, layout))
            _port(dut, f"write_{unit}", "valid").value = int(asks)
            if asks:
                writes[unit] = word
        landing.append({word[0] for word in writes.values()})
        for unit in readers:
            addr = int(rng.integers(0, config.act_depth))
            asks = rng.random() < given["rate"] and not any(addr in taken for taken in landing)
            _port(dut, f"read_{unit}", "addr").value = addr
            _port(dut, f"read_{unit}", "valid").value = int(asks)
            if asks:
                reads[unit] = addr
        await cycles.sample()
        for when, unit, word in due:
            if when == cycle:
                data = _port(dut, f"read_{unit}", "data").value.to_unsigned().to_bytes(config.rows, "little")
                assert data == word, f"read of {unit} differs in cycle {cycle}"
        due = [item for item in due if item[0] > cycle]
        busy = set()
        for unit in readers:
            if unit in reads:
                bank = reads[unit] % config.act_banks
                assert _port(dut, f"read_{unit}", "ready").value == int(bank not in busy)
                if bank not in busy:
                    due.append((cycle + ACT_READ_LATENCY, unit, bytes(model[reads[unit]])))
                busy.add(bank)
        # The store unit's write meets the load unit's one cycle after it was taken.
        assert _port(dut, "write_store", "ready").value == 1
        meeting = [behind] if behind else []
        if "load" in writes:
            refused = behind is not None and behind[0] % config.act_banks == writes["load"][0] % config.act_banks
            assert _port(dut, "write_load", "ready").value == int(not refused)
            meeting += [] if refused else [writes["load"]]
        _write(model, meeting)
        behind = writes.get("store")
        await cycles.drive()
    _write(model, [behind] if behind else [])
    for name in (*(f"read_{unit}" for unit in readers), *(f"write_{unit}" for unit in WRITERS)):
        _port(dut, name, "valid").value = 0  # the host comes only when nobody else does
    for addr in range(config.act_depth * config.rows // 4):
        word, part = divmod(addr, config.rows // 4)
        assert await _host_read(dut, cycles, addr) == int.from_bytes(model[word][4 * part : 4 * part + 4], "little")


def _mask(rng, config):
    """Return a mask of any words, or slots where they are smaller."""
    group = min(4, config.cols)
    return sum((1 << group) - 1 << first for first in range(0, config.rows, group) if rng.random() < 0.5)


def _write(model, words):
    for addr, data, mask in words:
        for lane, byte in enumerate(data):
            if mask >> lane & 1:
                model[addr][lane] = byte


async def _start(dut, readers):
    ports = {f"read_{unit}_{part}": 0 for unit in readers for part in ("addr", "valid")}
    ports |= {f"write_{unit}_{part}": 0 for unit in WRITERS for part in ("payload", "valid")}
    return await start(dut, **ports, **{f"host_{part}": 0 for part in ("addr", "we", "re", "w_data")})


async def _fill(dut, cycles, config, rng):
    model = [bytearray(rng.bytes(config.rows)) for _ in range(config.act_depth)]
    for addr in range(config.act_depth * config.rows // 4):
        word, part = divmod(addr, config.rows // 4)
        dut.host_addr.value, dut.host_we.value = addr, 1
        await cycles.drive()
        dut.host_we.value = 0
        dut.host_w_data.value = int.from_bytes(model[word][4 * part : 4 * part + 4], "little")
        await cycles.drive()
        dut.host_w_data.value = 0
    for _ in range(ACT_WRITE_LATENCY):  # the host's writes take a cycle more
        await cycles.drive()
    return model


async def _host_read(dut, cycles, addr):
    dut.host_addr.value, dut.host_re.value = addr, 1
    for _ in range(HostSignature.READ_LATENCY):
        await cycles.drive()
    await cycles.sample()
    value = dut.host_r_data.value.to_unsigned()
    await cycles.drive()
    dut.host_re.value = 0
    await cycles.drive()
    return value
