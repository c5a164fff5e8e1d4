"""The sequencer: fetches a program, checks it, and hands each unit its instructions when their tokens are there.

::

                          ┌─► gate: queue, tokens ─► load unit    ─┐
    program memory ─► fetch ─► gate: queue, tokens ─► execute unit ─┼─► done: tokens, error
                          └─► gate: queue, tokens ─► store unit   ─┘

The first error stops the engine and is kept; the queues and token counters then stay as they were, for the host to look at, until
the next start. Units are held in reset while no program runs, so nothing of one run is seen by the next.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.fetch import Fetch, ProgramReadSignature
from celosia.rtl.gate import UNIT_NAMES, Gate, GateState
from celosia.rtl.interfaces import Trace, UnitSignature
from celosia.rtl.isa import TOKEN_BITS, ErrorCode, Signals, Unit

__all__ = ["QUIET_CYCLES", "EngineTrace", "ErrorCause", "Sequencer"]

QUIET_CYCLES = 8
"""Cycles without any movement after which the engine is taken to be dead; a token takes three to become an offer."""


class ErrorCause(data.Struct):
    """Why the engine stopped; ``code`` is NONE as long as it has not."""

    code: ErrorCode
    unit: Unit
    index: 16


class EngineTrace(data.Struct):
    """What the units do in this cycle; ``waiting`` has a bit for each that is free and whose next instruction lacks tokens."""

    load: Trace
    execute: Trace
    store: Trace
    waiting: Signals


class Sequencer(wiring.Component):
    """Fetch, queues and tokens.

    Parameters
    ----------
    program_depth : int
        Instructions in the program memory.
    queue_depth : int
        Instructions in front of each unit.

    Members
    -------
    start, abort : ``In(1)``
        One-cycle commands. ``start`` is ignored while busy; ``abort`` wins, and clears ``done`` and ``error``.
    first : ``In(16)``
        Index of the first instruction.
    program : ``Out(ProgramReadSignature)``
    load, execute, store : ``In(UnitSignature)``
        The units.
    busy, done : ``Out(1)``
        A program runs; the last one has ended without error.
    ended, failed : ``Out(1)``
        Pulses in the last cycle of ``busy``.
    error : ``Out(ErrorCause)``
    unit_reset : ``Out(1)``
        Holds the units in reset.
    fetched : ``Out(1)``
        High in one cycle for each instruction that leaves the fetch stage.
    trace : ``Out(EngineTrace)``
    (unit)_state : ``Out(GateState)``
    (unit)_tokens : ``Out``, array of counters
        Tokens towards a unit, by the number of the sender.
    """

    def __init__(self, *, program_depth, queue_depth):
        self.program_depth = program_depth
        self.queue_depth = queue_depth
        members = {}
        for name in UNIT_NAMES:
            members[name] = In(UnitSignature())
            members[f"{name}_state"] = Out(GateState)
            members[f"{name}_tokens"] = Out(data.ArrayLayout(TOKEN_BITS, len(UNIT_NAMES)))
        super().__init__({
            "start": In(1),
            "abort": In(1),
            "first": In(16),
            "program": Out(ProgramReadSignature()),
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
        begin = Signal()
        m.d.comb += begin.eq(self.start & ~self.busy & ~self.abort)
        m.d.comb += self.unit_reset.eq(~self.busy)

        fetch = Fetch(program_depth=self.program_depth)
        gates = {name: Gate(depth=self.queue_depth) for name in UNIT_NAMES}
        clear = Signal()
        begun = Signal()
        m.d.comb += clear.eq(begin | self.abort)
        m.d.sync += begun.eq(begin)
        m.submodules.fetch = ResetInserter(clear)(fetch)
        wiring.connect(m, fetch.program, wiring.flipped(self.program))
        m.d.comb += [fetch.start.eq(begun), fetch.enable.eq(self.busy), fetch.first.eq(self.first), self.fetched.eq(fetch.fetched)]
        for number, (name, gate) in enumerate(gates.items()):
            m.submodules[f"{name}_gate"] = ResetInserter(clear)(gate)
            unit = getattr(self, name)
            wiring.connect(m, getattr(fetch, name), gate.i)
            wiring.connect(m, gate.unit, wiring.flipped(unit))
            m.d.comb += [
                gate.enable.eq(self.busy),
                getattr(self, f"{name}_state").eq(gate.state),
                getattr(self, f"{name}_tokens").eq(gate.tokens),
                self.trace[name].eq(gate.trace),
                self.trace.waiting[name].eq(gate.state.waiting & ~gate.trace.busy & self.busy),
            ]
            for receiver, other in gates.items():
                if receiver != name:
                    m.d.comb += other.arrived[number].eq(unit.done.valid & unit.done.signal[receiver] & self.busy)

        # Causes of an error as (condition, code, unit, index); where several come together, the first in the list is kept.
        causes = [(unit.error.valid, unit.error.code, Unit[name.upper()], unit.error.index)
                  for name, unit in ((name, getattr(self, name)) for name in UNIT_NAMES)]  # fmt: skip
        for number, (name, gate) in enumerate(gates.items()):
            full = Cat(other.overflow[number] for other in gates.values()).any()
            sender = Signal(16, name=f"{name}_sender")
            m.d.sync += sender.eq(gate.trace.index)
            causes.append((full, ErrorCode.TOKEN_OVERFLOW, Unit[name.upper()], sender))
        causes.append((fetch.error.valid, fetch.error.code, Unit.SEQUENCER, fetch.error.index))

        moving = Cat(gate.state.active | gate.state.issued for gate in gates.values()).any()
        queued = Cat(gate.state.waiting for gate in gates.values()).any()
        tokens = Cat(gate.tokens for gate in gates.values()).any()
        at_end = fetch.at_end & ~moving & ~queued
        causes.append((at_end & tokens, ErrorCode.TOKENS_LEFT, Unit.SEQUENCER, fetch.index))

        # A dead engine: nothing in flight, no head can go, and fetch cannot bring anything that would change it.
        still = Signal(range(QUIET_CYCLES + 1))
        with m.If(self.busy & fetch.stalled & ~moving & queued):
            m.d.sync += still.eq(still + 1)
        with m.Else():
            m.d.sync += still.eq(0)
        for name, gate in gates.items():
            dead = (still == QUIET_CYCLES) & gate.state.waiting
            causes.append((dead, ErrorCode.DEADLOCK, Unit[name.upper()], gate.state.index))

        with m.If(self.busy):
            with m.If(at_end):
                m.d.comb += self.ended.eq(1)
                m.d.sync += [self.busy.eq(0), self.done.eq(1)]
            for condition, code, unit, index in reversed(causes):
                with m.If(condition):
                    m.d.comb += [self.failed.eq(1), self.ended.eq(0)]
                    m.d.sync += [self.busy.eq(0), self.done.eq(0)]
                    m.d.sync += [self.error.code.eq(code), self.error.unit.eq(unit), self.error.index.eq(index)]
        with m.If(begin):
            m.d.sync += [self.busy.eq(1), self.done.eq(0), self.error.eq(0)]
        with m.If(self.abort):
            m.d.comb += [self.ended.eq(0), self.failed.eq(0)]
            m.d.sync += [self.busy.eq(0), self.done.eq(0), self.error.eq(0)]
        return m
