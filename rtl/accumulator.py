"""Accumulators: two banks with a read-modify-write pipeline, and the store unit's read port.

::

    cycle   0        1      2                     3
    update ─► read ─► RAM ─► register ┬► compare ─► add ─► write
                              sums ───┘

In cycle 2 the maximum is decided, and the operand that must not count is cleared in its register, so that one adder serves
overwriting, adding and the larger of two. A read in cycle :data:`DISTANCE` sees the result.
"""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.interfaces import AccReadSignature

__all__ = ["DISTANCE", "SUMS_DELAY", "Accumulator", "Update"]

DISTANCE = 4
"""Cycles from an update of an entry to the first that sees its result; closer updates of the same entry lose one."""

SUMS_DELAY = 2
"""Cycles from an update to its sums."""


_COPIED = 256
"""Entries per bank up to which both banks, twice over, take no more block RAM of 512 × 36 bits than two banks apart."""


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

        word = data.ArrayLayout(signed(32), self.cols)
        result, old = Signal(word), Signal(word, reset_less=True)
        (self._copies if self.depth <= _COPIED else self._banks)(m, steps, result, old)

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

    def _memory(self, m, name, depth, result, **write):
        """Build a memory of entries, written with ``result``; return its read port."""
        # Reads and writes never meet at an address (interlock, bank conflict): no logic for that case is needed.
        entries = memory.Memory(shape=unsigned(32 * self.cols), depth=depth, init=[], attrs={"no_rw_check": 1})
        m.submodules[name] = entries
        read, port = entries.read_port(), entries.write_port()
        m.d.comb += [port.data.eq(Value.cast(result)), *(getattr(port, name).eq(value) for name, value in write.items())]
        return read

    def _copies(self, m, steps, result, old):
        """Build both banks in one memory, once for the updates and once for the store unit, without multiplexers behind them."""
        size = ceil_log2(self.depth)
        write = {"addr": Cat(steps[3].entry[:size], steps[3].bank), "en": steps[3].valid}
        for name, request, entry, register in (
            ("updated", self.update, self.update.entry, old),
            ("stored", self.read, self.read.addr, self.read.data),
        ):
            read = self._memory(m, name, 2 << size, result, **write)
            m.d.comb += read.addr.eq(Cat(entry[:size], request.bank))
            m.d.sync += Value.cast(register).eq(read.data)

    def _banks(self, m, steps, result, old):
        """Build each bank once. Its read port serves the update where it has one, the store unit otherwise."""
        outputs = []
        for bank in range(2):
            write = {"addr": steps[3].entry, "en": steps[3].valid & (steps[3].bank == bank)}
            read = self._memory(m, f"bank{bank}", self.depth, result, **write)
            mine = Signal(name=f"mine{bank}")
            m.d.comb += [
                mine.eq(self.update.valid & (self.update.bank == bank)),
                read.addr.eq(Mux(mine, self.update.entry, self.read.addr)),
            ]
            outputs.append(read.data)
        read_bank = Signal()
        m.d.sync += [
            read_bank.eq(self.read.bank),
            Value.cast(self.read.data).eq(Mux(read_bank, outputs[1], outputs[0])),
            Value.cast(old).eq(Mux(steps[1].bank, outputs[1], outputs[0])),
        ]
