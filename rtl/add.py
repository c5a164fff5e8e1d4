"""Residual addition: the weighted sum of two int8 tensors, rounded once; or the smaller or larger of the two.

Sits between the activation table and the write to the activation memory. The golden function is
:func:`celosia.sim.numerics.add_residual`. Per lane, one element a cycle::

    result  ─► choose ─► × k_result  ─┐
                 │                    + ─► join halves ─► + k_zero + half ─► compare ─► clip
    operand ─────┴─────► × k_operand ─┘
                 1         3          1        1                1               1         1

Half a unit is added and the fraction cut off; where nothing is left of the fraction it was a tie, which goes to the even neighbour.
The smaller or larger one takes the place of ``result``, so the factors are those of the identity then.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.isa import ADD_FRACTION
from celosia.rtl.multiplier import FORMS, Multiplier

__all__ = ["CONTROL_LATENCY", "FACTORS_LATENCY", "LATENCY", "Adder"]

FACTORS_LATENCY = 1
"""Cycles after the operands at which ``k_result`` and ``k_operand`` of the same elements are taken."""

CONTROL_LATENCY = FACTORS_LATENCY + 2 + Multiplier.LATENCY
"""Cycles after the operands at which ``k_zero_half``, ``low`` and ``high`` of the same elements are taken."""

LATENCY = CONTROL_LATENCY + 3
"""Cycles from operands to sum."""

_HALF = 17
"""The factors are split below this bit, so that the lower part fits a signed 18-bit multiplier."""


class Adder(wiring.Component):
    """A pipeline of ``lanes`` additions per cycle, without enable.

    Parameters
    ----------
    lanes : int
        Elements per cycle.
    multiplier_form : str
        One of :data:`celosia.rtl.multiplier.FORMS`; four multipliers per lane.

    Members
    -------
    result, operand : ``In``, ``lanes`` × signed(8)
        The two addends.
    minimum, maximum : ``In(1)``
        Put the smaller (larger) of the two in the place of ``result``; in the same cycle, not both.
    k_result, k_operand : ``In(signed(28))``
        Their factors, common to all lanes, taken :data:`FACTORS_LATENCY` cycles after the addends.
    k_zero_half : ``In(signed(41))``
        The constant ``k_zero`` of :class:`~celosia.rtl.isa.AddParams`, plus one half of the result's unit;
        taken :data:`CONTROL_LATENCY` cycles later, as are ``low`` and ``high``.
    low, high : ``In(signed(8))``
        Bounds of the sum, ``low`` at most ``high``.
    sum : ``Out``, ``lanes`` × signed(8)
        :data:`LATENCY` cycles after the addends.
    """

    LATENCY = LATENCY
    CONTROL_LATENCY = CONTROL_LATENCY

    def __init__(self, *, lanes, multiplier_form):
        if lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {lanes!r}")
        if multiplier_form not in FORMS:
            raise ValueError(f"multiplier_form must be one of {', '.join(FORMS)}, not {multiplier_form!r}")
        self.lanes = lanes
        self.multiplier_form = multiplier_form
        elements = data.ArrayLayout(signed(8), lanes)
        super().__init__({
            "result": In(elements),
            "operand": In(elements),
            "minimum": In(1),
            "maximum": In(1),
            "k_result": In(signed(28)),
            "k_operand": In(signed(28)),
            "k_zero_half": In(signed(41)),
            "low": In(signed(8)),
            "high": In(signed(8)),
            "sum": Out(elements),
        })

    def elaborate(self, platform):
        m = Module()
        bounds = [self.low, self.high]
        late = []  # late[n]: the bounds of n + 1 cycles ago
        for cycle in range(2):
            late.append([Signal(signed(8), name=f"{name}_{cycle + 1}") for name in ("low", "high")])
            m.d.sync += [after.eq(before) for after, before in zip(late[-1], bounds)]
            bounds = late[-1]
        for lane in range(self.lanes):
            m.d.comb += self.sum[lane].eq(self._lane(m, lane, *late))
        return m

    def _lane(self, m, lane, bounds, bounds_after):
        # The result may come out of a table's block RAM, and a multiplier's input is as far away as its output.
        chosen, operand = Signal(signed(8)), Signal(signed(8))
        replaced = Mux(self.operand[lane] > self.result[lane], self.maximum, self.minimum)
        m.d.sync += [chosen.eq(Mux(replaced, self.operand[lane], self.result[lane])), operand.eq(self.operand[lane])]
        products = []
        for name, addend, factor in (("result", chosen, self.k_result), ("operand", operand, self.k_operand)):
            for part, half in (("low", factor[:_HALF]), ("high", factor[_HALF:].as_signed())):
                width = len(half) + (not half.shape().signed)
                multiplier = Multiplier(width_a=8, width_b=width, form=self.multiplier_form)
                m.submodules[f"{name}_{part}{lane}"] = multiplier
                m.d.comb += [multiplier.a.eq(addend), multiplier.b.eq(half)]
                products.append(multiplier.p)
        # |result * k_result + operand * k_operand| is at most 2**35, with the constant below 2**40.
        lower, upper = Signal(signed(27)), Signal(signed(20))
        joined, total = Signal(signed(37)), Signal(signed(41))
        fraction, quotient = total[:ADD_FRACTION], total[ADD_FRACTION:].as_signed()
        value = quotient[:8].as_signed()
        inside, clipped, top, bottom = Signal(signed(8)), Signal(signed(8)), Signal(), Signal()
        beyond, negative, above, below, tie = (Signal(name=name) for name in ("beyond", "negative", "above", "below", "tie"))
        m.d.sync += [
            lower.eq(products[0] + products[2]),
            upper.eq(products[1] + products[3]),
            joined.eq(Cat(lower[:_HALF], (lower[_HALF:].as_signed() + upper)[: 37 - _HALF])),
            total.eq(joined + self.k_zero_half),
            inside.eq(value),
            tie.eq(~fraction.any()),
            beyond.eq(quotient[7:].any() & ~quotient[7:].all()),
            negative.eq(quotient[-1]),
            above.eq(value > bounds[1]),
            below.eq(value <= bounds[0]),  # at a tie the even neighbour is one less, and at the lower bound already too low
            clipped.eq(Mux(top | bottom, Mux(top, bounds_after[1], bounds_after[0]), Cat(inside[0] & ~tie, inside[1:]))),
        ]
        m.d.comb += [top.eq(Mux(beyond, ~negative, above)), bottom.eq(Mux(beyond, negative, below))]
        return clipped
