"""Instruction sinks: what an instruction stream can be turned into.

A sink has one method, ``instruction(instruction)``, called in program order, and an attribute or method for its result. The text of
:class:`ListingSink` assembles back into the same binary.
"""

import numpy as np

from celosia.rtl.isa import LAYOUTS, Instruction, Opcode, encode
from celosia.sim.footprint import entry_bytes

__all__ = ["BinarySink", "ListingSink", "StatisticsSink", "assemble", "listing", "statistics"]

WORDS = 8


class BinarySink:
    """Collects the program memory's image."""

    def __init__(self):
        self._words = bytearray()

    def instruction(self, instruction):
        self._words += encode(instruction).to_bytes(4 * WORDS, "little")

    def image(self):
        """Return uint32 ``[n, 8]``."""
        return np.frombuffer(bytes(self._words), "<u4").reshape(-1, WORDS)


class ListingSink:
    """Collects one line of text per instruction: number, opcode, and the fields that are not zero."""

    def __init__(self):
        self.lines = []
        self._count = 0

    def comment(self, text):
        self.lines.append(f"; {text}")

    def instruction(self, instruction):
        shown = " ".join(f"{name}={value}" for name, value in instruction.fields.items() if value)
        self.lines.append(f"{self._count:5}  {instruction.opcode.name:7} {shown}".rstrip())
        self._count += 1

    def text(self):
        return "\n".join(self.lines) + "\n"


class StatisticsSink:
    """Counts instructions per unit, and the cycles the array needs for them if it never waits.

    Members
    -------
    counts : dict of opcode name to number of instructions
    execute_cycles : int
        Sum over the EXECUTEs of passes × pixels, where a pass that loads weights takes at least ``load_cycles``.
    store_cycles, unfold_words, fill_rows, transfer_cycles : int
        Beats of the store unit, words and rows of weights written by the load unit, beats of the memory port.
    """

    def __init__(self, config):
        self.config = config
        self.counts = {opcode.name: 0 for opcode in Opcode}
        self.execute_cycles = self.store_cycles = self.unfold_words = self.fill_rows = self.transfer_cycles = 0

    def instruction(self, instruction):
        i = instruction
        self.counts[i.opcode.name] += 1
        if i.opcode == Opcode.EXECUTE:
            passes, pixels = i.kernel_y * i.kernel_x * i.blocks, i.tile_rows * i.tile_cols
            if i.depthwise:
                pixels = i.tile_rows * (i.tile_cols * i.stride_x + i.gap) + i.tail
            self.execute_cycles += passes * (pixels if i.hold else max(pixels, self.config.load_cycles))
        elif i.opcode == Opcode.STORE:
            self.store_cycles += i.blocks * i.tile_rows * i.tile_cols * self.config.beats
        elif i.opcode == Opcode.UNFOLD:
            self.unfold_words += i.tile_rows * i.groups * i.tile_cols
        elif i.opcode == Opcode.TRANSFER:
            entries = i.planes * i.rows * i.run * entry_bytes(self.config)[i.memory]
            self.transfer_cycles += entries // (self.config.rows if i.constant else self.config.memory_bytes)
        elif i.opcode == Opcode.FILL:
            self.fill_rows += i.tiles * self.config.rows


def listing(program):
    """Return the listing of a :class:`~celosia.tools.program.Program`, its layers as comments."""
    from celosia.sim.executor import instructions_of

    sink = ListingSink()
    starts = {span.start: layer for layer in program.layers for span in layer.spans}
    for index, instruction in enumerate(instructions_of(program)):
        if index in starts:
            sink.comment(f"{starts[index].name} ({starts[index].operator}) → {starts[index].output}")
        sink.instruction(instruction)
    return sink.text()


def assemble(text):
    """Return the image uint32 ``[n, 8]`` of a listing.

    Raises
    ------
    ValueError
        If a line is not an instruction; the message has its number.
    """
    sink = BinarySink()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(";")[0].split()
        if not words:
            continue
        words = words[1:] if words[0].isdigit() else words
        try:
            fields = dict(word.split("=") for word in words[1:])
            sink.instruction(Instruction(Opcode[words[0]], **{name: int(value, 0) for name, value in fields.items()}))
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError(f"line {number}: {line.strip()!r} is not an instruction: {error}") from None
    return sink.image()


def statistics(program, config):
    """Return ``(total, per layer)``: a :class:`StatisticsSink` for the program and one for each of its layers."""
    from celosia.sim.executor import instructions_of

    instructions = instructions_of(program)
    total = StatisticsSink(config)
    layers = []
    for instruction in instructions:
        total.instruction(instruction)
    for layer in program.layers:
        sink = StatisticsSink(config)
        for span in layer.spans:
            for instruction in instructions[span.start : span.stop]:
                sink.instruction(instruction)
        layers.append(sink)
    return total, layers


assert set(LAYOUTS) == set(Opcode)
