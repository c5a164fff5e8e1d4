"""The register map and the host's address space, as data, and the register bank made from it.

RTL, driver, C header and documentation read :data:`REGISTERS` and :data:`WINDOWS`; nothing else spells an offset. The vocabulary is
that of `amaranth-soc`: *R* the host reads what the engine shows, *W* the host writes and the engine sees it for one cycle, *RW* the
bank keeps what the host writes, *RW1C* the engine sets bits and the host clears those it writes as one.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import MappingProxyType

from amaranth.hdl import *
from amaranth.lib import data, enum, memory, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.isa import INSTRUCTION_BITS, ISA_VERSION, TOKEN_BITS, Unit

__all__ = ["ADDRESS_BITS", "CSR_READ_LATENCY", "DEBUG", "ID", "REGISTERS", "WINDOWS", "WINDOW_BITS", "Access", "CsrBank", "CsrBusSignature",
           "CsrField", "KeptSignature", "MemoryShape", "Register", "Window", "identity", "memory_shapes", "registers_of"]  # fmt: skip

ID = int.from_bytes(b"CELO", "little")
"""Value of the ID register."""

ADDRESS_BITS = 23
"""Width of a byte address of the host port."""

WINDOW_BITS = 20
"""log2 of a window's bytes."""

CSR_READ_LATENCY = 39
"""Cycles from a register's read to its value. Two rounds of the performance counters: of an idle engine they are exact."""


class Access(enum.Enum):
    """What the host may do with a register."""

    R = "R"
    W = "W"
    RW = "RW"
    RW1C = "RW1C"


@dataclass(frozen=True)
class CsrField:
    """Bits ``offset`` … ``offset + width - 1`` of a register."""

    name: str
    offset: int
    width: int
    doc: str


@dataclass(frozen=True)
class Register:
    """A 32-bit register at byte ``offset`` of the CSR window; bits of no field read as zero and ignore writes."""

    name: str
    offset: int
    access: Access
    fields: tuple
    doc: str

    @property
    def layout(self):
        """The register as a 32-bit Amaranth layout."""
        return data.FlexibleLayout(32, {field.name: data.Field(field.width, field.offset) for field in self.fields})

    def unpack(self, value):
        """Return the fields of the integer ``value`` as a dict."""
        return {field.name: value >> field.offset & (1 << field.width) - 1 for field in self.fields}

    def pack(self, **values):
        """Return the integer with the given fields, the others zero; raise :exc:`ValueError` if one is unknown or too large."""
        word, known = 0, {field.name: field for field in self.fields}
        for name, value in values.items():
            if name not in known or not 0 <= value < 1 << known[name].width:
                raise ValueError(f"{self.name}.{name} must be a field that holds {value!r}")
            word |= value << known[name].offset
        return word


@dataclass(frozen=True)
class Window:
    """One MiB of the host's byte addresses."""

    name: str
    number: int
    doc: str

    @property
    def base(self):
        return self.number << WINDOW_BITS


WINDOWS = MappingProxyType({
    window.name: window
    for window in (
        Window("csr", 0, "control and status registers"),
        Window("program", 1, "instructions, 32 bytes each"),
        Window("weights", 2, "weight memory: weight_rows x cols bytes an entry"),
        Window("params", 3, "channel parameters: lanes x 8 bytes an entry"),
        Window("tables", 4, "activation tables: 256 words each, one byte in a word"),
        Window("activations", 5, "activation memory: rows bytes a word"),
    )
})  # fmt: skip


def _whole(doc):
    return (CsrField("value", 0, 32, doc),)


def _bytes(*names):
    return tuple(CsrField(name, 8 * n, 8, f"knob ``{name}``") for n, name in enumerate(names))


_UNITS = tuple(unit for unit in Unit if unit is not Unit.SEQUENCER)
_EVENTS = (CsrField("done", 0, 1, "the program has ended"), CsrField("error", 1, 1, "the engine has stopped with an error"))


