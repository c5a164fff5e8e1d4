"""The engine's memories: activations in interleaved banks, weights, channel parameters, program.

Every bank has one synchronous read port and one write port with word enables, so that it maps to simple dual-port block RAM.
The host has no ports of its own: it borrows the engine's while that is idle. What a read returns that meets a write of the same
entry in the same cycle is undefined (tokens keep readers behind writers, and block RAM needs no bypass); the next read sees the
new value.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In
from amaranth.utils import ceil_log2

from celosia.rtl.fetch import ProgramReadSignature
from celosia.rtl.interfaces import (
    ActReadSignature,
    ActWrite,
    EntryWriteSignature,
    HostSignature,
    ParamReadSignature,
    ParamWordReadSignature,
    WeightReadSignature,
    WeightWriteSignature,
)
from celosia.rtl.isa import INSTRUCTION_BITS
from celosia.rtl.limits import at_least

__all__ = ["ActivationMemory", "HostView", "ParamMemory", "ProgramMemory", "WeightMemory"]

_ATTRS = {"no_rw_check": 1}
"""Tells Yosys that a read beside a write of its entry may return anything; otherwise it builds a bypass around block RAM."""


def _select(index, values):
    """Return ``values[index]`` of a power of two of values, as a tree of two-way multiplexers."""
    half = len(values) // 2
    return Mux(index[ceil_log2(half)], _select(index, values[half:]), _select(index, values[:half])) if half else values[0]


class HostView:
    """The host's window on entries of ``size`` bytes: address decoder, word enables, and the way back of read data.

    Members
    -------
    entry, word
        The entry addressed, and which of its words.
    write, value
        Bit ``n``: the host writes word ``n`` in this cycle; the entry's bytes, all words of it the same.
    """

    def __init__(self, m, host, *, size, depth):
        self._host = host
        words = 1 << ceil_log2(-(-size // 4))
        word, address = host.addr[: ceil_log2(words)], host.addr[ceil_log2(words) :]
        self.entry = address[: ceil_log2(depth)]
        self.value = host.w_data.replicate(words)[: 8 * size]
        self._hits = [~at_least(address, depth) & (word == n) for n in range(words)]
        self.write = _delayed(m, Cat(self._hits) & host.we.replicate(words))

    def writes(self, first):
        """Return whether the host writes byte ``first`` of an entry and those after it in the same word."""
        return self.write[first // 4]

    def take(self, m, register, entry):
        """Load ``register`` with ``entry``, or while the host reads with its word of it and zeros for the others.

        Registers have an input that clears them: a multiplexer of all words costs an OR of them behind it.
        """
        m.d.sync += register.eq(entry)
        for n, hit in enumerate(self._hits):
            with m.If(_delayed(m, self._host.re & ~hit)):
                m.d.sync += register[32 * n : 32 * n + 32].eq(0)

    def answer_from(self, m, entry):
        """Answer with what a single-port memory shows, which stays while the host reads: at once the word of ``entry``."""
        words = [Mux(self._host.re & hit, entry[32 * n : 32 * n + 32], 0) for n, hit in enumerate(self._hits)]
        m.d.comb += self._host.r_data.eq(reduce(or_, words))

    def answer(self, m, register):
        """Answer with what :meth:`take` has left in ``register``."""
        words = [register[32 * n : 32 * n + 32] for n in range(len(self._hits))]
        m.d.sync += self._host.r_data.eq(Mux(self._host.re, reduce(or_, words), 0))


def _delayed(m, value):
    late = Signal.like(value)
    m.d.sync += late.eq(value)
    return late


def _entry_memory(m, host, reads, *, width, depth, readable, writer=None, whole=None):
    """Build banks of ``depth`` entries of ``width`` bits, one for each of ``reads``, side by side in the host's entries.

    ``writer`` writes one bank's entry or several at a time while the host does not, ``whole`` all of them when ``writer`` does not.
    """
    if whole is not None:
        m.d.comb += whole.ready.eq(~writer.en.any() if writer is not None else 1)
    view = HostView(m, host, size=width // 8 * len(reads), depth=depth)
    grain = min(width, 32)
    outputs = []
    for number, port in enumerate(reads):
        bank = memory.Memory(shape=unsigned(width), depth=depth, init=[], attrs=_ATTRS)
        m.submodules[f"bank{number}"] = bank
        write, read = bank.write_port(granularity=grain), bank.read_port()
        m.d.comb += [
            write.addr.eq(view.entry),
            write.data.eq(view.value.word_select(number, width)),
            write.en.eq(Cat(view.writes((number * width + first) // 8) for first in range(0, width, grain))),
        ]
        if whole is not None:
            with m.If(whole.en):
                m.d.comb += [write.addr.eq(whole.addr), write.data.eq(whole.data.word_select(number, width)), write.en.eq(~0)]
        if writer is not None:
            with m.If(writer.en.any()):
                m.d.comb += [write.addr.eq(writer.addr), write.data.eq(writer.data)]
                m.d.comb += write.en.eq(writer.en[number].replicate(width // grain))
        m.d.comb += Value.cast(port.data).eq(read.data)
        if readable:
            m.d.comb += read.addr.eq(Mux(host.re, view.entry, port.addr))
        else:
            m.d.comb += read.addr.eq(port.addr)
        outputs.append(read.data)
    if readable:
        word = Signal(width * len(reads))
        view.take(m, word, Cat(outputs))
        view.answer(m, word)


class WeightMemory(wiring.Component):
    """Weight tiles, in ``weight_rows`` banks of ``cols`` bytes that are read at addresses of their own.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    read0, read1, … : ``In(WeightReadSignature)``
        One per bank; latency one cycle.
    write : ``In(WeightWriteSignature)``
        The load unit's, with ``config.fill``; the host waits for the engine to be idle.
    transfer : ``In(EntryWriteSignature)``
        The transfer unit's, with a memory port; waits for the load unit's.
    host : ``In(HostSignature)``
        Entry ``e`` is ``weight_rows * cols`` bytes, bank ``j`` at bytes ``j * cols`` … of it.
    """

    def __init__(self, *, config):
        self.config = config
        reads = {f"read{bank}": In(WeightReadSignature(cols=config.cols)) for bank in range(config.weight_rows)}
        write = WeightWriteSignature(cols=config.cols, weight_rows=config.weight_rows)
        transfer = EntryWriteSignature(width=8 * config.weight_rows * config.cols, addr_width=ceil_log2(config.weight_depth))
        super().__init__({
            **reads,
            **({"write": In(write)} if config.fill else {}),
            **({"transfer": In(transfer)} if config.memory_bytes else {}),
            "host": In(HostSignature()),
        })

    @property
    def reads(self):
        """The banks' read ports, in order."""
        return [getattr(self, f"read{bank}") for bank in range(self.config.weight_rows)]

    def elaborate(self, platform):
        m = Module()
        config = self.config
        writer, whole = self.write if config.fill else None, self.transfer if config.memory_bytes else None
        _entry_memory(
            m, self.host, self.reads, width=8 * config.cols, depth=config.weight_depth, readable=config.debug, writer=writer, whole=whole
        )
        return m


