"""Rows of the array with two products per ``MULT18X18D``: two columns and one activation share a multiplier.

The weights ``w0``, ``w1`` of a pair of columns are one factor, ``1023 * w1 + w0``. It fits 18 bits for all int8 weights, because
it is ``1024 * w1 + (w0 - w1)``, whose extremes are −131072 and 130175. With an activation ``a``, the product of 26 bits is::

    P = 1024 * a*w1 + a*(w0 - w1)
    high = P >> 10    = a*w1 + carry
    low  = P mod 1024
    carry = a*(w0 - w1) >> 10, in -32…31

so ``carry`` is known from its lowest six bits, ``high - a*w1`` modulo 64, which take a multiplier of 21 conjunctions. The three parts are
added down the column each for itself, and put together once, below the array::

    Σ a*w1 = Σ high - Σ carry            Σ a*w0 = 1024 * Σ carry + Σ low + Σ a*w1
"""

from amaranth.hdl import *
from amaranth.lib import data
from amaranth.utils import ceil_log2

from celosia.rtl import multiplier
from celosia.rtl.carry import DigitProduct
from celosia.rtl.multiplier import mult18x18d

__all__ = ["PairRows", "pack_weights"]

LOW_BITS = 10
CARRY_BITS = 6


def pack_weights(w0, w1):
    """Return ``1023 * w1 + w0`` of two int8 signals, 18 bits wide."""
    low = w0 - w1
    return Cat(low, low[-1], (w1 - low[-1])[:8]).as_signed()


class _Parts(data.StructLayout):
    """Partial sums of ``rows`` rows in one pair of columns. ``carry`` is one cycle later than the others."""

    def __init__(self, rows):
        growth = ceil_log2(rows)
        super().__init__({
            "high": signed(16 + growth),
            "low": LOW_BITS + growth,
            "carry": signed(CARRY_BITS + growth),
        })


class PairRows:
    """Builds rows of ``cols`` multiply-accumulates of ``cols / 2`` multipliers; see :class:`celosia.rtl.array.Array`.

    The depthwise mode is not possible: both columns of a pair take the same activation.
    """

    LATENCY = multiplier.LATENCY + 3

    def __init__(self, *, cols):
        self.pairs = cols // 2

    def prepare(self, m, weights, name):
        """Return what the rows need of the ``weights`` of a bank: the factors, and six bits of ``w1`` two cycles later."""
        factors = Signal(data.ArrayLayout(signed(18), self.pairs), name=f"factors_{name}")
        late = Signal(data.ArrayLayout(CARRY_BITS, self.pairs), name=f"bits_{name}", reset_less=True)
        m.d.comb += [factors[n].eq(pack_weights(weights[2 * n], weights[2 * n + 1])) for n in range(self.pairs)]
        bits = Signal.like(late, name=f"early_{name}", reset_less=True)
        m.d.sync += [bits[n].eq(weights[2 * n + 1][:CARRY_BITS]) for n in range(self.pairs)]
        m.d.sync += late.eq(bits)
        return factors, late

    def row(self, m, row, load, weights, operands, above):
        """Build one row; return its :class:`_Parts` of each pair of columns."""
        arriving, bits = weights
        factors = Signal(data.ArrayLayout(signed(18), self.pairs), name=f"factors{row}", reset_less=True)
        late_bits = Signal(data.ArrayLayout(CARRY_BITS, self.pairs), name=f"bits{row}", reset_less=True)
        flags = [load]
        late = Signal(CARRY_BITS, name=f"late{row}", reset_less=True)
        early = Signal(CARRY_BITS, name=f"early{row}", reset_less=True)
        for age in range(2):
            flags.append(Signal(name=f"load{row}_{age}"))
            m.d.sync += flags[-1].eq(flags[-2])
        m.d.sync += [early.eq(operands[:CARRY_BITS]), late.eq(early)]
        with m.If(load):
            m.d.sync += factors.eq(arriving)
        with m.If(flags[2]):
            m.d.sync += late_bits.eq(bits)
        below = Signal(data.ArrayLayout(_Parts(row + 1), self.pairs), name=f"parts{row}", reset_less=True)
        for n in range(self.pairs):
            product = Signal(signed(26), name=f"product{row}_{n}")
            m.submodules[f"multiplier_{row}_{n}"] = mult18x18d(m, operands[:8].as_signed(), factors[n], product)
            known = self._low_product(m, f"low_{row}_{n}", late, late_bits[n])
            carry = Signal(signed(CARRY_BITS), name=f"carry{row}_{n}", reset_less=True)
            m.d.sync += carry.eq((product[LOW_BITS:] - known)[:CARRY_BITS])
            parts = {"high": product[LOW_BITS:].as_signed(), "low": product[:LOW_BITS], "carry": carry}
            for name, part in parts.items():
                m.d.sync += below[n][name].eq(part + above[n][name] if row else part)
        return below

    def _low_product(self, m, name, x, y):
        """Return the product of two numbers modulo ``2 ** CARRY_BITS``, of the cycle before."""
        total = None
        for place in reversed(range(0, CARRY_BITS, 2)):
            width = CARRY_BITS - place
            digit = DigitProduct(width=width, product_width=width, form="ecp5" if width > 2 else "portable")
            m.submodules[f"{name}_{place}"] = digit
            m.d.comb += [digit.x.eq(x[:width]), digit.digit.eq(y[place : place + 2])]
            product = digit.product.as_unsigned()
            total = product if total is None else Cat(product[:2], (product[2:] + total)[: width - 2])
        result = Signal(CARRY_BITS, name=name, reset_less=True)
        m.d.sync += result.eq(total)
        return result

    def sums(self, m, below):
        """Return the sums of the columns, three cycles after ``high`` and ``low``."""
        sums = []
        for n in range(self.pairs):
            parts = below[n]
            wide = signed(parts.high.shape().width)
            high, low = (Signal.like(parts[name], name=f"late_{name}{n}", reset_less=True) for name in ("high", "low"))
            first, first_late = (Signal(wide, name=f"{name}{n}", reset_less=True) for name in ("first", "first_late"))
            rest, second = (Signal(wide, name=f"{name}{n}", reset_less=True) for name in ("rest", "second"))
            m.d.sync += [
                high.eq(parts.high),
                low.eq(parts.low),
                first.eq(high - parts.carry),
                rest.eq(Cat(low[:LOW_BITS], parts.carry + low[LOW_BITS:])),
                first_late.eq(first),
                second.eq(rest + first),
            ]
            sums += [second, first_late]
        return sums
