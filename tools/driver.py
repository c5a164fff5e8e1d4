"""The host's side of an engine: loads programs, feeds inputs, rings the doorbell, fetches outputs, explains errors.

Written against :class:`celosia.sim.transport.Transport`; the same code runs an engine in any simulator and on a board.
"""

from dataclasses import dataclass, replace

import numpy as np

from celosia.rtl.csr import REGISTERS, WINDOWS, identity, memory_shapes
from celosia.rtl.gate import unit_names
from celosia.rtl.isa import TOKEN_BITS, UNITS, ErrorCode, Unit, decode
from celosia.tools.errors import BadProgram, DoesNotFit, EngineError
from celosia.tools.link import open_link
from celosia.tools.places import is_place

__all__ = ["CYCLE_LIMIT", "ERROR_MEANINGS", "Driver", "RunStats", "UnitCycles", "create_transport"]

PROGRAM_ALIGNMENT = 4096
"""A program in external memory begins at a multiple of so many bytes."""

CYCLE_LIMIT = 100_000_000
"""Cycles after which a run is given up."""

ERROR_MEANINGS = {
    ErrorCode.ILLEGAL_OPCODE: "the opcode does not exist",
    ErrorCode.RESERVED_BITS: "a reserved bit is set, or a unit waits for or signals itself",
    ErrorCode.ILLEGAL_FIELD: "a field's value has no meaning in this configuration",
    ErrorCode.ACT_RANGE: "an address lies outside the activation memory",
    ErrorCode.WEIGHT_RANGE: "a weight tile lies outside the weight memory",
    ErrorCode.ACC_RANGE: "an entry lies outside the accumulators",
    ErrorCode.PARAM_RANGE: "an entry lies outside the parameter memory",
    ErrorCode.BANK_CONFLICT: "execute and store unit used the same accumulator bank in one cycle",
    ErrorCode.TOKEN_OVERFLOW: "more tokens were sent than a counter holds",
    ErrorCode.TOKENS_LEFT: "the program ended with tokens that nobody took",
    ErrorCode.DEADLOCK: "every unit that has work waits for a token that nobody will send",
    ErrorCode.PROGRAM_RANGE: "the program ran past the end of the program memory",
    ErrorCode.ACT_CONFLICT: "two image rows of a depthwise EXECUTE lie in the same bank of the activation memory",
    ErrorCode.MEMORY_ERROR: "the external memory answered with an error",
}


@dataclass(frozen=True)
class UnitCycles:
    """Cycles of one unit in a run: at work, free while its next instruction lacked tokens, at work without progress."""

    busy: int
    wait: int
    stall: int


@dataclass(frozen=True, kw_only=True)
class RunStats:
    """What the engine counted in one run.

    ``units`` holds :class:`UnitCycles` by name, or is None if the engine does not count them. ``trace`` is the recorded array of :data:`celosia.sim.events.EVENT`, empty on transports that
    cannot record; ``events`` are its rows as tuples ``(unit name, instruction index, first cycle, last cycle + 1)``.
    """

    cycles: int
    instructions: int
    units: dict | None
    trace: np.ndarray

    @property
    def events(self):
        return [(Unit(int(row["unit"])).name.lower(), int(row["index"]), int(row["start"]), int(row["end"])) for row in self.trace]


def create_transport(kind, config, *, memory=None, cache=None, on_build=lambda: None):
    """Return the transport ``kind``: ``"verilator"``, ``"icarus"`` or ``"amaranth"``, built for ``config``, or that to a board.

    Boards are named as in :mod:`celosia.tools.places`.

    ``memory`` is the :class:`~celosia.sim.external.MemoryTiming` of a simulated engine with a memory port; only Verilator's has external memory.
    ``on_build`` is called once if a model has to be built first, which takes about a minute; later ones come from the
    folder ``cache`` (:func:`celosia.sim.cache.cache_folder`).
    """
    if is_place(kind):
        return open_link(kind, config)
    if kind == "verilator":
        from celosia.sim.transport import VerilatorTransport as chosen
    elif kind == "icarus":
        from celosia.sim.icarus import IcarusTransport as chosen
    elif kind == "amaranth":
        from celosia.sim.native import AmaranthTransport as chosen
    else:
        raise ValueError(f"kind must be verilator, icarus or amaranth, not {kind!r}")
    if kind == "verilator":
        return chosen(config, memory=memory, cache=cache, on_build=on_build)
    return chosen(config, cache=cache, on_build=on_build)


