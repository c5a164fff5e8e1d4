"""Multiplication in the carry chains of the ECP5's logic: a number times a two-bit digit costs one adder.

A half of a ``CCU2C`` adds two bits, and each of them may be the conjunction of two inputs::

    x[k] & digit[0]  ─┐
                      + ─► product[k]
    x[k-1] & digit[1]─┘

Yosys makes adders only of ready operands and spends a second set of LUTs on the conjunctions.
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["DigitProduct", "SoftMultiplier"]


class DigitProduct(wiring.Component):
    """A number times a two-bit digit, combinational.

    Parameters
    ----------
    width : int
        Of the number.
    product_width : int
        Of the product; what does not fit is cut off.
    signed_digit : bool
        The digit is −2…1 instead of 0…3.
    form : str
        ``"portable"`` or ``"ecp5"``.

    Members
    -------
    x : In(signed(width))
    digit : In(2)
    product : Out(signed(product_width))
    """

    def __init__(self, *, width, product_width, signed_digit=False, form):
        if form not in ("portable", "ecp5"):
            raise ValueError(f"form must be portable or ecp5, not {form!r}")
        self.width = width
        self.product_width = product_width
        self.signed_digit = signed_digit
        self.form = form
        super().__init__({"x": In(signed(width)), "digit": In(2), "product": Out(signed(product_width))})

    def elaborate(self, platform):
        m = Module()
        if self.form == "portable":
            m.d.comb += self.product.eq(self.x * (self.digit.as_signed() if self.signed_digit else self.digit))
            return m
        x = [self.x[min(k, self.width - 1)] for k in range(self.product_width)]
        low, high = self.digit
        # Minus twice the number is its complement and a carry into bit 1: bit 0 makes the carry, and no sum.
        sums, terms = [], []
        for k, bit in enumerate(x):
            if k:
                terms.append((_init(lambda a, b, c, d: (a & b) ^ (c & (1 - d if self.signed_digit else d))), bit, low, high, x[k - 1]))
            elif self.signed_digit:
                terms.append((0x000A, high, Const(0, 1), Const(1, 1), Const(0, 1)))
            else:
                terms.append((_init(lambda a, b, c, d: a & b), bit, low, Const(0, 1), Const(0, 1)))
        if len(terms) % 2:
            terms.append((0, *[Const(0, 1)] * 4))
        carry = Const(0, 1)
        for pair in range(0, len(terms), 2):
            out, carry_in, carry = Signal(2, name=f"sum{pair}"), carry, Signal(name=f"carry{pair}")
            ports = {f"i_{port}{n}": net for n in range(2) for port, net in zip("ABCD", terms[pair + n][1:])}
            m.submodules[f"ccu2c{pair}"] = Instance(
                "CCU2C", p_INIT0=Const(terms[pair][0], 16), p_INIT1=Const(terms[pair + 1][0], 16),
                p_INJECT1_0="NO", p_INJECT1_1="NO", **ports, i_CIN=carry_in, o_S0=out[0], o_S1=out[1], o_COUT=carry,
            )  # fmt: skip
            sums.append(out)
        m.d.comb += self.product.eq(Cat(sums))
        if self.signed_digit:
            m.d.comb += self.product[0].eq(self.x[0] & low)
        return m


def _init(function):
    """Return the table of a LUT4; the carry generated in a half is the entry of its first two inputs with the others 0."""
    return sum(function(n & 1, n >> 1 & 1, n >> 2 & 1, n >> 3) << n for n in range(16))


class SoftMultiplier(wiring.Component):
    """A signed 8 × 8 multiplier without DSP: four digit products, added in two steps, registers after each.

    The ports and the three cycles of :class:`celosia.rtl.multiplier.Multiplier`.
    """

    a: In(signed(8))
    b: In(signed(8))
    p: Out(signed(16))

    def __init__(self, *, form):
        self.form = form
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        values = []
        for n in range(4):
            digit = DigitProduct(width=8, product_width=10, signed_digit=n == 3, form=self.form)
            m.submodules[f"digit{n}"] = digit
            m.d.comb += [digit.x.eq(self.a), digit.digit.eq(self.b.word_select(n, 2))]
            values.append(self._register(m, digit.product, f"product{n}"))
        for step in (1, 2):
            pairs = list(zip(values[::2], values[1::2]))
            values = [self._register(m, self._sum(*pair, 2 * step), f"sum{step}_{n}") for n, pair in enumerate(pairs)]
        m.d.comb += self.p.eq(values[0])
        return m

    def _sum(self, low, high, shift):
        """Return ``low + (high << shift)``; the lowest bits need no adder."""
        return Cat(low[:shift], ((low >> shift) + high)[: len(high)]).as_signed()

    def _register(self, m, value, name):
        register = Signal(signed(len(value)), name=name, reset_less=True)
        m.d.sync += register.eq(value)
        return register
