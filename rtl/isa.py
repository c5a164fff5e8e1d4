"""The instruction set, defined once for RTL, compiler, golden executor, C header and documentation.

A program is a list of 256-bit instructions. The sequencer fetches them in order and puts each into the queue of the unit
that runs it: ``UNFOLD`` and ``FILL`` to the load unit, ``EXECUTE`` to the execute unit, ``STORE`` to the store unit, ``TRANSFER`` to the transfer
unit of an engine with a memory port. Each unit runs its own queue in order; between units the only order is that of the tokens.

Tokens
    There is one counter per ordered pair of units. An instruction leaves its queue when, for every other unit ``u``, the
    counter from ``u`` holds at least ``wait_u`` tokens; it then removes that many. When the instruction has completed (its
    last word is written), it adds one token to the counter towards every unit whose ``signal_u`` bit is set. ``END`` waits
    until every queue is empty and every unit idle, and expects all counters at zero.

    No unit waits for or signals itself: in an instruction of the load, execute or store unit the slot of its own unit is that of the transfer
    unit, and zero in an engine without a memory port. The slots of a ``TRANSFER`` are those of load, execute and store unit.

Feature maps in the activation memory
    A tensor of shape ``[channels, height, width]`` lies in blocks of ``rows`` channels: channel ``c`` of pixel ``(y, x)`` is
    byte ``c % rows`` of word ``base + (c // rows) * block_step + y * row_step + x``. Bytes of channels that do not exist
    hold anything: the weights of those rows are zero. A *dense* tensor is the plain row-major array of bytes, byte ``n`` in
    byte ``n % rows`` of word ``n // rows``.

Weights
    A weight tile is ``rows × cols`` int8: row ``r`` multiplies byte ``r`` of the activation word, column ``c`` is output
    channel ``c`` of the column tile. Row ``r`` of tile ``t`` lies in bank ``r // load_cycles`` at entry
    ``t * load_cycles + r % load_cycles``. The host writes the constant ones; ``FILL`` makes one of activations.

External memory
    What the memory port reaches, byte-addressed. Entries of the engine's memories lie in it as in the host's windows, but without gaps: a word
    of activations takes ``rows`` bytes, an entry of weights ``weight_rows * cols``, an entry of parameters ``8 * lanes``.

Fields listed in :data:`MINUS_ONE` hold the value minus one, so that no size can be zero.
"""

import functools

from amaranth.hdl import *
from amaranth.lib import data, enum

__all__ = [
    "ADD_FRACTION",
    "INSTRUCTION_BITS",
    "ISA_VERSION",
    "MINUS_ONE",
    "TOKEN_BITS",
    "AddParams",
    "ChannelParams",
    "Combine",
    "EndInstruction",
    "ErrorCode",
    "ExecuteInstruction",
    "FillInstruction",
    "Header",
    "Instruction",
    "Memory",
    "Opcode",
    "Signals",
    "StoreInstruction",
    "TransferInstruction",
    "UnfoldInstruction",
    "Unit",
    "Waits",
    "decode",
    "encode",
    "largest",
    "opcodes",
    "pack",
    "unpack",
    "zero_bits",
]  # fmt: skip

ISA_VERSION = 4
INSTRUCTION_BITS = 256
TOKEN_BITS = 10
ADD_FRACTION = 24


class Opcode(enum.Enum, shape=4):
    """What an instruction does; 0 and the values not listed are illegal."""

    END = 1
    EXECUTE = 2
    STORE = 3
    UNFOLD = 4
    FILL = 5
    TRANSFER = 6


class Unit(enum.Enum, shape=3):
    """The units that run instructions, and the sequencer that runs ``END``. Only an engine with a memory port has the last one."""

    LOAD = 0
    EXECUTE = 1
    STORE = 2
    SEQUENCER = 3
    TRANSFER = 4


