"""The fetch stage: reads the program word by word, checks what every instruction has, and deals it out to the gates.

::

    program memory ─► word ─┬─► checks ─► index ─► sequencer's index memory ─┐
           ▲                └─────────────────────────────────────► gates   │
           └──────────────────────────── address ◄──────────────────────────┘

Each instruction is read twice. First it is *scanned*: its words with reserved bits are checked, and its index is put behind those of
its unit. When the unit's gate has room for its words, the instruction is *served*: found by that index and read as a whole. So
the words that wait stay in the program memory, and the queues hold nothing but indices.
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from celosia.rtl.gate import unit_names
from celosia.rtl.interfaces import InstructionPart
from celosia.rtl.isa import INSTRUCTION_BITS, UNITS, ErrorCode, Opcode, Unit, opcodes, zero_bits
from celosia.rtl.limits import at_least
from celosia.rtl.loadable import loadable

__all__ = ["Fetch", "ProgramReadSignature", "has_reserved_bits"]


class ProgramReadSignature(wiring.Signature):
    """The program memory's read port, from the reader's side.

    An instruction is read in parts of ``bits``; in a cycle with ``valid`` and ``ready`` that is part ``addr``, counted from the memory's first
    instruction on. ``data`` holds it one cycle later, during one cycle (straight from block RAM: register it first).
    """

    def __init__(self, *, bits):
        parts = INSTRUCTION_BITS // bits
        super().__init__({"addr": Out(16 + exact_log2(parts)), "valid": Out(1), "ready": In(1), "data": In(bits)})


def has_reserved_bits(opcode, part, memory_port=False):
    """Return whether ``part``, an :func:`~celosia.rtl.interfaces.InstructionPart`, has a bit set that must be zero with ``opcode``.

    Bits that are reserved in the same parts of the same opcodes are joined first.
    """
    width = len(part.data)
    places = {}
    for code in opcodes(memory_port):
        for position in zero_bits(code, memory_port):
            number, bit = divmod(position, width)
            places.setdefault(bit, set()).add((code, number))
    groups = {}
    for bit, where in places.items():
        groups.setdefault(frozenset(where), []).append(part.data[bit])
    found = []
    for where, bits in groups.items():
        here = []
        for code in opcodes(memory_port):
            numbers = [number for of, number in sorted(where, key=lambda place: place[1]) if of is code]
            if numbers:
                here.append((opcode == code.value) & (1 if len(numbers) == INSTRUCTION_BITS // width else Cat(part.number == n for n in numbers).any()))
        found.append(Cat(here).any() & Cat(bits).any())
    return Cat(found).any()


class Fetch(wiring.Component):
    """Scans and serves one instruction at a time, and serves first. To be held in reset while no program runs.

    Both take four cycles besides one per word; scanning reads the first word only where no other has reserved bits.

    Parameters
    ----------
    program_depth : int
        Instructions in the program memory.
    fetch_bits : int
        Bits of the program memory read at a time.
    memory_port : bool
        Whether there is a transfer unit, and programs may come from external memory.

    Members
    -------
    start : ``In(1)``
        Begin at instruction ``first``, in the next cycle.
    first : ``In(16)``
    length : ``In(17)``, with a memory port
        Instructions of the program, or of the program memory.
    available : ``In(1)``, with a memory port
        The instruction ``index`` can be read, or does not exist.
    program : ``Out(ProgramReadSignature)``
    index : ``Out(16)``
        The instruction that is scanned, or that waits for room.
    push : ``Out``, a bit for each unit
        The instruction ``index`` is the next one of unit *n*. At most one bit, and only of ``room``.
    room : ``In``, likewise
        Unit *n*'s queue has room.
    unit : ``Out(Unit)``
        Of the instruction to push; what it is when nothing is pushed has no meaning.
    request : ``In``, likewise
        Gate *n* wants the next instruction of its queue.
    grant : ``Out``, likewise
        The first bit of ``request`` is served.
    found : ``In(16)``
        The index of the instruction to serve, in the cycle after the grant.
    served : ``Out(16)``
        The index of the instruction that the present ``part`` belongs to, if that has number 0.
    consumed : ``Out(1)``
        The last part of the instruction ``served`` is read in this cycle.
    part : ``Out`` of :func:`~celosia.rtl.interfaces.InstructionPart`
    fetched : ``Out(1)``
        High in one cycle for each instruction that has passed the checks, END included.
    stalled : ``Out(1)``
        An instruction waits for room, or END has been reached.
    starved : ``Out(1)``
        The next instruction is not ``available``.
    at_end : ``Out(1)``
        END has been reached.
    error : ``Out(ErrorCode)``
        What is wrong with the instruction ``index``, during one cycle.
    """

    def __init__(self, *, program_depth, fetch_bits, memory_port=False):
        if not 1 <= program_depth <= 1 << 16:
            raise ValueError(f"program_depth must be between 1 and {1 << 16}, not {program_depth}")
        self.program_depth = program_depth
        self.fetch_bits = fetch_bits
        self.memory_port = memory_port
        self.names = names = unit_names(memory_port)
        super().__init__({
            **({"length": In(17), "available": In(1)} if memory_port else {}),
            "start": In(1),
            "first": In(16),
            "program": Out(ProgramReadSignature(bits=fetch_bits)),
            "index": Out(16),
            "push": Out(len(names)),
            "room": In(len(names)),
            "unit": Out(Unit),
            "request": In(len(names)),
            "grant": Out(len(names)),
            "found": In(16),
            "served": Out(16),
            "consumed": Out(1),
            "part": Out(InstructionPart(bits=fetch_bits)),
            "fetched": Out(1),
            "stalled": Out(1),
            "starved": Out(1),
            "at_end": Out(1),
            "error": Out(ErrorCode),
        })

    def elaborate(self, platform):
        m = Module()
        parts = INSTRUCTION_BITS // self.fetch_bits
        job = Signal(Unit)
        scanning = job == Unit.SEQUENCER
        number = Signal(range(parts))
        begin = Signal()
        following = loadable(m, "following", load=begin, value=self.first, step=self.push.any())  # 2^16 is not 0
        opcode = Signal(Shape.cast(Opcode))
        pending, passed = Signal(), Signal()

        # The program memory's output comes late and from far away: it is registered before anything looks at it.
        arriving = Signal(InstructionPart(bits=self.fetch_bits))
        m.d.comb += [self.program.addr.eq(Cat(number, self.served)), arriving.data.eq(self.program.data)]
        m.d.sync += [
            arriving.valid.eq(self.program.valid & self.program.ready),
            arriving.unit.eq(job),
            arriving.number.eq(number),
            self.part.eq(arriving),
        ]
        with m.If(arriving.valid & (arriving.unit == Unit.SEQUENCER) & (arriving.number == 0)):
            m.d.sync += opcode.eq(arriving.data[: len(opcode)])
        scanned = self.part.valid & (self.part.unit == Unit.SEQUENCER)
        reserved = scanned & has_reserved_bits(opcode, self.part, self.memory_port)
        with m.If(reserved):
            m.d.comb += self.error.eq(ErrorCode.RESERVED_BITS)

        # What has passed waits for room; END for ever.
        m.d.comb += self.unit.eq(Unit.SEQUENCER)
        with m.Switch(opcode):
            for code, unit in UNITS.items():
                with m.Case(code):
                    m.d.comb += self.unit.eq(unit)
        m.d.comb += [
            self.index.eq(following),
            self.push.eq(Cat(pending & (self.unit == Unit[name.upper()]) for name in self.names) & self.room),
            self.stalled.eq(pending),
            self.at_end.eq(pending & (self.unit == Unit.SEQUENCER)),
            self.fetched.eq(passed & ~reserved),
        ]
        with m.If(self.fetched):
            m.d.sync += pending.eq(1)
        with m.If(self.push.any()):
            m.d.sync += pending.eq(0)

        with m.FSM():
            with m.State("idle"):
                m.d.comb += begin.eq(1)
                with m.If(self.start):
                    m.next = "choose"
            with m.State("choose"):
                m.d.sync += job.eq(Unit.SEQUENCER)
                for unit, name in reversed(list(enumerate(self.names))):
                    with m.If(self.request[unit]):
                        m.d.comb += self.grant.eq(1 << unit)
                        m.d.sync += job.eq(Unit[name.upper()])
                m.d.comb += self.starved.eq(~pending & ~(self.available if self.memory_port else 1))
                with m.If(self.request.any() | ~pending & ~self.starved):
                    m.next = "locate"
            with m.State("locate"):
                m.d.sync += [self.served.eq(Mux(scanning, following, self.found)), number.eq(0)]
                m.next = "read"
                with m.If(scanning & at_least(following, self.length if self.memory_port else self.program_depth)):
                    m.d.comb += self.error.eq(ErrorCode.PROGRAM_RANGE)
            with m.State("read"):
                m.d.comb += self.program.valid.eq(1)
                with m.If(self.program.ready):
                    m.d.sync += number.eq(number + 1)
                    with m.If(number == parts - 1):
                        m.d.comb += self.consumed.eq(~scanning)
                        m.next = "choose"
                    with m.If(scanning & ((number == 0) | (number == parts - 1))):
                        m.next = "judge"
            with m.State("judge"):
                with m.If(scanned & (self.part.number == parts - 1)):
                    m.d.comb += passed.eq(1)
                    m.next = "choose"
                with m.If(scanned & (self.part.number == 0)):
                    with m.Switch(opcode):
                        for code in opcodes(self.memory_port):
                            with m.Case(code):
                                if zero_bits(code, self.memory_port)[-1] < self.fetch_bits:
                                    m.d.comb += passed.eq(1)
                                    m.next = "choose"
                                else:
                                    m.next = "read"
                        with m.Default():
                            m.d.comb += self.error.eq(ErrorCode.ILLEGAL_OPCODE)
        return m
