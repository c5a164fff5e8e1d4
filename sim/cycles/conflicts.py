"""What units lose where they meet at a memory: the third part of the cycle model.

From a schedule of all instructions follow the banks that the execute unit reads and the store unit writes in each cycle. Who comes after them
at a bank is followed word by word, and only while both are at work. Where a memory has one port for all, cycles are lost on average.
"""

from bisect import bisect_right

import numpy as np

from celosia.rtl.isa import Combine, Opcode
from celosia.rtl.lanes import LANES_LATENCY
from celosia.sim.cycles.units import passes_of
from celosia.sim.footprint import execute_reads, fill_words, store_words, unfold_bytes

__all__ = ["lost_cycles"]


def lost_cycles(instructions, config, runs, models):
    """Return the cycles lost, by the instruction's number; none where it is zero.

    Parameters
    ----------
    instructions : list of Instruction
    config : EngineConfig
    runs : dict of int to :class:`~celosia.sim.cycles.units.Run`
    models : dict of Unit to its model
    """
    if config.act_ports == 1:
        found = _one_port(instructions, config, runs)
    else:
        found = _banks(instructions, config, runs, models)
    return {number: lost for number, lost in found.items() if lost}


# Banks ----------------------------------------------------------------------------------------------------------------


class _Claims:
    """The banks that instructions of one kind claim: ``masks(number)`` returns cycles from ``first`` on, and a bit for each bank."""

    def __init__(self, runs, numbers, spans, masks):
        self.numbers = sorted(numbers, key=lambda number: spans(runs[number])[0])
        self.spans = np.array([spans(runs[number]) for number in self.numbers]).reshape(-1, 2)
        self.masks = masks

    def window(self, start, end):
        """Return the banks claimed in the cycles ``start`` … ``end - 1``, or None if there are none."""
        if not len(self.spans):
            return None
        first = np.searchsorted(self.spans[:, 1], start)
        last = np.searchsorted(self.spans[:, 0], end)
        if first >= last:
            return None
        window = np.zeros(end - start, np.uint8)
        for number in self.numbers[first:last]:
            cycles, banks = self.masks(number)
            inside = (cycles >= start) & (cycles < end)
            window[cycles[inside] - start] |= banks[inside]
        return window


