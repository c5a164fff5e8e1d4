"""The sequencer: fetches a program, checks it, and hands each unit its instructions when their tokens are there.

::

                             ┌─► gate: queue, tokens ─► load unit    ─┐
    program memory ─► fetch ─┼─► gate: queue, tokens ─► execute unit ─┼─► done: tokens, error
                             ├─► gate: queue, tokens ─► store unit   ─┤
                             └╌► gate: queue, tokens ╌► transfer unit ┘  (with a memory port)

Where an instruction is spoken of, it is by its unit and its place in that gate's ring. The index memory knows the instruction's number
in the program: for fetch, to serve it; for the timeline; and when the engine has stopped, for the host. The first error stops the engine and is kept; the queues and token counters then stay as they were, for the host to look at, until
the next start. Units are held in reset while no program runs, so nothing of one run is seen by the next.
"""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from celosia.rtl.fetch import Fetch, ProgramReadSignature
from celosia.rtl.gate import Gate, GateState, slot, unit_names
from celosia.rtl.interfaces import EntryWriteSignature, Trace, UnitSignature
from celosia.rtl.isa import INSTRUCTION_BITS, TOKEN_BITS, ErrorCode, Unit
from celosia.rtl.port import MemoryReadSignature
from celosia.rtl.prefetch import Prefetch

__all__ = ["QUIET_CYCLES", "EngineTrace", "ErrorCause", "Sequencer", "Waiting"]

QUIET_CYCLES = 8
"""Cycles without any movement after which the engine is taken to be dead; a token takes three to become an offer."""


class ErrorCause(data.Struct):
    """Why the engine stopped; ``code`` is NONE as long as it has not, and ``index`` then means nothing."""

    code: ErrorCode
    unit: Unit
    index: 16


class Waiting(data.Struct):
    """A bit for each unit."""

    load: 1
    execute: 1
    store: 1
    transfer: 1


class EngineTrace(data.Struct):
    """What the units do in this cycle; ``waiting`` has a bit for each that is free and whose next instruction lacks tokens.

    ``index`` is that of the unit's oldest unfinished instruction: the one ``done`` speaks of. An instruction thus lasts from its
    predecessor's end, or from when it was offered, to its own end. In an engine without a memory port all of ``transfer`` is zero.
    """

    load: Trace
    execute: Trace
    store: Trace
    transfer: Trace
    waiting: Waiting


