"""The engine: sequencer, three units, memories, and the host port.

::

     Wishbone ─► Host ─┬─► CsrBank ◄──────────► Sequencer ◄─ ProgramMemory ◄─┐
                       │                       ┌────┼────┐                   │
                       │                     Load Execute Store              │
                       │                       │ ┌──┤ acc ├──┐              │
                       │     ActivationMemory ◄┴─┴──┼─────┘  │              │
                       │     WeightMemory ──────────┘        │              │
                       │     ParamMemory, tables ────────────┘              │
                       └─► host ports of the memories ───────────────────────┘

The load unit also writes the weight memory: tiles that are activations (:class:`~celosia.rtl.fill.Fill`).
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.config import BadConfig
from celosia.rtl.constants import ConstantMemory
from celosia.rtl.counters import COUNTERS, Counters
from celosia.rtl.csr import ADDRESS_BITS, DEBUG, WINDOW_BITS, CsrBank, identity, memory_shapes
from celosia.rtl.execute import Execute
from celosia.rtl.gate import UNIT_NAMES
from celosia.rtl.host import Host, WishboneSignature
from celosia.rtl.load import Load
from celosia.rtl.memory import ActivationMemory, ParamMemory, ProgramMemory, WeightMemory
from celosia.rtl.oneport import OnePortActivationMemory
from celosia.rtl.sequencer import EngineTrace, Sequencer
from celosia.rtl.serial_load import SerialLoad
from celosia.rtl.serial_store import SerialStore
from celosia.rtl.store import Store
from celosia.rtl.table import Tables

__all__ = ["Top"]


class Top(wiring.Component):
    """A whole engine without a memory port: the host puts everything into the memories.

    Parameters
    ----------
    config : EngineConfig
    multiplier : str
        Form of the array and of all multipliers, one of :data:`celosia.rtl.multiplier.FORMS`; no part of the configuration, for results are equal.

    Members
    -------
    bus : ``In(WishboneSignature)``
        The host's port; the map is in :mod:`celosia.rtl.csr`.
    irq : ``Out(1)``
        High while an enabled event is pending.
    busy, error : ``Out(1)``
        A program runs; the last one ended with an error. For LEDs and the like.
    timeline : ``Out(EngineTrace)``
        What the units do, for simulations; leave it open in hardware. (A port named trace would clash in Verilator.)

    Raises
    ------
    BadConfig
        If a memory is larger than the host's window on it.
    """

    def __init__(self, config, *, multiplier="portable"):
        for name, shape in memory_shapes(config).items():
            if shape.entries * shape.stride > 1 << WINDOW_BITS:
                raise BadConfig(f"the {name} memory must fit into the host's window of {1 << WINDOW_BITS:,} bytes, "
                                f"not take {shape.entries * shape.stride:,}")  # fmt: skip
        self.config = config
        self.multiplier = multiplier
        super().__init__({
            "bus": In(WishboneSignature(addr_width=ADDRESS_BITS - 2)),
            "irq": Out(1),
            "busy": Out(1),
            "error": Out(1),
            "timeline": Out(EngineTrace),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        kept = identity(config) | dict.fromkeys(COUNTERS, 0)
        if not config.debug:
            kept |= dict.fromkeys(DEBUG, 0)
        m.submodules.host = host = Host(readable=None if config.debug else ["activations"], registered=bool(config.pipelining))
        m.submodules.csr = csr = CsrBank(kept=kept)
        m.submodules.counters = counters = Counters(units=bool(config.counters))
        m.submodules.sequencer = sequencer = Sequencer(
            program_depth=config.program_depth, queue_depth=config.queue_depth, fetch_bits=config.fetch_bits
        )
        m.submodules.tables = tables = Tables(tables=config.tables, lanes=config.lanes, readable=bool(config.debug))
        form = "ice40" if self.multiplier == "ice40" else "portable"  # of single-port RAM
        if config.act_ports == 1:
            activations = OnePortActivationMemory(config=config, form=form)
        else:
            activations = ActivationMemory(config=config)
        m.submodules.activations = activations

        load, execute, store = (
            (SerialLoad if config.serial_load else Load)(config=config),
            Execute(config=config, multiplier=self.multiplier),
            SerialStore(config) if config.lane_cycles > 1 else Store(config, multiplier=self.multiplier),
        )
        reset = ResetInserter(sequencer.unit_reset)
        m.submodules.load, m.submodules.execute, m.submodules.store = reset(load), reset(execute), reset(store)

        # Host
        wiring.connect(m, wiring.flipped(self.bus), host.bus)
        wiring.connect(m, host.csr, csr.bus)
        wiring.connect(m, host.tables, tables.host)
        wiring.connect(m, host.activations, activations.host)
        m.d.comb += host.busy.eq(sequencer.busy)

        # Sequencer and units
        wiring.connect(m, sequencer.load, load.unit)
        wiring.connect(m, sequencer.execute, execute.unit)
        wiring.connect(m, sequencer.store, store.unit)

        # Operands
        self._constants(m, host, sequencer, load, execute, store, form)
        wiring.connect(m, store.acc, execute.acc)
        wiring.connect(m, store.tables, tables.read)
        for port, read in zip(execute.acts, activations.execute_reads, strict=True):
            wiring.connect(m, port, read)
        if config.act_ports == 1:
            m.d.comb += execute.pause.eq(activations.pause)
        wiring.connect(m, store.operand, activations.read_store)
        wiring.connect(m, load.read, activations.read_load)
        wiring.connect(m, store.write, activations.write_store)
        wiring.connect(m, load.write, activations.write_load)

        # Registers
        m.d.sync += [sequencer.start.eq(csr.control.start), sequencer.abort.eq(csr.control.reset)]
        m.d.comb += [
            sequencer.first.eq(csr.program_start.index),
            csr.status.busy.eq(sequencer.busy),
            csr.status.done.eq(sequencer.done),
            csr.status.error.eq(sequencer.error.code.as_value() != 0),
            csr.error.code.eq(sequencer.error.code),
            csr.error.unit.eq(sequencer.error.unit),
            csr.error.index.eq(sequencer.error.index),
            csr.irq_status_set.done.eq(sequencer.ended),
            csr.irq_status_set.error.eq(sequencer.failed),
            self.irq.eq((csr.irq_status.as_value() & csr.irq_enable.as_value()).any()),
            self.busy.eq(sequencer.busy),
            self.error.eq(csr.status.error),
            self.timeline.eq(sequencer.trace),
            counters.trace.eq(sequencer.trace),
            counters.clear.eq(sequencer.start & ~sequencer.busy),
            counters.busy.eq(sequencer.busy),
            counters.fetched.eq(sequencer.fetched),
        ]
        wiring.connect(m, counters.kept, csr.kept)
        for name in UNIT_NAMES if config.debug else ():
            state, tokens = getattr(sequencer, f"{name}_state"), getattr(sequencer, f"{name}_tokens")
            queue_register, token_register = getattr(csr, f"{name}_queue"), getattr(csr, f"{name}_tokens")
            m.d.comb += [queue_register[field].eq(state[field]) for field in ("index", "waiting", "issued", "active")]
            m.d.comb += [token_register[sender].eq(tokens[n]) for n, sender in enumerate(UNIT_NAMES) if sender != name]
        return m

    def _constants(self, m, host, sequencer, load, execute, store, form):
        """Build and connect the memories of program, weights and parameters."""
        config = self.config
        if config.constant_ports == 1:
            m.submodules.constants = constants = ConstantMemory(config=config, form=form)
            pairs = [
                (sequencer.program, constants.program),
                (execute.weights[0], constants.weights),
                (store.params, constants.params),
                (host.program, constants.host_program),
                (host.weights, constants.host_weights),
                (host.params, constants.host_params),
            ]
            m.d.comb += execute.pause_load.eq(constants.pause_load)
        else:
            m.submodules.program = program = ProgramMemory(config=config)
            m.submodules.weights = weights = WeightMemory(config=config)
            m.submodules.params = params = ParamMemory(config=config)
            pairs = [
                (sequencer.program, program.read),
                *zip(execute.weights, weights.reads, strict=True),
                (store.params, params.read),
                (host.program, program.host),
                (host.weights, weights.host),
                (host.params, params.host),
            ]
            if config.fill:
                pairs.append((load.fill, weights.write))
        for one, other in pairs:
            wiring.connect(m, one, other)