class ErrorCode(enum.Enum, shape=8):
    """Why the engine stopped. The error CSR names the unit and the index of the instruction with it."""

    NONE = 0
    ILLEGAL_OPCODE = 1
    RESERVED_BITS = 2  # a reserved bit is set, or a unit waits for or signals itself
    ILLEGAL_FIELD = 3  # a field's value has no meaning in this configuration
    ACT_RANGE = 4
    WEIGHT_RANGE = 5
    ACC_RANGE = 6
    PARAM_RANGE = 7
    BANK_CONFLICT = 8  # execute and store unit used the same accumulator bank in one cycle
    TOKEN_OVERFLOW = 9
    TOKENS_LEFT = 10  # END with a token counter not zero
    DEADLOCK = 11  # every unit that has work waits for a token that nobody will send
    PROGRAM_RANGE = 12  # ran past the last instruction of the program memory
    ACT_CONFLICT = 13  # two image rows of a depthwise EXECUTE lie in the same bank of the activation memory
    MEMORY_ERROR = 14  # the external memory answered a request of this instruction, or for it, with an error


class Combine(enum.IntEnum, shape=3):
    """What ``STORE`` does with the bytes of its operand; the values not listed are illegal."""

    NONE = 0
    ADD = 1
    MUL = 2
    MIN = 3
    MAX = 4


class Memory(enum.IntEnum, shape=2):
    """The engine's side of a ``TRANSFER``; the value not listed is illegal."""

    ACTIVATIONS = 0
    WEIGHTS = 1
    PARAMS = 2


class Waits(data.Struct):
    """Tokens to take from each unit before the instruction starts; the slot of the instruction's own unit is the transfer unit's."""

    load: 8
    execute: 8
    store: 8


class Signals(data.Struct):
    """Units that get a token when the instruction has completed; the slot of its own unit is the transfer unit's."""

    load: 1
    execute: 1
    store: 1


class Header(data.Struct):
    """The low 32 bits of every instruction."""

    opcode: Opcode
    wait: Waits
    signal: Signals
    reserved: 1


class EndInstruction(data.Struct):
    """End of the program. ``wait`` and ``signal`` are zero."""

    header: Header
    reserved: INSTRUCTION_BITS - 32


class ExecuteInstruction(data.Struct):
    """One output tile of one column tile: every tap, input-channel block and pixel.

    The passes, outermost loop first, are ``ky``, ``kx``, ``block``; each pass streams the ``tile_rows × tile_cols`` pixels.
    In the pass ``(ky, kx, b)`` pixel ``(y, x)`` reads the input pixel ``iy = y0 + y * stride_y + ky * dilation_y``,
    ``ix = x0 + x * stride_x + kx * dilation_x`` of block ``b``: the word at
    ``start + y * row_step + x * stride_x + ky * ky_step + kx * dilation_x + b * block_step`` (modulo 2^16), or ``rows``
    bytes of ``pad`` where ``iy`` or ``ix`` lies outside ``[0, in_height)`` or ``[0, in_width)``. With ``unsigned``, the top bit of
    every byte read (not of ``pad``) is inverted: uint8 becomes int8 less 128.

    The word is multiplied with the pass's weight tile. Pass ``n`` uses tile ``weights + n``, or always tile ``weights`` with
    ``hold``. The ``cols`` sums go to accumulator entry ``acc + y * tile_cols + x``; with ``per_block``, to entry
    ``acc + (b * tile_rows + y) * tile_cols + x``: each input block then has output entries of its own (pooling, depthwise).
    The first contribution of this instruction to an entry overwrites it, unless ``accumulate``; later ones are added, or
    with ``max`` the larger of the two is kept (illegal in a configuration with ``maximum`` = 0).

    With ``depthwise`` the array's rows hold kernel taps, and column ``c`` multiplies byte ``slot * cols + c`` of a word: one channel
    per column. Of the configuration's D = ``depthwise_rows`` image rows one word each is read in every cycle, and S = ``rows // D``
    rows of the array belong to each of them. ``kernel_y`` counts groups of D kernel rows, ``kernel_x`` groups of kernel columns,
    ``dilation_x`` apart. A pass streams ``tile_cols * stride_x + gap`` words per tile row, and ``tail`` more after the last one; word
    ``w`` of tile row ``y`` in the pass ``(ky, kx, b)`` is, for image row ``j`` < D with ``ky * D + j`` in place of ``ky``, the input pixel

        ``iy = y0 + y * stride_y + (ky * D + j) * dilation_y``, ``ix = x0 + kx * dilation_x + w``

    at ``start + y * row_step + (ky * D + j) * ky_step + kx * dilation_x + w + b * block_step``, or padding, as above. The sum of pixel
    ``(y, x)`` takes the weights of row ``j * S + k`` times word ``x * stride_x + k`` of image row ``j``; words beyond those of the
    tile row are the first ones of the next tile row, and after the last word of the pass weights must be zero. Weights of rows
    from ``D * S`` on multiply byte ``r`` of word ``x * stride_x`` of image row 0. ``stride_x`` is at least one. The words that are
    read in one cycle must lie in different banks of the activation memory.
    """

    header: Header
    weights: 16
    start: 16
    y0: signed(13)
    x0: signed(13)
    in_height: 12
    in_width: 12
    tile_rows: 10
    tile_cols: 10
    kernel_y: 6
    kernel_x: 6
    blocks: 8
    stride_y: 4
    stride_x: 4
    dilation_y: 6
    dilation_x: 6
    row_step: 16
    ky_step: 16
    block_step: 16
    pad: signed(8)
    acc: 10
    bank: 1
    unsigned: 1
    hold: 1
    per_block: 1
    accumulate: 1
    max: 1
    depthwise: 1
    gap: 3
    tail: 3
    slot: 3


