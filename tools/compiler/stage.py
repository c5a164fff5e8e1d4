"""Places and times for what a streamed program moves: buffers in three memories, and transfers between the steps.

Every buffer has its first and last use in program order; those that are fetched may begin earlier, as early as there is room. Buffers are placed in the
order of their first use, so that what is fetched ahead never takes what is needed before it. Transfers are then booked, one
after the other as the transfer unit runs them, at the step that the array is expected to be at when the transfer can begin: no earlier, because the
queues hold few instructions.
"""

import bisect
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from celosia.rtl.isa import Memory, Opcode
from celosia.tools.errors import DoesNotFit

__all__ = ["Buffer", "Store", "Transfer", "arrange", "cycles_of"]

WINDOW = 60_000
"""Cycles that a buffer is fetched ahead of its use at most."""
LATENCY = 60
"""Cycles of a transfer beside its beats."""
SETTLE = 150
"""Cycles after a step until its results have been stored."""
NEVER = 1 << 60


@dataclass(eq=False)
class Buffer:
    """``size`` entries (words, weight tiles, parameter entries) in use from step ``first`` to ``last``; ``fetch`` are the transfers that fill it."""

    name: str
    memory: Memory
    size: int
    layer: int
    first: int = NEVER
    last: int = -1
    fetch: list = field(default_factory=list)
    kept: bool = False  # until it has been written back
    tensor: tuple | None = None  # name and box of what is fetched
    address: int = 0
    parts: set = field(default_factory=set)  # that use it
    fixed: int | None = None  # the address that it must have

    def use(self, index, part):
        """Note that a step of a part uses the buffer."""
        self.first, self.last = min(self.first, index), max(self.last, index)
        self.parts.add(part)


@dataclass(eq=False)
class Store:
    """What is written back behind step ``index``: the part ``box`` of ``tensor``."""

    index: int
    transfers: list
    tensor: str
    box: object
    slot: int = NEVER


@dataclass(eq=False)
class Transfer:
    """TRANSFER ``fields`` of a buffer; ``tensor`` is what ``external`` counts from, None for the constants."""

    buffer: Buffer
    fields: dict
    tensor: str | None
    layer: int
    entry: int  # bytes

    def cycles(self, config):
        fields = self.fields
        return fields["run"] * fields["rows"] * fields["planes"] * self.entry // config.memory_bytes + LATENCY


def cycles_of(step, config):
    """Return the cycles that the array issues a step."""
    if isinstance(step, Transfer) or step.opcode != Opcode.EXECUTE:
        return 1
    f = step.fields
    pixels = f["tile_rows"] * f["tile_cols"]
    if f.get("depthwise"):
        pixels = f["tile_rows"] * (f["tile_cols"] * f["stride_x"] + f["gap"]) + f["tail"]
    return f["kernel_y"] * f["kernel_x"] * f["blocks"] * (pixels if f.get("hold") else max(pixels, config.load_cycles))


def arrange(steps, buffers, stores, config):
    """Place buffers and put transfers between steps.

    Parameters
    ----------
    steps : list of Step
    buffers : list of Buffer
    stores : list of Store

    Returns
    -------
    list of list of Transfer
        Those in front of each step, and after the last.
    """
    while True:
        try:
            return _arrange(steps, buffers, stores, config)
        except _Scattered as problem:
            if problem.buffer.fixed is not None or problem.buffer.memory != Memory.ACTIVATIONS:
                raise problem.error from None
            _pack(problem.buffer, buffers)


class _Scattered(Exception):
    """There may be room for a buffer, but not in one piece."""

    def __init__(self, buffer, error):
        self.buffer, self.error = buffer, error


def _pack(buffer, buffers):
    """Fix the places of the buffers of a buffer's part, and of parts that share some with it, one behind the other."""
    here = {buffer}
    buffers = [one for one in buffers if one.memory == Memory.ACTIVATIONS]
    while True:
        parts = set().union(*(one.parts for one in here))
        more = {one for one in buffers if one.parts & parts}
        if len(more) == len(here):
            break
        here = more
    ends = dict.fromkeys(parts, 0)
    for one in sorted(here, key=lambda one: (-len(one.parts), one.first)):
        one.fixed = max(ends[part] for part in one.parts)
        ends |= dict.fromkeys(one.parts, one.fixed + one.size)


