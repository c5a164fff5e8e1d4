"""The host port: Wishbone in, registers and memories out.

Byte addresses of 23 bits, as in :data:`celosia.rtl.csr.WINDOWS`, and whole words of 32 bits. From strobe to acknowledge a write takes
:attr:`Host.WRITE_CYCLES` cycles, a read of a memory :attr:`Host.READ_CYCLES` and of a register :attr:`Host.REGISTER_CYCLES`. ``err`` answers an
access to no window or no register, a write of less than a word, any memory access while the engine is busy (then the memories belong to
the units), and a read of a memory that this engine does not show.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.csr import ADDRESS_BITS, CSR_READ_LATENCY, REGISTERS, WINDOW_BITS, WINDOWS, CsrBusSignature
from celosia.rtl.interfaces import HostSignature

__all__ = ["Host", "WishboneSignature"]


class WishboneSignature(wiring.Signature):
    """Wishbone B4 classic, 32 bits, from the master's side; ``adr`` counts words, and ``sel`` of a write must be all ones.

    The master holds ``cyc``, ``stb`` and the request until the cycle in which ``ack`` or ``err`` is high.
    """

    def __init__(self, *, addr_width):
        super().__init__({
            "cyc": Out(1),
            "stb": Out(1),
            "we": Out(1),
            "adr": Out(addr_width),
            "sel": Out(4),
            "dat_w": Out(32),
            "dat_r": In(32),
            "ack": In(1),
            "err": In(1),
        })


class Host(wiring.Component):
    """Wishbone slave in front of the register bank and the memories' host ports.

    Parameters
    ----------
    readable : collection of str
        Memories that can be read; all if not given.
    registered : bool
        Whether the request is registered first. If not, everything takes its address from the bus: less area, and longer paths where the master
        is not next to it. Writes take as long then, reads a cycle less.

    Members
    -------
    bus : ``In(WishboneSignature)``
        The system's side.
    csr : ``Out(CsrBusSignature)``
        The register bank.
    program, weights, params, tables, activations : ``Out(HostSignature)``
        The memories.
    busy : ``In(1)``
        Keeps the host out of the memories.
    """

    MEMORIES = tuple(name for name in WINDOWS if name != "csr")
    WRITE_CYCLES = 3
    READ_CYCLES = 4 + HostSignature.READ_LATENCY
    REGISTER_CYCLES = 4 + CSR_READ_LATENCY

    def __init__(self, *, readable=None, registered=True):
        self.readable = tuple(self.MEMORIES if readable is None else readable)
        self.registered = registered
        registers = max(register.offset for register in REGISTERS.values()) // 4
        super().__init__({
            "bus": In(WishboneSignature(addr_width=ADDRESS_BITS - 2)),
            "csr": Out(CsrBusSignature(addr_width=registers.bit_length())),
            "busy": In(1),
            **{name: Out(HostSignature()) for name in self.MEMORIES},
        })

    def elaborate(self, platform):
        m = Module()
        bus, csr = self.bus, self.csr
        memories = {name: getattr(self, name) for name in self.MEMORIES}

        # The request is decoded before it is passed on, and may be registered first: the system's address decoder, this one, and the
        # memories' enables are all slow. Data to write wait at the master.
        addr = Signal(WINDOW_BITS - 2)
        window = Signal(ADDRESS_BITS - WINDOW_BITS)
        whole, we, strobe = Signal(), Signal(), Signal()
        request = [Cat(addr, window).eq(bus.adr), whole.eq(bus.sel.all()), we.eq(bus.we)]
        if not self.registered:
            m.d.comb += request
        allowed = Signal(len(WINDOWS))  # by the windows' numbers
        w_data = Signal(32)
        in_bank = csr.mapped & ~addr[len(csr.addr) :].any()
        for name, shown in WINDOWS.items():
            condition = in_bank if name == "csr" else ~self.busy & (we | (name in self.readable))
            m.d.sync += allowed[shown.number].eq((window == shown.number) & (whole | ~we) & condition)

        reading, finished = Signal(), Signal()
        csr_allowed = allowed[WINDOWS["csr"].number]
        m.d.sync += w_data.eq(0)
        with m.If(strobe & we & (allowed.any() & ~csr_allowed)):
            m.d.sync += w_data.eq(bus.dat_w)
        for name, port in memories.items():
            granted = allowed[WINDOWS[name].number]
            m.d.comb += [port.addr.eq(addr), port.w_data.eq(w_data), port.we.eq(strobe & we & granted)]
            m.d.sync += port.re.eq(reading & granted)
        m.d.comb += [csr.addr.eq(addr), csr.w_data.eq(bus.dat_w), csr.we.eq(strobe & we & csr_allowed)]
        m.d.sync += csr.re.eq(reading & csr_allowed)
        answers = [csr.r_data, *(memories[name].r_data for name in self.readable)]
        m.d.comb += bus.dat_r.eq(reduce(or_, answers))

        waited = Signal(range(CSR_READ_LATENCY + 1))
        m.d.comb += finished.eq(waited == Mux(csr_allowed, CSR_READ_LATENCY, HostSignature.READ_LATENCY))
        with m.FSM():
            with m.State("idle"):
                m.d.sync += waited.eq(0)
                if self.registered:
                    m.d.sync += request
                with m.If(bus.cyc & bus.stb):
                    m.next = "decode" if self.registered else "access"
            with m.State("decode"):
                m.next = "access"
            with m.State("access"):
                m.d.comb += [strobe.eq(1), reading.eq(~we), bus.err.eq(~allowed.any())]
                if self.registered:
                    m.d.comb += bus.ack.eq(allowed.any() & we)
                m.next = "idle"
                with m.If(allowed.any() & ~we):
                    m.next = "read"
                if not self.registered:
                    with m.Elif(allowed.any()):
                        m.next = "written"
            if not self.registered:
                with m.State("written"):  # the address stays for the data
                    m.d.comb += bus.ack.eq(1)
                    m.next = "idle"
            with m.State("read"):
                m.d.comb += [bus.ack.eq(finished), reading.eq(~finished)]
                m.d.sync += waited.eq(waited + 1)
                with m.If(finished):
                    m.next = "idle"
        return m
