"""The host port: Wishbone in, registers and memories out.

Byte addresses of 23 bits, as in :data:`celosia.rtl.csr.WINDOWS`. A write takes three cycles from strobe to acknowledge, a read eight (the
memories have registered inputs and outputs). ``err`` answers an access to no window or no register, and any memory access while the engine is
busy: then the memories belong to the units.
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.csr import ADDRESS_BITS, REGISTERS, WINDOW_BITS, WINDOWS, CsrBusSignature
from celosia.rtl.interfaces import HostSignature

__all__ = ["Host", "WishboneSignature"]


class WishboneSignature(wiring.Signature):
    """Wishbone B4 classic, 32 bits with byte selects, from the master's side; ``adr`` counts words.

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

    def __init__(self):
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

        # The request is registered first, and decoded before it is passed on: the system's address decoder, this one, and the
        # memories' enables are all slow.
        addr = Signal(WINDOW_BITS - 2)
        window = Signal(ADDRESS_BITS - WINDOW_BITS)
        sel = Signal(4)
        w_data = Signal(32)
        we = Signal()
        strobe = Signal()
        ports = {WINDOWS[name].number: port for name, port in zip(WINDOWS, (csr, *(getattr(self, name) for name in self.MEMORIES)))}
        allowed = Signal(max(ports) + 1)
        in_bank = csr.mapped & ~addr[len(csr.addr) :].any()
        for number, port in ports.items():
            m.d.comb += [port.addr.eq(addr), port.sel.eq(sel), port.w_data.eq(w_data)]
            m.d.comb += [port.we.eq(strobe & allowed[number] & we), port.re.eq(strobe & allowed[number] & ~we)]
            m.d.sync += allowed[number].eq((window == number) & (in_bank if port is csr else ~self.busy))
        with m.Switch(window):
            for number, port in ports.items():
                with m.Case(number):
                    m.d.comb += bus.dat_r.eq(port.r_data)

        waited = Signal(range(HostSignature.READ_LATENCY))
        with m.FSM():
            with m.State("idle"):
                m.d.sync += Cat(addr, window).eq(bus.adr)
                m.d.sync += [sel.eq(bus.sel), w_data.eq(bus.dat_w), we.eq(bus.we), waited.eq(1)]
                with m.If(bus.cyc & bus.stb):
                    m.next = "decode"
            with m.State("decode"):
                m.next = "access"
            with m.State("access"):
                m.d.comb += strobe.eq(1)
                m.d.comb += [bus.err.eq(~allowed.any()), bus.ack.eq(allowed.any() & we)]
                with m.If(allowed.any() & ~we):
                    m.next = "wait for data"
                with m.Else():
                    m.next = "idle"
            with m.State("wait for data"):
                m.d.sync += waited.eq(waited + 1)
                with m.If(waited == HostSignature.READ_LATENCY - 1):
                    m.next = "answer"
            with m.State("answer"):
                m.d.comb += bus.ack.eq(1)
                m.next = "idle"
        return m