class StoreInstruction(data.Struct):
    """Requantise an output tile and write it to the activation memory.

    Takes the ``blocks × tile_rows × tile_cols`` consecutive accumulator entries from ``acc`` of ``bank``; entry ``(b, y, x)`` goes
    to bytes ``slot * cols`` … ``slot * cols + cols - 1`` of word ``dest + b * block_step + y * row_step + x * col_step``. With a
    ``combine`` other than ``NONE`` each byte meets one of the operand tensor: the same byte of word
    ``operand + b * operand_block_step + y * operand_row_step + x * col_step``, with ``operand_still`` without the last term, so that
    one row, column or pixel serves them all. Each value passes, in this order:

    1. add the bias of the column's :class:`ChannelParams` (entries from ``params``; block ``b`` takes the next column tile's
       with ``advance``, the same ones otherwise), modulo 2^32;
    2. with ``combine`` = ``MUL``, multiply the low 18 bits (as signed) with the operand less ``combine_low``; else with ``raw`` = ``1 + k``,
       take byte ``k`` of the sum instead of it, as int8;
    3. requantise with the same parameters, add ``zero_point`` (ties go to even before that, after ``MUL`` with the sum), clip to
       ``[low, high]``;
    4. with ``use_table``, look up table number ``table`` (index: the value's bits as an unsigned byte);
    5. with ``combine`` = ``ADD``, add the operand by the :class:`AddParams` at entry ``combine_params``; with ``MIN`` or ``MAX``, keep the
       smaller or the larger of the two bytes; after any of the three, clip to ``[combine_low, combine_high]``.

    Values of ``raw`` from 5 on are illegal.
    """

    header: Header
    dest: 16
    row_step: 16
    block_step: 16
    col_step: 4
    slot: 4
    tile_rows: 10
    tile_cols: 10
    blocks: 8
    acc: 10
    bank: 1
    params: 14
    advance: 1
    zero_point: signed(8)
    low: signed(8)
    high: signed(8)
    use_table: 1
    table: 4
    combine: Combine
    combine_params: 14
    operand: 16
    combine_low: signed(8)
    combine_high: signed(8)
    operand_block_step: 16
    operand_row_step: 16
    operand_still: 1
    raw: 3
    reserved: 0


