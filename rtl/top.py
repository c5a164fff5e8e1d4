"""The engine: sequencer, units, memories, and the host port.

::

     Wishbone ─► Host ─┬─► CsrBank ◄──────────► Sequencer ◄─ ProgramMemory ◄─┐
                       │                       ┌────┼────┐                   │
                       │                     Load Execute Store              │
                       │                       │ ┌──┤ acc ├──┐              │
                       │     ActivationMemory ◄┴─┴──┼─────┘  │              │
                       │     WeightMemory ──────────┘        │              │
                       │     ParamMemory, tables ────────────┘              │
                       └─► host ports of the memories ───────────────────────┘

The load unit also writes the weight memory: tiles that are activations (:class:`~celosia.rtl.fill.Fill`). With a memory port there is a fourth unit,
which moves entries between external memory and those of activations, weights and parameters, and the program may come from there::

     Sequencer: Prefetch ─► ProgramMemory
            ▲
        MemoryPort ◄─► Transfer ◄─► ActivationMemory, ─► WeightMemory, ParamMemory
            ▼
     external memory
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.config import BadConfig
from celosia.rtl.constants import ConstantMemory
from celosia.rtl.counters import Counters, counters_of
from celosia.rtl.csr import ADDRESS_BITS, DEBUG, WINDOW_BITS, CsrBank, identity, memory_shapes, registers_of
from celosia.rtl.execute import Execute
from celosia.rtl.gate import unit_names
from celosia.rtl.host import Host, WishboneSignature
from celosia.rtl.load import Load
from celosia.rtl.memory import ActivationMemory, ParamMemory, ProgramMemory, WeightMemory
from celosia.rtl.oneport import OnePortActivationMemory
from celosia.rtl.port import MemoryPort, MemoryPortSignature
from celosia.rtl.sequencer import EngineTrace, Sequencer
from celosia.rtl.serial_load import SerialLoad
from celosia.rtl.serial_store import SerialStore
from celosia.rtl.store import Store
from celosia.rtl.table import Tables
from celosia.rtl.transfer import Transfer

__all__ = ["Top"]


class Top(wiring.Component):
    """A whole engine.

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
    memory : ``Out(MemoryPortSignature)``
        Only with ``config.memory_bytes``: external memory, or an adapter to a bus.
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
            **({"memory": Out(MemoryPortSignature(memory_bytes=config.memory_bytes))} if config.memory_bytes else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        memory_port = bool(config.memory_bytes)
        registers = registers_of(config)
        kept = identity(config) | dict.fromkeys(counters_of(memory_port), 0)
        if not config.debug:
            kept |= {register.name: 0 for register in registers if register.name in DEBUG}
        m.submodules.host = host = Host(readable=None if config.debug else ["activations"], registered=bool(config.pipelining))
        m.submodules.csr = csr = CsrBank(registers=registers, kept=kept)
        m.submodules.counters = counters = Counters(units=bool(config.counters), memory_port=memory_port)
        m.submodules.sequencer = sequencer = Sequencer(
            program_depth=config.program_depth, queue_depth=config.queue_depth, fetch_bits=config.fetch_bits, memory_bytes=config.memory_bytes
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
        transfer = self._transfer(m, sequencer, csr, counters, activations, reset) if memory_port else None
        self._constants(m, host, sequencer, load, execute, store, transfer, form)
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
        for name in unit_names(memory_port) if config.debug else ():
            state, tokens = getattr(sequencer, f"{name}_state"), getattr(sequencer, f"{name}_tokens")
            queue_register, token_register = getattr(csr, f"{name}_queue"), getattr(csr, f"{name}_tokens")
            m.d.comb += [queue_register[field].eq(state[field]) for field in ("index", "waiting", "issued", "active")]
            m.d.comb += [token_register[sender].eq(tokens[n]) for n, sender in enumerate(unit_names(memory_port)) if sender != name]
        return m

    def _transfer(self, m, sequencer, csr, counters, activations, reset):
        """Build and connect the transfer unit and the memory port; return the unit."""
        config = self.config
        transfer, port = Transfer(config=config), MemoryPort(memory_bytes=config.memory_bytes)
        m.submodules.transfer, m.submodules.port = reset(transfer), port
        wiring.connect(m, sequencer.transfer, transfer.unit)
        wiring.connect(m, sequencer.source, port.program)
        wiring.connect(m, transfer.port, port.transfer)
        wiring.connect(m, port.memory, wiring.flipped(self.memory))
        wiring.connect(m, transfer.read, activations.read_transfer)
        wiring.connect(m, transfer.write, activations.write_transfer)
        m.d.comb += [
            port.flush.eq(sequencer.unit_reset),
            transfer.base.eq(csr.memory_base.address),
            sequencer.address.eq(csr.program_address.address),
            sequencer.length.eq(csr.program_length.instructions),
            counters.moved.eq(transfer.moved),
        ]
        return transfer

    def _constants(self, m, host, sequencer, load, execute, store, transfer, form):
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
            if transfer is not None:
                pairs += [(sequencer.program_write, program.write), (transfer.weights, weights.transfer), (transfer.params, params.transfer)]
        for one, other in pairs:
            wiring.connect(m, one, other)
