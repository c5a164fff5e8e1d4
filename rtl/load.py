"""The load unit: unfolds a dense tensor into words of kernel taps, so that layers of few channels fill the array's rows, and
copies activations into weight tiles.

::

    instruction ─► Walk ─► activation memory ─┬─► TapStreams ─► TapLanes ─► activation memory
                                              │         columns ┘
                                              └─► Fill ─► weight memory

A *step* takes one byte of every stream (or ``pad``) into the lanes; every ``stride_x``-th step completes a word. A group of tap
rows takes ``(tile_cols - 1) * stride_x + rows // streams`` steps, or ``left + inside`` if that is more: one per cycle as long as bytes
arrive in time. For that the memory is asked for a chunk of a stream per cycle; they are as many bytes as there may be streams. The next group follows
without a gap. A row of a weight tile takes one cycle. An instruction takes :data:`LOAD_OVERHEAD` or :data:`FILL_OVERHEAD` cycles besides.
"""

from amaranth.hdl import *
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import Out
from amaranth.utils import ceil_log2

from celosia.rtl.fill import Fill
from celosia.rtl.interfaces import ActReadSignature, ActWrite, UnitSignature, WeightWriteSignature
from celosia.rtl.isa import ErrorCode, FillInstruction, Header, Opcode, UnfoldInstruction
from celosia.rtl.lanes import TapLanes
from celosia.rtl.streams import TapStreams
from celosia.rtl.walk import Walk

__all__ = ["FILL_OVERHEAD", "LOAD_OVERHEAD", "Load"]

LOAD_OVERHEAD = 8
"""Cycles from an accepted ``UNFOLD`` to ``done``, besides its steps and twice ``streams`` less ``left``, if memory refuses nothing."""

FILL_OVERHEAD = 6
"""Cycles from an accepted ``FILL`` to ``done``, besides one per row of each tile, if memory refuses nothing."""


class _Columns(enum.Enum, shape=2):
    """Where a step's column lies."""

    LEFT = 0
    INSIDE = 1
    RIGHT = 2


