"""The load unit: unfolds a dense tensor into words of kernel taps, so that layers of few channels fill the array's rows.

::

    instruction ─► setup ─► walk over rows, groups, tap rows ─┬─► TapStreams ◄──── activation memory
                                                              │       │ one byte per stream
                                                              └─► columns ─► TapLanes ────► activation memory

A *step* takes one byte of every stream (or ``pad``) into the lanes; every ``stride_x``-th step completes a word. A group of tap rows takes
``(tile_cols - 1) * stride_x + kernel_x`` steps, one per cycle as long as words arrive in time; the next group is set up meanwhile and
follows without a gap. An instruction takes :data:`LOAD_OVERHEAD` cycles besides.
"""

from amaranth.hdl import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import Out

from celosia.rtl.interfaces import ActReadSignature, ActWrite, UnitSignature
from celosia.rtl.isa import ErrorCode, UnfoldInstruction
from celosia.rtl.lanes import LANES_LATENCY, TapLanes
from celosia.rtl.streams import TapStreams

__all__ = ["LOAD_OVERHEAD", "Load"]

LOAD_OVERHEAD = 14
"""Cycles from an accepted instruction to ``done`` besides its steps and ``streams + stride_x``, with memory that never refuses."""


class Load(wiring.Component):
    """The unit that runs ``UNFOLD``, see :class:`~celosia.rtl.isa.UnfoldInstruction`.

    Words are written modulo 2^16, bytes read modulo 2^20. Only words with a byte that is needed are read.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    unit : ``Out(UnitSignature)``
        Errors: ``ILLEGAL_FIELD`` if there are too many streams, or their taps do not fit into a word; ``ACT_RANGE``.
    read : ``Out(ActReadSignature)``
        The dense tensor.
    write : ``Out(stream)`` of :func:`~celosia.rtl.interfaces.ActWrite`
        Whole words, in order.
    """

    def __init__(self, *, config):
        self.config = config
        super().__init__({
            "unit": Out(UnitSignature()),
            "read": Out(ActReadSignature(rows=config.rows)),
            "write": Out(stream.Signature(ActWrite(rows=config.rows))),
        })

    def elaborate(self, platform):
        m = Module()
        config, unit = self.config, self.unit
        shape = {"rows": config.rows, "streams": config.unfold_streams}
        m.submodules.streams = streams = TapStreams(**shape, depth=config.act_depth)
        m.submodules.lanes = lanes = TapLanes(**shape)
        wiring.connect(m, wiring.flipped(self.read), streams.read)
        i = Signal(UnfoldInstruction)
        index = Signal(16)
        failed = Signal()

        # Between the walk, which is a group ahead, and the columns.
        staged = Signal()
        staged_valid = Signal(config.unfold_streams)
        staged_final = Signal()
        turn = Signal()
        group_dest = Signal(16)
        lead = Signal(13)  # steps left of the tensor
        some = Signal()  # whether any column is inside
        last = Signal(12)  # columns inside, minus one
        finished = Signal()

        # Setup. `start` becomes the byte address of channel 0 at (y0 + y * stride_y, first column inside), `y0` that row.
        room = Signal(signed(14))
        rest = Signal(signed(18))
        repeat = Signal(4)
        fits = Signal()
        limits = [min(config.rows // width, config.unfold_streams) for width in range(1, (1 << len(i.kernel_x)) + 1)]
        m.d.sync += fits.eq(i.streams < Array(limits)[i.kernel_x])
        base = i.start
        channel_base, tap_base = Signal(20), Signal(20)
        base_y, tap_y = Signal(signed(16)), Signal(signed(16))
        ky, channel, no_channel = Signal.like(i.kernel_y), Signal.like(i.channels), Signal()
        group, y, s = Signal.like(i.groups), Signal.like(i.tile_rows), Signal.like(i.streams)
        first_group = Signal()
        last_ky, last_group, last_stream = Signal(), Signal(), Signal()
        m.d.comb += [last_ky.eq(ky == i.kernel_y), last_group.eq(group == i.groups), last_stream.eq(s == i.streams)]
        augend, addend, moved = Signal(20), Signal(20), Signal(20)
        m.d.comb += [augend.eq(base), moved.eq(augend + addend)]

        row = streams.i.payload
        exists = Signal()
        m.d.comb += [
            exists.eq(~no_channel & (tap_y >= 0) & (tap_y < i.in_height)),
            row.index.eq(s),
            Cat(row.offset, row.word).eq(tap_base),
            row.words.eq((row.offset + last) >> len(row.offset)),
        ]

        with m.If(turn):
            m.d.sync += staged.eq(0)
        with m.FSM() as fsm:
            with m.State("idle"):
                m.d.comb += [unit.i.ready.eq(1), unit.idle.eq(1)]
                m.d.sync += [i.eq(unit.i.payload.instruction), index.eq(unit.i.payload.index)]
                with m.If(unit.i.valid):
                    m.next = "columns"
            with m.State("columns"):
                m.d.sync += [
                    lead.eq(Mux(i.x0 < 0, -i.x0, 0)),
                    room.eq(i.in_width + ~Mux(i.x0 < 0, 0, i.x0)),
                    repeat.eq(i.stride_x),
                    base_y.eq(i.y0),
                    y.eq(0),
                ]
                m.next = "start"
            with m.State("start"):
                m.d.comb += addend.eq(lead)
                m.d.sync += [base.eq(moved), rest.eq(i.kernel_x - lead)]
                m.next = "span"
                with m.If(~fits):
                    m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(ErrorCode.ILLEGAL_FIELD)]
                    m.next = "failed"
            with m.State("span"):
                m.d.sync += [rest.eq(rest + i.tile_cols), repeat.eq(repeat - 1)]
                with m.If(repeat == 0):
                    m.d.sync += rest.eq(rest)
                    m.next = "limit"
            with m.State("limit"):
                m.d.sync += [some.eq((rest >= 0) & (room >= 0)), last.eq(Mux(rest < room, rest, room)), repeat.eq(0)]
                m.next = "row"
            with m.State("row"):
                m.d.sync += [channel_base.eq(moved), tap_base.eq(moved), tap_y.eq(base_y), repeat.eq(repeat - 1)]
                with m.If(repeat == 0):
                    m.d.sync += [ky.eq(0), channel.eq(0), no_channel.eq(0), group.eq(0), first_group.eq(1)]
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
                m.d.comb += [augend.eq(Mux(last_ky, channel_base, tap_base)), streams.i.valid.eq(exists & some)]
                m.d.comb += addend.eq(Mux(last_ky, i.channel_step, i.source_row_step))
                m.d.sync += [staged_valid.bit_select(s, 1).eq(exists), tap_base.eq(moved), ky.eq(ky + 1), tap_y.eq(tap_y + 1)]
                m.d.sync += s.eq(s + 1)
                with m.If(last_ky):
                    m.d.sync += [channel_base.eq(moved), channel.eq(channel + 1), ky.eq(0), tap_y.eq(base_y)]
                    with m.If(channel == i.channels):
                        m.d.sync += no_channel.eq(1)
                with m.If(last_stream):
                    m.d.sync += [staged.eq(1), staged_final.eq(last_group & (y == i.tile_rows)), group.eq(group + 1)]
                    m.next = "group"
                    with m.If(last_group):
                        m.d.sync += [y.eq(y + 1), repeat.eq(i.stride_y)]
                        m.next = "row"
                        with m.If(y == i.tile_rows):
                            m.next = "finish"
            with m.State("finish"):
                with m.If(finished):
                    m.d.comb += [unit.done.valid.eq(1), unit.done.signal.eq(i.header.signal)]
                    m.next = "idle"
            with m.State("failed"):
                pass

        # Columns: one group's steps.
        active = Signal()
        final = Signal()
        valid = Signal(config.unfold_streams)
        lead_left = Signal.like(lead)
        more = Signal()
        more_left = Signal.like(last)
        until = Signal(5)
        still = Signal()  # a stride of zero: write the same word again
        words_left = Signal.like(i.tile_cols)
        address = Signal(16)
        inside = Signal(config.unfold_streams)
        step, emit, advance = Signal(), Signal(), Signal()
        m.d.comb += [
            inside.eq(Mux((lead_left == 0) & more & ~still, valid, 0)),
            step.eq(active & advance & (streams.ready | ~inside).all()),
            emit.eq(until == 0),
            turn.eq(staged & (~active | (step & emit & (words_left == 0)))),
            streams.take.eq(Mux(step, inside, 0)),
            streams.last.eq(more_left == 0),
        ]
        with m.If(step):
            m.d.sync += until.eq(until - 1)
            with m.If(emit):
                m.d.sync += [
                    until.eq(Mux(i.stride_x == 0, 0, i.stride_x - 1)),
                    still.eq(i.stride_x == 0),
                    words_left.eq(words_left - 1),
                    address.eq(address + 1),
                ]
                with m.If(words_left == 0):
                    m.d.sync += active.eq(0)
            with m.If(lead_left != 0):
                m.d.sync += lead_left.eq(lead_left - 1)
            with m.Elif(more & ~still):
                m.d.sync += [more_left.eq(more_left - 1), more.eq(more_left != 0)]
        with m.If(turn):
            m.d.sync += [
                active.eq(1),
                final.eq(staged_final),
                valid.eq(staged_valid),
                lead_left.eq(lead),
                more.eq(some),
                more_left.eq(last),
                until.eq(i.kernel_x),
                still.eq(0),
                words_left.eq(i.tile_cols),
                address.eq(group_dest),
            ]

        # Behind the columns, in step with the lanes.
        m.d.comb += [
            lanes.advance.eq(advance),
            lanes.step.eq(step & ~still),
            lanes.bytes.eq(streams.bytes),
            lanes.inside.eq(inside),
            lanes.kernel_x.eq(i.kernel_x),
            lanes.pad.eq(i.pad),
        ]
        complete, word_address, is_final = step & emit, address, final & (words_left == 0)
        for _ in range(LANES_LATENCY):
            early = complete, word_address, is_final
            complete, word_address, is_final = Signal(), Signal(16), Signal()
            with m.If(advance):
                m.d.sync += [complete.eq(early[0]), word_address.eq(early[1]), is_final.eq(early[2])]
        out_of_range = Signal()
        m.d.comb += [
            out_of_range.eq(complete & (word_address >= config.act_depth)),
            self.write.valid.eq(complete & ~out_of_range),
            self.write.payload.addr.eq(word_address),
            self.write.payload.data.eq(lanes.word),
            self.write.payload.mask.eq(~0),
            advance.eq(~complete | (self.write.valid & self.write.ready)),
        ]
        m.d.sync += finished.eq(complete & is_final & advance)

        with m.If((out_of_range | streams.out_of_range) & ~failed):
            m.d.comb += [unit.error.valid.eq(1), unit.error.code.eq(ErrorCode.ACT_RANGE)]
            m.d.sync += failed.eq(1)
        m.d.comb += [
            unit.error.index.eq(index),
            unit.trace.busy.eq(~fsm.ongoing("idle")),
            unit.trace.stall.eq(active & ~step),
            unit.trace.index.eq(index),
        ]
        return m


