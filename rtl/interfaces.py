"""Signatures between the blocks: what the sequencer, the units and the memories say to each other."""

from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.isa import INSTRUCTION_BITS, ErrorCode, Signals, Unit

__all__ = [
    "ACC_READ_LATENCY", "ACT_READ_LATENCY", "ACT_WRITE_LATENCY", "TABLE_READ_LATENCY", "AccReadSignature", "ActReadSignature",
    "ActWrite", "Done", "EntryWriteSignature", "Error", "HostSignature", "InstructionPart", "ParamReadSignature", "ParamWordReadSignature", "QueuedInstruction",
    "TableReadSignature", "Trace", "UnitSignature", "WeightReadSignature", "WeightWriteSignature", "acc_read_latency",
    "next_instruction",
]  # fmt: skip

ACT_READ_LATENCY = 2
"""Cycles from an accepted activation read to its data: block RAM, then a register behind the bank multiplexer."""

ACT_WRITE_LATENCY = 3
"""Cycles from an accepted activation write to the first read that sees it: at most two registers in front of the banks, then block RAM."""

ACC_READ_LATENCY = 2
"""Cycles from an accumulator read to its data, in an engine with ``pipelining``."""

TABLE_READ_LATENCY = 2
"""Cycles from the address of an activation table's byte to the byte: block RAM, then a register."""


def acc_read_latency(pipelining):
    """Return the cycles from an accumulator read to its data."""
    return ACC_READ_LATENCY if pipelining else ACC_READ_LATENCY - 1