class Load(wiring.Component):
    """The unit that runs ``UNFOLD`` and ``FILL``, see :class:`~celosia.rtl.isa.UnfoldInstruction` and
    :class:`~celosia.rtl.isa.FillInstruction`.

    Words are written modulo 2^16, bytes read modulo 2^20. Only words with an inside column are read.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    unit : ``Out(UnitSignature)``
        Errors: ``ILLEGAL_FIELD`` if there are too many streams or a stride of zero, too many rows, no such slot, or for any ``FILL``
        without ``config.fill``; ``ACT_RANGE``; ``WEIGHT_RANGE``.
    read : ``Out(ActReadSignature)``
        The dense tensor, or the words that become weights.
    write : ``Out(stream)`` of :func:`~celosia.rtl.interfaces.ActWrite`
        Whole words, in order.
    fill : ``Out(WeightWriteSignature)``
        Only with ``config.fill``.
    """

    def __init__(self, *, config):
        self.config = config
        fill = {"fill": Out(WeightWriteSignature(cols=config.cols, weight_rows=config.weight_rows))}
        super().__init__({
            "unit": Out(UnitSignature()),
            "read": Out(ActReadSignature(rows=config.rows)),
            "write": Out(stream.Signature(ActWrite(rows=config.rows))),
            **(fill if config.fill else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config, unit = self.config, self.unit
        chunk = 1 << ceil_log2(config.unfold_streams)
        width = max(chunk, config.cols)
        m.submodules.walk = walk = Walk(rows=config.rows, chunk=chunk, depth=config.act_depth)
        m.submodules.streams = streams = TapStreams(rows=config.rows, chunk=chunk, width=width)
        m.submodules.lanes = lanes = TapLanes(rows=config.rows, streams=config.unfold_streams)
        m.submodules.fill = fill = Fill(config=config, width=width)
        if config.fill:
            wiring.connect(m, wiring.flipped(self.fill), fill.write)
        wiring.connect(m, wiring.flipped(self.read), walk.read)

        i = Signal(UnfoldInstruction)
        dest = Signal.like(i.dest)  # of the next word, or the tile of the next row
        index = Signal(16)
        is_fill, failed = Signal(), Signal()
        filling = is_fill & config.fill
        as_fill = data.View(FillInstruction, i.as_value())
        opcode = data.View(Header, unit.i.payload.instruction[: Shape.cast(Header).width]).opcode
        illegal = Signal()
        with m.If(filling):
            m.d.comb += illegal.eq((as_fill.rows > config.rows) | (as_fill.slot >= config.slots))
        with m.Else():
            m.d.comb += illegal.eq(is_fill | (i.streams >= config.unfold_streams) | (i.stride_x == 0))

        # The part of the word that both ways begin with.
        part = Signal(data.ArrayLayout(8, width))
        parts = data.View(data.ArrayLayout(part.shape(), config.rows // width), walk.read.data.as_value())
        slot, sub = as_fill.slot[ceil_log2(width // config.cols) :], walk.arrival.sub[ceil_log2(width // chunk) :]
        with m.If(walk.arrival.read):
            m.d.sync += part.eq(parts[Mux(filling, slot, sub)[: ceil_log2(config.rows // width)]])
        with m.Else():
            m.d.sync += part.eq(0)

        groups = Signal(range(8))  # the walk has begun and the columns have not ended
        begin, quiet, finished = Signal(), Signal(), Signal()
        m.d.comb += [
            walk.take.eq(unit.i.valid & unit.i.ready),
            walk.begin.eq(begin & ~illegal),
            walk.instruction.eq(unit.i.payload.instruction),
            walk.fill.eq((opcode == Opcode.FILL) & config.fill),
            walk.room.eq(streams.room),
            streams.arrival.eq(walk.arrival),
            streams.arrival.valid.eq(walk.arrival.valid & ~filling),
            streams.data.eq(part),
            streams.filled.eq(walk.filled),
            streams.pad.eq(i.pad),
        ]
        with m.FSM() as fsm:
            with m.State("idle"):
                m.d.comb += [unit.i.ready.eq(1), unit.idle.eq(1)]
                m.d.sync += [i.eq(unit.i.payload.instruction), index.eq(unit.i.payload.index), is_fill.eq(opcode == Opcode.FILL)]
                m.d.sync += dest.eq(data.View(UnfoldInstruction, unit.i.payload.instruction).dest)
                with m.If(unit.i.valid):
                    m.next = "check"
            with m.State("check"):
                m.d.comb += begin.eq(1)
                m.next = "run"
                with m.If(illegal):
                    m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(ErrorCode.ILLEGAL_FIELD)]
                    m.d.sync += failed.eq(1)
                    m.next = "failed"
            with m.State("run"):
                with m.If(finished & ~failed):
                    m.d.comb += [unit.done.valid.eq(1), unit.done.signal.eq(i.header.signal)]
                    m.next = "idle"
            with m.State("failed"):
                pass

        # Columns: one group's steps.
        columns, column = Signal(_Columns), Signal.like(i.inside)  # the column among those of its kind; left ones from one on
        until = Signal(range(max(config.rows, 16) + 1))  # steps to the next word
        words = Signal.like(i.tile_cols)
        spent = Signal()  # all words are complete, though columns are inside still
        step, emit, last_word, last_column, turn, advance = (
            Signal(name=name) for name in ("step", "emit", "last_word", "last_column", "turn", "advance")
        )
        inside = columns == _Columns.INSIDE
        m.d.comb += [
            step.eq((groups != 0) & advance & (~inside | streams.ready)),
            last_column.eq(column == Mux(columns == _Columns.LEFT, i.left, i.inside)),
            emit.eq(step & (until == 1) & ~spent),
            last_word.eq(words == i.tile_cols),
            turn.eq(step & (spent | (emit & last_word)) & ((columns == _Columns.RIGHT) | (inside & last_column))),
            streams.inside.eq(inside),
            streams.take.eq(step & inside),
            streams.last.eq(last_column),
        ]
        with m.If(step):
            m.d.sync += [column.eq(column + 1), until.eq(Mux(until == 1, i.stride_x, until - 1))]
            with m.If(last_column & (columns != _Columns.RIGHT)):
                m.d.sync += [columns.eq(columns.as_value() + 1), column.eq(0)]
        with m.If(emit):
            m.d.sync += [words.eq(words + 1), spent.eq(last_word)]
        with m.If(begin | turn):
            m.d.sync += [
                columns.eq(i.left == 0),
                column.eq(i.left != 0),
                until.eq(Array([config.rows // streams for streams in range(1, config.unfold_streams + 1)])[i.streams]),
                words.eq(0),
                spent.eq(0),
            ]
        m.d.sync += groups.eq(groups + walk.group - turn)

        # Behind the columns, in step with the lanes (LANES_LATENCY).
        m.d.comb += [
            lanes.advance.eq(advance),
            lanes.step.eq(step),
            lanes.bytes.eq(streams.bytes.as_value()),
            lanes.inside.eq(inside),
            lanes.streams_used.eq(i.streams),
            lanes.pad.eq(i.pad),
        ]
        before, complete = Signal(), Signal()
        in_range = Signal()
        with m.If(advance):
            m.d.sync += [before.eq(emit), complete.eq(before)]
        with m.If((complete & advance) | (fill.valid & fill.last)):
            m.d.sync += dest.eq(dest + 1)
        with m.If(begin):
            m.d.sync += in_range.eq(dest < config.act_depth)
        with m.Elif(complete & advance & (dest == config.act_depth - 1)):
            m.d.sync += in_range.eq(0)
        m.d.comb += [
            self.write.valid.eq(complete & in_range),
            self.write.payload.addr.eq(dest),
            self.write.payload.data.eq(lanes.word),
            self.write.payload.mask.eq(~0),
            advance.eq(~complete | (in_range & self.write.ready)),
            quiet.eq(~walk.busy & ~before & ~(complete & ~advance) & (groups == 0)),
        ]
        m.d.sync += finished.eq(quiet & fsm.ongoing("run"))

        # Rows of weight tiles.
        m.d.comb += [
            fill.tile.eq(dest),
            fill.slot.eq(as_fill.slot),
            fill.valid.eq(walk.arrival.valid & filling & ~walk.arrival.beyond & ~fill.out_of_range & ~failed),
            fill.data.eq(part),
        ]

        code = Signal(ErrorCode)
        with m.If(walk.arrival.valid & filling & fill.out_of_range):
            m.d.comb += code.eq(ErrorCode.WEIGHT_RANGE)
        with m.Elif((walk.arrival.valid & walk.arrival.beyond) | (complete & ~in_range)):
            m.d.comb += code.eq(ErrorCode.ACT_RANGE)
        with m.If((code.as_value() != 0) & ~failed):
            m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(code)]
            m.d.sync += failed.eq(1)
        m.d.comb += [
            unit.error.index.eq(index),
            unit.trace.busy.eq(~fsm.ongoing("idle")),
            unit.trace.stall.eq(Mux(filling, walk.stall, (groups != 0) & ~step)),
            unit.trace.index.eq(index),
        ]
        return m
