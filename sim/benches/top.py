"""Bench of :class:`celosia.rtl.top.Top`: a recorded conversation over the host port gets the same answers at any pace.

Options: ``steps``, the path of a JSON list of ``["write" | "read", address, words]`` and ``["wait", limit]``, as a driver made them on another
simulator; ``idle``, the probability that the master pauses for a cycle before an access.
"""

import json
from pathlib import Path

import cocotb
import numpy as np

from celosia.sim.benches.clocked import options, start

PATIENCE = 64


@cocotb.test()
async def conversation_gets_the_recorded_answers(dut):
    given = options(steps=None, idle=0.3)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    cycles = await start(dut, **{f"bus_{name}": 0 for name in ("cyc", "stb", "we", "adr", "sel", "dat_w")})
    for verb, *facts in json.loads(Path(given["steps"]).read_text()):
        if verb == "wait":
            await _until_interrupt(dut, cycles, *facts)
            continue
        address, words = facts
        for number, word in enumerate(words):
            while rng.random() < given["idle"]:
                await cycles.drive()
            answer = await _access(dut, cycles, verb == "write", address // 4 + number, word)
            if verb == "read":
                assert answer == word, f"read of {address + 4 * number:#x} gave {answer:#x}, not {word:#x}"


async def _access(dut, cycles, write, adr, word):
    """Make one access; return the data in the cycle of ``ack``."""
    for name, value in {"cyc": 1, "stb": 1, "we": int(write), "adr": adr, "sel": 15, "dat_w": word if write else 0}.items():
        getattr(dut, f"bus_{name}").value = value
    for _ in range(PATIENCE):
        await cycles.sample()
        assert dut.bus_err.value == 0, f"err at {4 * adr:#x}"
        acknowledged = dut.bus_ack.value == 1
        answer = dut.bus_dat_r.value.to_unsigned() if acknowledged and not write else None
        await cycles.drive()
        if acknowledged:
            dut.bus_cyc.value = dut.bus_stb.value = 0
            return answer
    raise AssertionError(f"no answer at {4 * adr:#x} within {PATIENCE} cycles")


async def _until_interrupt(dut, cycles, limit):
    for _ in range(limit):
        await cycles.sample()
        interrupt = dut.irq.value == 1
        await cycles.drive()
        if interrupt:
            return
    raise AssertionError(f"no interrupt within {limit} cycles")