class UnfoldInstruction(data.Struct):
    """Rearrange a dense tensor into words of kernel taps.

    The *tap rows* are the pairs ``(channel, ky)``, numbered ``channel * kernel_y + ky``; a group is ``streams`` consecutive ones. A word
    holds ``columns = rows // streams`` columns of each tap row of a group: for ``y`` in ``tile_rows``, ``g`` in ``groups``, ``x`` in
    ``tile_cols``, in this order, byte ``s * columns + kx`` of the next word from ``dest`` on becomes column ``x * stride_x + kx`` of tap row
    ``g * streams + s``. Only the first ``last_streams`` tap rows of the last group exist.

    Column ``left`` of the first tap row is the dense tensor's byte ``start``. That address grows by ``row_step`` from one tap row to
    the next, by ``channel_step`` instead after the last ``ky`` of a channel, and by ``tile_step`` instead after the last tap row of
    the last group, whether it exists or not (modulo 2^20). The ``inside`` columns from ``left`` on are read, all of them; the others are
    ``pad``. So are tap rows that do not exist or whose row ``iy = y0 + y * stride_y + ky`` (modulo 2^13, as signed) is outside
    ``[0, in_height)``, and bytes from ``streams * columns`` on.

    ``streams`` is at most the configuration's ``unfold_streams``, ``stride_x`` at least one.
    """

    header: Header
    start: 20
    dest: 16
    in_height: 12
    groups: 8
    channel_step: 20
    tile_step: 20
    row_step: 12
    kernel_y: 6
    streams: 5
    last_streams: 5
    tile_rows: 10
    tile_cols: 12
    y0: signed(13)
    stride_y: 4
    stride_x: 4
    left: 12
    inside: 14
    pad: 8
    reserved: 23


class FillInstruction(data.Struct):
    """Make weight tiles of activations: the right operand of a product of two tensors.

    Row ``r`` of weight tile ``weights + t``, for ``t`` in ``tiles``, becomes bytes ``slot * cols`` … ``slot * cols + cols - 1`` of an activation
    word; rows from ``rows`` on become zero. The first row's word begins at byte ``source``, a multiple of the configuration's ``rows``.
    That address grows by ``row_step`` from one row to the next, be it zero or in another tile (modulo 2^20). ``rows`` is at most the
    configuration's.

    The fields lie where ``UNFOLD`` has those that the same counters and adders take.
    """

    header: Header
    source: 20
    weights: 16
    rows: 12
    tiles: 8
    row_step: 20
    slot: 4
    reserved: 144


class TransferInstruction(data.Struct):
    """Move entries between external memory and one of the engine's memories, or fill words of activations with a value.

    For ``p`` in ``planes``, ``r`` in ``rows``, in this order: the ``run`` entries of ``memory`` from
    ``local + p * local_plane_step + r * local_row_step`` on (modulo 2^22), and those that lie behind each other in external memory from byte
    ``MEMORY_BASE + external + p * external_plane_step + r * external_row_step`` on (modulo 2^32). Entries are read from external memory, with
    ``write`` written to it. With ``constant`` external memory is not touched, and every byte becomes ``pad``.

    ``write`` and ``constant`` exist for activations only, and not together. ``external`` and its steps are multiples of the configuration's
    ``memory_bytes``. A ``TRANSFER`` sees what the earlier ones have written to external memory.
    """

    header: Header
    external: 32
    external_row_step: 32
    external_plane_step: 32
    local: 22
    local_row_step: 22
    local_plane_step: 22
    run: 16
    rows: 12
    planes: 12
    memory: Memory
    write: 1
    constant: 1
    pad: 8
    reserved: 10


class ChannelParams(data.Struct):
    """Requantisation of one output channel: ``(acc + bias) * mantissa * 2**-shift``, see ``celosia.sim.numerics.requantize``."""

    bias: signed(32)
    mantissa: 24
    shift: 6
    reserved: 2


