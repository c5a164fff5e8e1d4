"""The load unit's byte streams: words of several tap rows fetched through one read port and handed out byte by byte.

Each stream holds two words, the one it takes bytes from and the one after it. What it reads next is an entry of a small table
(word, first byte in it, words after it) that is counted on as words are fetched, so that all streams share one incrementer. The
first words of the next group's tap rows are fetched while the last bytes of the present ones are taken.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.interfaces import ACT_READ_LATENCY, ActReadSignature

__all__ = ["TapRow", "TapStreams"]

BYTE_ADDRESS_BITS = 20
COLUMN_BITS = 12


def TapRow(*, rows, streams):
    """What stream ``index`` reads next: ``words + 1`` words from ``word`` on, the bytes of the first one from ``offset`` on."""
    offset_bits = ceil_log2(rows)
    return data.StructLayout({
        "index": range(streams),
        "word": BYTE_ADDRESS_BITS - offset_bits,
        "offset": offset_bits,
        "words": COLUMN_BITS + 1 - offset_bits,
    })


class TapStreams(wiring.Component):
    """``streams`` byte streams out of the activation memory.

    Parameters
    ----------
    rows : int
        Bytes per activation word.
    streams : int
    depth : int
        Words of the activation memory.

    Members
    -------
    i : ``In(stream)`` of :func:`TapRow`, always ready
        A stream gets its next row only when all words of the one before have been asked for.
    hold : ``In(1)``
        High in the cycle before each row of ``i``: nothing is asked for then.
    open : ``Out(1)``
        A row of ``i`` has words that are not asked for yet.
    read : ``Out(ActReadSignature)``
    ready : ``Out(streams)``
        Which streams have a byte.
    bytes : ``Out(ArrayLayout(8, streams))``
        Those bytes.
    take : ``In(streams)``
        Streams to move on; they must be ``ready``.
    last : ``In(1)``
        The bytes taken are the last of their rows: the rest of the words is dropped.
    out_of_range : ``Out(1)``
        A row leads out of the memory. Nothing more is read.
    """

    def __init__(self, *, rows, streams, depth):
        if not 1 <= streams <= rows:
            raise ValueError(f"streams must be between 1 and {rows}, not {streams}")
        self.rows = rows
        self.streams = streams
        self.depth = depth
        super().__init__({
            "i": In(stream.Signature(TapRow(rows=rows, streams=streams), always_ready=True)),
            "hold": In(1),
            "open": Out(1),
            "read": Out(ActReadSignature(rows=rows)),
            "ready": Out(streams),
            "bytes": Out(data.ArrayLayout(8, streams)),
            "take": In(streams),
            "last": In(1),
            "out_of_range": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        row = self.i.payload
        table_shape = data.StructLayout({name: row.shape()[name].shape for name in ("word", "offset", "words")})
        m.submodules.table = table = memory.Memory(shape=table_shape, depth=self.streams, init=[])
        write, look = table.write_port(), table.read_port(domain="comb")

        # Ask: the first stream that has words left and room for one. Its entry is written back in the next cycle.
        left = Signal(self.streams)
        claimed = Signal(self.streams)
        chosen = Signal(range(self.streams))
        wanted, asking, asked = Signal(), Signal(), Signal()
        request = Signal(row.shape())
        requested, accepted = Signal(), Signal()
        for n in reversed(range(self.streams)):
            with m.If(left[n] & ~claimed[n]):
                m.d.comb += [chosen.eq(n), wanted.eq(1)]
        m.d.comb += [
            self.open.eq(left.any()),
            look.addr.eq(chosen),
            asking.eq(wanted & ~self.hold & (~requested | accepted)),
        ]
        m.d.sync += [asked.eq(asking), requested.eq(asking | (requested & ~accepted))]
        with m.If(asking):
            m.d.sync += [request.index.eq(chosen), *(request[name].eq(look.data[name]) for name in table_shape.members)]
        m.d.comb += write.en.eq(self.i.valid | asked)
        with m.If(self.i.valid):
            m.d.comb += [write.addr.eq(row.index), *(write.data[name].eq(row[name]) for name in table_shape.members)]
        with m.Else():
            m.d.comb += [
                write.addr.eq(request.index),
                write.data.word.eq(request.word + 1),
                write.data.words.eq(request.words - 1),
            ]

        m.d.comb += [
            self.out_of_range.eq(requested & (request.word >= self.depth)),
            self.read.valid.eq(requested & ~self.out_of_range),
            self.read.addr.eq(request.word),
            accepted.eq(self.read.valid & self.read.ready),
        ]
        arriving, index, offset = accepted, request.index, request.offset
        for _ in range(ACT_READ_LATENCY):
            arriving, index, offset = (_delayed(m, value) for value in (arriving, index, offset))

        first = Signal(self.rows)
        m.d.comb += first.eq(1 << offset)

        for n in range(self.streams):
            word, following = (Signal(data.ArrayLayout(8, self.rows), name=f"{name}{n}", reset_less=True)
                               for name in ("word", "following"))  # fmt: skip
            # One bit per byte, the current one's set: in LUTs of four inputs, an AND-OR takes fewer than a multiplexer.
            position, start = (Signal(self.rows, name=f"{name}{n}", reset_less=True) for name in ("position", "start"))
            full, waiting, refill, empties = (Signal(name=f"{name}{n}") for name in ("full", "waiting", "refill", "empties"))
            m.d.comb += [
                self.ready[n].eq(full),
                self.bytes[n].eq(reduce(or_, (Mux(chosen, byte, 0) for chosen, byte in zip(position, word)))),
                empties.eq(self.take[n] & (self.last | position[-1])),
                refill.eq(waiting & (~full | empties)),
            ]
            m.d.sync += full.eq(refill | (full & ~empties))
            with m.If(refill):
                m.d.sync += [word.eq(following), position.eq(start), waiting.eq(0), claimed[n].eq(0)]
            with m.Elif(self.take[n]):
                m.d.sync += position.eq(position << 1)
            with m.If(arriving & (index == n)):
                m.d.sync += [following.eq(self.read.data), start.eq(first), waiting.eq(1)]
            with m.If(asking & (chosen == n)):
                m.d.sync += [claimed[n].eq(1), left[n].eq(look.data.words != 0)]
            with m.If(self.i.valid & (row.index == n)):
                m.d.sync += left[n].eq(1)
        return m


def _delayed(m, value):
    late = Signal.like(value)
    m.d.sync += late.eq(value)
    return late