def _registers():
    R, W, RW, RW1C = Access.R, Access.W, Access.RW, Access.RW1C
    yield "ID", R, _whole("ASCII ``CELO``"), "Says that a Celosia engine is here."
    yield "VERSION", R, _whole("version"), "Version of the instruction set."
    yield "DIGEST", R, _whole("digest"), "Fingerprint of the configuration; a program carries that of the engine it was compiled for."
    yield "CONFIG_ARRAY", R, _bytes("rows", "cols", "weight_rows", "lanes"), "Shape of the array."
    yield "CONFIG_UNITS", R, _bytes("act_banks", "tables", "queue_depth", "unfold_streams"), "Sizes around the array."
    for name, knob in (("ACT", "act_depth"), ("WEIGHTS", "weight_tiles"), ("ACC", "acc_depth"), ("PARAMS", "param_depth"),
                       ("PROGRAM", "program_depth")):  # fmt: skip
        yield f"CONFIG_{name}", R, (CsrField(knob, 0, 32, f"knob ``{knob}``"),), "Depth of a memory."
    yield "CONTROL", W, (
        CsrField("start", 0, 1, "doorbell: run the program from PROGRAM_START; ignored while busy"),
        CsrField("reset", 1, 1, "stop, empty the queues, forget the tokens and clear STATUS and ERROR"),
    ), "Commands."  # fmt: skip
    yield "STATUS", R, (
        CsrField("busy", 0, 1, "a program runs"),
        CsrField("done", 1, 1, "the last program has ended"),
        CsrField("error", 2, 1, "the last program was stopped, see ERROR"),
    ), "State of the engine."  # fmt: skip
    yield "ERROR", R, (
        CsrField("code", 0, 8, "an ``ErrorCode``"),
        CsrField("unit", 8, 3, "the ``Unit`` that met it"),
        CsrField("index", 16, 16, "index of the instruction"),
    ), "The first error since the last start."  # fmt: skip
    yield "IRQ_ENABLE", RW, _EVENTS, "Events that raise the interrupt line."
    yield "IRQ_STATUS", RW1C, _EVENTS, "Events that have happened; write one to clear."
    yield "PROGRAM_START", RW, (CsrField("index", 0, 16, "instruction"),), "Index of a program's first instruction."
    yield "CYCLES", R, _whole("cycles"), "Cycles from the doorbell to done, or so far."
    yield "INSTRUCTIONS", R, _whole("instructions"), "Instructions fetched, END included."
    for unit in _UNITS:
        name = unit.name.lower()
        yield f"{unit.name}_BUSY", R, _whole("cycles"), f"Cycles in which the {name} unit worked."
        yield f"{unit.name}_WAIT", R, _whole("cycles"), f"Cycles in which the {name} unit was free and its next instruction waited for tokens."
        yield f"{unit.name}_STALL", R, _whole("cycles"), f"Cycles in which the {name} unit had work but could not go on."
    yield "TRANSFER_READ", R, _whole("beats"), "Beats of ``memory_bytes`` bytes that the transfer unit has read from external memory."
    yield "TRANSFER_WRITTEN", R, _whole("beats"), "Beats of ``memory_bytes`` bytes that it has written there."
    for unit in _UNITS:
        name = unit.name.lower()
        yield f"{unit.name}_QUEUE", R, (
            CsrField("index", 0, 16, "instruction at the queue's head"),
            CsrField("waiting", 16, 1, "the head waits for tokens"),
            CsrField("issued", 17, 1, "the head has its tokens and waits for the unit"),
            CsrField("active", 18, 1, "the unit has not finished what it took"),
        ), f"Queue in front of the {name} unit."  # fmt: skip
    for unit in _UNITS:
        senders = [Unit.TRANSFER if other is unit else other for other in _UNITS[:3]]  # as in the waits of its instructions
        yield f"{unit.name}_TOKENS", R, tuple(
            CsrField(other.name.lower(), TOKEN_BITS * n, TOKEN_BITS, f"sent by the {other.name.lower()} unit and not yet taken")
            for n, other in enumerate(senders)
        ), f"Token counters towards the {unit.name.lower()} unit; while its head waits less what it waits for, and one (modulo {1 << TOKEN_BITS:,})."  # fmt: skip
    yield "MEMORY_BASE", RW, (CsrField("address", 0, 32, "byte"),), "Where external memory, as instructions address it, begins; a multiple of ``memory_bytes``."
    yield "PROGRAM_ADDRESS", RW, (CsrField("address", 0, 32, "byte"),), "Where a program in external memory begins; a multiple of 256."
    yield "PROGRAM_LENGTH", RW, (
        CsrField("instructions", 0, 17, "instructions"),
    ), "Length of a program in external memory, which the engine fetches as it runs; 0: the program is in the program memory."  # fmt: skip