class AddParams(data.Struct):
    """Residual addition: ``round_half_even((result * k_result + operand * k_operand + k_zero) / 2**ADD_FRACTION)``.

    ``result`` is the value after requantisation (and table), ``operand`` the byte read from memory. Takes the low 128 bits of
    parameter entry ``combine_params``, or with one lane the entries ``combine_params`` (low half) and ``combine_params + 1``.
    """

    k_result: signed(28)
    k_operand: signed(28)
    k_zero: signed(40)
    reserved: 32


LAYOUTS = {
    Opcode.END: EndInstruction,
    Opcode.EXECUTE: ExecuteInstruction,
    Opcode.STORE: StoreInstruction,
    Opcode.UNFOLD: UnfoldInstruction,
    Opcode.FILL: FillInstruction,
    Opcode.TRANSFER: TransferInstruction,
}
UNITS = {
    Opcode.END: Unit.SEQUENCER,
    Opcode.EXECUTE: Unit.EXECUTE,
    Opcode.STORE: Unit.STORE,
    Opcode.UNFOLD: Unit.LOAD,
    Opcode.FILL: Unit.LOAD,
    Opcode.TRANSFER: Unit.TRANSFER,
}

MINUS_ONE = {
    EndInstruction: frozenset(),
    ExecuteInstruction: frozenset({"tile_rows", "tile_cols", "kernel_y", "kernel_x", "blocks"}),
    StoreInstruction: frozenset({"tile_rows", "tile_cols", "blocks"}),
    UnfoldInstruction: frozenset({"groups", "kernel_y", "streams", "last_streams", "tile_rows", "tile_cols", "inside"}),
    FillInstruction: frozenset({"tiles"}),
    TransferInstruction: frozenset({"run", "rows", "planes"}),
    ChannelParams: frozenset(),
    AddParams: frozenset(),
}
"""The fields of each struct that hold the value minus one."""


def opcodes(memory_port):
    """Return the opcodes of an engine with or without a memory port."""
    return tuple(code for code in Opcode if memory_port or UNITS[code] is not Unit.TRANSFER)


@functools.cache
def _fields(struct):
    """Return ``(name, offset, width, signed)`` of each field of a struct, nested structs flattened with dots."""
    fields = []
    for name, field in data.Layout.cast(struct):
        shape = Shape.cast(field.shape)
        if isinstance(field.shape, type) and issubclass(field.shape, data.Struct):
            fields += [(f"{name}.{sub}", field.offset + offset, *rest) for sub, offset, *rest in _fields(field.shape)]
        else:
            fields.append((name, field.offset, shape.width, shape.signed))
    return tuple(fields)


def zero_bits(opcode, memory_port=False):
    """Return the positions of the bits that must be zero: reserved ones, all waits and signals of END, and in an engine without a memory port
    those of the instruction's own unit."""
    layout = data.Layout.cast(LAYOUTS[opcode])
    header = data.Layout.cast(layout["header"].shape)
    spans = [(header["reserved"].offset, header["reserved"])]
    spans += [(field.offset, field) for name, field in layout if name == "reserved"]
    unit = UNITS[opcode]
    for group in ("wait", "signal"):
        inner = data.Layout.cast(header[group].shape)
        for name, _ in inner:
            if unit is Unit.SEQUENCER or (unit is Unit[name.upper()] and not memory_port):
                spans.append((header[group].offset + inner[name].offset, inner[name]))
    return sorted(offset + bit for offset, field in spans for bit in range(field.width))


def largest(struct, field):
    """Return the largest value that :func:`pack` takes for a field of ``struct``: what the compiler must keep to."""
    for name, _, width, is_signed in _fields(struct):
        if name == field:
            return (1 << width - is_signed) - 1 + (name in MINUS_ONE.get(struct, ()))
    raise ValueError(f"{struct.__name__} has no field {field!r}")


