"""A sweep of single convolutions: shapes drawn from a seed, and what those that are far from their compute-only bound wait for.

Each is measured as a layer runs within a network: an input of at least as many channels as the array has rows lies in the activation memory as
the layer before would have left it, one of fewer channels as the plain dense tensor of a network's first layer.
"""

import numpy as np

from celosia.rtl.isa import Opcode
from celosia.sim.executor import instructions_of

__all__ = ["SHAPES", "cause", "lost_cycles", "shapes"]

ACTIVATIONS = 128 << 10
"""Bytes that input and output of a shape may take together, channels rounded up to 16; an input to be unfolded counts twice."""

WEIGHTS = 1024
"""Tiles of 16 × 16 weights that a shape may take."""

CAUSES = {
    "weights": "weights take longer to load than they are used",
    "packing": "packed taps and channels do not fill the rows",
    "input": "load-bound: waits for the unfolded input",
    "results": "store-bound: waits for an accumulator bank",
    "tiles": "short tiles: pipeline and stalls within EXECUTE",
    "overhead": "short program: start, pipeline, last store",
}
"""What the cycles beyond the bound are lost to, and the sentence for it."""


def shapes(count=60, seed=0):
    """Return ``(channels, size, outputs, kernel, stride)`` of ``count`` convolutions.

    Kernels 1…7 and strides 1…3 take turns, so that each pair comes equally often. Channels and outputs in 1…512 and sizes in 1…112 are
    drawn for each: in every other shape all numbers are equally likely, in the others their logarithms are, which gives as many
    small ones as large ones. Large maps of many channels do not fit on the chip of ``mac256``: then, in turns of two shapes, the
    channels or the size are drawn again, so that both span their range. Nothing else is chosen.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        kernel, stride = 1 + number % 7, 1 + number // 7 % 3
        evenly, keep_size = number % 2, number // 2 % 2
        channels, outputs, size = _draw(rng, 512, evenly), _draw(rng, 512, evenly), _draw(rng, 112, evenly)
        while not (_fits(1, size, 1, kernel, stride) if keep_size else _fits(channels, 1, outputs, kernel, stride)):
            channels, outputs, size = _draw(rng, 512, evenly), _draw(rng, 512, evenly), _draw(rng, 112, evenly)
        while not _fits(channels, size, outputs, kernel, stride):
            if keep_size:
                channels, outputs = _draw(rng, 512, evenly), _draw(rng, 512, evenly)
            else:
                size = _draw(rng, 112, evenly)
        found.append((channels, size, outputs, kernel, stride))
    return tuple(found)


def _draw(rng, most, evenly):
    return int(rng.integers(1, most + 1)) if evenly else round(most ** rng.uniform())


def _fits(channels, size, outputs, kernel, stride):
    blocks, out_blocks, out = -(-channels // 16), -(-outputs // 16), -(-size // stride)
    words = blocks * size**2 if channels >= 16 else channels * size**2 // 8  # unfolded, and in part as it came
    return 16 * (words + out_blocks * out**2) <= ACTIVATIONS and out_blocks * blocks * kernel**2 <= WEIGHTS


SHAPES = shapes()


def lost_cycles(trace, bound, config):
    """Return how many cycles beyond ``bound`` a program lost to each of :data:`CAUSES`.

    Parameters
    ----------
    trace : (Program, list of Event, int)
        Of :attr:`celosia.tools.report.Report.traces`; the integer is the cycles that the run took.
    bound : int
    config : EngineConfig
    """
    program, events, cycles = trace
    streamed = loaded = 0
    for i in instructions_of(program):
        if i.opcode == Opcode.EXECUTE:
            passes, pixels = i.kernel_y * i.kernel_x * i.blocks, i.tile_rows * i.tile_cols
            if i.depthwise:
                pixels = i.tile_rows * (i.tile_cols * i.stride_x + i.gap) + i.tail
            streamed += passes * pixels
            loaded += 0 if i.hold else passes * max(config.load_cycles - pixels, 0)
    at_work = {unit: np.zeros(cycles, bool) for unit in ("load", "execute", "store")}
    for event in events:
        at_work[event.unit][max(event.start, 0) : event.end] = True
    idle = ~at_work["execute"]
    idle[np.flatnonzero(at_work["execute"])[-1] :] = False  # what comes after the last EXECUTE is the end of the program
    lost = {
        "weights": loaded,
        "packing": max(streamed - bound, 0),
        "input": int((idle & at_work["load"]).sum()),
        "results": int((idle & at_work["store"] & ~at_work["load"]).sum()),
        "tiles": max(int(at_work["execute"].sum()) - streamed - loaded, 0),
    }
    return lost | {"overhead": max(cycles - bound - sum(lost.values()), 0)}


def cause(trace, bound, config):
    """Return the sentence for the largest of :func:`lost_cycles`, with its cycles."""
    lost = lost_cycles(trace, bound, config)
    largest = max(lost, key=lambda name: lost[name])
    return f"{CAUSES[largest]} ({lost[largest]:,} cycles)"
