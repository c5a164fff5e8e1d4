"""Accumulators: two banks of block RAM with a read-modify-write pipeline, and the store unit's read port.

::

    cycle   0             1      2                     3
    update ─► read bank ─► RAM ─► register ┬► compare ─► add ─► write bank
                                   sums ───┘

In cycle 2 the maximum is decided, and the operand that must not count is cleared in its register, so that one adder serves
overwriting, adding and the larger of two. A read in cycle :data:`DISTANCE` sees the result.
"""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.interfaces import AccReadSignature

__all__ = ["DISTANCE", "SUMS_DELAY", "Accumulator", "Update"]

DISTANCE = 4
"""Cycles from an update of an entry to the first that sees its result; closer updates of the same entry lose one."""

SUMS_DELAY = 2
"""Cycles from an update to its sums."""


class Update(data.Struct):
    """What to do with an entry: take the new sums (``overwrite``), or keep the larger of the two (``max``), or add."""

    valid: 1
    entry: 10
    bank: 1
    overwrite: 1
    max: 1


class Accumulator(wiring.Component):
    """Two banks of ``depth`` entries of ``cols`` 32-bit sums; addition wraps.

    Parameters
    ----------
    cols : int
    depth : int
        Entries per bank.
    width : int
        Width of the incoming sums.

    Members
    -------
    update : In(Update)
        Any cycle. Accesses of the same entry must be :data:`DISTANCE` cycles apart unless the later one overwrites.
    sums : In
        ``cols`` signed sums, :data:`SUMS_DELAY` cycles after their update.
    written : Out(1)
        The result of an update is written at the end of this cycle; a read in the next one sees it. Exactly
        ``DISTANCE - 1`` cycles after the update.
    read : In(AccReadSignature)
        The store unit's port.
    conflict : Out(1)
        The store unit reads a bank in which an update is under way; what it gets is undefined.
    """

    def __init__(self, *, cols, depth, width):
        if not 1 <= depth <= 1024:
            raise ValueError(f"depth must be between 1 and 1024, not {depth!r}")
        self.cols = cols
        self.depth = depth
        self.width = width
        super().__init__({
            "update": In(Update),
            "sums": In(data.ArrayLayout(signed(width), cols)),
            "written": Out(1),
            "read": In(AccReadSignature(cols=cols)),
            "conflict": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        steps = [self.update]
        for step in range(1, DISTANCE):
            register = Signal(Update, name=f"update{step}")
            m.d.sync += register.eq(steps[-1])
            steps.append(register)
        decide, write = steps[2], steps[3]

        # Each bank has one read port: for the update where it has one, for the store unit otherwise.
        word = data.ArrayLayout(signed(32), self.cols)
        result = Signal(word)
        outputs = []
        for bank in range(2):
            # Reads and writes never meet at an address (interlock, bank conflict): no logic for that case is needed.
            banks = memory.Memory(shape=unsigned(32 * self.cols), depth=self.depth, init=[], attrs={"no_rw_check": 1})
            m.submodules[f"bank{bank}"] = banks
            read, store = banks.read_port(), banks.write_port()
            mine = Signal(name=f"mine{bank}")
            m.d.comb += [
                mine.eq(self.update.valid & (self.update.bank == bank)),
                read.addr.eq(Mux(mine, self.update.entry, self.read.addr)),
                store.addr.eq(write.entry),
                store.data.eq(Value.cast(result)),
                store.en.eq(write.valid & (write.bank == bank)),
            ]
            outputs.append(read.data)

        read_bank = Signal()
        old = Signal(word, reset_less=True)
        m.d.sync += [
            read_bank.eq(self.read.bank),
            Value.cast(self.read.data).eq(Mux(read_bank, outputs[1], outputs[0])),
            Value.cast(old).eq(Mux(steps[1].bank, outputs[1], outputs[0])),
        ]
        new = self.sums
        kept, added = Signal(word, reset_less=True), Signal.like(new, reset_less=True)
        for col in range(self.cols):
            # The sign of the difference is the end of the carry chain; a signed comparison would add two levels of logic.
            difference = Signal(signed(33), name=f"difference{col}")
            larger = difference[32]
            m.d.comb += difference.eq(new[col] - old[col])
            m.d.sync += [kept[col].eq(old[col]), added[col].eq(new[col])]
            with m.If(decide.overwrite | (decide.max & ~larger)):
                m.d.sync += kept[col].eq(0)
            with m.If(~decide.overwrite & decide.max & larger):
                m.d.sync += added[col].eq(0)
            m.d.comb += result[col].eq(kept[col] + added[col])

        m.d.comb += [
            self.written.eq(write.valid),
            self.conflict.eq(self.read.en & Cat(step.valid & (step.bank == self.read.bank) for step in steps).any()),
        ]
        return m
