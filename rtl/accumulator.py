"""Accumulators: two banks with a read-modify-write pipeline, and the store unit's read port.

::

    cycle   0        1      2                     3
    update ─► read ─► RAM ─► register ┬► compare ─► add ─► write
                              sums ───┘

In cycle 2 the maximum is decided, and the operand that must not count is cleared in its register, so that one adder serves
overwriting, adding and the larger of two. Without ``pipelining`` there is none of these registers::

    cycle   0        1
    update ─► read ─► RAM ─► compare, add ─► write
                     sums ───┘
"""

from typing import NamedTuple

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.interfaces import AccReadSignature

__all__ = ["Accumulator", "Timing", "Update", "timing"]


class Timing(NamedTuple):
    """Cycles from an update to its sums, and to the first access of its entry that sees the result."""

    sums: int
    distance: int


def timing(pipelining):
    """Return the :class:`Timing` with ``pipelining`` or without."""
    return Timing(2, 4) if pipelining else Timing(1, 2)


_COPIED = 256
"""Entries per bank up to which both banks, twice over, take no more block RAM of 512 × 36 bits than two banks apart; half of it where
words are 16 bits wide, as where there is no ``pipelining``."""


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
    pipelining : int
        0 leaves out the registers behind block RAM; see :func:`timing` and :func:`~celosia.rtl.interfaces.acc_read_latency`.
    maximum : int
        0 leaves out ``max``, which must be 0.

    Members
    -------
    update : In(Update)
        Any cycle. Accesses of the same entry must be ``distance`` cycles apart unless the later one overwrites.
    sums : In
        ``cols`` signed sums, ``sums`` cycles after their update.
    written : Out(1)
        The result of an update is written at the end of this cycle; a read in the next one sees it. Exactly
        ``distance - 1`` cycles after the update.
    read : In(AccReadSignature)
        The store unit's port.
    conflict : Out(1)
        The store unit reads a bank in which an update is under way; what it gets is undefined.
    """

    def __init__(self, *, cols, depth, width, pipelining=1, maximum=1):
        if not 1 <= depth <= 1024:
            raise ValueError(f"depth must be between 1 and 1024, not {depth!r}")
        self.cols = cols
        self.depth = depth
        self.width = width
        self.pipelining = pipelining
        self.maximum = maximum
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
        for step in range(1, timing(self.pipelining).distance):
            register = Signal(Update, name=f"update{step}")
            m.d.sync += register.eq(steps[-1])
            steps.append(register)

        word = data.ArrayLayout(signed(32), self.cols)
        result, old = Signal(word), Signal(word, reset_less=True)
        copied = _COPIED if self.pipelining else _COPIED // 2
        (self._copies if self.depth <= copied else self._banks)(m, steps, result, old)
        for col in range(self.cols):
            m.d.comb += result[col].eq(self._sum(m, col, steps[-2] if self.pipelining else steps[-1], old[col], self.sums[col]))

        m.d.comb += [
            self.written.eq(steps[-1].valid),
            self.conflict.eq(self.read.en & Cat(step.valid & (step.bank == self.read.bank) for step in steps).any()),
        ]
        return m

    @property
    def _domain(self):
        """What is registered only with ``pipelining``."""
        return "sync" if self.pipelining else "comb"

    @property
    def _nothing(self):
        """Whether the memory has an entry beyond the depth, which stays zero, to be read by what overwrites: saves clearing the old sum."""
        return not self.pipelining and self.depth < 1 << ceil_log2(self.depth)

    def _sum(self, m, col, decide, old, new):
        """Return the sum to write in a column; the operand that must not count is cleared."""
        kept, added = Signal(signed(32), name=f"kept{col}", reset_less=True), Signal.like(new, name=f"added{col}", reset_less=True)
        d = m.d[self._domain]
        d += [kept.eq(old), added.eq(new)]
        overwrite, larger = Const(0) if self._nothing else decide.overwrite, Const(0)
        if self.maximum:
            # The sign of the difference is the end of the carry chain; a signed comparison would add two levels of logic.
            difference = Signal(signed(33), name=f"difference{col}")
            m.d.comb += difference.eq(new - old)
            larger = difference[32]
            with m.If(~decide.overwrite & decide.max & larger):
                d += added.eq(0)
            overwrite = overwrite | (decide.max & ~larger)
        with m.If(overwrite):
            d += kept.eq(0)
        return kept + added

    def _memory(self, m, name, result, **write):
        """Build a memory of entries, written with ``result``; return its read port."""
        # Reads and writes never meet at an address (interlock, bank conflict): no logic for that case is needed.
        entries = memory.Memory(shape=unsigned(32 * self.cols), depth=1 << len(write["addr"]), init=[], attrs={"no_rw_check": 1})
        m.submodules[f"{name}_constant" if self._nothing else name] = entries
        read, port = entries.read_port(), entries.write_port()
        m.d.comb += [port.data.eq(Value.cast(result)), *(getattr(port, name).eq(value) for name, value in write.items())]
        return read

    def _copies(self, m, steps, result, old):
        """Build both banks in one memory, once for the updates and once for the store unit, without multiplexers behind them."""
        size, write = ceil_log2(self.depth), steps[-1]
        for name, request, entry, register in (
            ("updated", self.update, self._entry(), old),
            ("stored", self.read, self.read.addr, self.read.data),
        ):
            read = self._memory(m, name, result, addr=Cat(write.entry[:size], write.bank), en=write.valid)
            m.d.comb += read.addr.eq(Cat(entry[:size], request.bank))
            m.d[self._domain] += Value.cast(register).eq(read.data)

    def _banks(self, m, steps, result, old):
        """Build each bank once. Its read port serves the update where it has one, the store unit otherwise."""
        outputs, size, write = [], ceil_log2(self.depth), steps[-1]
        for bank in range(2):
            read = self._memory(m, f"bank{bank}", result, addr=write.entry[:size], en=write.valid & (write.bank == bank))
            mine = Signal(name=f"mine{bank}")
            m.d.comb += [
                mine.eq(self.update.valid & (self.update.bank == bank)),
                read.addr.eq(Mux(mine, self._entry(), self.read.addr)),
            ]
            outputs.append(read.data)
        read_bank = Signal()
        m.d.sync += read_bank.eq(self.read.bank)
        m.d[self._domain] += [
            Value.cast(self.read.data).eq(Mux(read_bank, outputs[1], outputs[0])),
            Value.cast(old).eq(Mux(steps[1].bank, outputs[1], outputs[0])),
        ]

    def _entry(self):
        """Return the entry that an update reads."""
        return self.update.entry | (self.update.overwrite.replicate(10) if self._nothing else 0)
