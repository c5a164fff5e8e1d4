"""The gate in front of a unit: its queue, the tokens sent to it, and the instructions it has not finished."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.interfaces import InstructionPart, UnitSignature
from celosia.rtl.isa import INSTRUCTION_BITS, TOKEN_BITS, UNITS, Header, Opcode, Unit, zero_bits

__all__ = ["UNIT_NAMES", "Gate", "GateState", "places", "slot", "unit_names"]

UNIT_NAMES = tuple(unit.name.lower() for unit in Unit if unit not in (Unit.SEQUENCER, Unit.TRANSFER))
"""The three units in the order of :class:`celosia.rtl.isa.Unit`."""


def unit_names(memory_port):
    """Return the units of an engine, in that order: with a memory port the transfer unit is the fourth."""
    return (*UNIT_NAMES, "transfer") if memory_port else UNIT_NAMES


def slot(own, other):
    """Return the name of the field in which an instruction of the unit ``own`` has the waits for ``other``, or the signal to it."""
    return own if other == "transfer" else other


class GateState(data.Struct):
    """What the gate does in this cycle, for the registers: the instruction at the queue's head, whether it waits for tokens or has
    them and waits for the unit, and whether the unit has not finished everything it took. ``index`` means nothing without one of the
    first two."""

    index: 16
    waiting: 1
    issued: 1
    active: 1


def places(queue_depth):
    """Return the number of places that a unit's instructions have between fetch and their completion: a power of two, and twice
    the queue's depth at least."""
    return 2 << ceil_log2(queue_depth)


def _used_bits(unit, memory_port):
    """Return the positions of the bits that ``unit`` may look at: neither those of the waits nor what is the same in all of its
    instructions."""
    codes = [code for code, of in UNITS.items() if of is unit]
    header = data.Layout.cast(Header)
    opcode, wait = header["opcode"], header["wait"]
    used = set.union(*(set(range(INSTRUCTION_BITS)) - set(zero_bits(code, memory_port)) for code in codes))
    used -= set(range(wait.offset, wait.offset + wait.width))
    same = [bit for bit in range(opcode.width) if len({code.value >> bit & 1 for code in codes}) == 1]
    return sorted(used - {opcode.offset + bit for bit in same})


