"""Fetch, queues and tokens of the cycle model: which instruction is offered to its unit when.

Discrete events in the order of time, a handful for each instruction. Cycles count from the first one in which the engine is busy.
"""

import heapq

from celosia.rtl.gate import places
from celosia.rtl.isa import INSTRUCTION_BITS, UNITS, Opcode, Unit, zero_bits
from celosia.tools.errors import EngineError

__all__ = ["Sequencer"]

# Events of one cycle come in this order: what becomes visible in it, tokens, heads that may go, fetch's choice.
VISIBLE, TOKENS, GO, CHOOSE = range(4)

DOORBELL = 1
"""Cycles from the doorbell, where those of :data:`~celosia.sim.events.EVENT` begin, to the first one in which the engine is busy."""

WAITS = [f"wait_{unit.name.lower()}" for unit in list(Unit)]
SIGNALS = [(unit, f"signal_{unit.name.lower()}") for unit in list(Unit)]


class Gate:
    """A unit's queue and tokens, see :class:`celosia.rtl.gate.Gate`; indices are those of the unit's own instructions."""

    def __init__(self, queue_depth):
        self.depth, self.places = queue_depth, places(queue_depth)
        self.program = []  # numbers of the instructions pushed
        self.pushed = self.taken = self.done = 0
        self.asked = self.waiting = False
        self.tokens = [0] * len(Unit)
        self.token_at = -1
        self.ready = 0  # cycle from which on the head may go
        self.ended = -1  # cycle of the last instruction's `done`

    @property
    def room(self):
        return self.pushed - self.taken < self.depth and self.pushed - self.done < self.places - 1


class Sequencer:
    """Runs a program.

    Parameters
    ----------
    instructions : list of Instruction
    config : EngineConfig
    models : dict of Unit to its model
        See :mod:`~celosia.sim.cycles.units`.
    lost : dict of int to int
        Cycles that instructions lose at memories, by their numbers.

    Members
    -------
    runs : dict of int to :class:`~celosia.sim.cycles.units.Run`
        By the instruction's number.
    events : list of tuples
        As :data:`celosia.sim.events.EVENT`, in the order in which they were offered.
    """

    def __init__(self, instructions, config, models, lost):
        self.instructions, self.models, self.lost = instructions, models, lost
        self.parts = INSTRUCTION_BITS // config.fetch_bits
        self.short = {code for code in Opcode if zero_bits(code)[-1] < config.fetch_bits}
        self.gates = {unit: Gate(config.queue_depth) for unit in models}
        self.heap, self.order = [], 0
        self.following = 0  # the instruction that is scanned, or waits for room
        self.pending = self.pushing = self.resting = False
        self.runs = {}
        self.events = []  # see celosia.sim.events.EVENT
        self.end = None  # cycle from which on END waits

    def at(self, cycle, order, action, *arguments):
        self.order += 1
        heapq.heappush(self.heap, (cycle, order, self.order, action, arguments))

    def run(self):
        """Run to ``END``; return the cycles of the run.

        Raises
        ------
        EngineError
            If it never comes to that.
        """
        self.at(1, CHOOSE, self.choose)
        while self.heap:
            cycle, _, _, action, arguments = heapq.heappop(self.heap)
            action(cycle, *arguments)
        stuck = [gate.program[gate.taken] for gate in self.gates.values() if gate.taken < gate.pushed]
        if stuck:
            raise EngineError(f"instruction {stuck[0]} waits for a token that nobody sends")
        return max(self.end, *(gate.ended + 1 for gate in self.gates.values())) + 3

    # Fetch ------------------------------------------------------------------------------------------------------------

    def choose(self, cycle):
        """Serve the first gate that asks, or scan the next instruction; see :class:`celosia.rtl.fetch.Fetch`."""
        for unit, gate in self.gates.items():
            if gate.pushed > gate.taken and not gate.asked:
                gate.asked = True
                last = cycle + self.parts + 3  # the last part passes the gates
                self.at(last + (self.parts == 1), GO, self.go, unit)
                gate.ready = last + (self.parts == 1)
                self.at(cycle + 2 + self.parts, CHOOSE, self.choose)
                return
        if self.pending:
            self.resting = True
            return
        if self.following >= len(self.instructions):
            raise EngineError("the program has no END")
        short = self.parts == 1 or self.instructions[self.following].opcode in self.short
        passed = cycle + 5 + (0 if short else self.parts + 1)
        self.at(passed, VISIBLE, self.scanned)
        self.at(passed, CHOOSE, self.choose)

    def scanned(self, cycle):
        self.pending = True
        unit = UNITS[self.instructions[self.following].opcode]
        if unit is Unit.SEQUENCER:
            self.end = cycle
        else:
            self.push(cycle)

    def push(self, cycle):
        """Push the instruction that waits for room, if there is some."""
        if not self.pending or self.pushing or self.end is not None:
            return
        gate = self.gates[UNITS[self.instructions[self.following].opcode]]
        if gate.room:
            self.pushing = True
            self.at(cycle + 1, VISIBLE, self.pushed, gate)

    def pushed(self, cycle, gate):
        gate.program.append(self.following)
        gate.pushed += 1
        self.following += 1
        self.pending = self.pushing = False
        self.wake(cycle)

    def wake(self, cycle):
        if self.resting:
            self.resting = False
            self.at(cycle, CHOOSE, self.choose)

    # Gates ------------------------------------------------------------------------------------------------------------

    def go(self, cycle, unit):
        """Offer the head to its unit if its tokens are there, and none comes in this cycle."""
        gate = self.gates[unit]
        if gate.token_at == cycle:
            self.at(cycle + 1, GO, self.go, unit)
            return
        number = gate.program[gate.taken]
        instruction = self.instructions[number]
        waits = [getattr(instruction, name, 0) for name in WAITS]
        gate.waiting = any(has < needs for has, needs in zip(gate.tokens, waits))
        if gate.waiting:
            return
        gate.tokens = [has - needs for has, needs in zip(gate.tokens, waits)]
        offered = cycle + 1
        run = self.runs[number] = self.models[unit].take(instruction, offered, self.lost.get(number, 0))
        began = max(offered, gate.ended + 1)
        waited = offered - max(gate.ready + 1, gate.ended + 1)
        self.events.append((unit.value, number, began + DOORBELL, run.done + 1 + DOORBELL, 0, max(waited, 0)))
        gate.ended = run.done
        self.at(run.taken + 1, VISIBLE, self.taken, gate)
        self.at(run.done, TOKENS, self.done, unit, [other for other, name in SIGNALS if getattr(instruction, name, 0)])

    def taken(self, cycle, gate):
        gate.taken += 1
        gate.asked = False
        self.push(cycle)
        self.wake(cycle)

    def done(self, cycle, unit, signals):
        for receiver in signals:
            gate = self.gates[receiver]
            gate.tokens[unit.value] += 1
            gate.token_at = cycle
            if gate.waiting:
                gate.waiting = False
                self.at(cycle + 1, GO, self.go, receiver)
        self.at(cycle + 1, VISIBLE, self.completed, self.gates[unit])

    def completed(self, cycle, gate):
        gate.done += 1
        self.push(cycle)

