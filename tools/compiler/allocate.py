"""Pass 'allocate': give every buffer its address in the activation memory.

A buffer is alive from the first step that writes it to the last that uses it. Program order is a correct order, and pass 'tokens'
orders every pair of steps that touch the same word, so buffers whose lifetimes do not meet in program order may share
words however far the units run apart. Sharing costs waiting, though: lifetimes are first stretched, and only as much as fits.
"""

from dataclasses import dataclass

from celosia.sim.footprint import BYTE_MASK
from celosia.tools.errors import DoesNotFit

__all__ = ["Allocation", "allocate", "lifetimes"]

STRETCHES = (1 << 30, 64, 16, 4, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Allocation:
    """Word addresses by buffer name, and the words in use."""

    schedule: object
    addresses: dict
    words: int

    def dump(self):
        """Return the allocation as text."""
        buffers = self.schedule.buffers
        rows = sorted(self.addresses.items(), key=lambda item: item[1])
        lines = [f"{address:6}…{address + buffers[name] - 1:<6} {name}" for name, address in rows]
        return "\n".join([*lines, f"{self.words} words"])


def lifetimes(schedule, outputs):
    """Return ``{buffer: (first, last)}`` in step numbers; inputs live from -1, ``outputs`` to the end."""
    lives = {}
    end = len(schedule.steps)

    def touch(name, index):
        first, last = lives.get(name, (index, index))
        lives[name] = min(first, index), max(last, index)

    for name in schedule.tiling.layout.graph.inputs:
        touch(name, -1)
    for index, step in enumerate(schedule.steps):
        for name in step.reads:
            touch(name, index)
        if step.dest:
            touch(step.dest.buffer, index)
    for name in outputs:
        touch(schedule.tiling.layout.placements[name].home, end)
    for name in schedule.tiling.layout.graph.constants:  # loaded once, for every inference
        touch(name, -1)
        touch(name, end)
    return lives


def allocate(schedule, config, options):
    """Return the :class:`Allocation` of a :class:`~celosia.tools.compiler.schedule.Schedule`.

    Raises
    ------
    DoesNotFit
        If the activation memory is too small; the message says by how many bytes.
    """
    graph = schedule.tiling.layout.graph
    copies = schedule.tiling.layout.copies
    kept = [node.output for node in graph.nodes if options.keeps(node.output) and node.output not in copies]
    lives = lifetimes(schedule, (*graph.outputs, *kept))
    words = None
    # The load unit counts bytes, with fewer address bits than a very large memory has.
    low = graph.inputs if config.act_bytes > BYTE_MASK + 1 else ()
    for stretch in STRETCHES:
        stretched = {name: (first, last + stretch) for name, (first, last) in lives.items()}
        addresses, words = _place(stretched, schedule.buffers, low)
        if words <= config.act_depth:
            return Allocation(schedule=schedule, addresses=addresses, words=words)
    peak = _peak(lives, schedule.buffers)
    raise DoesNotFit("activation", words * config.rows, config.act_bytes, f"{peak * config.rows:,} of them in use at once")


def _place(lives, buffers, low=()):
    """Place the largest first, each into the smallest gap between those alive at the same time; those named ``low`` before all others."""
    placed = []
    for name in sorted(lives, key=lambda name: (name not in low, -buffers[name], lives[name])):
        size, (first, last) = buffers[name], lives[name]
        taken = sorted(
            (address, address + buffers[other])
            for other, address in placed
            if lives[other][0] <= last and first <= lives[other][1]
        )
        gaps, end = [], 0
        for start, stop in taken:
            if start - end >= size:
                gaps.append((start - end, end))
            end = max(end, stop)
        placed.append((name, min(gaps)[1] if gaps else end))
    return dict(placed), max((address + buffers[name] for name, address in placed), default=0)


def _peak(lives, buffers):
    return max(sum(buffers[name] for name, (first, last) in lives.items() if first <= at <= last) for at, _ in lives.values())
