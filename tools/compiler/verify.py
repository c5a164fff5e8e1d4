"""Prove that a program computes the same whatever the timing of the units.

The proof works on the finished instructions and does not share code with pass 'tokens'. It simulates the tokens in
program order, which shows that the program cannot deadlock, and carries a clock per instruction: the last instruction of each
unit that is certainly complete when it starts. Two instructions of different units that touch the same word or weight tile, one
of them writing, must be ordered by these clocks as they are in the program; and each word read must hold the tensor
the reader wants.
"""

import numpy as np

from celosia.rtl.isa import TOKEN_BITS, Combine, Memory, Opcode
from celosia.sim.footprint import (
    execute_reads,
    fill_words,
    store_words,
    transfer_entries,
    unfold_bytes,
    unfold_words,
    weight_tiles,
)

__all__ = ["VerificationError", "verify", "verify_stream", "verify_tokens"]

NAMES = ("load", "execute", "store", "transfer")
CONSTANTS = "the constant weights"
UNIT = {Opcode.UNFOLD: 0, Opcode.FILL: 0, Opcode.EXECUTE: 1, Opcode.STORE: 2, Opcode.TRANSFER: 3}
COUNT = len(NAMES)


class VerificationError(AssertionError):
    """The compiler made a program that is wrong: our bug, never the user's."""


def verify(emission, config):
    """Check a whole :class:`~celosia.tools.compiler.emit.Emission`.

    Raises
    ------
    VerificationError
        Starting with "after pass 'emit':".
    """
    allocation = emission.allocation
    schedule = allocation.schedule
    checker = _Checker(config, emission.instructions)
    graph = schedule.tiling.layout.graph
    for name in (*graph.inputs, *graph.constants):
        checker.owner[_range(allocation, name)] = checker.number(name)
    checker.owner[config.act_depth : config.act_depth + len(emission.program.weights)] = checker.number(CONSTANTS)
    for step in schedule.steps:
        checker.step(*accesses(step))
    checker.end()
    for port in emission.program.outputs:
        place = schedule.tiling.layout.placements[port.name]
        checker.expect_owner(place.addresses(allocation.addresses[place.home]), place.home, "the host")
    for name in graph.constants:
        checker.expect_owner(np.r_[_range(allocation, name)], name, "the next inference")


def verify_stream(emission, config):
    """Check an :class:`~celosia.tools.compiler.emit.Emission` of which everything is fetched; see :func:`verify`."""
    checker = _Checker(config, emission.instructions)
    for step in emission.allocation.steps:
        checker.step(*accesses(step))
    checker.end()


def accesses(step):
    """Return the names of the buffers that a step reads, in the order of its operands, and of the one it writes."""
    tiles = step.filled.buffer if step.filled else CONSTANTS
    if step.opcode == Opcode.EXECUTE:
        return (*step.reads, tiles), None
    written = step.dest or step.entries if step.opcode == Opcode.TRANSFER else step.dest
    return step.reads, written.buffer if written else tiles


def verify_tokens(instructions, config):
    """Check tokens and ordering only, without knowing which tensor lies where; ``instructions`` end with ``END``."""
    checker = _Checker(config, instructions)
    for _ in instructions[:-1]:
        checker.step(None, None)
    checker.end()


def _range(allocation, name):
    address = allocation.addresses[name]
    return slice(address, address + allocation.schedule.buffers[name])