class ParamMemory(wiring.Component):
    """Channel parameters: ``param_depth`` entries of ``lanes`` times 64 bits.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    read : ``In(ParamReadSignature)``, with ``lane_cycles`` = 4 ``In(ParamWordReadSignature)``
        Latency one cycle. ``ready`` is always high.
    transfer : ``In(EntryWriteSignature)``
        The transfer unit's, with a memory port; ``ready`` is always high.
    host : ``In(HostSignature)``
    """

    def __init__(self, *, config):
        self.config = config
        read = ParamWordReadSignature() if config.lane_cycles > 1 else ParamReadSignature(lanes=config.lanes)
        transfer = EntryWriteSignature(width=64 * config.lanes, addr_width=ceil_log2(config.param_depth))
        super().__init__({"read": In(read), **({"transfer": In(transfer)} if config.memory_bytes else {}), "host": In(HostSignature())})

    def elaborate(self, platform):
        m = Module()
        config, width = self.config, len(self.read.data)
        depth = config.param_depth * 64 * config.lanes // width
        if config.lane_cycles > 1:
            m.d.comb += self.read.ready.eq(1)
        whole = self.transfer if config.memory_bytes else None
        _entry_memory(m, self.host, [self.read], width=width, depth=depth, readable=config.debug, whole=whole)
        return m