def pack(struct, **values):
    """Return ``struct`` as an unsigned integer; fields not given are zero.

    Raises
    ------
    ValueError
        If a field is unknown or a value outside its range (the message names both). Sizes in :data:`MINUS_ONE` are given as
        they are and must be at least one.
    """
    word, minus_one = 0, MINUS_ONE.get(struct, ())
    known = {name: (offset, width, is_signed) for name, offset, width, is_signed in _fields(struct)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{struct.__name__} has no field {name!r}")
        offset, width, is_signed = known[name]
        value = int(value.value if isinstance(value, enum.Enum) else value)
        bias = 1 if name in minus_one else 0
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if is_signed else (bias, (1 << width) - 1 + bias)
        if not low <= value <= high:
            raise ValueError(f"{struct.__name__}.{name} must be between {low} and {high}, not {value}")
        word |= (value - bias & (1 << width) - 1) << offset
    for name in known:
        if name in minus_one and name not in values:
            raise ValueError(f"{struct.__name__}.{name} must be given")
    return word


def unpack(struct, word):
    """Return the fields of ``struct`` in the unsigned integer ``word`` as a dict; the inverse of :func:`pack`."""
    values = {}
    for name, offset, width, is_signed in _fields(struct):
        value = word >> offset & (1 << width) - 1
        if is_signed and value >> width - 1:
            value -= 1 << width
        values[name] = value + (1 if name in MINUS_ONE.get(struct, ()) else 0)
    return values


class Instruction:
    """One instruction in software: an opcode and its fields by name.

    Header fields are ``wait_load`` … ``signal_store``, with ``wait_transfer`` and ``signal_transfer`` in place of those of the instruction's own
    unit, which read as zero; the others are those of the opcode's struct, as attributes.

    Raises
    ------
    ValueError
        As :func:`pack`.
    """

    __slots__ = ("fields", "opcode")

    def __init__(self, opcode, **fields):
        self.opcode = Opcode(opcode)
        self.fields = fields
        self.fields = _named(self.opcode, encode(self))

    def __getattr__(self, name):
        try:
            return object.__getattribute__(self, "fields")[name]
        except KeyError:
            own = self.unit.name.lower()
            if name in (f"wait_{own}", f"signal_{own}"):
                return 0
            raise AttributeError(f"{self.opcode.name} has no field {name!r}") from None

    def __eq__(self, other):
        return isinstance(other, Instruction) and encode(self) == encode(other)

    def __hash__(self):
        return hash(encode(self))

    def __repr__(self):
        shown = ", ".join(f"{name}={value}" for name, value in self.fields.items() if value)
        return f"Instruction({self.opcode.name}, {shown})"

    @property
    def unit(self):
        return UNITS[self.opcode]

    def replace(self, **fields):
        """Return a copy with some fields changed."""
        return Instruction(self.opcode, **(self.fields | fields))


@functools.cache
def _names(opcode):
    """Return the names of an instruction's fields in software, by those in its struct."""
    own, names = UNITS[opcode], {}
    for name, *_ in _fields(LAYOUTS[opcode]):
        short = "header_reserved" if name == "header.reserved" else name.removeprefix("header.").replace(".", "_")
        if name.startswith("header.") and own in (Unit.LOAD, Unit.EXECUTE, Unit.STORE):
            short = short.replace(f"_{own.name.lower()}", "_transfer")
        names[name] = short
    return names


def _named(opcode, word):
    names = _names(opcode)
    return {names[name]: value for name, value in unpack(LAYOUTS[opcode], word).items() if name != "header.opcode"}


def encode(instruction):
    """Return the 256-bit word of an :class:`Instruction`."""
    long = {short: name for name, short in _names(instruction.opcode).items()}
    values = {}
    for name, value in instruction.fields.items():
        if name not in long:
            raise ValueError(f"{instruction.opcode.name} has no field {name!r}")
        values[long[name]] = value
    return pack(LAYOUTS[instruction.opcode], **(values | {"header.opcode": instruction.opcode}))


def decode(word):
    """Return the :class:`Instruction` of a 256-bit word.

    Raises
    ------
    ValueError
        If the opcode is not one of :class:`Opcode`.
    """
    try:
        opcode = Opcode(word & 15)
    except ValueError:
        raise ValueError(f"illegal opcode {word & 15}") from None
    return Instruction(opcode, **_named(opcode, word))
