"""How long each unit takes for an instruction: closed forms of what the units' docstrings in :mod:`celosia.rtl` say.

A unit of the cycle model is told when an instruction is offered and answers when it is taken and when it is done, in the cycles of the
unit's own stream (``i.valid & i.ready``) and of its ``done``. It remembers what it did before, and nothing else: ``lost`` are the cycles in
which other units are in its way at a memory, from :mod:`~celosia.sim.cycles.conflicts`.
"""

from typing import NamedTuple

import numpy as np

from celosia.rtl import add
from celosia.rtl.accumulator import timing
from celosia.rtl.execute import execute_latency
from celosia.rtl.interfaces import ACT_READ_LATENCY, TABLE_READ_LATENCY
from celosia.rtl.isa import Combine, Opcode, Unit
from celosia.rtl.lanes import LANES_LATENCY
from celosia.rtl.load import FILL_OVERHEAD, LOAD_OVERHEAD
from celosia.rtl.serial_load import STEP_CYCLES, TAP_ROW_CYCLES
from celosia.rtl.serial_requantizer import PERIOD
from celosia.rtl.store import store_latency
from celosia.sim.footprint import entry_bytes

MEMORY_LATENCY = 50
"""Cycles from a transfer's start to its first beat: those of the external memory, which are 40 in simulation, and some of the port."""

__all__ = ["MEMORY_LATENCY", "Run", "passes_of", "unit_models"]


class Run(NamedTuple):
    """An instruction in its unit.

    ``taken`` and ``done`` are cycles; so are ``first``, that of the first word, beat, step or element, and ``last``. ``work`` is how many the unit needs for it if it never waits and the next instruction follows at once;
    ``weights`` says how many of them only serve to load weights.
    """

    taken: int
    done: int
    first: int
    last: int
    work: int
    weights: int = 0


class Passes(NamedTuple):
    """An ``EXECUTE``: passes of ``words``, the last ``trailing`` of which come with the last pixel and behind it; the ``overwriting`` ones come
    first, ``fresh`` cycles apart, the others ``later`` cycles."""

    passes: int
    words: int
    trailing: int
    overwriting: int
    fresh: int
    later: int

    @property
    def between(self):
        """Cycles from the first word of the first pass to that of the last one."""
        first = max(self.overwriting, 1)
        return (first - 1) * self.fresh + (self.passes - first) * self.later

    def starts(self):
        """Return the cycle of each pass's first word, from that of the first."""
        first = max(self.overwriting, 1)
        return np.cumsum([0] + [self.fresh] * (first - 1) + [self.later] * (self.passes - first))


def passes_of(i, config):
    """Return the :class:`Passes` of an ``EXECUTE``."""
    distance = timing(config.pipelining).distance if config.pipelining else 0  # else words of an entry are far enough apart
    words, trailing = i.tile_rows * i.tile_cols, 1
    if i.depthwise:
        trailing = i.stride_x + i.gap + i.tail
        words = i.tile_rows * (i.tile_cols * i.stride_x + i.gap) + i.tail
    fresh = max(words, 0 if i.hold else config.load_cycles, 2)
    later = fresh
    if i.depthwise:
        later = max(fresh, words - trailing + distance)
    elif not i.per_block or i.blocks == 1:
        later = max(fresh, distance)
    overwriting = 0 if i.accumulate else i.blocks if i.per_block else 1
    return Passes(i.kernel_y * i.kernel_x * i.blocks, words, trailing, overwriting, fresh, later)


class ExecuteModel:
    """:class:`celosia.rtl.execute.Execute`: one word per cycle, passes as far apart as weights and accumulators demand."""

    def __init__(self, config):
        self.config = config
        self.distance = timing(config.pipelining).distance
        self.latency = execute_latency(config.rows, pipelining=config.pipelining)
        self.to_end = self.latency - timing(config.pipelining).distance + 1  # from the last issue to `ended`
        self.free = 0  # the first cycle in which the address generator can begin
        self.loader = 0  # the first cycle in which a walk through a weight tile can start
        self.last = None  # (bank, first entry, cycle of its issue, entries) of the last pass; its last counting word

    def take(self, i, offered, lost):
        config = self.config
        passes = passes_of(i, config)
        words, load = passes.words, 0 if i.hold else config.load_cycles
        begin = max(offered, self.free)
        first = max(begin + 2, self.loader)
        if i.accumulate:
            first = max(first, self._seen(i))
        start = first + passes.between + lost  # of the last pass
        last = start + words - 1
        self.loader = (first if i.hold else start) + config.load_cycles
        entry = i.acc + (i.tile_rows * i.tile_cols * (i.blocks - 1) if i.per_block else 0)
        self.last = (i.bank, entry, start, i.tile_rows * i.tile_cols, last - passes.trailing + 1)
        work = passes.between + max(words, load)
        weights = work - passes.passes * words if load > words else 0
        if config.pipelining:
            self.free = last - (words > 1)
            return Run(begin + 1, last + self.latency, first, last, work, weights)
        self.free = last + self.to_end + 1
        return Run(last + self.to_end, last + self.latency, first, last, work, weights)

    def _seen(self, i):
        """Return the first cycle in which the first word can be issued if its entry is one of the last pass."""
        if self.last is None:
            return 0
        bank, entry, start, count, counting = self.last
        if i.depthwise:
            return counting + self.distance
        return start + i.acc - entry + self.distance if bank == i.bank and 0 <= i.acc - entry < count else 0


