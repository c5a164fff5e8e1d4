"""A Wishbone master for Amaranth's simulator."""

__all__ = ["Wishbone", "WishboneError"]


class WishboneError(Exception):
    """The slave answered ``err``, or not at all."""


class Wishbone:
    """Drive a bus of :class:`celosia.rtl.host.WishboneSignature` from a testbench, byte addresses, one access at a time.

    Attributes
    ----------
    cycles : int
        Clock cycles spent in accesses.
    """

    def __init__(self, ctx, bus, *, patience=100):
        self.ctx = ctx
        self.bus = bus
        self.patience = patience
        self.cycles = 0

    async def write(self, address, value, *, sel=15):
        """Write a 32-bit word."""
        await self._access(address, 1, value, sel)

    async def read(self, address):
        """Return the 32-bit word at ``address``."""
        return await self._access(address, 0, 0, 15)

    async def _access(self, address, we, value, sel):
        ctx, bus = self.ctx, self.bus
        for signal, level in ((bus.adr, address // 4), (bus.we, we), (bus.dat_w, value), (bus.sel, sel), (bus.cyc, 1), (bus.stb, 1)):
            ctx.set(signal, level)
        for _ in range(self.patience):
            ack, err, value = ctx.get(bus.ack), ctx.get(bus.err), ctx.get(bus.dat_r)
            await ctx.tick()
            self.cycles += 1
            if ack or err:
                for signal in (bus.cyc, bus.stb, bus.adr, bus.we, bus.dat_w):
                    ctx.set(signal, 0)
                if err:
                    raise WishboneError(f"the engine answered err to {'write' if we else 'read'} at {address:#x}")
                return value
        raise WishboneError(f"the engine did not answer at {address:#x} within {self.patience} cycles")
