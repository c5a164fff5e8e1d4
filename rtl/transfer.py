"""The transfer unit: moves entries between external memory and the engine's memories.

::

    bursts: plane, row, burst ─► requests                          (ahead of the data)

    read:      port ─► beats gathered ─► entry ─► activations, weights or parameters
    write:     activations ─► words ─► beats ─► port
    constant:  pad ─► entry ─► activations

Two walks go through the same loops: that of the bursts in external memory, which asks for them as early as it can, and that of the entries in
the engine's memory, which keeps step with the data.
"""

from amaranth.hdl import *
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from celosia.rtl.interfaces import (
    ACT_READ_LATENCY,
    ActReadSignature,
    ActWrite,
    EntryWriteSignature,
    UnitSignature,
)
from celosia.rtl.isa import ErrorCode, Memory, TransferInstruction
from celosia.rtl.port import MemoryPortSignature, burst_beats

__all__ = ["Transfer"]

WORDS = 8
"""Words on their way from the activation memory to the port: what keeps it busy while the memory answers."""

SETTLE = 2
"""Cycles from the last write to the instruction's end: with those of the token readers see what is written."""


class _Loops:
    """The loops of a walk: ``planes`` times ``rows`` runs, and where each begins.

    Members
    -------
    start
        Where the present run begins, counted from the first one's beginning.
    last
        It is the last one.
    """

    def __init__(self, m, name, i, *, width, row_step, plane_step, load, turn):
        self.start = Signal(width, name=f"{name}_start")
        self.next = Signal(width, name=f"{name}_next")
        plane = Signal(width, name=f"{name}_plane")  # where the next plane begins
        row, number = Signal.like(i.rows, name=f"{name}_row"), Signal.like(i.planes, name=f"{name}_number")
        last_row = row == i.rows
        self.last = last_row & (number == i.planes)
        m.d.comb += self.next.eq(Mux(last_row, plane, self.start + row_step))
        with m.If(load):
            m.d.sync += [self.start.eq(0), plane.eq(plane_step), row.eq(0), number.eq(0)]
        with m.Elif(turn):
            m.d.sync += [self.start.eq(self.next), row.eq(row + 1)]
            with m.If(last_row):
                m.d.sync += [plane.eq(plane + plane_step), row.eq(0), number.eq(number + 1)]


