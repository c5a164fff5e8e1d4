"""Address generator: the pixels of isa.py in order, with their flags, one per cycle, and never two close uses of a sum."""

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from celosia.rtl.address import PassGenerator, Pixel, PixelGenerator
from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import QueuedInstruction
from celosia.rtl.isa import encode
from celosia.sim.benches.stimuli import make, random_execute
from celosia.sim.footprint import execute_reads

CONFIG = EngineConfig.load("test")
FIELDS = ("addr", "padding", "switch", "entry", "bank", "overwrite", "max", "last", "pad", "unsigned", "index")


class Chain(wiring.Component):
    """Both generators, one behind the other."""

    def __init__(self, *, distance=4, act_depth=CONFIG.act_depth, acc_depth=CONFIG.acc_depth):
        self.pixels = PixelGenerator(act_depth=act_depth, acc_depth=acc_depth, distance=distance)
        super().__init__({"i": In(stream.Signature(QueuedInstruction)), "o": Out(stream.Signature(Pixel))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.passes = passes = PassGenerator()
        m.submodules.pixels = self.pixels
        wiring.connect(m, wiring.flipped(self.i), passes.i)
        wiring.connect(m, passes.o, self.pixels.i)
        wiring.connect(m, self.pixels.o, wiring.flipped(self.o))
        return m


def expected(instructions):
    """Return what the generator must say, as a list of dicts."""
    pixels = []
    for index, i in enumerate(instructions):
        address, inside = execute_reads(i)
        seen = set()
        for place in np.ndindex(address.shape):
            ky, kx, block, y, x = place
            entry = i.acc + ((block if i.per_block else 0) * i.tile_rows + y) * i.tile_cols + x
            first_tap = ky == kx == 0 and (i.per_block or block == 0)
            assert first_tap == (entry not in seen)
            seen.add(entry)
            pixels.append({
                "padding": int(not inside[place]),
                "addr": int(address[place]),
                "switch": int(y == x == 0 and (not i.hold or ky == kx == block == 0)),
                "entry": entry,
                "bank": i.bank,
                "overwrite": int(first_tap and not i.accumulate),
                "max": i.max,
                "last": int(place == tuple(n - 1 for n in address.shape)),
                "pad": i.pad,
                "unsigned": i.unsigned,
                "index": index,
            })  # fmt: skip
    return pixels


def run(instructions, rng, *, idle=0.0, stall=0.0, limit=None, **parameters):
    """Return the pixels and the cycle of each."""
    dut = Chain(**parameters)
    pixels, cycles = [], []
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
            _, _, valid, ready, payload = await ctx.tick().sample(dut.o.valid, dut.o.ready, dut.o.payload)
            if valid and ready:
                pixels.append({name: getattr(payload, name) for name in ("act_range", "acc_range", *FIELDS)})
                cycles.append(cycle)
                if len(pixels) == count:
                    return
        raise AssertionError(f"only {len(pixels)} of {count} pixels came")

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_process(source)
    sim.add_testbench(sink)
    sim.run()
    return pixels, np.array(cycles)


@pytest.mark.parametrize("idle", [0.0, 0.5])
@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_pixels_are_those_of_the_instruction_set(seed, idle, stall):
    rng = np.random.default_rng(seed)
    instructions = [random_execute(rng, CONFIG) for _ in range(12)]
    pixels, cycles = run(instructions, rng, idle=idle, stall=stall)
    for pixel, want in zip(pixels, expected(instructions), strict=True):
        assert {name: pixel[name] for name in FIELDS} == want
        assert not pixel["acc_range"] and (pixel["padding"] or not pixel["act_range"])
    for n, pixel in enumerate(pixels):
        for earlier in range(max(0, n - 3), n):
            same = (pixel["bank"], pixel["entry"]) == (pixels[earlier]["bank"], pixels[earlier]["entry"])
            assert not same or pixel["overwrite"] or cycles[n] - cycles[earlier] >= 4


def test_widest_fields():
    wide = make(
        start=65535, y0=-4096, x0=4095, stride_y=15, stride_x=15, dilation_y=63, dilation_x=63, row_step=65535, ky_step=65535,
        block_step=65535, tile_rows=3, tile_cols=2, kernel_y=64, kernel_x=3, blocks=2, weights=65535, hold=1,
    )  # fmt: skip
    blocks = make(blocks=256, block_step=257, hold=1, per_block=1)
    pixels, _ = run([wide, blocks], np.random.default_rng(0), act_depth=1 << 16, acc_depth=1 << 10)
    assert [{name: pixel[name] for name in FIELDS} for pixel in pixels] == expected([wide, blocks])


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
    inside = make(tile_cols=8, stride_x=1, start=CONFIG.act_depth - 8, acc=CONFIG.acc_depth - 8)
    pixels, _ = run([inside], np.random.default_rng(0))
    assert not any(pixel["act_range"] or pixel["acc_range"] for pixel in pixels)
    pixels, _ = run([inside.replace(start=CONFIG.act_depth - 7)], np.random.default_rng(0))
    assert [pixel["act_range"] for pixel in pixels] == [0] * 7 + [1]
    pixels, _ = run([inside.replace(acc=CONFIG.acc_depth - 7)], np.random.default_rng(0))
    assert [pixel["acc_range"] for pixel in pixels] == [0] * 7 + [1]
