"""Bench of :class:`celosia.rtl.spram.SinglePortRam`: random accesses beside a model, few addresses often and any address now and then.

Options: ``width``, ``depth``, ``granularity``, ``count`` of cycles.
"""

import cocotb
import numpy as np

from celosia.sim.benches.clocked import options, start


@cocotb.test()
async def accesses_equal_the_model(dut):
    given = options(width=32, depth=16384, granularity=32, count=3000)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    parts, grain = given["width"] // given["granularity"], given["granularity"]
    pool = sorted({0, given["depth"] - 1, *(int(addr) for addr in rng.integers(0, given["depth"], 30))})
    model, expected = {}, None
    cycles = await start(dut, addr=0, en=0, mask=0, w_data=0)
    for number in range(given["count"]):
        fill = number < len(pool)  # content is undefined at first
        addr = pool[number] if fill else pool[int(rng.integers(len(pool)))]
        mask = (1 << parts) - 1 if fill else int(rng.integers(0, 1 << parts)) * int(rng.integers(2))
        value = int.from_bytes(rng.bytes(given["width"] // 8), "little")
        en = fill or rng.random() < 0.8
        dut.addr.value, dut.en.value, dut.mask.value, dut.w_data.value = addr, int(en), mask, value
        await cycles.sample()
        if expected is not None:
            assert dut.r_data.value.to_unsigned() == expected, f"cycle {number}"
        await cycles.drive()
        if en and mask:
            keep = sum((1 << grain) - 1 << grain * part for part in range(parts) if not mask >> part & 1)
            model[addr] = model.get(addr, 0) & keep | value & ~keep & (1 << given["width"]) - 1
            expected = None
        elif en:
            expected = model[addr]