def next_instruction(fetch_bits):
    """Return the cycles from an instruction's acceptance by its unit to the offer of the next one, if nothing else is fetched meanwhile."""
    return 5 + max(2, INSTRUCTION_BITS // fetch_bits)


def InstructionPart(*, bits):
    """``bits`` of an instruction from ``number`` times as many on: of ``unit`` if it is served, of the sequencer if it is scanned."""
    return data.StructLayout({"valid": 1, "unit": Unit, "number": range(INSTRUCTION_BITS // bits), "data": bits})


class QueuedInstruction(data.Struct):
    """An instruction, and the number by which unit and sequencer speak of it.

    Numbers count modulo a power of two, larger than any number of instructions between fetch and completion: only their few low bits
    are ever used. Of the header only the signals and, where the unit has several, the opcode can be read; waits are zero.
    """

    instruction: INSTRUCTION_BITS
    index: 16


class Done(data.Struct):
    """An instruction has completed in this cycle; its unit owes these tokens."""

    valid: 1
    signal: Signals


class Error(data.Struct):
    """The unit met an illegal instruction or access in this cycle."""

    valid: 1
    code: ErrorCode
    index: 16


class Trace(data.Struct):
    """The instruction a unit is working on, for counters and the simulation's timeline.

    ``busy`` while it issues or finishes work, ``stall`` where in this cycle it had work but could not go on.
    """

    busy: 1
    stall: 1
    index: 16


class UnitSignature(wiring.Signature):
    """A unit as the sequencer sees it (``Out`` is the unit's side for ``done``, ``idle``, ``error``, ``trace``).

    ``i`` carries instructions whose tokens have been taken; ``i.ready`` means the unit no longer needs the payload, though this
    instruction and earlier ones may still be in flight. ``i.valid`` and the payload stay as they are until then, so that a unit can
    work from the payload instead of a copy of it. The next instruction comes :func:`next_instruction` cycles after ``ready`` at the
    earliest: a unit without a copy stands still for so long, one with a copy does not if it is ready that much before it is done.

    ``done`` reports completions in order, none before its ``ready``. ``idle`` is high when nothing accepted is unfinished. ``error`` is an
    instruction that is not done yet, or waits at ``i``. After it the whole engine is held in reset, so a unit need not recover.
    """

    def __init__(self):
        super().__init__({
            "i": In(stream.Signature(QueuedInstruction)),
            "done": Out(Done),
            "idle": Out(1),
            "error": Out(Error),
            "trace": Out(Trace),
        })


class ActReadSignature(wiring.Signature):
    """A read port of the activation memory, from the reader's side.

    In a cycle with ``valid`` and ``ready`` the word ``addr`` is read; ``data`` holds it exactly :data:`ACT_READ_LATENCY` cycles later (during
    one cycle). What a read beyond the memory's depth returns is undefined.
    """

    def __init__(self, *, rows):
        super().__init__({
            "addr": Out(16),
            "valid": Out(1),
            "ready": In(1),
            "data": In(data.ArrayLayout(8, rows)),
        })


def ActWrite(*, rows):
    """Payload of a write to the activation memory: word address, bytes, and which of them to write.

    The ``min(4, cols)`` bytes of an aligned group are written together: their bits of ``mask`` are equal. ``data`` are zero while the unit is
    held in reset.
    """
    return data.StructLayout({"addr": 16, "data": data.ArrayLayout(8, rows), "mask": rows})


class AccReadSignature(wiring.Signature):
    """The store unit's read port of the accumulators, from the reader's side; never stalls.

    With ``en``, ``data`` holds entry ``addr`` of ``bank`` :func:`acc_read_latency` cycles later; beyond the depth anything.
    """

    def __init__(self, *, cols):
        super().__init__({
            "en": Out(1),
            "bank": Out(1),
            "addr": Out(10),
            "data": In(data.ArrayLayout(signed(32), cols)),
        })


class WeightReadSignature(wiring.Signature):
    """The read port of one bank of the weight memory, from the reader's side; never stalls.

    With ``en``, ``data`` holds the ``cols`` weights of entry ``addr`` one cycle later (straight from block RAM: register it first).
    """

    def __init__(self, *, cols):
        super().__init__({"en": Out(1), "addr": Out(22), "data": In(data.ArrayLayout(signed(8), cols))})


class WeightWriteSignature(wiring.Signature):
    """The write port of the weight memory, from the writer's side; never stalls.

    In a cycle with bit ``j`` of ``en`` set, entry ``addr`` of bank ``j`` becomes ``data``; reads see it from the next cycle on.
    """

    def __init__(self, *, cols, weight_rows):
        super().__init__({"en": Out(weight_rows), "addr": Out(22), "data": Out(data.ArrayLayout(signed(8), cols))})


class EntryWriteSignature(wiring.Signature):
    """A write port of a memory's whole entries, from the writer's side.

    In a cycle with ``en`` and ``ready``, entry ``addr`` becomes ``data``; reads see it from the next cycle on.
    """

    def __init__(self, *, width, addr_width):
        super().__init__({"en": Out(1), "addr": Out(addr_width), "data": Out(width), "ready": In(1)})


class ParamReadSignature(wiring.Signature):
    """The read port of the parameter memory, from the reader's side; never stalls.

    ``data`` holds the ``lanes`` 64-bit parameters of entry ``addr`` one cycle later (straight from block RAM: register it first).
    """

    def __init__(self, *, lanes):
        super().__init__({"addr": Out(14), "data": In(64 * lanes)})


class ParamWordReadSignature(wiring.Signature):
    """The read port of the parameter memory of an engine with ``lane_cycles`` = 4, from the reader's side: half a parameter at a time.

    In a cycle with ``valid`` and ``ready`` the word ``addr`` is read, of parameter ``e`` word ``2 * e`` or ``2 * e + 1``; ``data`` holds it one
    cycle later, during one cycle. An odd word is served at once in the cycle after an even one.
    """

    def __init__(self):
        super().__init__({"addr": Out(15), "valid": Out(1), "ready": In(1), "data": In(32)})


class TableReadSignature(wiring.Signature):
    """The read ports of the activation tables, from the reader's side; never stalls.

    ``data[n]`` holds byte ``addr[n]`` (``table * 256 + index``) :data:`TABLE_READ_LATENCY` cycles later.
    """

    def __init__(self, *, lanes):
        super().__init__({"addr": Out(data.ArrayLayout(12, lanes)), "data": In(data.ArrayLayout(8, lanes))})


class HostSignature(wiring.Signature):
    """The host's port of one memory, from the host side; used only while the engine is idle.

    ``addr`` counts 32-bit words within the memory's window: entry ``e`` of a memory whose entries take ``n`` words is at ``e * n`` …
    ``e * n + n - 1``, least significant word first; ``n`` is the entry width divided by 32, rounded up to a power of two.

    ``we`` is high for one cycle; ``w_data``, the word to write, follows in the cycle after it and is zero in all others; ``addr`` stays for
    both. ``re`` stays high with ``addr``: from :attr:`READ_LATENCY` cycles later on ``r_data`` is the word, and in the cycle after ``re`` was low it
    is zero, so that the answers of all memories are joined by an OR. A read may begin three cycles after ``we``. Addresses beyond the
    memory are ignored and read as zero.
    """

    READ_LATENCY = 3

    def __init__(self):
        super().__init__({
            "addr": Out(20),
            "we": Out(1),
            "re": Out(1),
            "w_data": Out(32),
            "r_data": In(32),
        })
