"""The load unit's walk: asks the activation memory for the rows of a ``FILL`` and for the bytes of an ``UNFOLD``, chunk by chunk.

::

    for y in tile_rows:                                 for tile in tiles:
        for g in groups:                                    for row in config.rows:
            for chunk in what holds the inside columns:         ask
                for s in streams:
                    ask

One slot per cycle, in this order; those of tap rows and rows that do not exist pass without being read. Both instructions take
the same counters, the same adder for the address, and the same comparison for what exists.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.interfaces import ACT_READ_LATENCY, ActReadSignature
from celosia.rtl.isa import UnfoldInstruction

__all__ = ["Arrival", "Walk"]


def Arrival(*, rows, chunk):
    """What the memory's data of this cycle are, if ``valid``.

    ``chunk`` bytes from number ``sub`` of the word on, of stream ``stream``, whose first inside column has ``offset`` bytes of its first
    chunk before it; nothing unless ``read``, where nothing was read because nothing is there. It is one of the ``first`` chunks of a
    group's streams, the ``last`` stream's, one of those ``over`` that have only what is not aligned. ``beyond`` the memory: an error.
    """
    return data.StructLayout({
        "valid": 1,
        "read": 1,
        "beyond": 1,
        "sub": ceil_log2(rows) - ceil_log2(chunk),
        "stream": ceil_log2(chunk),
        "offset": ceil_log2(chunk),
        "first": 1,
        "last": 1,
        "over": 1,
    })


class Walk(wiring.Component):
    """Address generator of the load unit.

    Parameters
    ----------
    rows : int
        Bytes per activation word.
    chunk : int
        Bytes taken of a word at a time, a power of two; at least as many as there are streams.
    depth : int
        Words of the activation memory.

    Members
    -------
    take : ``In(1)``
        Take ``instruction``, with ``fill`` a :class:`~celosia.rtl.isa.FillInstruction`.
    begin : ``In(1)``
        Begin with it.
    room : ``In(1)``
        The buffer behind has room for another chunk of each stream.
    group : ``Out(1)``
        The first slot of a group passes.
    filled : ``Out(1)``
        The last slot of chunks passes that will be a buffer's entry, so that ``room`` is about the next one from the next cycle on.
    read : ``Out(ActReadSignature)``
    arrival : ``Out`` of :func:`Arrival`
        Slots in order, :data:`~celosia.rtl.interfaces.ACT_READ_LATENCY` cycles after they were served.
    busy : ``Out(1)``
        Not all slots have arrived.
    stall : ``Out(1)``
        The memory refuses the read of this cycle.
    """

    def __init__(self, *, rows, chunk, depth):
        self.rows = rows
        self.chunk = chunk
        self.depth = depth
        super().__init__({
            "take": In(1),
            "begin": In(1),
            "instruction": In(UnfoldInstruction),
            "fill": In(1),
            "room": In(1),
            "group": Out(1),
            "filled": Out(1),
            "read": Out(ActReadSignature(rows=rows)),
            "arrival": Out(Arrival(rows=rows, chunk=chunk)),
            "busy": Out(1),
            "stall": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bits = ceil_log2(self.chunk)
        i = Signal(UnfoldInstruction)
        filling = Signal()
        start, address = Signal.like(i.start), Signal.like(i.start)  # of the group's first tap row, and the present one
        first_ky, ky = Signal.like(i.kernel_y), Signal.like(i.kernel_y)  # likewise
        s = Signal(range(self.chunk))
        number, over = Signal(len(i.inside) + 1 - bits), Signal()  # of the chunk; whether it is the one after the last number
        group, y = Signal.like(i.groups), Signal.like(i.tile_rows)
        y0 = Signal.like(i.y0)  # of the present tile row
        walking, go = Signal(), Signal()

        last_ky, last_stream, last_chunk, last_group, turn, done = (
            Signal(name=name) for name in ("last_ky", "last_stream", "last_chunk", "last_group", "turn", "done")
        )
        m.d.comb += [
            last_ky.eq(ky == i.kernel_y),
            last_stream.eq(Mux(filling, last_ky, s == i.streams) if bits else ~filling | last_ky),
            last_chunk.eq(filling | (over if bits else number == i.inside)),
            last_group.eq(group == i.groups),
            turn.eq(go & last_stream & last_chunk),
            done.eq(turn & last_group & (y == i.tile_rows)),
        ]

        # A chunk beyond the others is read where the last column has moved into it.
        needed = (~over | (address[:bits] + Cat(i.inside[:bits], 0))[bits]) if bits else 1
        tap_y = Signal(len(i.y0))
        there = Signal()
        m.d.comb += [
            tap_y.eq(y0 + ky),
            there.eq((tap_y < i.in_height) & ~(last_group & (s > i.last_streams)) & needed),
        ]

        # Counters are cleared last, so that this is the reset of their flip-flops.
        step, following = Signal.like(address), Signal.like(address)
        across = Signal()
        m.d.comb += [
            across.eq(last_stream & last_group & ~filling),
            step.eq(Mux(across, i.tile_step, Mux(last_ky | filling, i.channel_step, i.row_step))),
            following.eq(address + step),
        ]
        with m.If(self.take):
            m.d.sync += [i.eq(self.instruction), filling.eq(self.fill)]
            with m.If(self.fill):
                m.d.sync += i.kernel_y.eq(self.rows - 1)
        with m.If(self.take | turn):
            m.d.sync += start.eq(Mux(self.take, self.instruction.start, following))
        with m.If(self.take | (turn & last_group)):
            m.d.sync += y0.eq(Mux(self.take, self.instruction.y0, y0 + i.stride_y))
        with m.If(self.begin):
            m.d.sync += walking.eq(1)
        with m.If(self.begin | go):
            m.d.sync += address.eq(Mux(self.begin | (last_stream & ~last_chunk), start, following))
        with m.If(go):
            m.d.sync += [ky.eq(Mux(last_stream & ~last_chunk, first_ky, ky + 1)), s.eq(s + 1)]
            with m.If((last_ky & (last_chunk | ~last_stream)) | (turn & last_group)):
                m.d.sync += ky.eq(0)
            with m.If(last_stream):
                m.d.sync += [number.eq(number + 1), over.eq(number == i.inside[bits:])]
        with m.If(turn):
            m.d.sync += [first_ky.eq(ky + 1), number.eq(0), over.eq(0), group.eq(group + 1)]
            with m.If(last_ky | last_group):
                m.d.sync += first_ky.eq(0)
            with m.If(last_group):
                m.d.sync += [group.eq(0), y.eq(y + 1)]
        with m.If(go & (last_stream | filling)):
            m.d.sync += s.eq(0)
        with m.If(done):
            m.d.sync += [walking.eq(0), y.eq(0)]

        # The slot's way through the memory.
        slot = Signal(Arrival(rows=self.rows, chunk=self.chunk))
        word = Signal(len(address) - ceil_log2(self.rows))
        passing, beyond = Signal(), Signal()
        moved = Signal(len(address) - bits)
        beginning = Signal()  # of a group's chunks
        m.d.comb += [
            moved.eq(address[bits:] + number),
            beginning.eq((number == 0) & ~over),
            beyond.eq(slot.read & (word >= self.depth)),
            self.read.addr.eq(word),
            self.read.valid.eq(slot.valid & slot.read & ~beyond),
            passing.eq(~self.read.valid | self.read.ready),
            self.stall.eq(~passing),
            go.eq(walking & passing & (self.room | filling)),
            self.group.eq(go & (s == 0) & beginning & ~filling),
            self.filled.eq(go & last_stream & ~over & ~filling),
        ]
        with m.If(passing):
            m.d.sync += [
                slot.valid.eq(go),
                slot.read.eq(there),
                Cat(slot.sub, word).eq(moved),
                slot.stream.eq(s),
                slot.offset.eq(address[:bits]),
                slot.first.eq(beginning),
                slot.last.eq(last_stream),
                slot.over.eq(over),
            ]
        late = Signal.like(slot)
        m.d.comb += [late.eq(slot), late.valid.eq(slot.valid & passing), late.beyond.eq(beyond)]
        busy = slot.valid
        for stage in range(ACT_READ_LATENCY):
            before, late = late, Signal.like(slot, name=f"slot{stage}")
            m.d.sync += late.eq(before)
            busy |= late.valid
        m.d.comb += [self.arrival.eq(late), self.busy.eq(walking | busy)]
        return m
