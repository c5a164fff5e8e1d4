"""A first-in first-out queue in distributed memory."""

from amaranth.hdl import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Queue"]


class Queue(wiring.Component):
    """First-word-fall-through queue: the head is read from LUT RAM in the cycle it is taken, so an element costs no flip-flops.

    An element put in is at ``o`` one cycle later at the earliest; both sides move one element per cycle.

    Parameters
    ----------
    shape : shape-like
        Of an element.
    depth : int
        Elements held, at least 1.

    Members
    -------
    i, o : streams of ``shape``
    level : ``Out``
        Elements held.
    """

    def __init__(self, *, shape, depth):
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self.shape = shape
        self.depth = depth
        super().__init__({
            "i": In(stream.Signature(shape)),
            "o": Out(stream.Signature(shape)),
            "level": Out(range(depth + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        width = Shape.cast(self.shape).width
        m.submodules.storage = storage = memory.Memory(shape=width, depth=self.depth, init=[], attrs={"ram_style": "distributed"})
        write, read = storage.write_port(), storage.read_port(domain="comb")

        head = Signal(range(self.depth))
        tail = Signal(range(self.depth))
        m.d.comb += [
            self.i.ready.eq(self.level != self.depth),
            write.en.eq(self.i.valid & self.i.ready),
            write.addr.eq(tail),
            write.data.eq(Value.cast(self.i.payload)),
            self.o.valid.eq(self.level != 0),
            read.addr.eq(head),
            Value.cast(self.o.payload).eq(read.data),
        ]
        taken = self.o.valid & self.o.ready
        m.d.sync += self.level.eq(self.level + write.en - taken)
        for pointer, step in ((tail, write.en), (head, taken)):
            with m.If(step):
                m.d.sync += pointer.eq(Mux(pointer == self.depth - 1, 0, pointer + 1))
        return m