class Transfer(wiring.Component):
    """Runs ``TRANSFER``.

    One instruction at a time. Several bursts may be on their way; an entry is written as soon as its last beat is there, a beat a cycle. A
    ``TRANSFER`` that writes to external memory has completed when that has answered all bursts.

    Parameters
    ----------
    config : EngineConfig
        With a memory port.

    Members
    -------
    unit : ``Out(UnitSignature)``
        Reports ``ILLEGAL_FIELD``, ``ACT_RANGE``, ``WEIGHT_RANGE``, ``PARAM_RANGE`` and ``MEMORY_ERROR``. ``trace.stall`` is a cycle in which nothing moves.
    base : ``In(32)``
        Byte at which external memory begins; constant while the unit works.
    port : ``Out(MemoryPortSignature)``
        ``last`` and ``enable`` of written beats are left to the port.
    read : ``Out(ActReadSignature)``
    write : ``Out(stream)`` of :func:`~celosia.rtl.interfaces.ActWrite`
        Whole words.
    weights, params : ``Out(EntryWriteSignature)``
    moved : ``Out(2)``
        A beat is read, or written, in this cycle.
    """

    def __init__(self, *, config):
        self.config = config
        super().__init__({
            "unit": Out(UnitSignature()),
            "base": In(32),
            "port": Out(MemoryPortSignature(memory_bytes=config.memory_bytes)),
            "read": Out(ActReadSignature(rows=config.rows)),
            "write": Out(stream.Signature(ActWrite(rows=config.rows))),
            "weights": Out(EntryWriteSignature(width=8 * config.weight_rows * config.cols, addr_width=ceil_log2(config.weight_depth))),
            "params": Out(EntryWriteSignature(width=64 * config.lanes, addr_width=ceil_log2(config.param_depth))),
            "moved": Out(2),
        })

    def elaborate(self, platform):
        m = Module()
        config, unit = self.config, self.unit
        size = exact_log2(config.memory_bytes)
        bytes_of = {Memory.ACTIVATIONS: config.rows, Memory.WEIGHTS: config.weight_rows * config.cols, Memory.PARAMS: 8 * config.lanes}
        depths = {Memory.ACTIVATIONS: config.act_depth, Memory.WEIGHTS: config.weight_depth, Memory.PARAMS: config.param_depth}
        codes = {Memory.ACTIVATIONS: ErrorCode.ACT_RANGE, Memory.WEIGHTS: ErrorCode.WEIGHT_RANGE, Memory.PARAMS: ErrorCode.PARAM_RANGE}
        beats_of = {kind: count >> size for kind, count in bytes_of.items()}

        i, index = Signal(TransferInstruction), Signal(16)
        base = Signal(32)  # of the instruction in external memory
        moves, illegal = Signal(), Signal()  # through the port
        alignment = Cat(value[:size] for value in (i.external, i.external_row_step, i.external_plane_step))
        m.d.comb += [
            moves.eq(~i.constant),
            illegal.eq((i.memory == 3) | (i.write & i.constant) | (i.memory != Memory.ACTIVATIONS) & (i.write | i.constant) | alignment.any()),
        ]
        by_memory = {name: Signal(shape, name=name) for name, shape in (
            ("beats", range(max(beats_of.values()))), ("range_code", ErrorCode), ("run_beats", 16 + ceil_log2(max(beats_of.values())) + 1))}  # fmt: skip
        beyond, local = Signal(), Signal.like(i.local)
        with m.Switch(i.memory):
            for kind, beats in beats_of.items():
                with m.Case(kind):
                    m.d.comb += [
                        by_memory["beats"].eq(beats - 1),
                        by_memory["run_beats"].eq((i.run + 1) << exact_log2(beats)),
                        by_memory["range_code"].eq(codes[kind]),
                        beyond.eq(local >= depths[kind]),
                    ]

        begin, failed = Signal(), Signal()
        requests_end = self._requests(m, i, base, by_memory["run_beats"], begin)
        step, entries_end = self._entries(m, i, local, begin)
        full, taken = self._gather(m, i, local, step, beyond, entries_end, by_memory["beats"], failed)
        written = self._words(m, i, local, step, beyond, entries_end, failed)
        m.d.comb += self.moved.eq(Cat(self.port.read.data.valid & self.port.read.data.ready, self.port.write.data.valid & self.port.write.data.ready))

        finished, settled = Signal(), Signal(range(SETTLE + 1))
        m.d.comb += finished.eq(entries_end & requests_end & ~full & (written | ~i.write))
        with m.FSM() as fsm:
            with m.State("idle"):
                m.d.comb += [unit.i.ready.eq(1), unit.idle.eq(1)]
                m.d.sync += [i.eq(unit.i.payload.instruction), index.eq(unit.i.payload.index), settled.eq(0)]
                with m.If(unit.i.valid):
                    m.next = "check"
            with m.State("check"):
                m.d.comb += begin.eq(~illegal)
                m.d.sync += base.eq(self.base + i.external)
                m.next = "run"
                with m.If(illegal):
                    m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(ErrorCode.ILLEGAL_FIELD)]
                    m.d.sync += failed.eq(1)
            with m.State("run"):
                with m.If(finished & ~failed):
                    m.d.sync += settled.eq(settled + 1)
                with m.If(settled == SETTLE):
                    m.d.comb += [unit.done.valid.eq(1), unit.done.signal.eq(i.header.signal)]
                    m.next = "idle"

        code = Signal(ErrorCode)
        refused = (self.port.read.data.valid & self.port.read.data.ready & self.port.read.data.payload.error) | (
            self.port.write.done.valid & self.port.write.done.payload.error
        )
        with m.If(refused):
            m.d.comb += code.eq(ErrorCode.MEMORY_ERROR)
        with m.Elif(fsm.ongoing("run") & ~entries_end & beyond):
            m.d.comb += code.eq(by_memory["range_code"])
        with m.If((code.as_value() != 0) & ~failed):
            m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(code)]
            m.d.sync += failed.eq(1)
        m.d.comb += [
            unit.error.index.eq(index),
            unit.trace.busy.eq(~fsm.ongoing("idle")),
            unit.trace.stall.eq(fsm.ongoing("run") & ~Mux(i.constant, taken, self.moved.any())),
            unit.trace.index.eq(index),
        ]
        return m

    def _requests(self, m, i, base, run_beats, begin):
        """Walk through the bursts; return whether all have been asked for."""
        size, longest = exact_log2(self.config.memory_bytes), burst_beats(self.config.memory_bytes)
        turn, asking = Signal(), Signal()
        loops = _Loops(m, "burst", i, width=32, row_step=i.external_row_step, plane_step=i.external_plane_step, load=begin, turn=turn)
        done = Signal.like(run_beats)  # beats of the run that have been asked for
        addr, left, room, beats = Signal(32), Signal.like(run_beats), Signal(range(longest + 1)), Signal(range(longest + 1))
        m.d.comb += [
            addr.eq(base + loops.start + (done << size)),
            left.eq(run_beats - done),
            room.eq(longest - addr[size : size + exact_log2(longest)]),
            beats.eq(Mux(left < room, left, room)),
        ]
        read, write = self.port.read.request, self.port.write.request
        for request, way in ((read, ~i.write), (write, i.write)):
            m.d.comb += [request.valid.eq(asking & way), request.payload.addr.eq(addr), request.payload.beats.eq(beats - 1)]
        taken = asking & Mux(i.write, write.ready, read.ready)
        with m.If(taken):
            m.d.sync += done.eq(done + beats)
            with m.If(left <= room):
                m.d.comb += turn.eq(1)
                m.d.sync += [done.eq(0), asking.eq(~loops.last)]
        with m.If(begin):
            m.d.sync += [done.eq(0), asking.eq(~i.constant)]
        return ~asking & ~begin

    def _entries(self, m, i, local, begin):
        """Walk through the engine's entries; return what makes it step, and whether it is over."""
        turn, step, end = Signal(), Signal(), Signal(init=1)
        loops = _Loops(
            m, "entry", i, width=len(local), row_step=i.local_row_step, plane_step=i.local_plane_step, load=begin, turn=turn
        )
        place = Signal.like(i.run)
        m.d.comb += local.eq(i.local + loops.start + place)
        with m.If(step):
            m.d.sync += place.eq(place + 1)
            with m.If(place == i.run):
                m.d.comb += turn.eq(1)
                m.d.sync += [place.eq(0), end.eq(loops.last)]
        with m.If(begin):
            m.d.sync += [place.eq(0), end.eq(0)]
        return step, end

    def _gather(self, m, i, local, step, beyond, end, beats, failed):
        """Make entries of the beats that come, or of ``pad``, and write them.

        Returns
        -------
        full : the last entry has not been written
        taken : it is written in this cycle
        """
        config, beat = self.config, self.port.read.data
        width = 8 * max(config.rows, config.weight_rows * config.cols, 8 * config.lanes)
        gathered, full, number, addr = Signal(width), Signal(), Signal.like(beats), Signal.like(local)
        taken, ready, room = Signal(), Signal(), Signal()
        m.d.comb += [
            taken.eq(full & ready),
            room.eq(~full | ready),
            beat.ready.eq(room & ~end & ~beyond & ~i.write & ~failed),
        ]
        with m.Switch(i.memory):
            for kind, port in ((Memory.WEIGHTS, self.weights), (Memory.PARAMS, self.params)):
                with m.Case(kind):
                    m.d.comb += [ready.eq(port.ready), port.en.eq(full)]
            with m.Default():
                m.d.comb += [ready.eq(self.write.ready), self.write.valid.eq(full)]
        for port in (self.weights, self.params):
            m.d.comb += [port.addr.eq(addr), port.data.eq(gathered[-len(port.data) :])]
        m.d.comb += [
            self.write.payload.addr.eq(addr),
            self.write.payload.data.eq(gathered[-8 * config.rows :]),
            self.write.payload.mask.eq(~0),
        ]
        with m.If(taken):
            m.d.sync += full.eq(0)
        moves = beat.valid & beat.ready
        with m.If(moves):
            m.d.sync += [gathered.eq(Cat(gathered, beat.payload.data)[-width:]), number.eq(Mux(number == beats, 0, number + 1))]
        with m.If(i.constant):
            m.d.sync += gathered.eq(i.pad.replicate(width // 8))
        arrives = Mux(i.constant, room & ~end & ~beyond & ~failed, moves & (number == beats))
        with m.If(arrives):
            m.d.comb += step.eq(1)
            m.d.sync += [full.eq(1), addr.eq(local)]
        return full, taken

    def _words(self, m, i, local, step, beyond, end, failed):
        """Read words and write their beats; return whether all have been written and all bursts answered."""
        config, port = self.config, self.port.write
        parts = config.rows // config.memory_bytes
        m.submodules.words = words = fifo.SyncFIFO(width=8 * config.rows, depth=WORDS)
        owed, answers = Signal(range(WORDS + 1)), Signal(range(1 << 16))  # words between memory and port; bursts without an answer
        coming = Signal(ACT_READ_LATENCY)
        asks, sent = Signal(), Signal()
        m.d.comb += [
            self.read.addr.eq(local),
            self.read.valid.eq(i.write & ~end & ~beyond & ~failed & (owed != WORDS)),
            asks.eq(self.read.valid & self.read.ready),
        ]
        with m.If(asks):
            m.d.comb += step.eq(1)
        m.d.sync += [coming.eq(Cat(asks, coming)), owed.eq(owed + asks - sent)]
        number = Signal(range(parts))
        m.d.comb += [
            words.w_en.eq(coming[-1]),
            words.w_data.eq(self.read.data),
            port.data.valid.eq(words.r_rdy),
            port.data.payload.data.eq(words.r_data.word_select(number, 8 * config.memory_bytes)),
            sent.eq(port.data.valid & port.data.ready & (number == parts - 1)),
            words.r_en.eq(sent),
            port.done.ready.eq(1),
        ]
        with m.If(port.data.valid & port.data.ready):
            m.d.sync += number.eq(Mux(number == parts - 1, 0, number + 1))
        m.d.sync += answers.eq(answers + (port.request.valid & port.request.ready) - port.done.valid)
        return (owed == 0) & (answers == 0)