class Gate(wiring.Component):
    """Queue and token gate of one unit.

    Instructions take their places in a ring of :func:`places` in the order of the program: those that unit and gate have not finished lie
    from ``oldest`` on, those that wait in the queue from ``head`` on, the next one comes to ``tail``. The gate itself holds the
    head's words, which it asks fetch for as soon as the former head has gone.

    The head's tokens are taken in one cycle and the instruction is offered from the next. A token that arrives in cycle *t*
    lets an instruction be offered in cycle *t* + 2.

    Parameters
    ----------
    number : Unit
        The unit behind the gate.
    depth : int
        Instructions in the queue.
    fetch_bits : int
        Bits of an instruction that come at a time.
    memory_port : bool
        Whether there is a transfer unit.

    Members
    -------
    push : ``In(1)``
        An instruction takes place ``tail``. Only with ``room``.
    room : ``Out(1)``
    tail, head, oldest : ``Out``
        Places.
    request : ``Out(1)``
        There is a head, and its words have not been asked for.
    grant : ``In(1)``
        The head's words will come.
    part : ``In`` of :func:`~celosia.rtl.interfaces.InstructionPart`
        Those of other units are ignored.
    served : ``In(16)``
        The index of the instruction, with its first part.
    unit : ``In(UnitSignature)``
        Instructions have the place's number as ``index``.
    enable : ``In(1)``
        Nothing moves while low.
    arrived : ``In``, a bit for each of :func:`unit_names`
        Bit *n*: unit *n* sends a token to this one.
    overflow : ``Out``, likewise
        Bit *n*: in the cycle before, the counter of unit *n*'s tokens was full and got another.
    tokens : ``Out``, array of as many counters
        By sender; while the head waits less what it waits for, and one.
    left : ``Out(1)``
        There are tokens; only without a head, and when none arrives.
    state : ``Out(GateState)``
    loading : ``Out(1)``
        There is a head whose words are not here.
    """

    def __init__(self, *, number, depth, fetch_bits, memory_port=False):
        self.number = Unit(number)
        self.depth = depth
        self.fetch_bits = fetch_bits
        self.memory_port = memory_port
        self.names = unit_names(memory_port)
        place = range(places(depth))
        super().__init__({
            "push": In(1),
            "room": Out(1),
            "tail": Out(place),
            "head": Out(place),
            "oldest": Out(place),
            "request": Out(1),
            "grant": In(1),
            "part": In(InstructionPart(bits=fetch_bits)),
            "served": In(16),
            "unit": In(UnitSignature()),
            "enable": In(1),
            "arrived": In(len(self.names)),
            "overflow": Out(len(self.names)),
            "tokens": Out(data.ArrayLayout(TOKEN_BITS, len(self.names))),
            "left": Out(1),
            "state": Out(GateState),
            "loading": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        asked, loaded, issued = Signal(), Signal(), Signal()  # how far the head is; each includes the former
        waiting = Signal()
        accepted, done = Signal(), Signal()
        m.d.comb += [
            accepted.eq(self.unit.i.valid & self.unit.i.ready),
            done.eq(self.unit.done.valid & self.enable),
            self.room.eq(((self.tail - self.head)[: len(self.tail)] != self.depth) & ((self.tail + 1)[: len(self.tail)] != self.oldest)),
        ]
        for pointer, step in ((self.tail, self.push), (self.head, accepted), (self.oldest, done)):
            with m.If(step):
                m.d.sync += pointer.eq(pointer + 1)

        complete = self._parts(m)
        early = complete if self.fetch_bits < INSTRUCTION_BITS else 0  # the waits come with the first part
        go = self._tokens(m, asked, (loaded | early) & ~issued)
        with m.If(self.grant):
            m.d.sync += asked.eq(1)
        with m.If(complete):
            m.d.sync += loaded.eq(1)
        with m.If(go):
            m.d.sync += issued.eq(1)
        with m.If(accepted):
            m.d.sync += Cat(asked, loaded, issued).eq(0)

        some = self.tail != self.head
        m.d.comb += [
            waiting.eq(loaded & ~issued),
            self.request.eq(some & ~asked),
            self.loading.eq(some & ~loaded),
            self.unit.i.valid.eq(issued & self.enable),
            self.unit.i.payload.index.eq(self.head),
            self.state.waiting.eq(waiting),
            self.state.issued.eq(issued),
            self.state.active.eq(self.oldest != self.head),
        ]
        return m

    def _parts(self, m):
        """Keep what the unit uses of the parts that come; return whether it is the last one."""
        instruction = self.unit.i.payload.instruction
        constant = next(code.value for code, unit in UNITS.items() if unit is self.number)
        m.d.comb += instruction[: Shape.cast(Opcode).width].eq(constant)
        used = _used_bits(self.number, self.memory_port)
        parts = INSTRUCTION_BITS // self.fetch_bits
        for number in range(parts):
            first = number * self.fetch_bits
            bits = [bit for bit in used if first <= bit < first + self.fetch_bits]
            held = Signal(len(bits), name=f"part{number}", reset_less=True)
            with m.If(self._here(number)):
                m.d.sync += held.eq(Cat(self.part.data[bit - first] for bit in bits))
            m.d.comb += Cat(instruction[bit] for bit in bits).eq(held)
        with m.If(self._here(0)):
            m.d.sync += self.state.index.eq(self.served)
        return self._here(parts - 1)

    def _here(self, number):
        return self.enable & self.part.valid & (self.part.unit == self.number) & (self.part.number == number)

    def _tokens(self, m, asked, ready):
        """Count the tokens of each sender; return whether the head, if it is ``ready``, has its own.

        When the head's first part goes past, its waits are subtracted, and one more: so a token that comes in that very cycle has a place in
        the sum, its carry. When the head goes that one is added again, in a cycle without a token; until then the result of adding it is
        negative if tokens are missing. Without a head, one is subtracted to see if there are any.
        """
        header = data.View(Header, self.part.data[: Shape.cast(Header).width])
        taking, go, looking = self._here(0), Signal(), ~(asked | self.arrived.any())
        enough, left = [], []
        own = self.number.name.lower()
        for sender, name in enumerate(self.names):
            if name == own:
                continue
            counter, arrived = Signal(signed(TOKEN_BITS + 1), name=f"tokens_{name}"), self.arrived[sender]
            subtracted, total = Signal.like(counter, name=f"subtracted_{name}"), Signal.like(counter, name=f"total_{name}")
            m.d.comb += [
                subtracted.eq(Mux(taking, ~Cat(header.wait[slot(own, name)], Const(0, 3)), looking.replicate(len(counter)))),
                total.eq((Cat(1, counter) + Cat(arrived | ~(taking | looking), subtracted))[1:]),  # the carry first
                self.tokens[sender].eq(counter),
            ]
            with m.If(arrived | taking | go):
                m.d.sync += counter.eq(total)
            m.d.sync += self.overflow[sender].eq(arrived & (total[-2:] == 0b10))
            enough.append(~arrived & ~total[-1])
            left.append(~total[-1])
        m.d.comb += [go.eq(ready & Cat(enough).all() & self.enable), self.left.eq(looking & Cat(left).any())]
        return go