class StoreModel:
    """:class:`celosia.rtl.store.Store`: one beat per cycle; before an operand is read, and where constants change, it runs empty."""

    def __init__(self, config):
        self.config = config
        self.latency = store_latency(config)
        # The last constants that change are those of the addition, or of the requantiser in front of the table.
        self.settling = self.latency - (add.LATENCY - add.CONTROL_LATENCY if config.combine else TABLE_READ_LATENCY)
        self.free = self.settled = self.drained = 0
        self.constants = (0, 0, 0, 0, 0, 0)
        self.combined = False

    def take(self, i, offered, lost):
        config = self.config
        taken = max(offered, self.free, self.settled)
        beats = i.blocks * i.tile_rows * i.tile_cols * config.beats
        first = taken + 1
        combines = i.combine != Combine.NONE
        if combines:
            first = max(first, self.drained) + (2 if config.lanes == 1 else 1)
        constants = (i.raw, i.zero_point, i.low, i.high, i.use_table, i.table)
        if combines or self.combined or constants != self.constants:
            self.settled = first + self.settling
        self.constants, self.combined = constants, combines
        last = first + beats - 1 + lost
        self.free = last + (config.beats == 1)
        self.drained = last + self.latency + 2
        return Run(taken, last + self.latency + 1, first, last, beats)


class SerialStoreModel:
    """:class:`celosia.rtl.serial_store.SerialStore`: :data:`PERIOD` cycles for an element, one instruction at a time."""

    AFTER = 3 * PERIOD + 7
    """Cycles from the last element's operands to the instruction's end: three stages, the write, and the next address."""

    def __init__(self, config):
        self.config = config
        self.free = 0

    def take(self, i, offered, lost):
        elements = i.blocks * i.tile_rows * i.tile_cols * self.config.cols
        start = max(offered, self.free)
        start += -(start + 1) % PERIOD  # the phase counts from the run's first cycle
        last = start + elements * PERIOD + lost
        taken = last + self.AFTER
        self.free = taken + 2
        return Run(taken, taken + 1, start + 1, last, elements * PERIOD)


class LoadModel:
    """:class:`celosia.rtl.load.Load`: a column of every stream, or a row of a weight tile, per cycle."""

    AFTER = LANES_LATENCY + 2
    """Cycles from the last step to ``done``: the lanes, the write, and a register."""

    def __init__(self, config):
        self.config = config
        self.chunk = 1 << (config.unfold_streams - 1).bit_length()
        self.free = 0

    def take(self, i, offered, lost):
        taken = max(offered, self.free)
        if i.opcode == Opcode.FILL:
            work = i.tiles * self.config.rows
            first = taken + FILL_OVERHEAD - ACT_READ_LATENCY - 1
            done = taken + work + FILL_OVERHEAD
        else:
            groups = i.tile_rows * i.groups
            width = max((i.tile_cols - 1) * i.stride_x + self.config.rows // i.streams, i.left + i.inside)
            chunks = -(-i.inside // self.chunk)
            asked = i.streams * (chunks + (self.chunk > 1))
            late = max(2 * i.streams - i.left, 0)
            work = groups * max(width, asked)
            behind = width - i.left - (chunks - 1) * self.chunk  # steps after the last chunk
            first = taken + LOAD_OVERHEAD - self.AFTER + 1 + late
            done = taken + LOAD_OVERHEAD + max(groups * width + late, groups * asked + behind)
        done += lost
        self.free = done + 1
        return Run(taken, done, first, done - self.AFTER, work)


class SerialLoadModel:
    """:class:`celosia.rtl.serial_load.SerialLoad`: some cycles for a byte, one instruction at a time."""

    def __init__(self, config):
        self.config = config
        self.free = 0

    def take(self, i, offered, lost):
        rows = i.tile_rows * i.groups
        steps = max((i.tile_cols - 1) * i.stride_x + self.config.rows, i.left + i.inside)
        y = range(i.tile_rows)
        read = sum(0 <= i.y0 + t * i.stride_y + g % i.kernel_y < i.in_height for t in y for g in range(i.groups))
        work = rows * (TAP_ROW_CYCLES + steps * STEP_CYCLES + i.tile_cols) + read * i.inside
        first = max(offered, self.free)
        taken = first + work + lost
        self.free = taken + 1
        return Run(taken, taken, first, taken, work)


class TransferModel:
    """The transfer unit: :data:`MEMORY_LATENCY`, then a beat per cycle, one instruction at a time."""

    def __init__(self, config):
        self.config = config
        self.free = 0

    def take(self, i, offered, lost):
        taken = max(offered, self.free)
        work = i.planes * i.rows * i.run * entry_bytes(self.config)[i.memory] // self.config.memory_bytes
        first = taken + MEMORY_LATENCY
        self.free = first + work + lost
        return Run(taken, self.free, first, self.free, work)


def unit_models(config):
    """Return the model of each unit of an engine."""
    transfer = {Unit.TRANSFER: TransferModel(config)} if config.memory_bytes else {}
    return transfer | {
        Unit.LOAD: (SerialLoadModel if config.serial_load else LoadModel)(config),
        Unit.EXECUTE: ExecuteModel(config),
        Unit.STORE: (SerialStoreModel if config.lane_cycles > 1 else StoreModel)(config),
    }
