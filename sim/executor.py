"""The golden executor: runs a compiled program in numpy, instruction by instruction, as :mod:`celosia.rtl.isa` defines them.

Activation memory, accumulators, weights, parameters, tables and external memory are byte-exact images of the hardware's; several inferences
can run at once along a leading axis. Time does not exist here: a unit's instruction takes effect as soon as its tokens are
there, in the order in which the sequencer would hand them out.
"""

import itertools
from dataclasses import replace

import numpy as np

from celosia.rtl.isa import TOKEN_BITS, Combine, ErrorCode, Memory, Opcode, decode
from celosia.sim import numerics
from celosia.sim.footprint import (
    entry_bytes,
    execute_reads,
    fill_words,
    store_words,
    transfer_entries,
    unfold_bytes,
    unfold_words,
)
from celosia.sim.products import array_sums, depthwise_sums
from celosia.tools.errors import BadInput, BadProgram, EngineError

__all__ = ["Executor", "GoldenError", "instructions_of"]

UNITS = ("load", "execute", "store", "transfer")
UNIT_OF = {
    Opcode.UNFOLD: "load", Opcode.FILL: "load", Opcode.EXECUTE: "execute", Opcode.STORE: "store", Opcode.TRANSFER: "transfer",
}  # fmt: skip
RESERVED_HEADER_BIT = 31
MAX_PROGRAM = 1 << 16
"""Instructions that an engine with a memory port can run: it fetches them from external memory."""


class GoldenError(EngineError):
    """The program makes the engine stop: ``code`` is an :class:`~celosia.rtl.isa.ErrorCode`, ``index`` the instruction's number."""

    def __init__(self, code, index, detail):
        super().__init__(f"instruction {index}: {code.name}: {detail}")
        self.code = code
        self.index = index


def instructions_of(program):
    """Return the program's instructions decoded; None stands for a word whose opcode is illegal."""
    decoded = []
    for row in np.asarray(program.instructions, dtype="<u4"):
        try:
            decoded.append(decode(int.from_bytes(row.tobytes(), "little")))
        except ValueError:
            decoded.append(None)
    return decoded