class ProgramMemory(wiring.Component):
    """``program_depth`` instructions, read ``fetch_bits`` at a time.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    read : ``In(ProgramReadSignature)``
        ``ready`` is always high.
    write : ``In(EntryWriteSignature)``
        With a memory port: an entry is ``fetch_bits``. ``ready`` is always high; the host waits for the engine to be idle.
    host : ``In(HostSignature)``
    """

    def __init__(self, *, config):
        self.config = config
        entries = config.program_depth * INSTRUCTION_BITS // config.fetch_bits
        write = EntryWriteSignature(width=config.fetch_bits, addr_width=ceil_log2(entries))
        super().__init__({
            "read": In(ProgramReadSignature(bits=config.fetch_bits)),
            **({"write": In(write)} if config.memory_bytes else {}),
            "host": In(HostSignature()),
        })

    def elaborate(self, platform):
        m = Module()
        config, bits = self.config, self.config.fetch_bits
        m.d.comb += self.read.ready.eq(1)
        depth = config.program_depth * INSTRUCTION_BITS // bits
        whole = self.write if config.memory_bytes else None
        _entry_memory(m, self.host, [self.read], width=bits, depth=depth, readable=config.debug, whole=whole)
        return m


class ActivationMemory(wiring.Component):
    """``act_depth`` words of ``rows`` bytes in ``act_banks`` banks; word ``a`` lies in bank ``a % act_banks``.

    In one cycle each bank serves one reader and one writer, the first in the order of the members below that addresses it. Data
    come :data:`~celosia.rtl.interfaces.ACT_READ_LATENCY` cycles after the request. A write is seen by reads from
    :data:`~celosia.rtl.interfaces.ACT_WRITE_LATENCY` cycles after it is taken; what a read in between returns is undefined.
    Writes must be below ``act_depth``: the units check that.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    read_execute, read_execute1, …, read_store, read_transfer, read_load : ``In(ActReadSignature)``
        The execute unit has one for each image row of the depthwise mode. ``read_execute.ready`` is always high. The transfer unit is there
        with a memory port.
    write_store, write_load, write_transfer : ``In(stream)`` of :func:`~celosia.rtl.interfaces.ActWrite`
        ``write_store.ready`` is always high. The transfer unit waits for the load unit.
    host : ``In(HostSignature)``
        Uses the load unit's places.
    """

    def __init__(self, *, config):
        self.config = config
        read = ActReadSignature(rows=config.rows)
        write = stream.Signature(ActWrite(rows=config.rows))
        super().__init__({
            **{f"read_{reader}": In(read) for reader in self._readers(config)},
            **{f"write_{unit}": In(write) for unit in ("store", "load", *(["transfer"] if config.memory_bytes else []))},
            "host": In(HostSignature()),
        })

    @staticmethod
    def _readers(config):
        rows = (f"execute{row}" for row in range(1, config.depthwise_rows))
        return ["execute", *rows, "store", *(["transfer"] if config.memory_bytes else []), "load"]

    @property
    def execute_reads(self):
        """The execute unit's read ports, in order."""
        return [getattr(self, f"read_{reader}") for reader in self._readers(self.config) if reader.startswith("execute")]

    def elaborate(self, platform):
        m = Module()
        config, host = self.config, self.host
        bits = ceil_log2(config.act_banks)
        grain = min(4, config.cols)
        view = HostView(m, host, size=config.rows, depth=config.act_depth)

        ports = []
        for bank in range(config.act_banks):
            words = memory.Memory(shape=8 * config.rows, depth=config.act_depth // config.act_banks, init=[], attrs=_ATTRS)
            m.submodules[f"bank{bank}"] = words
            ports.append((words.read_port(), words.write_port(granularity=8 * grain)))
        read_data = [read.data for read, _ in ports]

        # Readers, first to last. A lower one is refused when its bank is asked for above, served there or not.
        load_addr = Signal(16)
        m.d.comb += load_addr.eq(Mux(host.re, view.entry, self.read_load.addr))
        above = []
        others = [self.read_store, self.read_transfer] if config.memory_bytes else [self.read_store]
        readers = [(port, port.addr) for port in (*self.execute_reads, *others)] + [(self.read_load, load_addr)]
        for port, addr in readers:
            m.d.comb += port.ready.eq(~Cat(other & (bank == addr[:bits]) for other, bank, _ in above).any())
            above.append((port.valid, addr[:bits], addr[bits:]))
            word = _select(_delayed(m, addr[:bits]), read_data)
            if port is self.read_load:
                view.take(m, Value.cast(port.data), word)
            else:
                m.d.sync += Value.cast(port.data).eq(word)
        for bank, (read, _) in enumerate(ports):
            index = above[-1][2]
            for asked, asked_bank, asked_index in above[-2::-1]:
                index = Mux(asked & (asked_bank == bank), asked_index, index)
            m.d.comb += read.addr.eq(index)
        view.answer(m, Value.cast(self.read_load.data))

        # Writers: the host's word joins the load unit's before the banks, where one multiplexer does for all of them; of data, one of
        # the two is zero. The store unit's is registered first: the load unit waits for it, and must not wait for the way through both.
        first, last = Signal.like(self.write_store.payload, reset_less=True), self._second_writer(m)
        busy = Signal()
        m.d.sync += [first.eq(self.write_store.payload), busy.eq(self.write_store.valid)]
        host_writes = view.write.any()
        addr, value = Signal(16), Signal(8 * config.rows)
        m.d.comb += [
            addr.eq(Mux(host_writes, view.entry, last.payload.addr)),
            value.eq(last.payload.data.as_value() | view.value),
            self.write_store.ready.eq(1),
            last.ready.eq(~(busy & (first.addr[:bits] == last.payload.addr[:bits]))),
        ]
        groups = range(0, config.rows, grain)
        mask = Cat(view.writes(group) | (last.valid & last.payload.mask[group]) for group in groups)
        for bank, (_, write) in enumerate(ports):
            m.d.sync += write.en.eq(0)
            with m.If(busy & (first.addr[:bits] == bank)):
                m.d.sync += [write.addr.eq(first.addr[bits:]), write.data.eq(first.data)]
                m.d.sync += write.en.eq(Cat(first.mask[group] for group in groups))
            with m.Else():
                m.d.sync += [write.addr.eq(addr[bits:]), write.data.eq(value)]
                with m.If(addr[:bits] == bank):
                    m.d.sync += write.en.eq(mask)
        return m

    def _second_writer(self, m):
        """Return the stream of what the load unit writes, and the transfer unit when that does not."""
        load = self.write_load
        if not self.config.memory_bytes:
            return load
        transfer, joined = self.write_transfer, load.signature.create()
        m.d.comb += [
            joined.valid.eq(load.valid | transfer.valid),
            joined.payload.eq(Mux(~load.valid & transfer.valid, transfer.payload.as_value(), load.payload.as_value())),
            load.ready.eq(joined.ready),
            transfer.ready.eq(joined.ready & ~load.valid),
        ]
        return joined