class Sequencer(wiring.Component):
    """Fetch, queues and tokens.

    Parameters
    ----------
    program_depth : int
        Instructions in the program memory.
    queue_depth : int
        Instructions in front of each unit.
    fetch_bits : int
        Bits of the program memory read per cycle.
    memory_bytes : int
        Bytes per cycle of the memory port; 0: there is none, and no transfer unit.

    Members
    -------
    start, abort : ``In(1)``
        One-cycle commands. ``start`` is ignored while busy; ``abort`` wins, and clears ``done`` and ``error``.
    first : ``In(16)``
        Index of the first instruction.
    program : ``Out(ProgramReadSignature)``
    address : ``In(32)``, length : ``In(17)``, source : ``Out(MemoryReadSignature)``, program_write : ``Out(EntryWriteSignature)``
        With a memory port: those of :class:`~celosia.rtl.prefetch.Prefetch`.
    load, execute, store, transfer : ``In(UnitSignature)``
        The units.
    busy, done : ``Out(1)``
        A program runs; the last one has ended without error.
    ended, failed : ``Out(1)``
        Pulses in the last cycle of ``busy``.
    error : ``Out(ErrorCause)``
    unit_reset : ``Out(1)``
        Holds the units in reset.
    fetched : ``Out(1)``
        High in one cycle for each instruction that has passed the checks, END included.
    trace : ``Out(EngineTrace)``
    (unit)_state : ``Out(GateState)``
    (unit)_tokens : ``Out``, array of counters
        Tokens towards a unit, by the number of the sender, see :class:`~celosia.rtl.gate.Gate`.
    """

    def __init__(self, *, program_depth, queue_depth, fetch_bits, memory_bytes=0):
        self.program_depth = program_depth
        self.queue_depth = queue_depth
        self.fetch_bits = fetch_bits
        self.memory_bytes = memory_bytes
        self.names = unit_names(memory_bytes)
        members = {}
        if memory_bytes:
            write = EntryWriteSignature(width=fetch_bits, addr_width=exact_log2(program_depth * INSTRUCTION_BITS // fetch_bits))
            members = {
                "address": In(32),
                "length": In(17),
                "source": Out(MemoryReadSignature(memory_bytes=memory_bytes)),
                "program_write": Out(write),
            }
        for name in self.names:
            members[name] = In(UnitSignature())
            members[f"{name}_state"] = Out(GateState)
            members[f"{name}_tokens"] = Out(data.ArrayLayout(TOKEN_BITS, len(self.names)))
        super().__init__({
            "start": In(1),
            "abort": In(1),
            "first": In(16),
            "program": Out(ProgramReadSignature(bits=fetch_bits)),
            "busy": Out(1),
            "done": Out(1),
            "ended": Out(1),
            "failed": Out(1),
            "error": Out(ErrorCause),
            "unit_reset": Out(1, init=1),
            "fetched": Out(1),
            "trace": Out(EngineTrace),
            **members,
        })

    def elaborate(self, platform):
        m = Module()
        begin, clear, begun = Signal(), Signal(), Signal()
        running, stopping = Signal(), Signal()
        m.d.comb += [
            begin.eq(self.start & ~self.busy & ~self.abort),
            clear.eq(begin | self.abort),
            self.busy.eq(running | stopping),
            self.unit_reset.eq(~running),
        ]
        m.d.sync += begun.eq(begin)

        port = bool(self.memory_bytes)
        fetch = Fetch(program_depth=self.program_depth, fetch_bits=self.fetch_bits, memory_port=port)
        m.submodules.fetch = ResetInserter(~running)(fetch)
        prefetch = self._prefetch(m, begun, running, fetch) if port else None
        gates = {
            name: Gate(number=Unit[name.upper()], depth=self.queue_depth, fetch_bits=self.fetch_bits, memory_port=port) for name in self.names
        }
        wiring.connect(m, fetch.program, wiring.flipped(self.program))
        m.d.comb += [fetch.start.eq(begun), fetch.first.eq(self.first), self.fetched.eq(fetch.fetched)]
        for number, (name, gate) in enumerate(gates.items()):
            m.submodules[f"{name}_gate"] = ResetInserter(clear)(gate)
            unit = getattr(self, name)
            wiring.connect(m, gate.unit, wiring.flipped(unit))
            m.d.comb += [
                fetch.room[number].eq(gate.room & running),
                fetch.request[number].eq(gate.request),
                gate.push.eq(fetch.push[number]),
                gate.grant.eq(fetch.grant[number]),
                gate.part.eq(fetch.part),
                gate.served.eq(fetch.served),
                gate.enable.eq(running),
                getattr(self, f"{name}_state").eq(gate.state),
                getattr(self, f"{name}_tokens").eq(gate.tokens),
                self.trace[name].busy.eq(gate.state.issued | gate.state.active),
                self.trace[name].stall.eq(self.trace[name].busy & unit.trace.stall),
                self.trace.waiting[name].eq(gate.state.waiting & ~gate.state.active & running),
            ]
            for receiver, other in gates.items():
                if receiver != name:
                    m.d.comb += other.arrived[number].eq(unit.done.valid & unit.done.signal[slot(name, receiver)] & running)

        self._stop(m, running, stopping, fetch, prefetch, gates)
        with m.If(begin):
            m.d.sync += running.eq(1)
        with m.If(clear):
            m.d.sync += [self.done.eq(0), self.error.code.eq(ErrorCode.NONE)]
        with m.If(self.abort):
            m.d.comb += [self.ended.eq(0), self.failed.eq(0)]
            m.d.sync += [running.eq(0), stopping.eq(0)]
        return m

    def _prefetch(self, m, begun, running, fetch):
        """Build what brings the program; return it."""
        prefetch = Prefetch(program_depth=self.program_depth, fetch_bits=self.fetch_bits, memory_bytes=self.memory_bytes)
        m.submodules.prefetch = ResetInserter(~running)(prefetch)
        wiring.connect(m, prefetch.port, wiring.flipped(self.source))
        wiring.connect(m, prefetch.write, wiring.flipped(self.program_write))
        m.d.comb += [
            prefetch.start.eq(begun),
            prefetch.first.eq(self.first),
            prefetch.address.eq(self.address),
            prefetch.length.eq(self.length),
            prefetch.index.eq(fetch.index),
            prefetch.push.eq(fetch.push.any()),
            prefetch.consumed.eq(fetch.consumed),
            prefetch.served.eq(fetch.served),
            fetch.available.eq(prefetch.available),
            fetch.length.eq(Mux(self.length == 0, self.program_depth, self.length)),
        ]
        return prefetch

    def _stop(self, m, running, stopping, fetch, prefetch, gates):
        """Find out when the run ends and why. It takes another cycle to look up the index of the instruction to blame."""
        # Causes as (condition, code, unit to name, place); where several come together, the first in the list is kept. Fetch's own
        # instruction has no place: its index is kept in the ring of the sequencer, which has only one.
        place = Signal.like(gates["load"].tail)
        causes = [
            (unit.error.valid, unit.error.code, Unit[name.upper()], unit.error.index[: len(place)])
            for name, unit in ((name, getattr(self, name)) for name in self.names)
        ]
        for number, (name, gate) in enumerate(gates.items()):
            full = Cat(other.overflow[number] for other in gates.values()).any()
            causes.append((full, ErrorCode.TOKEN_OVERFLOW, Unit[name.upper()], gate.oldest - 1))
        causes.append((fetch.error.as_value().any(), fetch.error, Unit.SEQUENCER, 0))
        held_up = fetch.stalled
        if prefetch is not None:
            causes.append((prefetch.failed & fetch.starved, ErrorCode.MEMORY_ERROR, Unit.SEQUENCER, 0))
            held_up = held_up | fetch.starved & prefetch.blocked

        moving = Cat(gate.state.active | gate.state.issued | gate.loading for gate in gates.values()).any()
        waiting = Cat(gate.state.waiting for gate in gates.values()).any()
        left = Cat(gate.left for gate in gates.values()).any()
        # The tokens have been looked at when the end has lasted for a cycle.
        ending, lasts, remain = Signal(), Signal(), Signal()
        m.d.comb += ending.eq(fetch.at_end & ~moving & ~waiting)
        m.d.sync += [lasts.eq(ending), remain.eq(left)]
        at_end = ending & lasts
        causes.append((at_end & remain, ErrorCode.TOKENS_LEFT, Unit.SEQUENCER, 0))

        # A dead engine: nothing in flight, no head can go, and fetch cannot bring anything that would change it.
        still = Signal(range(QUIET_CYCLES))
        m.d.sync += still.eq(0)
        with m.If(running & held_up & ~moving & waiting):
            m.d.sync += still.eq(still + 1)
        for name, gate in gates.items():
            dead = (still == QUIET_CYCLES - 1) & gate.state.waiting
            causes.append((dead, ErrorCode.DEADLOCK, Unit[name.upper()], gate.head))

        m.d.sync += stopping.eq(0)
        with m.If(running):
            with m.If(at_end):
                m.d.sync += [running.eq(0), stopping.eq(1), self.done.eq(1)]
            for condition, code, unit, where in reversed(causes):
                with m.If(condition):
                    m.d.sync += [running.eq(0), stopping.eq(1), self.done.eq(0)]
                    m.d.sync += [self.error.code.eq(code), self.error.unit.eq(unit), place.eq(where)]
        m.d.comb += [self.ended.eq(stopping & self.done), self.failed.eq(stopping & ~self.done)]

        self._indices(m, running, fetch, gates, place)

    def _indices(self, m, running, fetch, gates, place):
        """Build the memory of the instructions' indices, by unit and place."""
        bits, unit_bits = len(place), 3 if self.memory_bytes else 2  # numbers of units
        shape = {"shape": unsigned(16), "depth": 1 << unit_bits + bits, "init": []}
        m.submodules.indices = indices = memory.Memory(**shape, attrs={"no_rw_check": 1, "ram_style": "block"})
        write, read = indices.write_port(), indices.read_port()
        # A copy for simulations only: in hardware nobody looks at the timeline, and it goes.
        m.submodules.timeline = timeline = memory.Memory(**shape)
        copy = timeline.write_port()
        m.d.comb += [
            write.en.eq(running),
            write.addr.eq(Cat(Const(0, bits), Const(Unit.SEQUENCER.value, unit_bits))),
            write.data.eq(fetch.index),
            Cat(copy.en, copy.addr, copy.data).eq(Cat(write.en, write.addr, write.data)),
            read.addr.eq(Cat(place, self.error.unit.as_value()[:unit_bits])),
            fetch.found.eq(read.data),
            self.error.index.eq(read.data),
        ]
        for number, (name, gate) in enumerate(gates.items()):
            unit = Const(Unit[name.upper()].value, unit_bits)
            with m.If(fetch.push[number]):
                m.d.comb += write.addr.eq(Cat(gate.tail, unit))
            with m.If(fetch.grant[number]):
                m.d.comb += read.addr.eq(Cat(gate.head, unit))
            trace = timeline.read_port(domain="comb")
            m.d.comb += [trace.addr.eq(Cat(gate.oldest, unit)), self.trace[name].index.eq(trace.data)]