class Executor:
    """A machine of configuration ``config`` with ``program`` loaded.

    Parameters
    ----------
    config : EngineConfig
    program : Program

    Raises
    ------
    BadProgram
        If the program was compiled for another configuration.
    """

    def __init__(self, config, program):
        if program.digest != config.digest:
            raise BadProgram(
                program.name, f"compiled for another engine (digest {program.digest:#010x}, not {config.digest:#010x})"
            )
        self.config = config
        self.program = program
        self.instructions = instructions_of(program)
        tiles = program.weights.transpose(0, 2, 1, 3).reshape(-1, config.rows, config.cols)  # row = bank * load_cycles + entry
        self.constant_weights = np.zeros((config.weight_tiles, config.rows, config.cols), np.int8)
        self.constant_weights[: len(tiles)] = tiles
        self.fills = any(i is not None and i.opcode == Opcode.FILL for i in self.instructions)
        self.constant_params = np.zeros((config.param_depth, 2 * config.lanes), np.uint32)
        self.constant_params[: len(program.params)] = program.params
        self.tables = np.zeros((config.tables, 256), np.int8)
        self.tables[: len(program.tables)] = program.tables.view(np.int8)
        self.reset(1)

    def reset(self, batch):
        """Clear the activation memory and the accumulators of ``batch`` machines; weights that are filled are each machine's own."""
        config = self.config
        self.act = np.zeros((batch, config.act_depth, config.rows), np.int8)
        for address, words in getattr(self.program, "constants", ()):
            self.act[:, address : address + len(words)] = words.view(np.int8)
        self.acc = np.zeros((batch, 2, config.acc_depth, config.cols), np.int32)
        self.weights = np.repeat(self.constant_weights[None], batch if self.fills else 1, axis=0)
        self.params = self.constant_params.copy()
        image = self.program.memory
        self.image = image.copy()  # all machines': instructions do not write there
        self.external = np.zeros((batch, max(0, self.program.memory_bytes - len(image))), np.uint8)

    # Whole inferences -------------------------------------------------------------------------------------------------

    def run(self, inputs):
        """Run one inference, or as many as the arrays' extra leading axis says.

        Parameters
        ----------
        inputs : dict of name to int8 or uint8 array
            Shape as the port's, or with one more leading axis.

        Returns
        -------
        dict of name to int8 or uint8 array

        Raises
        ------
        BadInput
            If an array is missing or does not match its port.
        GoldenError
            Where the hardware would stop with an error.
        """
        arrays, single = self._check(inputs)
        batch = len(next(iter(arrays.values()))) if arrays else 1
        self.reset(batch)
        for port in self.program.inputs:
            self.place(port, arrays[port.name])
        self.execute()
        outputs = {port.name: self.fetch(port) for port in self.program.outputs}
        return {name: array[0] for name, array in outputs.items()} if single else outputs

    def _check(self, inputs):
        arrays, batches = {}, set()
        for port in self.program.inputs:
            array, shape = port.take(inputs, several=True), tuple(port.shape)
            batches.add(None if array.shape == shape else len(array))
            arrays[port.name] = array.reshape((-1, *shape))
        if len(batches) > 1:
            raise BadInput(self.program.inputs[0].name, "and the other inputs must have the same number of inferences")
        return arrays, batches == {None} or not batches

    def place(self, port, array):
        """Write an input ``[batch, *port.shape]`` into the memory where it belongs."""
        batch = len(array)
        flat, first = self._bytes(port)
        if port.layout == "dense":
            data = np.ascontiguousarray(array).view(np.int8).reshape(batch, -1)
            flat[:, first : first + data.shape[1]] = data
            return
        values = array.view(np.int8) ^ np.int8(-128) if port.unsigned else array
        flat[:, first + self._blocked(port)] = _channels_first(values, port)

    def fetch(self, port):
        """Read an output ``[batch, *port.shape]`` from the memory where it lies."""
        if port.plane_step:
            step = port.plane_step * (self.config.rows if port.external else 1)
            planes = [self.fetch(replace(port, plane_step=0, address=port.address + k * step)) for k in range(4)]
            return np.stack(planes, axis=-1).view("<i4")[..., 0]
        batch = len(self.act)
        dtype = np.uint8 if port.unsigned else np.int8
        flat, first = self._bytes(port)
        if port.layout == "dense":
            values = flat[:, first : first + int(np.prod(port.shape))]
        else:
            values = flat[:, first + self._blocked(port)]
            if port.matrix:
                values = values.transpose(0, 2, 3, 1)
        values = np.ascontiguousarray(values).reshape(batch, *port.shape)
        return (values ^ np.int8(-128)).view(dtype) if port.unsigned else values

    def _bytes(self, port):
        """Return int8 ``[batch, bytes]`` of the memory that holds a port, and the port's first byte there."""
        if port.external:
            return self.external.view(np.int8), port.address - len(self.image)
        return self.act.reshape(len(self.act), -1), port.address * self.config.rows

    def _blocked(self, port):
        """Return the byte of each element of a blocked port, counted from its first one: int64 ``[channels, height, width]``."""
        block, lane = np.divmod(np.arange(port.channels)[:, None, None], self.config.rows)
        words = block * port.block_step + np.arange(port.height)[:, None] * port.row_step + np.arange(port.width)
        return words * self.config.rows + lane

    # The sequencer ----------------------------------------------------------------------------------------------------

    def execute(self):
        """Run the program from its first instruction to ``END``.

        Queues have the configuration's depth and each unit runs its own in order, so that a program deadlocks here exactly when
        it does in hardware.
        """
        queues = {unit: [] for unit in UNITS}
        tokens = {(source, target): 0 for source in UNITS for target in UNITS if source != target}
        for index, instruction in enumerate(self.instructions):
            if index >= (MAX_PROGRAM if self.config.memory_bytes else self.config.program_depth):
                break
            self._check_header(index, instruction)
            if instruction.opcode == Opcode.END:
                for unit in UNITS:
                    if queues[unit]:
                        raise GoldenError(
                            ErrorCode.DEADLOCK, queues[unit][0], f"the {unit} unit waits for a token that nobody sends"
                        )
                left = [f"{count} from {a} to {b}" for (a, b), count in tokens.items() if count]
                if left:
                    raise GoldenError(ErrorCode.TOKENS_LEFT, index, "tokens left: " + ", ".join(left))
                return
            queue = queues[UNIT_OF[instruction.opcode]]
            if len(queue) == self.config.queue_depth:
                raise GoldenError(ErrorCode.DEADLOCK, queue[0], "the queue in front of a waiting instruction is full")
            queue.append(index)
            self._drain(queues, tokens)
        raise GoldenError(ErrorCode.PROGRAM_RANGE, len(self.instructions), "no END")

    def _check_header(self, index, instruction):
        header = int(self.program.instructions[index, 0])
        if instruction is None:
            raise GoldenError(ErrorCode.ILLEGAL_OPCODE, index, f"opcode {header & 15}")
        if instruction.opcode == Opcode.TRANSFER and not self.config.memory_bytes:
            raise GoldenError(ErrorCode.ILLEGAL_OPCODE, index, f"opcode {header & 15} without a memory port")
        if instruction.fields.get("reserved") or header >> RESERVED_HEADER_BIT:
            raise GoldenError(ErrorCode.RESERVED_BITS, index, "a reserved bit is set")
        own = [] if self.config.memory_bytes else ["transfer"]
        if instruction.opcode == Opcode.END:
            own = UNITS
        if any(getattr(instruction, f"{verb}_{unit}", 0) for unit in own for verb in ("wait", "signal")):
            raise GoldenError(ErrorCode.RESERVED_BITS, index, "a unit waits for or signals itself")

    def _drain(self, queues, tokens):
        progress = True
        while progress:
            progress = False
            for unit in UNITS:
                others = [other for other in UNITS if other != unit]
                while queues[unit]:
                    index = queues[unit][0]
                    instruction = self.instructions[index]
                    if any(tokens[other, unit] < getattr(instruction, f"wait_{other}") for other in others):
                        break
                    queues[unit].pop(0)
                    for other in others:
                        tokens[other, unit] -= getattr(instruction, f"wait_{other}")
                    getattr(self, f"run_{unit}")(index, instruction)
                    for other in others:
                        tokens[unit, other] += getattr(instruction, f"signal_{other}")
                        if tokens[unit, other] >> TOKEN_BITS:
                            raise GoldenError(ErrorCode.TOKEN_OVERFLOW, index, f"more than {(1 << TOKEN_BITS) - 1} tokens")
                    progress = True

    # The units --------------------------------------------------------------------------------------------------------

    def run_execute(self, index, i):
        """Run one ``EXECUTE``."""
        config = self.config
        pixels, taps = i.tile_rows * i.tile_cols, i.kernel_y * i.kernel_x
        if i.depthwise and (not config.depthwise_rows or i.slot >= config.slots or not i.stride_x):
            fact = f"slot {i.slot} of {config.slots}, stride_x {i.stride_x}" if config.depthwise_rows else "no depthwise mode"
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, fact)
        if i.max and not config.maximum:
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, "no maximum")
        entries = pixels * (i.blocks if i.per_block else 1)
        if i.acc + entries > config.acc_depth:
            raise GoldenError(ErrorCode.ACC_RANGE, index, f"accumulator entry {i.acc + entries - 1}")
        tiles = 1 if i.hold else taps * i.blocks
        if i.weights + tiles > config.weight_tiles:
            raise GoldenError(ErrorCode.WEIGHT_RANGE, index, f"weight tile {i.weights + tiles - 1}")
        address, inside = execute_reads(i, config)
        self._check_act(index, address[inside])
        weights = self.weights[:, i.weights : i.weights + tiles]  # [batch or 1, tiles, rows, cols]
        weights = weights.reshape(len(weights), -1, 1 if i.hold else i.blocks, config.rows, config.cols)
        weights = np.broadcast_to(weights, (len(weights), taps, i.blocks, config.rows, config.cols)).swapaxes(1, 2)
        target = self.acc[:, i.bank, i.acc : i.acc + entries]
        words = self.act[:, np.where(inside, address, 0)]
        if i.unsigned:
            words = words ^ np.int8(-128)
        words[:, ~inside] = i.pad
        if i.depthwise:
            self._check_banks(index, address, inside)
            words = words.reshape(len(words), taps, *words.shape[3:]).swapaxes(1, 2)
            result = depthwise_sums(config, i, words, weights)
        else:
            words = words.reshape(len(words), taps, i.blocks, pixels, config.rows).transpose(0, 2, 3, 1, 4)
            result = array_sums(i, words, weights)
        if i.accumulate:
            result = np.maximum(target, result) if i.max else target + result
        target[:] = result.astype(np.int32)  # wraps like the hardware's adder

    def _check_banks(self, index, address, inside):
        """Refuse words of one cycle, the last axis, that lie in the same bank."""
        for one, other in itertools.combinations(range(address.shape[-1]), 2):
            clash = (
                inside[..., one] & inside[..., other] & ((address[..., one] - address[..., other]) % self.config.act_banks == 0)
            )
            if clash.any():
                words = address[..., one][clash][0], address[..., other][clash][0]
                raise GoldenError(ErrorCode.ACT_CONFLICT, index, f"activation words {words[0]} and {words[1]} in one cycle")

    def run_store(self, index, i):
        """Run one ``STORE``."""
        config = self.config
        count = i.blocks * i.tile_rows * i.tile_cols
        if i.slot >= config.slots:
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, f"slot {i.slot} of {config.slots}")
        if i.use_table and i.table >= config.tables:
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, f"table {i.table} of {config.tables}")
        if i.combine > (max(Combine) if config.combine else Combine.NONE) or i.raw > 4:
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, f"combine {i.combine}, raw {i.raw}")
        if i.acc + count > config.acc_depth:
            raise GoldenError(ErrorCode.ACC_RANGE, index, f"accumulator entry {i.acc + count - 1}")
        last = i.params + config.beats * (i.blocks if i.advance else 1)
        if last > config.param_depth:
            raise GoldenError(ErrorCode.PARAM_RANGE, index, f"parameter entry {last - 1}")
        if i.combine == Combine.ADD and i.combine_params + max(1, 2 // config.lanes) > config.param_depth:
            raise GoldenError(ErrorCode.PARAM_RANGE, index, f"parameter entry {i.combine_params}")
        dest, operand = store_words(i)
        self._check_act(index, dest)
        lanes = slice(i.slot * config.cols, (i.slot + 1) * config.cols)
        if operand is not None:
            self._check_act(index, operand)
            operand = self.act[:, operand, lanes]
        words = self.params[i.params : last].reshape(-1, 1, 1, config.cols, 2)
        bias = words[..., 0].view(np.int32)
        mantissa = (words[..., 1] & 0xFFFFFF).astype(np.int64)
        shift = (words[..., 1] >> 24 & 0x3F).astype(np.int64)
        acc = self.acc[:, i.bank, i.acc : i.acc + count].reshape(-1, i.blocks, i.tile_rows, i.tile_cols, config.cols)
        acc, bias, mantissa, shift = np.broadcast_arrays(acc, bias[None], mantissa[None], shift[None])
        if i.combine == Combine.MUL:
            acc, bias = numerics.multiply(acc, bias, operand, i.combine_low), 0
        elif i.raw:
            acc, bias = numerics.sum_byte(acc, bias, i.raw - 1), 0
        late = i.combine == Combine.MUL
        value = numerics.requantize(acc, bias, mantissa, shift, i.zero_point, i.low, i.high, late=late)
        if i.use_table:
            value = self.tables[i.table][value.view(np.uint8)]
        if i.combine == Combine.ADD:
            k = int.from_bytes(self.params[i.combine_params : i.combine_params + 2].tobytes()[:16], "little")
            factors = [_signed(k, 28), _signed(k >> 28, 28), _signed(k >> 56, 40)]
            value = numerics.add_residual(value, operand, *factors, i.combine_low, i.combine_high)
        elif i.combine in (Combine.MIN, Combine.MAX):
            value = (np.minimum if i.combine == Combine.MIN else np.maximum)(value, operand)
            value = np.clip(value, i.combine_low, i.combine_high)
        self.act[:, dest, lanes] = value

    def run_load(self, index, i):
        """Run one ``UNFOLD`` or ``FILL``."""
        config = self.config
        if i.opcode == Opcode.FILL and not config.fill:
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, "no weight tiles of activations")
        if i.opcode == Opcode.FILL:
            self._fill(index, i)
            return
        if i.streams > config.unfold_streams or not i.stride_x:
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, f"{i.streams} streams, stride {i.stride_x}")
        address, exists = unfold_bytes(i)
        self._check_act(index, address[exists] // config.rows)
        dest = unfold_words(i)
        self._check_act(index, dest)
        batch = len(self.act)
        columns = config.rows // i.streams
        span = (i.tile_cols - 1) * i.stride_x + columns
        taps = np.full((batch, *exists.shape, max(span, i.left + i.inside)), np.uint8(i.pad).view(np.int8), np.int8)
        taps[:, exists, i.left : i.left + i.inside] = self.act.reshape(batch, -1)[:, address[exists]]
        window = np.arange(i.tile_cols)[:, None] * i.stride_x + np.arange(columns)
        values = np.full((batch, *dest.shape, config.rows), np.uint8(i.pad).view(np.int8), np.int8)
        taps = taps[..., window].transpose(0, 1, 2, 4, 3, 5)  # [batch, y, group, x, stream, column]
        values[..., : i.streams * columns] = taps.reshape(batch, *dest.shape, -1)
        self.act[:, dest] = values

    def run_transfer(self, index, i):
        """Run one ``TRANSFER``."""
        config, size = self.config, self.config.memory_bytes
        if i.memory not in list(Memory) or (i.memory != Memory.ACTIVATIONS and (i.write or i.constant)) or (i.write and i.constant):
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, f"memory {i.memory}, write {i.write}, constant {i.constant}")
        if i.external % size or i.external_row_step % size or i.external_plane_step % size:
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, f"external addresses must be multiples of {size}")
        external, local = transfer_entries(i, config)
        depth, code = {
            Memory.ACTIVATIONS: (config.act_depth, ErrorCode.ACT_RANGE),
            Memory.WEIGHTS: (config.weight_depth, ErrorCode.WEIGHT_RANGE),
            Memory.PARAMS: (config.param_depth, ErrorCode.PARAM_RANGE),
        }[i.memory]
        if local.max() >= depth:
            raise GoldenError(code, index, f"entry {local.max()} of {depth}")
        external, local = external.ravel(), local.ravel()
        if i.constant:
            self.act[:, local] = np.uint8(i.pad).view(np.int8)
            return
        size = entry_bytes(config)[i.memory]
        shared = external.max() + size <= len(self.image)
        if not shared and (external.min() < len(self.image) or external.max() + size > self.program.memory_bytes):
            raise GoldenError(ErrorCode.MEMORY_ERROR, index, f"byte {external.max() + size - 1} of {self.program.memory_bytes}")
        source = self.image[None] if shared else self.external
        place = (external - (0 if shared else len(self.image)))[:, None] + np.arange(size)
        if i.write and shared:
            raise GoldenError(ErrorCode.MEMORY_ERROR, index, "constants are overwritten")
        if i.write:
            source[:, place] = self.act[:, local].view(np.uint8)
        elif i.memory == Memory.ACTIVATIONS:
            self.act[:, local] = source[:, place].view(np.int8)
        elif i.memory == Memory.PARAMS:
            self.params[local] = np.ascontiguousarray(source[0, place]).view("<u4")
        else:
            tile, entry = np.divmod(local, config.load_cycles)
            rows = np.arange(config.weight_rows) * config.load_cycles + entry[:, None]
            values = source[:, place].view(np.int8).reshape(len(source), len(local), config.weight_rows, config.cols)
            self.weights[:, tile[:, None], rows] = values

    def _fill(self, index, i):
        config = self.config
        if i.rows > config.rows or i.slot >= config.slots:
            raise GoldenError(ErrorCode.ILLEGAL_FIELD, index, f"{i.rows} rows, slot {i.slot}")
        source = fill_words(i, config)
        for tile, words in enumerate(source, i.weights):
            if tile >= config.weight_tiles:
                raise GoldenError(ErrorCode.WEIGHT_RANGE, index, f"weight tile {tile}")
            self._check_act(index, words)
        tiles = self.weights[:, i.weights : i.weights + i.tiles]
        tiles[:, :, : i.rows] = self.act[:, source, i.slot * config.cols : (i.slot + 1) * config.cols]
        tiles[:, :, i.rows :] = 0

    def _check_act(self, index, words):
        if words.size and words.max() >= self.config.act_depth:
            raise GoldenError(ErrorCode.ACT_RANGE, index, f"activation word {words.max()}")


def _channels_first(values, port):
    batch = len(values)
    if port.matrix:
        return values.reshape(batch, port.height, port.width, port.channels).transpose(0, 3, 1, 2)
    return values.reshape(batch, port.channels, port.height, port.width)


def _signed(value, width):
    value &= (1 << width) - 1
    return value - (1 << width) if value >> width - 1 else value
