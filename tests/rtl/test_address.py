"""Address generator: the pixels of isa.py in order, with their flags, one per cycle, and never two close uses of a sum."""

import dataclasses

import numpy as np
import pytest
from amaranth.hdl import Value
from amaranth.sim import Simulator

from celosia.rtl.address import AddressGenerator
from celosia.rtl.config import EngineConfig
from celosia.rtl.isa import ErrorCode, encode
from celosia.sim.benches.stimuli import make, random_execute
from celosia.sim.footprint import execute_reads

CONFIG = dataclasses.replace(EngineConfig.load("test"), depthwise_rows=3, act_banks=4)
WORD = ("addr", "padding")
PIXEL = ("switch", "depthwise", "slot", "pad", "unsigned")
TAG = ("counts", "entry", "bank", "overwrite", "max", "last", "index", "signal")
FIELDS = ("rows", "tile", *WORD, *PIXEL, *TAG)
FLAGS = ("act_range", "stop")


def expected(instructions):
    """Return what the generator must say, as a list of dicts."""
    pixels = []
    for index, i in enumerate(instructions):
        address, inside = execute_reads(i, CONFIG)
        seen, tile = set(), i.weights - 1
        if not i.depthwise:
            shape = (*address.shape[:3], -1, 1)
            address, inside = address.reshape(shape), inside.reshape(shape)
        width = i.tile_cols * i.stride_x + i.gap if i.depthwise else i.tile_cols
        for place in np.ndindex(address.shape[:4]):
            ky, kx, block, word = place
            y = min(word // width, i.tile_rows - 1)
            x, rest = divmod(word - y * width, i.stride_x if i.depthwise else 1)
            counts, x = rest == 0 and x < i.tile_cols, min(x, i.tile_cols - 1)
            entry = i.acc + ((block if i.per_block else 0) * i.tile_rows + y) * i.tile_cols + x
            first_tap = ky == kx == 0 and (i.per_block or block == 0)
            assert not counts or first_tap == (entry not in seen)
            seen.add(entry)
            switch = int(word == 0 and (not i.hold or ky == kx == block == 0))
            tile += switch
            pixels.append({
                "padding": int(not inside[place][0]),
                "addr": int(address[place][0]),
                "rows": list(zip((~inside[place][1:]).astype(int).tolist(), address[place][1:].tolist())),
                "switch": switch,
                "tile": tile if switch else None,
                "counts": int(counts),
                "entry": entry,
                "depthwise": i.depthwise,
                "slot": i.slot,
                "bank": i.bank,
                "overwrite": int(first_tap and not i.accumulate),
                "max": i.max,
                "last": int(place == tuple(n - 1 for n in address.shape[:4])),
                "pad": i.pad,
                "unsigned": i.unsigned,
                "index": index,
                "signal": i.signal_load | i.signal_execute << 1 | i.signal_store << 2,
            })  # fmt: skip
    return pixels


def run(instructions, rng, *, idle=0.0, stall=0.0, limit=None, **parameters):
    """Return the pixels, each with its tag, and the cycle of each."""
    depths = {name: getattr(CONFIG, name) for name in ("act_depth", "acc_depth", "weight_tiles", "program_depth")}
    facts = {"distance": 4, "image_rows": CONFIG.depthwise_rows, "slots": CONFIG.slots} | depths | parameters
    dut = AddressGenerator(**facts)
    pixels, tags, cycles = [], [], []
    count = limit or len(expected(instructions))

    async def source(ctx):
        for index, instruction in enumerate(instructions):
            while rng.random() < idle:
                await ctx.tick()
            ctx.set(dut.i.payload, {"instruction": encode(instruction), "index": index})
            ctx.set(dut.i.valid, 1)
            while not (await ctx.tick().sample(dut.i.ready))[2]:
                pass
            ctx.set(dut.i.valid, 0)

    async def sink(ctx):
        for cycle in range(200 + 40 * count):
            ctx.set(dut.o.ready, int(rng.random() >= stall))
            _, _, valid, ready, payload, tile, tag_valid, tag, *rows = await ctx.tick().sample(
                dut.o.valid,
                dut.o.ready,
                dut.o.payload,
                dut.tile,
                dut.tag_valid,
                dut.tag,
                *(Value.cast(part) for row in dut.rows for part in (row.addr, row.padding, row.read)),
            )
            if valid and ready:
                word, *others = zip(rows[::3], rows[1::3], rows[2::3])
                pixels.append(
                    {name: getattr(payload, name) for name in PIXEL}
                    | {"addr": word[0], "padding": word[1], "tile": tile if payload.switch else None}
                    | {"rows": [(padding, addr) for addr, padding, _ in others] if payload.depthwise else []}
                    | {"read": [read for _, _, read in (word, *others)]}
                    | tags[len(pixels)]
                )
                cycles.append(cycle)
                if len(pixels) == count:
                    return
            if tag_valid:
                tags.append({name: getattr(tag, name) for name in (*TAG, *FLAGS)})
        raise AssertionError(f"only {len(pixels)} of {count} pixels came")

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_process(source)
    sim.add_testbench(sink)
    sim.run()
    return pixels, np.array(cycles)


def fields(pixels):
    return [{name: pixel[name] for name in FIELDS} for pixel in pixels]


@pytest.mark.parametrize("idle", [0.0, 0.5])
@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_pixels_are_those_of_the_instruction_set(seed, idle, stall):
    rng = np.random.default_rng(seed)
    instructions = [random_execute(rng, CONFIG) for _ in range(12)]
    pixels, cycles = run(instructions, rng, idle=idle, stall=stall)
    assert fields(pixels) == expected(instructions)
    for pixel in pixels:
        assert not pixel["stop"] and not pixel["act_range"]
        words = [pixel["padding"], *(padding for padding, _ in pixel["rows"])]
        assert pixel["read"][: len(words)] == [1 - padding for padding in words] and not any(pixel["read"][len(words) :])
    for n, pixel in enumerate(pixels):
        for earlier in range(max(0, n - 3), n):
            same = (pixel["bank"], pixel["entry"]) == (pixels[earlier]["bank"], pixels[earlier]["entry"])
            same &= pixel["counts"] & pixels[earlier]["counts"]
            assert not same or pixel["overwrite"] or cycles[n] - cycles[earlier] >= 4


def test_depthwise_words_of_a_pass_follow_each_other():
    rng = np.random.default_rng(7)
    instructions = [random_execute(rng, CONFIG, pixels=8, passes=6, **_depthwise(rng)) for _ in range(16)]
    pixels, cycles = run(instructions, rng, idle=0.3)
    assert fields(pixels) == expected(instructions)
    ends = np.cumsum([words for i in instructions for words in [execute_reads(i, CONFIG)[0].shape[3]] * _passes(i)])[:-1]
    assert set(np.flatnonzero(np.diff(cycles) > 1) + 1) <= set(ends.tolist())


def _depthwise(rng):
    return {
        "depthwise": 1,
        "stride_x": int(rng.integers(1, 16)),
        "gap": int(rng.integers(0, 8)),
        "tail": int(rng.integers(0, 8)),
    }


def _passes(i):
    return i.kernel_y * i.kernel_x * i.blocks


def test_depthwise_passes_follow_without_bubble_unless_they_add():
    layer = make(depthwise=1, stride_x=1, tile_rows=2, tile_cols=3, gap=1, tail=1, blocks=3, per_block=1, hold=1, ky_step=9)
    _, cycles = run([layer, layer.replace(acc=18)], np.random.default_rng(0))
    assert (np.diff(cycles) == 1).all() and len(cycles) == 6 * 9
    _, cycles = run([layer.replace(kernel_x=2, gap=0, tail=0, blocks=1)], np.random.default_rng(0))
    assert np.diff(cycles).tolist() == [1] * 5 + [4] + [1] * 5


def test_widest_fields():
    wide = make(
        start=65535, y0=-4096, x0=4095, stride_y=15, stride_x=15, dilation_y=63, dilation_x=63, row_step=65535, ky_step=65535,
        block_step=65535, tile_rows=3, tile_cols=2, kernel_y=64, kernel_x=3, blocks=2, weights=65535, hold=1,
    )  # fmt: skip
    blocks = make(blocks=256, block_step=257, hold=1, per_block=1)
    taps = wide.replace(depthwise=1, gap=7, tail=7, tile_rows=2, tile_cols=1, kernel_x=1, blocks=1)
    pixels, _ = run([wide, blocks, taps], np.random.default_rng(0), act_depth=1 << 16, acc_depth=1 << 10, weight_tiles=1 << 16)
    assert fields(pixels) == expected([wide, blocks, taps])


def test_no_bubble_between_passes_and_instructions():
    instructions = [make(tile_cols=4, kernel_y=3, kernel_x=2, blocks=2, row_step=7), make(tile_rows=4, tile_cols=2, bank=1),
                    make(tile_cols=4, blocks=3, accumulate=1), make(tile_rows=5, acc=9)]  # fmt: skip
    _, cycles = run(instructions, np.random.default_rng(0))
    assert (np.diff(cycles) == 1).all()


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_short_passes_wait_for_the_sum_of_the_last(pixels):
    _, cycles = run([make(tile_cols=pixels, blocks=6, hold=1)], np.random.default_rng(0))
    starts = cycles[::pixels]
    assert (np.diff(starts) == 4).all()


def test_overwriting_does_not_wait():
    _, cycles = run([make(tile_cols=2, acc=5)] * 4, np.random.default_rng(0))
    assert (np.diff(cycles)[::2] == 1).all() and (np.diff(cycles) <= 2).all()


def test_range_flags_rise_at_the_first_place_outside():
    inside = make(tile_cols=8, stride_x=1, start=CONFIG.act_depth - 8, acc=CONFIG.acc_depth - 8, weights=CONFIG.weight_tiles - 1)
    pixels, _ = run([inside], np.random.default_rng(0))
    assert not any(pixel["act_range"] or pixel["stop"] for pixel in pixels)
    pixels, _ = run([inside.replace(start=CONFIG.act_depth - 7)], np.random.default_rng(0))
    assert [pixel["act_range"] for pixel in pixels] == [0] * 7 + [1]
    assert [pixel["read"][0] for pixel in pixels] == [1] * 7 + [0]
    pixels, _ = run([inside.replace(acc=CONFIG.acc_depth - 7)], np.random.default_rng(0))
    assert [pixel["stop"] for pixel in pixels] == [0] * 7 + [1] and pixels[7]["signal"] == ErrorCode.ACC_RANGE.value
    pixels, _ = run([inside.replace(blocks=2)], np.random.default_rng(0))
    assert [pixel["stop"] for pixel in pixels] == [0] * 8 + [1] * 8 and pixels[8]["signal"] == ErrorCode.WEIGHT_RANGE.value


@pytest.mark.parametrize("acc_depth, tile", [(8, {"tile_cols": 9}), (8, {"tile_rows": 1024}), (1000, {"tile_rows": 4, "tile_cols": 251})])
def test_tiles_larger_than_the_accumulators_stop_at_the_first_pixel_that_does_not_fit(acc_depth, tile):
    pixels, _ = run([make(**tile)], np.random.default_rng(0), acc_depth=acc_depth, limit=acc_depth + 1)
    assert [pixel["stop"] for pixel in pixels] == [0] * acc_depth + [1]
    assert [pixel["entry"] for pixel in pixels[:-1]] == list(range(acc_depth))


def test_the_high_bits_of_a_number_are_looked_at():
    """Low bits of a legal tile and of a legal entry."""
    for wrong in ({"weights": 1 << 15}, {"acc": 512}):
        (pixel,), _ = run([make(**wrong)], np.random.default_rng(0))
        assert pixel["stop"]
