"""Each cycle of a run has one cause, seen from the array: it multiplies, or there is something else that keeps it from that.

The causes follow from the recorded events, what the instructions say, and the closed forms of :mod:`celosia.sim.cycles.units`. What none of them
explains is counted as such.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from celosia.rtl.execute import execute_latency
from celosia.rtl.isa import Memory, Opcode
from celosia.sim.cycles.units import passes_of
from celosia.sim.executor import instructions_of
from celosia.sim.footprint import entry_bytes, store_words, unfold_bytes, unfold_words

__all__ = ["CAUSES", "UNEXPLAINED", "LayerProfile", "Profile", "profile_program"]

CAUSES = {
    "multiply": "the array multiplies",
    "weights": "it takes weights that its words do not hide",
    "stall": "it has work and the activation memory serves others, or an entry of the accumulators is not there yet",
    "pipeline": "its pipeline fills or empties between instructions",
    "load": "it waits for the load unit",
    "store": "it waits for the store unit",
    "transfer": "it waits for the transfer unit and external memory",
    "fetch": "its next instruction is not there yet",
    "drain": "no EXECUTE is left: the last results are stored",
    "ends": "the program begins or ends",
}
"""What each cause means, in the order of the page."""

UNEXPLAINED = "unexplained"
BEGIN, END = 64, 16
"""Cycles that a program takes at most until its first instruction is offered, and from its last instruction's end to the interrupt."""


@dataclass(kw_only=True)
class LayerProfile:
    """A row: cycles by cause, and bytes.

    Parameters
    ----------
    name, operator : str
    macs : int
    causes : Counter
        Cycles by the names of :data:`CAUSES` and :data:`UNEXPLAINED`.
    memory_bytes : int
        Bytes of activations and weights that the engine's memories read and write for the layer.
    external_bytes : int
        Bytes moved through the memory port.
    """

    name: str
    operator: str
    macs: int
    causes: Counter = field(default_factory=Counter)
    memory_bytes: int = 0
    external_bytes: int = 0

    @property
    def cycles(self):
        return self.causes.total()

    @property
    def bound(self):
        """The cause of most cycles."""
        return self.causes.most_common(1)[0][0] if self.causes else ""


@dataclass(kw_only=True)
class Profile:
    """A program's run.

    Parameters
    ----------
    program : Program
    config : EngineConfig
    cycles : int
    events : list of Event
    layers : list of LayerProfile
        As in the program, and last one for cycles of no layer.
    """

    program: object
    config: object
    cycles: int
    events: list
    layers: list

    @property
    def causes(self):
        """Cycles of the whole run by cause; they add up to ``cycles``."""
        return sum((layer.causes for layer in self.layers), Counter())

    def to_dict(self):
        """Return what `--json` writes."""
        rows = [
            {"name": row.name, "operator": row.operator, "macs": row.macs, "cycles": row.cycles, "bound": row.bound, "causes": dict(row.causes),
             "memory_bytes": row.memory_bytes, "external_bytes": row.external_bytes,
             "utilization": row.macs / (row.cycles * self.config.macs) if row.cycles else None}
            for row in self.layers
        ]  # fmt: skip
        return {"cycles": self.cycles, "causes": dict(self.causes), "unexplained": self.causes[UNEXPLAINED] / self.cycles, "layers": rows}


