"""Load unit that takes a few cycles for a byte: what :class:`celosia.rtl.load.Load` does with one stream, in half its area.

::

    ┌─► place ─► read ─► wait ─► shift ─┐      a byte of a tap row, or pad, enters the lanes; a word leaves them when it is complete
    │             ▲─────────────────────┤
    └─── turn ◄─────────────────────────┘      the next tap row

The instruction stays with the sequencer, and is taken from it when its last word is written, so that there is one at a time and none of it is
kept here. A step takes :data:`STEP_CYCLES`, and one more where a byte is read; a word takes one besides, a tap row :data:`TAP_ROW_CYCLES`.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import Out
from amaranth.utils import exact_log2

from celosia.rtl.config import EngineConfig
from celosia.rtl.interfaces import ACT_READ_LATENCY, ActReadSignature, ActWrite, UnitSignature
from celosia.rtl.isa import ErrorCode, Header, Opcode, UnfoldInstruction
from celosia.rtl.limits import at_least
from celosia.rtl.loadable import loadable

__all__ = ["STEP_CYCLES", "TAP_ROW_CYCLES", "SerialLoad"]

STEP_CYCLES = 2
TAP_ROW_CYCLES = 4

assert ACT_READ_LATENCY == 2  # from "read" to "shift"


class SerialLoad(wiring.Component):
    """Runs ``UNFOLD`` as :class:`celosia.rtl.isa.UnfoldInstruction` defines it.

    Words are written modulo 2^16, bytes read modulo 2^20.

    Parameters
    ----------
    config : EngineConfig
        With ``serial_load``.

    Members
    -------
    unit : ``Out(UnitSignature)``
        ``unit.i`` must stay as it is until it is taken. Errors: ``ILLEGAL_FIELD`` if there are several streams or a stride of zero, or for
        a ``FILL``; ``ACT_RANGE``.
    read : ``Out(ActReadSignature)``
        The dense tensor, a byte at a time.
    write : ``Out(stream)`` of :func:`~celosia.rtl.interfaces.ActWrite`
        Whole words, in order.
    """

    def __init__(self, *, config):
        if not isinstance(config, EngineConfig):
            raise TypeError(f"config must be an EngineConfig, not {config!r}")
        if not config.serial_load:
            raise ValueError(f"config must have unfold_streams = 1 and fill = 0, not {config.unfold_streams} and {config.fill}")
        self.config = config
        super().__init__({
            "unit": Out(UnitSignature()),
            "read": Out(ActReadSignature(rows=config.rows)),
            "write": Out(stream.Signature(ActWrite(rows=config.rows))),
        })

    def elaborate(self, platform):
        m = Module()
        config, unit = self.config, self.unit
        i = data.View(UnfoldInstruction, unit.i.payload.instruction)
        begin, turn, place, convert, shift, emit = (Signal(name=name) for name in ("begin", "turn", "place", "convert", "shift", "emit"))

        # Tap rows.
        ky, group = Signal.like(i.kernel_y), Signal.like(i.groups)
        last_ky, last_group = Signal(), Signal()
        m.d.comb += [last_ky.eq(ky == i.kernel_y), last_group.eq(group == i.groups)]
        with m.If(turn):
            m.d.sync += [ky.eq(ky + 1), group.eq(group + 1)]
            with m.If(last_ky | last_group):
                m.d.sync += ky.eq(0)
            with m.If(last_group):
                m.d.sync += group.eq(0)
        y = loadable(m, "y", load=begin, value=~i.tile_rows, step=turn & last_group)
        last_y = y[:-1].all()
        y0 = Signal.like(i.y0)  # of the present tile row
        with m.If(begin):
            m.d.sync += y0.eq(i.y0)
        with m.Elif(turn & last_group):
            m.d.sync += y0.eq(y0 + i.stride_y)
        first = Signal.like(i.start)  # of the tap row
        operand = Signal.like(i.start)
        with m.If(last_group):
            m.d.comb += operand.eq(i.tile_step)
        with m.Elif(last_ky):
            m.d.comb += operand.eq(i.channel_step)
        with m.Else():
            m.d.comb += operand.eq(i.row_step)
        with m.If(begin):
            m.d.sync += first.eq(i.start)
        with m.Elif(turn):
            m.d.sync += first.eq(first + operand)
        tap_y, exists = Signal.like(i.y0), Signal()
        m.d.comb += [tap_y.eq(y0 + ky), exists.eq(tap_y.as_unsigned() < i.in_height)]

        # Columns of a tap row: those on the left, those inside, those on the right.
        left, right = Signal(), Signal()
        inside = ~(left | right)
        reads = Signal()
        column = loadable(m, "column", load=place | convert, value=~Mux(place, i.left, i.inside), step=shift)
        last_column = column[:-1].all()
        address = loadable(m, "address", load=place, value=first, step=shift & inside)[:-1]
        words = loadable(m, "words", load=place, value=~i.tile_cols, step=emit)
        spent = words[-1]
        until = Signal(range(max(config.rows, 15) + 1))  # steps to the next word
        sub, entry = address[: exact_log2(config.rows)], address[exact_log2(config.rows) :]
        beyond = at_least(entry, config.act_depth)
        m.d.comb += [reads.eq(inside & exists), emit.eq(shift & (until == 1) & ~spent)]
        with m.If(place):
            m.d.sync += [left.eq(1), right.eq(0), until.eq(config.rows)]
        with m.If(convert):
            m.d.sync += left.eq(0)
        byte = Signal(8)
        word, pending = self.write.payload.data.as_value(), Signal()
        lanes = Signal.like(word)
        m.d.comb += byte.eq(Mux(reads, self.read.data[sub], i.pad))
        with m.If(shift):
            m.d.sync += [lanes.eq(Cat(lanes[8:], byte)), until.eq(Mux(until == 1, i.stride_x, until - 1))]
            with m.If(inside & last_column):
                m.d.sync += right.eq(1)

        # Words.
        taken = self.write.valid & self.write.ready
        dest = loadable(m, "dest", load=begin, value=i.dest, step=taken)[:-1]
        in_range = ~at_least(dest, config.act_depth)
        with m.If(emit):
            m.d.sync += pending.eq(1)
        with m.Elif(taken):
            m.d.sync += pending.eq(0)
        m.d.comb += [
            self.write.valid.eq(pending & in_range),
            self.write.payload.addr.eq(dest),
            word.eq(lanes),
            self.write.payload.mask.eq(~0),
            self.read.addr.eq(entry),
        ]

        opcode = data.View(Header, unit.i.payload.instruction[: Shape.cast(Header).width]).opcode
        illegal = (i.streams != 0) | (i.stride_x == 0) | (opcode != Opcode.UNFOLD)
        m.d.comb += unit.error.code.eq(ErrorCode.ACT_RANGE)
        with m.FSM() as fsm:
            with m.State("idle"):
                with m.If(unit.i.valid):
                    m.d.comb += begin.eq(1)
                    m.next = "place"
                    with m.If(illegal):
                        m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(ErrorCode.ILLEGAL_FIELD)]
                        m.next = "failed"
            with m.State("place"):
                m.d.comb += place.eq(1)
                m.next = "read"
            with m.State("read"):
                with m.If(pending):
                    with m.If(~in_range):
                        m.d.comb += unit.error.valid.eq(1)
                        m.next = "failed"
                with m.Elif(right & spent):
                    m.next = "turn"
                with m.Elif(left & last_column):
                    m.d.comb += convert.eq(1)
                with m.Elif(~reads):
                    m.next = "shift"
                with m.Elif(beyond):
                    m.d.comb += unit.error.valid.eq(1)
                    m.next = "failed"
                with m.Else():
                    m.d.comb += self.read.valid.eq(1)
                    with m.If(self.read.ready):
                        m.next = "wait"
            with m.State("wait"):
                m.next = "shift"
            with m.State("shift"):
                m.d.comb += shift.eq(1)
                m.next = "read"
            with m.State("turn"):
                m.d.comb += turn.eq(1)
                m.next = "place"
                with m.If(last_group & last_y):
                    m.d.comb += [unit.i.ready.eq(1), unit.done.valid.eq(1)]
                    m.next = "idle"
            with m.State("failed"):
                pass
        m.d.comb += [
            unit.done.signal.eq(i.header.signal),
            unit.idle.eq(fsm.ongoing("idle")),
            unit.error.index.eq(unit.i.payload.index),
            unit.trace.busy.eq(~unit.idle),
            unit.trace.stall.eq((self.read.valid & ~self.read.ready) | (self.write.valid & ~self.write.ready)),
            unit.trace.index.eq(unit.i.payload.index),
        ]
        return m
