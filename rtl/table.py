"""Activation tables: any function from int8 to int8, 256 bytes each.

Sits between the requantiser and the residual addition. Each lane has its own copy of all tables in block RAM, since a block RAM has
one read port beside its write port; the host writes all copies at once.
"""

from amaranth.hdl import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from celosia.rtl.interfaces import HostSignature, TableReadSignature
from celosia.rtl.limits import at_least

__all__ = ["Tables"]


class Tables(wiring.Component):
    """``tables`` tables of 256 bytes, read at ``lanes`` places per cycle.

    Parameters
    ----------
    tables, lanes : int
    readable : bool
        Whether the host can read.

    Members
    -------
    read : ``In(TableReadSignature)``
        The table's number is the upper part of the address; numbers from ``tables`` on read anything.
    host : ``In(HostSignature)``
        Byte ``index`` of table ``n`` is the low byte of word ``n * 256 + index``; the upper bytes read as zero.
    """

    def __init__(self, *, tables, lanes, readable=True):
        for name, value, high in (("tables", tables, 16), ("lanes", lanes, 64)):
            if not isinstance(value, int) or not 1 <= value <= high:
                raise ValueError(f"{name} must be between 1 and {high}, not {value!r}")
        self.tables = tables
        self.lanes = lanes
        self.readable = readable
        super().__init__({"read": In(TableReadSignature(lanes=lanes)), "host": In(HostSignature())})

    def elaborate(self, platform):
        m = Module()
        depth = 256 * self.tables
        inside = Signal()
        m.d.comb += inside.eq(~at_least(self.host.addr, depth))
        # The enable is registered, the address stays: their way to the block RAM of every lane is long.
        host, change = self.host, Signal()
        m.d.sync += change.eq(host.we & inside)
        for lane in range(self.lanes):
            # The host reads and writes while the engine is idle: what a read beside a write of the same byte returns does not matter.
            copy = memory.Memory(shape=8, depth=depth, init=[], attrs={"no_rw_check": 1, "ram_style": "block"})
            m.submodules[f"copy{lane}"] = copy
            write, read = copy.write_port(), copy.read_port()
            m.d.comb += [
                write.en.eq(change),
                write.addr.eq(host.addr),
                write.data.eq(host.w_data),
                read.addr.eq(Mux(host.re, host.addr, self.read.addr[lane]) if self.readable and lane == 0 else self.read.addr[lane]),
            ]
            m.d.sync += self.read.data[lane].eq(read.data)
        if self.readable:
            m.d.sync += host.r_data.eq(Mux(host.re & inside, self.read.data[0], 0))
        return m
