"""Bench of :class:`celosia.rtl.array.Array`: random tiles and words as fast as loading allows, noise wherever nothing is read.

Options: ``rows``, ``cols``, ``weight_rows``, ``image_rows`` (0: no depthwise mode); ``gaps``, the probability of a cycle without a word;
``passes``; ``multiplier``.
"""

import cocotb
import numpy as np

from celosia.rtl.array import array_latency
from celosia.rtl.rows import sum_width
from celosia.sim.benches.clocked import options, start


@cocotb.test()
async def products_and_filters(dut):
    given = options(rows=4, cols=4, weight_rows=1, image_rows=0, gaps=0.0, passes=60, multiplier="portable")
    rows, cols, banks, image_rows = given["rows"], given["cols"], given["weight_rows"], given["image_rows"]
    taps = rows // image_rows if image_rows else 0
    load_cycles, width = rows // banks, sum_width(rows)
    latency = array_latency(rows, given["multiplier"])
    rng = np.random.default_rng(cocotb.RANDOM_SEED)

    loads, words, slots, expected = {}, {}, {}, {}  # by cycle
    now = 1
    for _ in range(given["passes"]):
        first = now
        loads[now - 1] = tile = _numbers(rng, (rows, cols))
        length = int(rng.integers(1, 2 * load_cycles + 1))
        if image_rows and rng.random() < 0.5:
            stream = _numbers(rng, (length + taps - 1, image_rows, rows))
            slot = int(rng.integers(0, rows // cols))
            for n, word in enumerate(stream):
                words[now + n], slots[now + n] = word, (1, slot)
            for n in range(length):
                expected[now + n + latency] = _filter(stream[n : n + taps], tile, slot)
            now += len(stream)
            length = 0
        for _ in range(length):
            words[now] = _numbers(rng, (1, rows))
            expected[now + latency] = list(words[now][0] @ tile)
            now += 1
            while rng.random() < given["gaps"]:
                now += 1
        now = max(now, first + load_cycles)

    cycles = await start(dut, word=0, load=0, weights=0, depthwise=0, slot=0)
    for cycle in range(now + latency + 1):
        dut.load.value = cycle in loads
        noise = rng.integers(-128, 128, (max(1, image_rows), rows))
        for row, word in enumerate([*words.get(cycle, noise), *noise[1:]][: len(noise)]):
            getattr(dut, f"word{row or ''}").value = _pack(word)
        dut.depthwise.value, dut.slot.value = slots.get(cycle, (0, 0) if cycle in words else (1, 0))
        weights = rng.integers(-128, 128, (banks, cols))
        for row in range(rows):
            if cycle - row in loads:
                weights[row // load_cycles] = loads[cycle - row][row]
        dut.weights.value = _pack(weights.reshape(-1))
        await cycles.sample()
        if cycle in expected:
            value = dut.sums.value.to_unsigned()
            sums = [value >> width * col & (1 << width) - 1 for col in range(cols)]
            assert [s - (s >> width - 1 << width) for s in sums] == expected[cycle], f"cycle {cycle}"
        await cycles.drive()


def _numbers(rng, shape):
    """Return int8, one array in three of its ends only."""
    ends = [[-128, 127], [-128], [-128, 0, 127]][int(rng.integers(0, 3))]
    return rng.choice(ends, shape) if rng.random() < 0.33 else rng.integers(-128, 128, shape)


def _filter(words, tile, slot):
    """Return the sums of the pixel that takes ``words`` ``[taps, image rows, rows]``."""
    taps, image_rows, _ = words.shape
    cols = tile.shape[1]
    weights = tile[: taps * image_rows].reshape(image_rows, taps, cols).swapaxes(0, 1)
    sums = (words[..., slot * cols : (slot + 1) * cols] * weights).sum((0, 1))
    return list(sums + words[0, 0, taps * image_rows :] @ tile[taps * image_rows :])


def _pack(values):
    return int.from_bytes(values.astype(np.int8).tobytes(), "little")
