"""The memory port as an AXI4 master.

Source: ARM IHI 0022, *AMBA AXI Protocol Specification*, issue H. The port keeps AXI4's limits for bursts, so that only names and constants are added:
incrementing bursts of whole beats, one identifier, in order.
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from celosia.rtl.port import MemoryPortSignature

__all__ = ["Axi4Master", "Axi4Signature"]

INCR = 0b01
CACHE = 0b0011
"""Normal memory, non-cacheable, bufferable."""
PROT = 0b000
"""Unprivileged, secure, data."""


class Axi4Signature(wiring.Signature):
    """AXI4 without identifiers, regions, locks, quality of service and user signals, from the master's side.

    ``resp`` with its upper bit set is an error (``SLVERR``, ``DECERR``).
    """

    def __init__(self, *, data_width, addr_width=32):
        address = {"addr": addr_width, "len": 8, "size": 3, "burst": 2, "cache": 4, "prot": 3}
        members = {}
        for channel in ("ar", "aw"):
            members |= {f"{channel}valid": Out(1), f"{channel}ready": In(1)} | {f"{channel}{name}": Out(width) for name, width in address.items()}
        members |= {"rvalid": In(1), "rready": Out(1), "rdata": In(data_width), "rresp": In(2), "rlast": In(1)}
        members |= {"wvalid": Out(1), "wready": In(1), "wdata": Out(data_width), "wstrb": Out(data_width // 8), "wlast": Out(1)}
        members |= {"bvalid": In(1), "bready": Out(1), "bresp": In(2)}
        super().__init__(members)


class Axi4Master(wiring.Component):
    """Combinational: not a cycle is added.

    Parameters
    ----------
    memory_bytes : int
        Bytes of a beat.

    Members
    -------
    port : ``In(MemoryPortSignature)``
        The engine's.
    axi : ``Out(Axi4Signature)``
    """

    def __init__(self, *, memory_bytes):
        self.memory_bytes = memory_bytes
        super().__init__({
            "port": In(MemoryPortSignature(memory_bytes=memory_bytes)),
            "axi": Out(Axi4Signature(data_width=8 * memory_bytes)),
        })

    def elaborate(self, platform):
        m = Module()
        read, write, axi = self.port.read, self.port.write, self.axi
        for request, channel in ((read.request, "ar"), (write.request, "aw")):
            names = {name: getattr(axi, f"{channel}{name}") for name in ("valid", "ready", "addr", "len", "size", "burst", "cache", "prot")}
            m.d.comb += [
                names["valid"].eq(request.valid),
                request.ready.eq(names["ready"]),
                names["addr"].eq(request.payload.addr),
                names["len"].eq(request.payload.beats),
                names["size"].eq(exact_log2(self.memory_bytes)),
                names["burst"].eq(INCR),
                names["cache"].eq(CACHE),
                names["prot"].eq(PROT),
            ]
        m.d.comb += [
            read.data.valid.eq(axi.rvalid),
            axi.rready.eq(read.data.ready),
            read.data.payload.data.eq(axi.rdata),
            read.data.payload.last.eq(axi.rlast),
            read.data.payload.error.eq(axi.rresp[1]),
            axi.wvalid.eq(write.data.valid),
            write.data.ready.eq(axi.wready),
            axi.wdata.eq(write.data.payload.data),
            axi.wstrb.eq(write.data.payload.enable.replicate(self.memory_bytes)),
            axi.wlast.eq(write.data.payload.last),
            write.done.valid.eq(axi.bvalid),
            axi.bready.eq(write.done.ready),
            write.done.payload.error.eq(axi.bresp[1]),
        ]
        return m
