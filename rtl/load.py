"""The load unit: unfolds a dense tensor into words of kernel taps, so that layers of few channels fill the array's rows; its other
half is :class:`~celosia.rtl.fill.Fill`.

::

    instruction ─► setup ─► walk over rows, groups, tap rows ─┬─► TapStreams ◄──── activation memory
                                                              │       │ one byte per stream
                                                              └─► columns ─► TapLanes ────► activation memory

A *step* takes one byte of every stream (or ``pad``) into the lanes; every ``stride_x``-th step completes a word. A group of tap
rows takes ``(tile_cols - 1) * stride_x + kernel_x`` steps, one per cycle as long as words arrive in time; the next group is set
up meanwhile and follows without a gap. An instruction takes :data:`LOAD_OVERHEAD` cycles besides.
"""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import Out

from celosia.rtl.fill import Fill
from celosia.rtl.interfaces import ActReadSignature, ActWrite, UnitSignature, WeightWriteSignature
from celosia.rtl.isa import ErrorCode, Header, Opcode, UnfoldInstruction
from celosia.rtl.lanes import TapLanes
from celosia.rtl.streams import TapStreams

__all__ = ["LOAD_OVERHEAD", "Load"]

LOAD_OVERHEAD = 19
"""Cycles from an accepted instruction to ``done``, besides its steps and ``streams + stride_x``, if memory refuses nothing."""