class _Checker:
    """Walks the program and keeps, per word, who wrote it, who read it since, and which tensor it belongs to.

    Weight tiles are words as well, counted on from ``act_depth``, and parameters behind those.
    """

    def __init__(self, config, instructions):
        self.config, self.instructions = config, instructions
        self.index = 0
        self.tokens = {(a, b): [] for a in range(COUNT) for b in range(COUNT) if a != b}  # instructions that signalled, oldest first
        self.sent = dict.fromkeys(self.tokens, 0)
        self.taken = {pair: {} for pair in self.tokens}  # tokens taken up to and including an instruction
        self.unit_last = [-1] * COUNT
        self.clocks = []
        self.unit_clock = [[-1] * COUNT for _ in range(COUNT)]
        size = config.act_depth + config.weight_tiles + config.param_depth
        self.written = np.full(size, -1)
        self.read = np.full((COUNT, size), -1)
        self.owner = np.full(size, -1)
        self.names = {}
        self.bank_users = [[-1, -1, -1], [-1, -1, -1]]
        self.units = [UNIT.get(instruction.opcode) for instruction in instructions]
        self.unit_of = np.array([COUNT if unit is None else unit for unit in self.units])

    def number(self, name):
        return self.names.setdefault(name, len(self.names))

    def fail(self, text):
        raise VerificationError(f"after pass 'emit': instruction {self.index}: {text}")

    def step(self, reads, writes):
        instruction, unit = self.instructions[self.index], self.units[self.index]
        clock = list(self.unit_clock[unit])
        for other in range(COUNT):
            if other == unit:
                continue
            queue = self.tokens[other, unit]
            self.taken[other, unit][self.index] = self.taken[other, unit].get(self.unit_last[unit], 0)
            for _ in range(getattr(instruction, f"wait_{NAMES[other]}")):
                if not queue:
                    self.fail(f"waits for a token of the {NAMES[other]} unit that no earlier instruction sends")
                source = queue.pop(0)
                self.taken[other, unit][self.index] += 1
                clock[other] = max(clock[other], source)
                clock = [max(a, b) for a, b in zip(clock, self.clocks[source])]
        self.clocks.append(clock)
        self.unit_clock[unit] = clock
        self._touch(instruction, unit, clock, reads, writes)
        self.unit_last[unit] = self.index
        for other in range(COUNT):
            if other != unit and getattr(instruction, f"signal_{NAMES[other]}"):
                self.tokens[unit, other].append(self.index)
                self.sent[unit, other] += 1
                # Only what instructions that are complete by now have taken is certainly gone; the rest may pile up.
                if self.sent[unit, other] - self.taken[unit, other].get(clock[other], 0) >= 1 << TOKEN_BITS:
                    self.fail(f"more than {(1 << TOKEN_BITS) - 1} tokens for the {NAMES[other]} unit")
        self.index += 1

    def _touch(self, instruction, unit, clock, reads, writes):
        words = []
        dest = np.zeros(0, int)
        if unit == 1:
            address, inside = execute_reads(instruction, self.config)
            words.append(self._words(np.unique(address[inside]), "reads"))
            words.append(self._tiles(instruction))
        elif instruction.opcode == Opcode.FILL:
            words.append(self._words(fill_words(instruction, self.config), "reads"))
            dest = self._tiles(instruction)
        elif unit == 3:
            entries = self._entries(instruction)
            words, dest = ([entries], dest) if instruction.write else (words, entries)
        elif unit == 0:
            address, exists = unfold_bytes(instruction)
            words.append(self._words(np.unique(address[exists]) // self.config.rows, "reads"))
            dest = self._words(unfold_words(instruction), "writes")
        else:
            dest, operand = store_words(instruction)
            dest = self._words(dest, "writes")
            if operand is not None:
                words.append(self._words(operand, "reads"))
            params = self._params(instruction)
            self._ordered(self.written[params], unit, clock, "reads", params)
            self.read[unit][params] = self.index
        for number, source in enumerate(words):
            if reads is not None:
                self.expect_owner(source, reads[number], "it")
            self._ordered(self.written[source], unit, clock, "reads", source)
            self.read[unit][source] = self.index
        if dest.size:
            if np.unique(dest).size != dest.size:
                self.fail("writes a word twice")
            self._ordered(self.written[dest], unit, clock, "overwrites", dest)
            for other in range(COUNT):
                if other != unit:
                    self._ordered(self.read[other][dest], unit, clock, "overwrites what is being read:", dest)
            self.written[dest] = self.index
            if writes is not None:
                self.owner[dest] = self.number(writes)
        if unit in (1, 2):
            users = self.bank_users[instruction.bank]
            other = 3 - unit
            if users[other] > clock[other]:
                self.fail(f"uses accumulator bank {instruction.bank} while instruction {users[other]} may still do")
            users[unit] = self.index

    def _words(self, words, verb):
        if words.size and words.max() >= self.config.act_depth:
            self.fail(f"{verb} word {words.max()} of {self.config.act_depth}")
        return words.ravel()

    def _tiles(self, instruction):
        tiles = weight_tiles(instruction)
        if tiles[-1] >= self.config.weight_tiles:
            self.fail(f"uses weight tile {tiles[-1]} of {self.config.weight_tiles}")
        return self.config.act_depth + tiles

    def _ordered(self, earlier, unit, clock, verb, words):
        """Check that the instructions ``earlier`` (-1: none) are complete when the present one starts."""
        known = np.array([*clock, 0])
        writers = self.unit_of[earlier]
        bad = (earlier >= 0) & (earlier > known[writers])
        # A unit writes in order, but may read before its last write is done; the transfer unit does not begin before that.
        bad &= (writers != unit) | (verb == "reads" and unit != 3)
        if bad.any():
            word, other = np.broadcast_to(words, bad.shape)[bad][0], earlier[bad][0]
            self.fail(
                f"{verb} {self._place(word)}, and nothing makes it wait for instruction {other} of the {NAMES[self.units[other]]} unit"
            )

    def _params(self, instruction):
        i, config = instruction, self.config
        entries = [i.params + np.arange(config.beats * (i.blocks if i.advance else 1))]
        if i.combine == Combine.ADD:
            entries.append(i.combine_params + np.arange(max(1, 2 // config.lanes)))
        return config.act_depth + config.weight_tiles + np.concatenate(entries)

    def _entries(self, instruction):
        config, local = self.config, transfer_entries(instruction, self.config)[1].ravel()
        if instruction.memory == Memory.ACTIVATIONS:
            return self._words(local, "moves")
        if instruction.memory == Memory.PARAMS:
            return config.act_depth + config.weight_tiles + local
        tiles, counts = np.unique(local // config.load_cycles, return_counts=True)
        if (counts != config.load_cycles).any() or tiles[-1] >= config.weight_tiles:
            self.fail(f"moves parts of weight tiles, or tile {tiles[-1]} of {config.weight_tiles}")
        return config.act_depth + tiles

    def _place(self, word):
        config = self.config
        if word < config.act_depth:
            return f"word {word}"
        tile = word - config.act_depth
        return f"weight tile {tile}" if tile < config.weight_tiles else f"parameter entry {tile - config.weight_tiles}"

    def expect_owner(self, words, name, reader):
        wanted = self.number(name)
        wrong = words[self.owner[words] != wanted]
        if wrong.size:
            holder = {number: text for text, number in self.names.items()}.get(int(self.owner[wrong[0]]), "nothing")
            self.fail(f"{reader} wants {name!r} in {self._place(wrong[0])}, which holds {holder!r}")

    def end(self):
        if self.index != len(self.instructions) - 1 or self.instructions[self.index].opcode != Opcode.END:
            self.fail("the program must end with one END after its last step")
        for (a, b), queue in self.tokens.items():
            if queue:
                self.fail(f"{len(queue)} tokens from {NAMES[a]} to {NAMES[b]} are never taken")