def profile_program(program, config, events, cycles):
    """Return the :class:`Profile` of a run with these events; see :class:`celosia.tools.report.Event`."""
    instructions = instructions_of(program)
    owners = program.owners
    layers = [LayerProfile(name=layer.name, operator=layer.operator, macs=layer.macs) for layer in program.layers]
    layers.append(LayerProfile(name="(no layer)", operator="", macs=0))
    for index, instruction in enumerate(instructions):
        if instruction is not None and instruction.opcode is not Opcode.END:
            inside, outside = _bytes(instruction, config)
            layers[owners[index]].memory_bytes += inside
            layers[owners[index]].external_bytes += outside

    executes = sorted((event for event in events if event.unit == "execute"), key=lambda event: event.start)
    blockers = _Blockers(events, instructions)
    now = 0
    for number, event in enumerate(executes):
        causes = layers[owners[event.index]].causes
        gap = event.start - now
        if gap > 0:
            waited = min(event.wait, gap)
            causes[blockers.of(instructions[event.index], event.start)] += waited
            begin = min(gap - waited, BEGIN) if number == 0 else 0
            causes["ends"] += begin
            # The unit is free and its gate has no instruction to look at: it has not been fetched.
            causes["fetch"] += gap - waited - begin
        for cause, count in _inside(instructions[event.index], config, event).items():
            causes[cause] += count
        now = event.end
    _after(layers, owners, events, executes, now, cycles)
    for layer in layers:
        layer.causes = +layer.causes
    return Profile(program=program, config=config, cycles=cycles, events=list(events), layers=layers)


def _inside(instruction, config, event):
    """Divide the cycles of an ``EXECUTE`` from its predecessor's end to its own among causes."""
    passes = passes_of(instruction, config)
    left = event.end - event.start
    found = Counter()
    multiplying = passes.passes * passes.words
    weights = passes.between + max(passes.words, 0 if instruction.hold else config.load_cycles) - multiplying
    for cause, count in (
        ("multiply", multiplying), ("weights", max(weights, 0)), ("stall", event.stall),
        ("pipeline", execute_latency(config.rows, pipelining=config.pipelining) + 6),
    ):  # fmt: skip
        found[cause] = min(left, count)
        left -= found[cause]
    found[UNEXPLAINED] = left
    return found


class _Blockers:
    """Whose token an instruction waited for last."""

    def __init__(self, events, instructions):
        self.ends = {}
        for event in sorted(events, key=lambda event: event.end):
            if getattr(instructions[event.index], "signal_execute", 0):
                self.ends.setdefault(event.unit, []).append(event.end)

    def of(self, instruction, start):
        """Return the unit that sent the last token of ``instruction``, offered in cycle ``start``."""
        found = {}
        for unit, ends in self.ends.items():
            if getattr(instruction, f"wait_{unit}", 0):
                place = np.searchsorted(ends, start, side="right")
                if place:
                    found[unit] = ends[place - 1]
        return max(found, key=found.get) if found else UNEXPLAINED


def _after(layers, owners, events, executes, now, cycles):
    """Give the cycles after the last ``EXECUTE`` to the units that still work."""
    rest = sorted((event for event in events if event.end > now and event.unit != "execute"), key=lambda event: event.end)
    for event in rest:
        count = event.end - now
        if count <= 0:
            continue
        waiting = max(0, event.start - now)
        kind = "drain" if event.unit == "store" else event.unit
        causes = layers[owners[event.index]].causes
        if not executes and now == 0:
            causes["ends"] += min(waiting, BEGIN)
            waiting -= min(waiting, BEGIN)
            count = event.end - event.start + waiting
        causes[kind] += count
        now = event.end
    tail = layers[owners[executes[-1].index]].causes if executes else layers[-1].causes
    left = cycles - now
    tail["ends"] += min(left, END)
    tail[UNEXPLAINED] += max(0, left - END)


def _bytes(i, config):
    """Return the bytes that an instruction moves in the engine's memories and through the memory port."""
    rows = config.rows
    if i.opcode is Opcode.EXECUTE:
        passes = passes_of(i, config)
        tiles = 1 if i.hold else passes.passes
        return passes.passes * passes.words * rows + tiles * rows * config.cols, 0
    if i.opcode is Opcode.STORE:
        dest, operand = store_words(i)
        return (dest.size + (operand.size if operand is not None else 0)) * config.cols, 0
    if i.opcode is Opcode.UNFOLD:
        address, exists = unfold_bytes(i)
        return int(exists.sum()) * address.shape[-1] + unfold_words(i).size * rows, 0
    if i.opcode is Opcode.FILL:
        return 2 * i.tiles * i.rows * config.cols, 0
    size = i.run * i.rows * i.planes * entry_bytes(config)[Memory(i.memory)]
    return size, 0 if i.constant else size