def _arrange(steps, buffers, stores, config):
    time = np.concatenate([[0], np.cumsum([cycles_of(step, config) for step in steps])])
    slots = [[] for _ in range(len(steps) + 1)]
    jobs = [(store.index + 1, 0, number, store) for number, store in enumerate(stores)]
    jobs += [(buffer.first, 1 if buffer.fetch else 2, n, buffer) for n, buffer in enumerate(buffers)]
    jobs.sort(key=lambda job: job[:3])
    readers, written = defaultdict(list), defaultdict(list)  # of tensors in external memory: box and step
    for buffer in buffers:
        if buffer.tensor:
            readers[buffer.tensor[0]].append((buffer.tensor[1], buffer.first))
    for index, step in enumerate(steps):
        if isinstance(step, Transfer) and step.tensor:
            readers[step.tensor].append((None, index))
    port = _Port(time)
    places = {memory: _Places(memory, depth) for memory, depth in (
        (Memory.ACTIVATIONS, config.act_depth), (Memory.WEIGHTS, config.weight_tiles), (Memory.PARAMS, config.param_depth)
    )}  # fmt: skip
    for deadline, _, _, job in jobs:
        early = int(np.searchsorted(time, time[min(deadline, len(steps))] - WINDOW))
        if isinstance(job, Store):
            wanted = [first for box, first in readers[job.tensor] if box is None or box.meets(job.box)]
            cycles = sum(transfer.cycles(config) for transfer in job.transfers)
            slot = port.book(min(job.index + 1, len(steps)), min([len(steps), *(first for first in wanted if first > job.index)]), cycles, SETTLE)
            slots[slot] += job.transfers
            job.slot = slot
            written[job.tensor].append(job)
            places[Memory.ACTIVATIONS].release(job.transfers[0].buffer, slot)
            continue
        buffer = job
        free = places[buffer.memory].take(buffer, early)
        if free is None:
            for store in (store for stores in written.values() for store in stores if store.slot > buffer.first):
                for transfer in store.transfers:
                    slots[store.slot].remove(transfer)
                store.slot = buffer.first
                slots[store.slot] += store.transfers
                places[Memory.ACTIVATIONS].release(store.transfers[0].buffer, store.slot)
            free = places[buffer.memory].take(buffer, early)
        if free is None:
            raise _Scattered(buffer, places[buffer.memory].error(buffer, config))
        if buffer.fetch:
            if buffer.tensor:
                free = max([free, *(store.slot for store in written[buffer.tensor[0]] if store.box.meets(buffer.tensor[1]))])
            slot = port.book(max(free, early), buffer.first, sum(transfer.cycles(config) for transfer in buffer.fetch), 0)
            slots[slot] += buffer.fetch
    return slots


class _Port:
    """What the transfer unit does when, as far as that can be foreseen."""

    def __init__(self, time):
        self.time, self.starts, self.ends = time, [], []

    def book(self, low, high, cycles, delay):
        """Return the step from ``low`` to ``high`` in front of which a transfer of ``cycles`` goes."""
        at = self.time[low] + delay
        place = bisect.bisect_right(self.ends, at)
        while place < len(self.starts) and self.starts[place] < at + cycles:
            at = max(at, self.ends[place])
            place += 1
        self.starts.insert(place, at)
        self.ends.insert(place, at + cycles)
        return int(min(max(low, np.searchsorted(self.time, at, side="right") - 1), high))


class _Places:
    """The entries of one memory: who is there, and until which step."""

    def __init__(self, memory, depth):
        self.memory, self.depth = memory, depth
        self.taken = []  # [first entry, end, release, buffer]

    def release(self, buffer, slot):
        """Free a buffer that has been written back."""
        for row in self.taken:
            if row[3] is buffer:
                row[2] = max(slot, buffer.last + 1)

    def take(self, buffer, early):
        """Place a buffer; return the step from which on its entries are free, None if there is no room."""
        self.taken = [row for row in self.taken if row[2] > early]
        starts, ends, release = (np.array([row[n] for row in self.taken], np.int64) for n in range(3))
        at = np.unique(np.concatenate([[0], ends, starts - buffer.size, [self.depth - buffer.size]]))
        at = at[(at >= 0) & (at + buffer.size <= self.depth)]
        if buffer.fixed is not None:
            at = np.array([buffer.fixed])
        meets = (starts < at[:, None] + buffer.size) & (at[:, None] < ends)
        free = np.where(meets, release, early).max(axis=1, initial=early)
        if not at.size or free.min() > buffer.first:
            return None
        best = int(np.lexsort((at, free))[0])
        buffer.address = int(at[best])
        self.taken.append([buffer.address, buffer.address + buffer.size, NEVER if buffer.kept else buffer.last + 1, buffer])
        return int(free[best])

    def error(self, buffer, config):
        """Return what to raise where a buffer has no place."""
        name, entry = {
            Memory.ACTIVATIONS: ("activation", config.rows),
            Memory.WEIGHTS: ("weight", config.rows * config.cols),
            Memory.PARAMS: ("parameter", 8 * config.lanes),
        }[self.memory]
        held = sum(row[1] - row[0] for row in self.taken if row[2] > buffer.first)
        return DoesNotFit(name, max(held + buffer.size, self.depth + 1) * entry, self.depth * entry, f"for {buffer.name}")
