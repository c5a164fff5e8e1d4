"""The gate in front of a unit: its queue, the tokens sent to it, and the instructions it has not finished."""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.interfaces import QueuedInstruction, Trace, UnitSignature
from celosia.rtl.isa import TOKEN_BITS, Header, Unit
from celosia.rtl.queue import Queue

__all__ = ["UNIT_NAMES", "Gate", "GateState"]

UNIT_NAMES = tuple(unit.name.lower() for unit in Unit if unit is not Unit.SEQUENCER)
"""The three units in the order of :class:`celosia.rtl.isa.Unit`."""

_IN_FLIGHT = 16
"""Instructions a unit may have taken and not finished: the depth of one distributed RAM. Units hold far fewer."""


class GateState(data.Struct):
    """What the gate does in this cycle, for the registers: the instruction at the queue's head, whether it waits for tokens or has
    them and waits for the unit, and whether the unit has not finished everything it took."""

    index: 16
    waiting: 1
    issued: 1
    active: 1


class Gate(wiring.Component):
    """Queue and token gate of one unit.

    The head's tokens are taken in one cycle and the instruction is offered from the next; the unit gets at most one instruction every
    other cycle. A token that arrives in cycle *t* lets an instruction be offered in cycle *t* + 2.

    Parameters
    ----------
    depth : int
        Instructions in the queue.

    Members
    -------
    i : ``In(stream)`` of :class:`~celosia.rtl.interfaces.QueuedInstruction`
        From fetch.
    unit : ``In(UnitSignature)``
    enable : ``In(1)``
        Nothing moves while low.
    arrived : ``In(3)``
        Bit *n*: unit *n* sends a token to this one.
    overflow : ``Out(3)``
        Bit *n*: in the cycle before, the counter of unit *n*'s tokens was full and got another.
    trace : ``Out(Trace)``
        What the unit does, with ``index`` that of its oldest unfinished instruction: the one ``unit.done`` speaks of. An instruction
        thus lasts from its predecessor's end, or from when it was taken, to its own end.
    tokens : ``Out``, array of three counters
        By sender.
    state : ``Out(GateState)``
    """

    def __init__(self, *, depth):
        self.depth = depth
        super().__init__({
            "i": In(stream.Signature(QueuedInstruction)),
            "unit": In(UnitSignature()),
            "enable": In(1),
            "arrived": In(len(UNIT_NAMES)),
            "overflow": Out(len(UNIT_NAMES)),
            "trace": Out(Trace),
            "tokens": Out(data.ArrayLayout(TOKEN_BITS, len(UNIT_NAMES))),
            "state": Out(GateState),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = Queue(shape=QueuedInstruction, depth=self.depth)
        m.submodules.in_flight = in_flight = Queue(shape=16, depth=_IN_FLIGHT)
        wiring.connect(m, wiring.flipped(self.i), queue.i)
        head = queue.o.payload
        header = data.View(Header, head.instruction[: Shape.cast(Header).width])
        waits = [header.wait[name] for name in UNIT_NAMES]

        # Tokens are compared in one cycle and subtracted in the next, while the instruction is offered: the queue's memory, the
        # comparison and the counter never add up in one path.
        enough = Signal()
        taking = Signal()
        issued = Signal()
        m.d.comb += enough.eq(Cat(self.tokens[n] >= wait for n, wait in enumerate(waits)).all() & in_flight.i.ready)
        m.d.sync += taking.eq(0)
        with m.If(issued):
            with m.If(self.unit.i.ready & self.enable):
                m.d.sync += issued.eq(0)
        with m.Elif(queue.o.valid & enough & self.enable):
            m.d.sync += [issued.eq(1), taking.eq(1)]

        for n, wait in enumerate(waits):
            counter = self.tokens[n]
            total = Signal(TOKEN_BITS + 1, name=f"total_{UNIT_NAMES[n]}")
            m.d.comb += total.eq(counter + self.arrived[n] - Mux(taking, wait, 0))
            m.d.sync += [counter.eq(total), self.overflow[n].eq(total[TOKEN_BITS])]

        accepted = self.unit.i.valid & self.unit.i.ready
        m.d.comb += [
            self.unit.i.valid.eq(issued & self.enable),
            self.unit.i.payload.eq(head),
            queue.o.ready.eq(accepted),
            in_flight.i.valid.eq(accepted),
            in_flight.i.payload.eq(head.index),
            in_flight.o.ready.eq(self.unit.done.valid & self.enable),
            self.trace.busy.eq(in_flight.o.valid),
            self.trace.stall.eq(in_flight.o.valid & self.unit.trace.stall),
            self.trace.index.eq(in_flight.o.payload),
            self.state.index.eq(head.index),
            self.state.waiting.eq(queue.o.valid & ~issued),
            self.state.issued.eq(issued),
            self.state.active.eq(in_flight.o.valid | ~self.unit.idle),
        ]
        return m