class Load(wiring.Component):
    """The unit that runs ``UNFOLD`` and ``FILL``, see :class:`~celosia.rtl.isa.UnfoldInstruction` and
    :class:`~celosia.rtl.isa.FillInstruction`.

    Words are written modulo 2^16, bytes read modulo 2^20. Only words with a byte that is needed are read.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    unit : ``Out(UnitSignature)``
        Errors: ``ILLEGAL_FIELD`` if there are too many streams, or their taps do not fit into a word; ``ACT_RANGE``; those of a fill.
    read : ``Out(ActReadSignature)``
        The dense tensor.
    write : ``Out(stream)`` of :func:`~celosia.rtl.interfaces.ActWrite`
        Whole words, in order.
    fill : ``Out(WeightWriteSignature)``
    """

    def __init__(self, *, config):
        self.config = config
        super().__init__({
            "unit": Out(UnitSignature()),
            "read": Out(ActReadSignature(rows=config.rows)),
            "write": Out(stream.Signature(ActWrite(rows=config.rows))),
            "fill": Out(WeightWriteSignature(cols=config.cols, weight_rows=config.weight_rows)),
        })

    def elaborate(self, platform):
        m = Module()
        config, unit = self.config, self.unit
        shape = {"rows": config.rows, "streams": config.unfold_streams}
        m.submodules.streams = streams = TapStreams(**shape, depth=config.act_depth)
        m.submodules.lanes = lanes = TapLanes(**shape)
        m.submodules.fill = fill = Fill(config=config)
        wiring.connect(m, wiring.flipped(self.fill), fill.write)
        i = Signal(UnfoldInstruction)
        index = Signal(16)
        failed = Signal()

        # Between the walk, which is a group ahead, and the columns.
        staged, staged_final, turn = Signal(), Signal(), Signal()
        staged_valid = Signal(config.unfold_streams)
        group_dest = Signal(16)
        some = Signal()  # whether any column is inside
        last = Signal(12)  # columns inside, minus one
        before_last = Signal(signed(13))
        finished = Signal()

        # One adder for all addresses, and for the setup.
        base = i.start  # becomes the address of channel 0, row `base_y`, first column inside
        channel_base, tap_base = Signal(20), Signal(20)
        augend, addend, carry, moved = Signal(20), Signal(signed(20)), Signal(), Signal(20)
        operand = Signal(signed(14))
        m.d.comb += addend.eq(operand)
        m.d.comb += moved.eq((Cat(1, augend) + Cat(carry, addend)) >> 1)
        left_of_tensor = i.x0 < 0

        base_y, tap_y = Signal(signed(16)), Signal(signed(16))
        ky, channel, no_channel = Signal.like(i.kernel_y), Signal.like(i.channels), Signal()
        group, y, s = Signal.like(i.groups), Signal.like(i.tile_rows), Signal.like(i.streams)
        first_group = Signal()
        repeat = Signal(4)
        last_ky, last_group, last_row, last_stream = Signal(), Signal(), Signal(), Signal()
        for flag, counter, limit in ((last_group, group, i.groups), (last_row, y, i.tile_rows), (last_stream, s, i.streams)):
            m.d.comb += flag.eq(counter == limit)
        fits = Signal()
        limits = [min(config.rows // width, config.unfold_streams) for width in range(1, (1 << len(i.kernel_x)) + 1)]
        m.d.sync += fits.eq(i.streams < Array(limits)[i.kernel_x])

        row = streams.i.payload
        walking, exists = Signal(), Signal()
        m.d.comb += [
            streams.hold.eq(walking),
            tap_y.eq(base_y + ky),
            exists.eq(~no_channel & (tap_y >= 0) & (tap_y < i.in_height)),
        ]
        m.d.sync += [
            streams.i.valid.eq(walking & exists & some),
            row.index.eq(s),
            Cat(row.offset, row.word).eq(tap_base),
            row.words.eq((tap_base[: len(row.offset)] + last) >> len(row.offset)),
        ]

        filling = Signal()
        m.d.comb += [
            fill.instruction.eq(i.as_value()),
            self.read.addr.eq(Mux(filling, fill.read.addr, streams.read.addr)),
            self.read.valid.eq(fill.read.valid | streams.read.valid),
        ]
        for half in (fill, streams):
            m.d.comb += [half.read.ready.eq(self.read.ready), half.read.data.eq(self.read.data)]

        with m.If(turn):
            m.d.sync += staged.eq(0)
        with m.FSM() as fsm:
            with m.State("idle"):
                m.d.comb += [unit.i.ready.eq(1), unit.idle.eq(1)]
                m.d.sync += [i.eq(unit.i.payload.instruction), index.eq(unit.i.payload.index)]
                with m.If(unit.i.valid):
                    m.next = "operand"
                    with m.If(data.View(Header, unit.i.payload.instruction[: Shape.cast(Header).width]).opcode == Opcode.FILL):
                        m.d.comb += fill.start.eq(1)
                        m.d.sync += filling.eq(1)
                        m.next = "fill"
            with m.State("fill"):
                with m.If(fill.done):
                    m.d.comb += [unit.done.valid.eq(1), unit.done.signal.eq(i.header.signal)]
                    m.d.sync += filling.eq(0)
                    m.next = "idle"
                with m.If(fill.error.as_value() != 0):
                    m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(fill.error)]
                    m.next = "failed"
            # The setup's operands are registered, and always one state ahead of their addition.
            with m.State("operand"):
                m.d.sync += [operand.eq(i.x0), base_y.eq(i.y0), y.eq(0), repeat.eq(i.stride_x)]
                m.next = "first column"
            with m.State("first column"):
                m.d.comb += augend.eq(0)
                m.d.sync += [tap_base.eq(moved), operand.eq(i.kernel_x)]
                m.next = "kernel"
            with m.State("kernel"):
                m.d.comb += augend.eq(tap_base)
                m.d.sync += [tap_base.eq(moved), operand.eq(i.tile_cols)]
                m.next = "span"
                with m.If(~fits):
                    m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(ErrorCode.ILLEGAL_FIELD)]
                    m.next = "failed"
            with m.State("span"):
                m.d.comb += augend.eq(tap_base)
                m.d.sync += repeat.eq(repeat - 1)
                with m.If(repeat == 0):
                    m.d.sync += operand.eq(i.in_width)
                    m.next = "limit"
                with m.Else():
                    m.d.sync += tap_base.eq(moved)
            with m.State("limit"):  # tap_base: the last column
                m.d.comb += augend.eq(~0)
                with m.If(tap_base[:18].as_signed() >= i.in_width):
                    m.d.sync += tap_base.eq(moved)
                m.d.sync += operand.eq(Mux(left_of_tensor, -1, ~i.x0))
                m.next = "inside"
            with m.State("inside"):  # less the first one inside
                m.d.comb += [augend.eq(tap_base), carry.eq(1)]
                m.d.sync += [tap_base.eq(moved), last.eq(moved), some.eq(~moved[-1]), operand.eq(-1)]
                m.next = "before"
            with m.State("before"):
                m.d.comb += augend.eq(tap_base)
                m.d.sync += [before_last.eq(moved), operand.eq(Mux(left_of_tensor, ~i.x0, -1))]
                m.next = "start"
            with m.State("start"):
                m.d.comb += [augend.eq(base), carry.eq(1)]
                m.d.sync += [base.eq(moved), operand.eq(0), repeat.eq(0)]
                m.next = "row"
            with m.State("row"):
                m.d.comb += augend.eq(base)
                m.d.sync += [channel_base.eq(moved), tap_base.eq(moved), repeat.eq(repeat - 1)]
                m.d.sync += [ky.eq(0), last_ky.eq(i.kernel_y == 0), channel.eq(0), no_channel.eq(0), group.eq(0), first_group.eq(1)]
                with m.If(repeat == 0):
                    m.next = "group"
                with m.Else():
                    m.d.comb += addend.eq(i.source_row_step)
                    m.d.sync += [base.eq(moved), base_y.eq(base_y + 1)]
            with m.State("group"):
                with m.If(~staged & ~streams.open):
                    m.d.sync += [s.eq(0), staged_valid.eq(0), first_group.eq(0), group_dest.eq(group_dest + i.dest_group_step)]
                    with m.If(first_group):
                        m.d.sync += [group_dest.eq(i.dest), i.dest.eq(i.dest + i.dest_row_step)]
                    m.next = "walk"
            with m.State("walk"):
                m.d.comb += walking.eq(1)
                m.d.sync += [staged_valid.bit_select(s, 1).eq(exists), s.eq(s + 1), tap_base.eq(moved)]
                with m.If(last_ky):
                    m.d.comb += [augend.eq(channel_base), addend.eq(i.channel_step.as_signed())]
                    m.d.sync += [channel_base.eq(moved), channel.eq(channel + 1), ky.eq(0), last_ky.eq(i.kernel_y == 0)]
                    with m.If(channel == i.channels):
                        m.d.sync += no_channel.eq(1)
                with m.Else():
                    m.d.comb += [augend.eq(tap_base), addend.eq(i.source_row_step)]
                    m.d.sync += [ky.eq(ky + 1), last_ky.eq(ky + 1 == i.kernel_y)]
                with m.If(last_stream):
                    m.d.sync += [staged.eq(1), staged_final.eq(last_group & last_row), group.eq(group + 1)]
                    m.next = "group"
                    with m.If(last_group):
                        m.d.sync += [y.eq(y + 1), repeat.eq(i.stride_y)]
                        m.next = "row"
                        with m.If(last_row):
                            m.next = "finish"
            with m.State("finish"):
                with m.If(finished):
                    m.d.comb += [unit.done.valid.eq(1), unit.done.signal.eq(i.header.signal)]
                    m.next = "idle"
            with m.State("failed"):
                pass

        # Columns: one group's steps. `column` counts from the first one inside, or is negative left of the tensor.
        active, final, ahead = Signal(), Signal(), Signal()
        valid = Signal(config.unfold_streams)
        column = Signal(signed(13))
        # Found one step early, because all the streams' words wait for them.
        taking = Signal(config.unfold_streams)
        at_last = Signal()
        until = Signal(5)
        still = Signal()  # a stride of zero: write the same word again
        words = Signal.like(i.tile_cols)
        dest = Signal(16)
        step, emit, last_word, advance = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            step.eq(active & advance & (streams.ready | ~taking).all()),
            emit.eq(until == 0),
            last_word.eq(words == i.tile_cols),
            turn.eq(staged & (~active | (step & emit & last_word))),
            streams.take.eq(Mux(step, taking, 0)),
            streams.last.eq(at_last),
        ]
        with m.If(step):
            m.d.sync += [column.eq(column + 1), at_last.eq(column == before_last), until.eq(until - 1)]
            with m.If(at_last & ~ahead):
                m.d.sync += taking.eq(0)
            with m.If(ahead & (column == -1)):
                m.d.sync += [ahead.eq(0), taking.eq(valid)]
            with m.If(emit):
                with m.If(i.stride_x == 0):
                    m.d.sync += [ahead.eq(0), taking.eq(0)]
                m.d.sync += [until.eq(Mux(i.stride_x == 0, 0, i.stride_x - 1)), still.eq(i.stride_x == 0), words.eq(words + 1)]
                with m.If(last_word):
                    m.d.sync += active.eq(0)
        with m.If(turn):
            m.d.sync += [
                active.eq(1),
                final.eq(staged_final),
                valid.eq(staged_valid),
                column.eq(Mux(left_of_tensor, i.x0, 0)),
                at_last.eq(~left_of_tensor & (last == 0)),
                ahead.eq(some & left_of_tensor),
                taking.eq(Mux(some & ~left_of_tensor, staged_valid, 0)),
                until.eq(i.kernel_x),
                still.eq(0),
                words.eq(0),
                dest.eq(group_dest),
            ]

        # Behind the columns, in step with the lanes (LANES_LATENCY).
        m.d.comb += [
            lanes.advance.eq(advance),
            lanes.step.eq(step & ~still),
            lanes.bytes.eq(streams.bytes),
            lanes.inside.eq(taking),
            lanes.kernel_x.eq(i.kernel_x),
            lanes.pad.eq(i.pad),
        ]
        shape = {"complete": 1, "final": 1, "addr": 16}
        before, behind = (Signal(data.StructLayout(shape), name=name) for name in ("before", "behind"))
        in_range, out_of_range = Signal(), Signal()
        with m.If(advance):
            m.d.sync += [
                before.complete.eq(step & emit),
                before.final.eq(final & last_word),
                before.addr.eq(dest + words),
                behind.eq(before),
                in_range.eq(before.addr < config.act_depth),
                out_of_range.eq(before.complete & (before.addr >= config.act_depth)),
            ]
        m.d.comb += [
            self.write.valid.eq(behind.complete & in_range),
            self.write.payload.addr.eq(behind.addr),
            self.write.payload.data.eq(lanes.word),
            self.write.payload.mask.eq(~0),
            advance.eq(~behind.complete | (in_range & self.write.ready)),
        ]
        m.d.sync += finished.eq(behind.complete & behind.final & advance)

        with m.If((out_of_range | streams.out_of_range) & ~failed):
            m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(ErrorCode.ACT_RANGE)]
            m.d.sync += failed.eq(1)
        m.d.comb += [
            unit.error.index.eq(index),
            unit.trace.busy.eq(~fsm.ongoing("idle")),
            unit.trace.stall.eq((active & ~step) | fill.stall),
            unit.trace.index.eq(index),
        ]
        return m