class Driver:
    """One engine.

    Parameters
    ----------
    transport : Transport
    config : EngineConfig
        What the engine is expected to be.

    Raises
    ------
    EngineError
        If there is no engine, or another one.
    """

    def __init__(self, transport, config):
        self.transport = transport
        self.config = config
        self.program = None
        for name, value in identity(config).items():
            found = self._get(name)
            if found != value:
                raise EngineError(
                    f"the engine must be of configuration {config.name!r}, but its register {name} holds {found:#010x}, not {value:#010x}"
                )
        self._shapes = memory_shapes(config)
        self._names = unit_names(config.memory_bytes)

    def load(self, program):
        """Put a program, its weights, parameters, tables and constant tensors into the engine.

        Raises
        ------
        BadProgram
            If it was compiled for another configuration.
        DoesNotFit
            If an image is larger than its memory.
        NoExternalMemory
            If it needs external memory and the transport has none.
        """
        if program.digest != self.config.digest:
            raise BadProgram(
                program.name, f"compiled for another engine (digest {program.digest:#010x}, not {self.config.digest:#010x})"
            )
        self.reset()
        instructions = program.instructions
        if self.config.memory_bytes:
            instructions = self._load_memory(program)
        images = {"program": instructions, "weights": program.weights, "params": program.params, "tables": program.tables}
        for memory, image in images.items():
            self._write_image(memory, np.ascontiguousarray(image).reshape(-1).view(np.uint8))
        for address, words in program.constants:
            self._write_words(address, np.ascontiguousarray(words).reshape(-1))
        self._set("IRQ_ENABLE", done=1, error=1)
        self.program = program

    def _load_memory(self, program):
        """Put into external memory what belongs there; return the instructions that do not."""
        outside = len(program.instructions) > self.config.program_depth
        first = -(-program.memory_bytes // PROGRAM_ALIGNMENT) * PROGRAM_ALIGNMENT
        image = np.ascontiguousarray(program.instructions, "<u4").reshape(-1).view(np.uint8)
        if program.memory_bytes or outside:
            self.transport.create_memory(first + (image.size if outside else 0))
            self.transport.write_memory(0, program.memory)
        if outside:
            self.transport.write_memory(first, image)
        self._set("MEMORY_BASE", address=0)
        self._set("PROGRAM_ADDRESS", address=first)
        self._set("PROGRAM_LENGTH", instructions=len(program.instructions) if outside else 0)
        return program.instructions[:0] if outside else program.instructions

    def reset(self):
        """Stop whatever runs and clear the engine's state; the memories keep theirs."""
        self._set("CONTROL", reset=1)
        self._set("IRQ_STATUS", done=1, error=1)

    def run(self, inputs, *, limit=CYCLE_LIMIT, record=True):
        """Run one inference.

        Parameters
        ----------
        inputs : dict of name to int8 or uint8 array
            Of the ports' shapes, without a batch axis.
        limit : int
            Cycles after which to give up.
        record : bool
            Record the units' timeline, where the transport can.

        Returns
        -------
        outputs : dict of name to int8 or uint8 array
        stats : RunStats

        Raises
        ------
        BadInput
            If an array is missing or does not match its port.
        EngineError
            If the engine stops with an error, or has not finished after ``limit`` cycles.
        """
        if self.program is None:
            raise EngineError("no program has been loaded into the engine")
        for port in self.program.inputs:
            self._place(port, port.take(inputs))
        self.transport.record(record)
        self.transport.write32(REGISTERS["PROGRAM_START"].offset, 0)
        self._set("CONTROL", start=1)
        finished = self.transport.wait(limit)
        self._set("IRQ_STATUS", done=1, error=1)
        status = self._fields("STATUS")
        if status["error"]:
            raise EngineError(self._explain_error())
        if not finished or not status["done"]:
            sentence = self._explain_timeout(limit)
            self.reset()
            raise EngineError(sentence)
        units = None
        if self.config.counters:
            units = {
                name: UnitCycles(*(self._get(f"{name.upper()}_{what}") for what in ("BUSY", "WAIT", "STALL"))) for name in self._names
            }
        stats = RunStats(
            cycles=self._get("CYCLES"), instructions=self._get("INSTRUCTIONS"), units=units, trace=self.transport.events()
        )
        return {port.name: self._fetch(port) for port in self.program.outputs}, stats

    # Registers and memories -------------------------------------------------------------------------------------------

    def _get(self, name):
        return self.transport.read32(REGISTERS[name].offset)

    def _fields(self, name):
        return REGISTERS[name].unpack(self._get(name))

    def _set(self, name, **fields):
        self.transport.write32(REGISTERS[name].offset, REGISTERS[name].pack(**fields))

    def _write_image(self, memory, image):
        """Write bytes from a memory's first entry on; an entry that is no power of two of words, or smaller than one, is padded."""
        shape = self._shapes[memory]
        if image.size > shape.entries * shape.entry_bytes:
            raise DoesNotFit(memory, image.size, shape.entries * shape.entry_bytes)
        entries = np.zeros((-(-image.size // shape.entry_bytes), shape.stride), np.uint8)
        full = np.zeros(len(entries) * shape.entry_bytes, np.uint8)
        full[: image.size] = image
        entries[:, : shape.entry_bytes] = full.reshape(len(entries), shape.entry_bytes)
        if len(entries):
            self.transport.write(WINDOWS[memory].base, entries.reshape(-1).view("<u4"))

    # Ports ------------------------------------------------------------------------------------------------------------

    def _place(self, port, array):
        array = np.ascontiguousarray(array).view(np.uint8)
        if port.layout == "dense":
            self._write_port(port, port.address, _padded(array.reshape(-1), self.config.rows))
            return
        if port.unsigned:
            array = array ^ np.uint8(0x80)
        if port.matrix:
            array = array.reshape(port.height, port.width, port.channels).transpose(2, 0, 1)
        array = array.reshape(port.channels, port.height, port.width)
        for first, rows, row_words in self._spans(port):
            block, top = first
            part = array[block * self.config.rows : (block + 1) * self.config.rows, top : top + rows]
            words = np.zeros((rows, row_words, self.config.rows), np.uint8)
            words[:, : port.width, : len(part)] = part.transpose(1, 2, 0)
            self._write_port(port, self._word(port, block, top), words.reshape(-1))

    def _fetch(self, port):
        if port.plane_step:
            planes = [self._fetch(replace(port, plane_step=0, address=port.address + k * port.plane_step * self._step(port))) for k in range(4)]
            return np.stack(planes, axis=-1).view("<i4")[..., 0]
        if port.layout == "dense":
            size = int(np.prod(port.shape))
            values = self._read_port(port, port.address, -(-size // self.config.rows)).reshape(-1)[:size]
        else:
            values = np.zeros((port.channels, port.height, port.width), np.uint8)
            for (block, top), rows, row_words in self._spans(port):
                words = self._read_port(port, self._word(port, block, top), rows * row_words).reshape(rows, row_words, self.config.rows)
                part = values[block * self.config.rows : (block + 1) * self.config.rows, top : top + rows]
                part[:] = words[:, : port.width, : len(part)].transpose(2, 0, 1)
            if port.matrix:
                values = values.transpose(1, 2, 0)
        values = np.ascontiguousarray(values).reshape(port.shape)
        return values ^ np.uint8(0x80) if port.unsigned else values.view(np.int8)

    def _spans(self, port):
        """Yield ``((block, first row), rows, words per row)``: what can be moved in one burst without touching words between rows."""
        for block in range(-(-port.channels // self.config.rows)):
            if port.row_step == port.width:
                yield (block, 0), port.height, port.width
            else:
                for row in range(port.height):
                    yield (block, row), 1, port.width

    def _word(self, port, block, row):
        return port.address + (block * port.block_step + row * port.row_step) * self._step(port)

    def _step(self, port):
        """Return by how much a port's address grows from one word to the next."""
        return self.config.rows if port.external else 1

    def _write_port(self, port, address, data):
        if port.external:
            self.transport.write_memory(address, data)
        else:
            self._write_words(address, data)

    def _read_port(self, port, address, count):
        if port.external:
            return self.transport.read_memory(address, count * self.config.rows)
        return self._read_words(address, count)

    def _write_words(self, word, data):
        self.transport.write(WINDOWS["activations"].base + word * self.config.rows, data.view("<u4"))

    def _read_words(self, word, count):
        address = WINDOWS["activations"].base + word * self.config.rows
        return self.transport.read(address, count * self.config.rows // 4).astype("<u4").view(np.uint8)

    # Errors -----------------------------------------------------------------------------------------------------------

    def _explain_error(self):
        error = self._fields("ERROR")
        code, unit = ErrorCode(error["code"]), Unit(error["unit"])
        sentence = f"the engine stopped at instruction {self._describe(error['index'])} in the {unit.name.lower()} unit: {code.name}, {ERROR_MEANINGS[code]}"
        if code is ErrorCode.DEADLOCK:
            sentence += "; " + self._waiting()
        return sentence

    def _explain_timeout(self, limit):
        return f"the engine has not finished after {limit:,} cycles: {self._waiting()}"

    def _waiting(self):
        """Say what each unit has to do."""
        if not self.config.debug:
            return "what its units wait for cannot be read (knob debug = 0)"
        phrases = []
        for name in self._names:
            queue, tokens = self._fields(f"{name.upper()}_QUEUE"), self._fields(f"{name.upper()}_TOKENS")
            if queue["active"] and self._fields("STATUS")["busy"]:
                phrases.append(f"the {name} unit works")
            if queue["waiting"]:
                waits = [(sender, need, (tokens[sender] + need + 1) % (1 << TOKEN_BITS)) for sender, need in self._waits(queue["index"])]
                lacks = [f"{need} from {sender} (has {has})" for sender, need, has in waits if has < need]
                wants = f" for tokens: {', '.join(lacks)}" if lacks else ""
                phrases.append(f"instruction {self._describe(queue['index'])} waits{wants}")
            elif queue["issued"]:
                phrases.append(f"instruction {self._describe(queue['index'])} waits for the {name} unit")
        return "; ".join(phrases) or "no unit has anything to do"

    def _instruction(self, index):
        """Return instruction ``index`` of the program, or None if there is none or its opcode is illegal."""
        if index >= len(self.program.instructions):
            return None
        row = np.asarray(self.program.instructions[index], "<u4")
        try:
            return decode(int.from_bytes(row.tobytes(), "little"))
        except ValueError:
            return None

    def _waits(self, index):
        instruction = self._instruction(index)
        if instruction is None:
            return []
        own = UNITS[instruction.opcode].name.lower()
        return [(name, getattr(instruction, f"wait_{name}")) for name in self._names if name != own]

    def _describe(self, index):
        """Return an instruction's number, with its opcode and layer where they are known."""
        instruction = self._instruction(index)
        facts = [instruction.opcode.name] if instruction else []
        facts += [f"layer {layer.name!r}" for layer in self.program.layers if any(index in span for span in layer.spans)]
        return f"{index} ({', '.join(facts)})" if facts else str(index)


def _padded(data, multiple):
    padded = np.zeros(-(-data.size // multiple) * multiple, np.uint8)
    padded[: data.size] = data
    return padded
