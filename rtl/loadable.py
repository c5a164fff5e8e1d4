"""A counter that can be loaded, in a form that takes one cell per bit where cells are small."""

from amaranth.hdl import *

__all__ = ["loadable"]


def loadable(m, name, *, load, value, step):
    """Return a counter that takes ``value`` with ``load`` and else counts up with ``step``; its top bit is one that ``value`` lacks.

    What is added is made of ``load``: on iCE40 the cell with the adder then has room for the multiplexer, which beside a constant it has not.
    """
    count = Signal(len(value) + 1, name=name)
    with m.If(load | step):
        m.d.sync += count.eq(Mux(load, value, count + load.replicate(len(count)) + 1))
    return count