def _banks(instructions, config, runs, models):
    of = {opcode: [n for n in runs if instructions[n].opcode == opcode] for opcode in Opcode}
    reads = {}

    def read(number):
        if number not in reads:
            address, inside = execute_reads(instructions[number], config)
            banks = np.where(inside, 1 << address % config.act_banks, 0).astype(np.uint8)
            passes = passes_of(instructions[number], config)
            if instructions[number].depthwise:
                banks = np.bitwise_or.reduce(banks, axis=-1)
            cycles = passes.starts()[:, None] + np.arange(passes.words)
            reads[number] = cycles.reshape(-1), banks.reshape(-1)
        cycles, banks = reads[number]
        return cycles + runs[number].first + 1, banks  # behind a register

    def written(number):
        i, run = instructions[number], runs[number]
        dest, _ = store_words(i)
        after = config.beats + store.latency  # behind a register too
        return run.first + np.arange(dest.size) * config.beats + after, (1 << dest.reshape(-1) % config.act_banks).astype(np.uint8)

    store = next(model for unit, model in models.items() if unit.name == "STORE")
    executes = _Claims(runs, of[Opcode.EXECUTE], lambda run: (run.first, run.last + 2), read)
    stores = of[Opcode.STORE]
    latency = getattr(store, "latency", 0)
    writes = _Claims(runs, stores, lambda run: (run.first + latency, run.last + latency + 2), written) if latency else None

    found = {}
    for number in stores:
        i, run = instructions[number], runs[number]
        if i.combine != Combine.NONE:
            _, operand = store_words(i)
            found[number] = _refused(executes, run.first, operand.reshape(-1) % config.act_banks, config.beats)
    for number in of[Opcode.FILL]:
        i, run = instructions[number], runs[number]
        words = fill_words(i, config) % config.act_banks
        banks = np.full((i.tiles, config.rows), -1)
        banks[:, : i.rows] = words
        found[number] = _refused(executes, run.first, banks.reshape(-1), 1)
    for number in of[Opcode.UNFOLD] if writes else ():
        i, run = instructions[number], runs[number]
        width = max((i.tile_cols - 1) * i.stride_x + config.rows // i.streams, i.left + i.inside)
        step = np.arange(i.tile_rows * i.groups)[:, None] * width + config.rows // i.streams - 1 + np.arange(i.tile_cols) * i.stride_x
        banks = (i.dest + np.arange(step.size)) % config.act_banks
        found[number] = _refused(writes, run.first + LANES_LATENCY, banks, np.diff(step.reshape(-1), append=step[-1, -1] + 1), int(step[0, 0]))
        banks = _unfold_reads(i, config)
        spare = max(step.shape[0] * width - len(banks), 0)  # the columns take longer than their reads
        gaps = np.diff(np.arange(len(banks) + 1) * (spare + len(banks)) // len(banks))
        found[number] += max(_refused(executes, run.taken + 3, banks, gaps) - spare, 0)
    return found


def _unfold_reads(i, config):
    """Return the banks of an ``UNFOLD``'s reads in order, -1 where nothing is read."""
    address, exists = unfold_bytes(i)
    chunk = 1 << (config.unfold_streams - 1).bit_length()
    chunks = np.arange(-(-i.inside // chunk) + (chunk > 1))
    words = (address[..., :1] // chunk + chunks) * chunk // config.rows
    return np.where(exists[..., None], words % config.act_banks, -1).swapaxes(2, 3).reshape(-1)


def _refused(claims, first, banks, gaps, begin=0):
    """Return how many cycles are lost by accesses of ``banks`` (-1: none), ``gaps`` cycles one after the other, the first ``begin`` after ``first``."""
    gaps = np.broadcast_to(gaps, len(banks))
    span = begin + 2 * int(gaps.sum()) + 16
    window = claims.window(first, first + span)
    if window is None or not window.any():
        return 0
    taken, cycle, lost = window.tolist(), begin, 0
    for bank, gap in zip(banks.tolist(), gaps.tolist()):
        while bank >= 0 and cycle < span and taken[cycle] >> bank & 1:
            cycle += 1
            lost += 1
        cycle += gap
    return lost


# One port -------------------------------------------------------------------------------------------------------------


def _one_port(instructions, config, runs):
    """Every access of another unit takes a cycle from the execute unit, which keeps the load unit waiting for one.

    With ``constant_ports`` = 1 the store unit waits for the rows of a weight tile, and a tile for the parameters of an element.
    """
    kinds = {}
    for number, run in runs.items():
        kinds.setdefault(instructions[number].unit.name, []).append((number, run, instructions[number]))
    executes = kinds.get("EXECUTE", [])
    ends = [run.last for _, run, _ in executes]
    found = dict.fromkeys(runs, 0)
    for name in ("LOAD", "STORE"):
        for number, run, i in kinds.get(name, ()):
            length = max(run.last - run.first, 1)
            accesses, words = (_load_accesses(i), 0) if name == "LOAD" else (i.blocks * i.tile_rows * i.tile_cols, 1)
            for other, at, execute in executes[bisect_right(ends, run.first) :]:
                if at.first >= run.last:
                    break
                both = min(run.last, at.last) - max(run.first, at.first)
                found[other] += accesses * both / length
                if not words:
                    found[number] += accesses * both / length
                elif config.constant_ports == 1:
                    tiles = (1 if execute.hold else passes_of(execute, config).passes) * both / max(at.last - at.first, 1)
                    found[number] += tiles * (config.load_cycles - 1.5)
                    found[other] += tiles / 4
    return {number: round(lost) for number, lost in found.items()}


def _load_accesses(i):
    """Return how many words the load unit that takes byte for byte reads and writes."""
    _, exists = unfold_bytes(i)
    return int(exists.sum()) * i.inside + i.tile_rows * i.groups * i.tile_cols
