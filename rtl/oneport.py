"""The activation memory in single-port RAM: half the memory, and every access takes its cycle from all others.

::

    execute unit ◄── pause ──┐
        │ reads              │
        ▼                    │
    one access per cycle ◄── store unit's write (one waits) · load unit's write · store unit's read · load unit's read · host
"""

from amaranth.hdl import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.interfaces import ActReadSignature, ActWrite, HostSignature
from celosia.rtl.memory import HostView
from celosia.rtl.spram import SinglePortRam

__all__ = ["OnePortActivationMemory"]


class OnePortActivationMemory(wiring.Component):
    """``act_depth`` words of ``rows`` bytes, one of them read or written per cycle.

    Stands in for :class:`~celosia.rtl.memory.ActivationMemory` of one bank, with the same latencies. An issued read of the execute unit
    cannot wait. So whoever else asks while that unit reads makes it ``pause``, and is served in the next cycle: under full load every other
    cycle is the execute unit's. Among the others the first in the order of the drawing is served.

    Parameters
    ----------
    config : EngineConfig
    form : str
        Of the RAM, see :class:`~celosia.rtl.spram.SinglePortRam`.

    Members
    -------
    read_execute, read_store, read_load : ``In(ActReadSignature)``
        ``read_execute.ready`` is always high.
    write_store, write_load : ``In(stream)`` of :func:`~celosia.rtl.interfaces.ActWrite`
        ``write_store.ready`` is always high for a unit that writes at most every other cycle; with ``lane_cycles`` = 4 only where the execute unit
        does not read.
    pause : ``Out(1)``
        ``read_execute.valid`` must be low in the next cycle.
    host : ``In(HostSignature)``
    """

    def __init__(self, *, config, form="portable"):
        self.config = config
        self.form = form
        read = ActReadSignature(rows=config.rows)
        write = stream.Signature(ActWrite(rows=config.rows))
        super().__init__({
            **{f"read_{unit}": In(read) for unit in ("execute", "store", "load")},
            **{f"write_{unit}": In(write) for unit in ("store", "load")},
            "pause": Out(1),
            "host": In(HostSignature()),
        })

    @property
    def execute_reads(self):
        """The execute unit's read ports: one."""
        return [self.read_execute]

    def elaborate(self, platform):
        m = Module()
        config, host = self.config, self.host
        grain = min(4, config.cols)
        groups = range(0, config.rows, grain)
        m.submodules.ram = ram = SinglePortRam(
            width=8 * config.rows, depth=config.act_depth, granularity=8 * grain, form=self.form
        )
        view = HostView(m, host, size=config.rows, depth=config.act_depth)
        free = ~self.read_execute.valid
        first, waiting = self._store_write(m, free)

        others = [waiting, self.write_load.valid, self.read_store.valid, self.read_load.valid]
        m.d.comb += [self.read_execute.ready.eq(1), self.pause.eq(~free & Cat(others).any())]
        for number, port in enumerate((self.write_load, self.read_store, self.read_load), 1):
            m.d.comb += port.ready.eq(free & ~Cat(others[:number]).any())

        # The access is registered, and not the data that are read: in front of these registers there are multiplexers in any case.
        last = self.write_load.payload
        m.d.comb += ram.en.eq(1)
        m.d.sync += [ram.mask.eq(0), ram.w_data.eq(Mux(waiting, first.data, last.data.as_value() | view.value))]
        with m.If(self.read_execute.valid):
            m.d.sync += ram.addr.eq(self.read_execute.addr)
        with m.Elif(waiting):
            m.d.sync += [ram.addr.eq(first.addr), ram.mask.eq(Cat(first.mask[group] for group in groups))]
        with m.Elif(self.write_load.valid):
            m.d.sync += [ram.addr.eq(last.addr), ram.mask.eq(Cat(last.mask[group] for group in groups))]
        with m.Elif(self.read_store.valid):
            m.d.sync += ram.addr.eq(self.read_store.addr)
        with m.Elif(self.read_load.valid):
            m.d.sync += ram.addr.eq(self.read_load.addr)
        with m.Else():
            m.d.sync += [ram.addr.eq(view.entry), ram.mask.eq(Cat(view.writes(group) for group in groups))]
        for port in (self.read_execute, self.read_store, self.read_load):
            m.d.comb += port.data.as_value().eq(ram.r_data)
        view.answer_from(m, ram.r_data)
        return m

    def _store_write(self, m, free):
        """Return the store unit's write and whether there is one; it waits here unless the unit does not mind to wait itself."""
        port = self.write_store
        if self.config.lane_cycles > 1:
            m.d.comb += port.ready.eq(free)
            return port.payload, port.valid
        first, waiting = Signal.like(port.payload, reset_less=True), Signal()
        m.d.comb += port.ready.eq(~waiting | free)
        with m.If(port.ready):
            m.d.sync += [first.eq(port.payload), waiting.eq(port.valid)]
        return first, waiting
