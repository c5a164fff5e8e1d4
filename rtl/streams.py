"""The load unit's byte streams: chunks of several tap rows come one by one through one read port and leave column by column.

The buffer has as many banks of bytes as a chunk, all read and written in every cycle. Column ``u`` of stream ``s`` lies in bank
``(s + u) % chunk``, so that both the bytes of a chunk and those of a column are in different banks::

    bank         0     1     2     3               a chunk of stream 1 that begins with column 2 is turned by 3,
    column 0   s0 u0 s1 u0 s2 u0 s3 u0             its last byte goes one entry further
    column 1   s3 u1 s0 u1 s1 u1 s2 u1             column 1 is turned back by 1
"""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.walk import Arrival

__all__ = ["TapStreams"]

ENTRIES = 4
"""Of ``chunk`` columns: what the memory takes to answer, and what streams that are not aligned need beforehand."""


def _turned(values, amount):
    """Return ``values[(n - amount) % len(values)]`` for every ``n``."""
    for level in range(ceil_log2(len(values))):
        step = 1 << level
        values = [Mux(amount[level], values[n - step], value) for n, value in enumerate(values)]
    return values


class TapStreams(wiring.Component):
    """``streams`` byte streams out of the activation memory.

    Parameters
    ----------
    rows : int
        Bytes per activation word.
    chunk : int
        Bytes of a chunk, a power of two.
    width : int
        Bytes of a part of a word, a power of two between the two.

    Members
    -------
    arrival : ``In`` of :func:`~celosia.rtl.walk.Arrival`
    data : ``In(ArrayLayout(8, width))``
        The part that ``arrival`` was about one cycle before; zero if nothing was read.
    pad : ``In(8)``
        Bytes of what was not read, constant.
    filled : ``In(1)``
        The walk has used up an entry.
    room : ``Out(1)``
        There is another one.
    ready : ``Out(1)``
        All streams have a column.
    bytes : ``Out(ArrayLayout(8, chunk))``
        Its bytes; zero unless ``inside``.
    inside : ``In(1)``
        A column is wanted.
    take : ``In(1)``
        Go on to the next column; only if ``ready`` and ``inside``.
    last : ``In(1)``
        The column taken is the last inside one: the next one is the first of another group.
    """

    def __init__(self, *, rows, chunk, width):
        self.rows = rows
        self.chunk = chunk
        self.width = width
        super().__init__({
            "arrival": In(Arrival(rows=rows, chunk=chunk)),
            "data": In(data.ArrayLayout(8, width)),
            "pad": In(8),
            "filled": In(1),
            "room": Out(1),
            "ready": Out(1),
            "bytes": Out(data.ArrayLayout(8, chunk)),
            "inside": In(1),
            "take": In(1),
            "last": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        chunk, bits = self.chunk, ceil_log2(self.chunk)
        used, complete = Signal(range(ENTRIES + 1)), Signal(range(ENTRIES + 1))
        entry, head = Signal(range(ENTRIES)), Signal(range(ENTRIES))
        released, completed = Signal(), Signal()
        u = Signal(bits)

        # Behind the memory: the chunk, where it goes, and which of its bytes belong to the entry before.
        arrival = Signal.like(self.arrival)
        parts = data.View(data.ArrayLayout(data.ArrayLayout(8, chunk), self.width // chunk), self.data.as_value())
        value = parts[arrival.sub[: ceil_log2(self.width // chunk)]]
        earlier = Signal(chunk)
        turn = Signal(bits)
        padding = Signal(8)  # an OR fits into the LUTs of the turn
        m.d.sync += [
            arrival.eq(self.arrival),
            padding.eq(Mux(self.arrival.read, 0, self.pad)),
            earlier.eq(Cat(self.arrival.offset > n for n in range(chunk))),
            turn.eq(self.arrival.stream - self.arrival.offset),
        ]
        column = _turned([Cat(value[n] | padding, earlier[n]) for n in range(chunk)], turn)
        outputs = []
        for bank in range(chunk):
            storage = memory.Memory(shape=8, depth=ENTRIES * chunk, init=[], attrs={"ram_style": "distributed"})
            m.submodules[f"bank{bank}"] = storage
            write, read = storage.write_port(), storage.read_port(domain="comb")
            before = column[bank][8]
            m.d.comb += [
                write.en.eq(arrival.valid & ~(arrival.first & before)),
                write.addr.eq(Cat(arrival.stream, (entry - before)[: len(entry)])),
                write.data.eq(column[bank][:8]),
                read.addr.eq(Cat((bank - u)[:bits], head)),
            ]
            outputs.append(read.data & self.inside.replicate(8))
        m.d.comb += Cat(self.bytes[n] for n in range(chunk)).eq(Cat(_turned(outputs, -u)))

        m.d.comb += [
            completed.eq(arrival.valid & arrival.last & (~arrival.first if bits else 1)),
            released.eq(self.take & (self.last | u.all())),
            self.room.eq(used != ENTRIES),
            self.ready.eq(complete != 0),
        ]
        m.d.sync += [
            used.eq(used + self.filled - released),
            complete.eq(complete + completed - released),
            entry.eq(entry + (arrival.valid & arrival.last & ~arrival.over)),
            head.eq(head + released),
        ]
        with m.If(self.take):
            m.d.sync += u.eq(Mux(self.last, 0, u + 1))
        return m