_PORT = ("TRANSFER_", "MEMORY_BASE", "PROGRAM_ADDRESS", "PROGRAM_LENGTH")

REGISTERS = MappingProxyType({
    name: Register(name, 4 * number, access, fields, f"{doc} Only with a memory port." if name.startswith(_PORT) else doc)
    for number, (name, access, fields, doc) in enumerate(_registers())
})  # fmt: skip
"""Registers by name, in the order of their offsets."""


def registers_of(config):
    """Return the registers of an engine: some are there only with a memory port."""
    return [register for register in REGISTERS.values() if config.memory_bytes or not register.name.startswith(_PORT)]


DEBUG = tuple(f"{unit.name}_{what}" for unit in _UNITS for what in ("QUEUE", "TOKENS"))
"""Names of the registers that an engine with ``debug`` = 0 does not have."""


def identity(config):
    """Return the values of the constant registers of an engine, by register name; what a driver compares."""
    constants = {"ID": ID, "VERSION": ISA_VERSION, "DIGEST": config.digest}
    for register in REGISTERS.values():
        if register.name.startswith("CONFIG_"):
            constants[register.name] = register.pack(**{field.name: getattr(config, field.name) for field in register.fields})
    return constants


@dataclass(frozen=True)
class MemoryShape:
    """A memory as the host sees it: ``entries`` of ``entry_bytes``, at addresses ``stride`` bytes apart."""

    entries: int
    entry_bytes: int

    @property
    def stride(self):
        return 4 << max(0, (self.entry_bytes + 3) // 4 - 1).bit_length()


def memory_shapes(config):
    """Return the :class:`MemoryShape` of each memory of an engine, by the name of its window."""
    return {
        "program": MemoryShape(config.program_depth, INSTRUCTION_BITS // 8),
        "weights": MemoryShape(config.weight_depth, config.weight_rows * config.cols),
        "params": MemoryShape(config.param_depth, config.lanes * 8),
        "tables": MemoryShape(config.tables * 256, 1),
        "activations": MemoryShape(config.act_depth, config.rows),
    }


class CsrBusSignature(wiring.Signature):
    """Access to a register bank, from the master's side.

    ``we`` writes register number ``addr``; ``re`` stays high with ``addr``: from :data:`CSR_READ_LATENCY` cycles later on ``r_data`` is the register,
    and in the cycle after ``re`` was low it is zero. ``mapped`` says in the same cycle whether there is a register at ``addr``.
    """

    def __init__(self, *, addr_width):
        super().__init__({
            "addr": Out(addr_width),
            "we": Out(1),
            "re": Out(1),
            "w_data": Out(32),
            "r_data": In(32),
            "mapped": In(1),
        })


class KeptSignature(wiring.Signature):
    """Access to the words of the registers that a bank keeps in memory, from the side of what changes them.

    With ``use``, ``data`` is the word of register number ``addr`` two cycles later, or zero if ``clear`` is high one cycle later; the host reads
    while ``use`` is low, at least once in half of :data:`CSR_READ_LATENCY`. ``w_en`` writes ``w_data`` as register number ``w_addr``.
    """

    def __init__(self, *, addr_width):
        super().__init__({
            "use": Out(1),
            "clear": Out(1),
            "addr": Out(addr_width),
            "data": In(32),
            "w_en": Out(1),
            "w_addr": Out(addr_width),
            "w_data": Out(32),
        })


class CsrBank(wiring.Component):
    """The registers of a map.

    Parameters
    ----------
    registers : iterable of :class:`Register`
        At most one per offset; all of :data:`REGISTERS` if not given.
    kept : mapping of str to int
        R registers without a port, by name: the bank keeps them in a block RAM, with these values at first.

    Members
    -------
    bus : ``In(CsrBusSignature)``
        The host's side.
    kept : ``In(KeptSignature)``
        What changes the values in memory; may be left open.
    (register name in lower case) : ``In`` for R, ``Out`` for the others, of the register's layout
        R: sampled when read. W: what the host writes, during one cycle, zero otherwise. RW, RW1C: the present value.
    (register name)_set : ``In``, RW1C only
        Bits to set; setting wins over clearing in the same cycle.
    """

    def __init__(self, *, registers=None, kept=None):
        self.registers = tuple(REGISTERS.values() if registers is None else registers)
        self.initial = dict(kept or {})
        offsets = [register.offset for register in self.registers]
        if len(set(offsets)) != len(offsets) or any(offset % 4 for offset in offsets):
            raise ValueError(f"offsets must be different multiples of four, not {offsets}")
        bits = (max(offsets) // 4).bit_length()
        members = {"bus": In(CsrBusSignature(addr_width=bits)), "kept": In(KeptSignature(addr_width=bits))}
        for register in self.registers:
            name = register.name.lower()
            if register.name not in self.initial:
                members[name] = (In if register.access is Access.R else Out)(register.layout)
            if register.access is Access.RW1C:
                members[f"{name}_set"] = In(register.layout)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        bus, kept = self.bus, self.kept
        numbers = {register.name: register.offset // 4 for register in self.registers}

        # One read port, for the host and for what changes the values in turn; registered, because block RAM answers late.
        words = {numbers[name]: value for name, value in self.initial.items()}
        depth = 1 << len(bus.addr)
        m.submodules.words = store = memory.Memory(
            shape=32, depth=depth, init=[words.get(n, 0) for n in range(depth)], attrs={"no_rw_check": 1, "ram_style": "block"}
        )
        read, write = store.read_port(), store.write_port()
        hosts_turn = Signal(2)
        m.d.comb += [
            read.addr.eq(Mux(kept.use, kept.addr, bus.addr)),
            write.addr.eq(kept.w_addr),
            write.data.eq(kept.w_data),
            write.en.eq(kept.w_en),
        ]
        m.d.sync += [kept.data.eq(read.data), hosts_turn.eq(Cat(~kept.use, hosts_turn))]
        with m.If(kept.clear):
            m.d.sync += kept.data.eq(0)

        shown = []  # what the registers with ports contribute to r_data
        for register in self.registers:
            if register.name in self.initial:
                continue
            fields = sum((1 << field.width) - 1 << field.offset for field in register.fields)
            port = getattr(self, register.name.lower()).as_value()
            hit = bus.addr == numbers[register.name]
            if register.access is not Access.W:
                shown.append(Mux(hit, port & fields, 0))
            if register.access is Access.W:
                m.d.comb += port.eq(Mux(hit & bus.we, bus.w_data & fields, 0))
            if register.access is Access.RW:
                with m.If(hit & bus.we):
                    m.d.sync += port.eq(bus.w_data & fields)
            if register.access is Access.RW1C:
                to_set = getattr(self, f"{register.name.lower()}_set").as_value()
                m.d.sync += port.eq(port & ~Mux(hit & bus.we, bus.w_data, 0) | to_set & fields)
        with m.Switch(bus.addr):
            for number in numbers.values():
                with m.Case(number):
                    m.d.comb += bus.mapped.eq(1)
        with m.If(hosts_turn[1]):
            m.d.sync += bus.r_data.eq(reduce(or_, shown, kept.data))
        with m.If(~bus.re):
            m.d.sync += bus.r_data.eq(0)
        return m
