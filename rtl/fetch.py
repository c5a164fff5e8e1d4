"""The fetch stage: reads instructions in order, checks what every instruction has, and deals them out."""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.gate import UNIT_NAMES
from celosia.rtl.interfaces import Error, QueuedInstruction
from celosia.rtl.isa import INSTRUCTION_BITS, LAYOUTS, UNITS, ErrorCode, Opcode, Unit

__all__ = ["Fetch", "ProgramReadSignature", "zero_bits"]

_GROUP = 16
"""Bits joined in the first of the two cycles that check an instruction."""


class ProgramReadSignature(wiring.Signature):
    """The program memory's read port, from the reader's side.

    With ``en``, ``data`` holds instruction ``addr`` from the next cycle on until the next ``en``.
    """

    def __init__(self):
        super().__init__({"addr": Out(16), "en": Out(1), "data": In(INSTRUCTION_BITS)})


def zero_bits(opcode):
    """Return the positions of the bits that must be zero: reserved ones, and waits for and signals to the unit itself (END: all)."""
    layout = data.Layout.cast(LAYOUTS[opcode])
    header = data.Layout.cast(layout["header"].shape)
    spans = [(header["reserved"].offset, header["reserved"])]
    spans += [(field.offset, field) for name, field in layout if name == "reserved"]
    for group in ("wait", "signal"):
        inner = data.Layout.cast(header[group].shape)
        for name in UNIT_NAMES:
            if UNITS[opcode] in (Unit[name.upper()], Unit.SEQUENCER):
                spans.append((header[group].offset + inner[name].offset, inner[name]))
    return sorted(offset + bit for offset, field in spans for bit in range(field.width))


class Fetch(wiring.Component):
    """Reads an instruction every other cycle until END or an error.

    Parameters
    ----------
    program_depth : int
        Instructions in the program memory.

    Members
    -------
    start : ``In(1)``
        Begin at instruction ``first``.
    enable : ``In(1)``
        Nothing moves while low.
    program : ``Out(ProgramReadSignature)``
    (unit) : ``Out(stream)`` of :class:`~celosia.rtl.interfaces.QueuedInstruction`
        To the three gates.
    fetched : ``Out(1)``
        High in one cycle for each instruction that has passed, END included.
    stalled : ``Out(1)``
        The instruction's queue is full, or it is END.
    at_end : ``Out(1)``
        END has been reached.
    index : ``Out(16)``
        The instruction at hand.
    error : ``Out(Error)``
    """

    def __init__(self, *, program_depth):
        if not 1 <= program_depth <= 1 << 16:
            raise ValueError(f"program_depth must be between 1 and {1 << 16}, not {program_depth}")
        self.program_depth = program_depth
        super().__init__({
            "start": In(1),
            "enable": In(1),
            "first": In(16),
            "program": Out(ProgramReadSignature()),
            **{name: Out(stream.Signature(QueuedInstruction)) for name in UNIT_NAMES},
            "fetched": Out(1),
            "stalled": Out(1),
            "at_end": Out(1),
            "index": Out(16),
            "error": Out(Error),
        })

    def elaborate(self, platform):
        m = Module()
        # The program memory's output comes late and from far away: it is registered, and the next instruction read meanwhile.
        word = Signal(INSTRUCTION_BITS, reset_less=True)
        opcode = Signal(Shape.cast(Opcode))
        checks = {}
        for code in Opcode:
            bits = [word[bit] for bit in zero_bits(code)]
            groups = [Cat(bits[n : n + _GROUP]).any() for n in range(0, len(bits), _GROUP)]
            checks[code] = Signal(len(groups), name=f"nonzero_{code.name.lower()}")
            m.d.sync += checks[code].eq(Cat(groups))
        m.d.sync += opcode.eq(word[: len(opcode)])

        following = Signal(16)
        last = Signal()
        ready = Signal()
        m.d.comb += self.program.addr.eq(following)
        m.d.comb += self.error.index.eq(self.index)

        def take():
            m.d.sync += [word.eq(self.program.data), self.index.eq(following)]
            m.d.sync += [following.eq(following + 1), last.eq(following == self.program_depth - 1)]

        def fail(code):
            m.d.comb += [self.error.valid.eq(1), self.error.code.eq(code)]

        with m.FSM():
            with m.State("idle"):
                with m.If(self.start):
                    m.d.sync += following.eq(self.first)
                    m.next = "start"
            with m.State("start"):
                m.d.comb += self.program.en.eq(1)
                m.next = "read"
                with m.If(following >= self.program_depth):
                    m.d.sync += self.index.eq(following)
                    m.next = "out of program"
            with m.State("read"):
                take()
                m.next = "check"
            with m.State("check"):
                m.d.comb += self.program.en.eq(1)
                m.next = "dispatch"
            with m.State("dispatch"):
                with m.Switch(opcode):
                    for code in Opcode:
                        with m.Case(code):
                            with m.If(checks[code].any()):
                                fail(ErrorCode.RESERVED_BITS)
                            with m.Else():
                                if code is Opcode.END:
                                    m.d.comb += self.fetched.eq(1)
                                    m.next = "end"
                                else:
                                    port = getattr(self, UNITS[code].name.lower())
                                    m.d.comb += [port.valid.eq(self.enable), ready.eq(port.ready), self.stalled.eq(~port.ready)]
                    with m.Default():
                        fail(ErrorCode.ILLEGAL_OPCODE)
                with m.If(ready & self.enable):
                    m.d.comb += self.fetched.eq(1)
                    take()
                    m.next = "check"
                    with m.If(last):
                        m.next = "out of program"
            with m.State("out of program"):
                fail(ErrorCode.PROGRAM_RANGE)
            with m.State("end"):
                m.d.comb += [self.at_end.eq(1), self.stalled.eq(1)]
        for name in UNIT_NAMES:
            payload = getattr(self, name).payload
            m.d.comb += [payload.instruction.eq(word), payload.index.eq(self.index)]
        return m
