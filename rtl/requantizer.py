"""Requantiser: int32 accumulators to int8, bit for bit as float32 arithmetic would do it.

Sits between the accumulators and the activation table. The golden function is :func:`celosia.sim.numerics.requantize`, of the sum or of
what :func:`~celosia.sim.numerics.sum_byte` and :func:`~celosia.sim.numerics.multiply` make of it. Per lane, one element a cycle::

    acc + bias ─► or one byte, or × (operand - its zero) ─► normalise ─► round to 24 bits ─► × mantissa ─► …
        1                          3                            3               1                5

    … ─► shift to the binary point ─► round ─► + zero point ─► clip
                      1                     1                    2

Both roundings to 24 significant bits happen in two's complement. A sum ``n`` has the same leading position as its magnitude except
at negative powers of two, which need no rounding. The product, of 47 or 48 significant bits, is not rounded at all: being
rounded to 24 bits first can only matter where it brings the value onto a tie, so every product within half an ulp of a tie (ends
included: the neighbours of a tie are odd) counts as a tie.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.isa import ChannelParams
from celosia.rtl.multiplier import FORMS, Multiplier

__all__ = ["CONTROL_LATENCY", "LATENCY", "WINDOW", "Requantizer"]

CONTROL_LATENCY = 8 + 2 * Multiplier.LATENCY
"""Cycles after the operands at which ``zero_point``, ``low`` and ``high`` of the same elements are taken."""

LATENCY = CONTROL_LATENCY + 3
"""Cycles from operands to result."""

_FRONT = Multiplier.LATENCY
"""Cycles for the byte or the product that take the sum's place."""

_HALF = 17
"""The mantissa and the rounded sum are multiplied in halves of 17 bits, the widest unsigned operand of a signed 18-bit multiplier."""

WINDOW = 10
"""Binary points at which the result is neither zero nor saturated: the product is below 2**48, so those above bits 38 … 47."""


class Requantizer(wiring.Component):
    """A pipeline of ``lanes`` elements per cycle, without enable.

    Parameters
    ----------
    lanes : int
        Elements per cycle.
    multiplier_form : str
        One of :data:`celosia.rtl.multiplier.FORMS`; five multipliers per lane.

    Members
    -------
    acc : ``In``, ``lanes`` × signed(32)
        Accumulators.
    params : ``In``, ``lanes`` × :class:`~celosia.rtl.isa.ChannelParams`
        Their channels' parameters, in the same cycle. ``mantissa`` has bit 23 set, or else counts as zero.
    raw : ``In(3)``
        Common to all lanes, in the same cycle: 1 + the number of the sum's byte to take instead of it, or zero.
    multiply : ``In(1)``, operand : ``In``, ``lanes`` × signed(8), operand_zero : ``In(signed(8))``
        In the same cycle: with ``multiply``, the low 18 bits of the sum are multiplied with ``operand - operand_zero``.
    zero_point, low, high : ``In(signed(8))``, late : ``In(1)``
        Common to all lanes; taken :data:`CONTROL_LATENCY` cycles after ``acc``. ``low`` is at most ``high``. With ``late``, ties go to even
        with the zero point, else without.
    result : ``Out``, ``lanes`` × signed(8)
        :data:`LATENCY` cycles after ``acc``.
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
        super().__init__({
            "acc": In(data.ArrayLayout(signed(32), lanes)),
            "params": In(data.ArrayLayout(ChannelParams, lanes)),
            "raw": In(3),
            "multiply": In(1),
            "operand": In(data.ArrayLayout(signed(8), lanes)),
            "operand_zero": In(signed(8)),
            "zero_point": In(signed(8)),
            "low": In(signed(8)),
            "high": In(signed(8)),
            "late": In(1),
            "result": Out(data.ArrayLayout(signed(8), lanes)),
        })

    def elaborate(self, platform):
        m = Module()
        low, high = Signal.like(self.low), Signal.like(self.high)
        raw, multiply = Signal.like(self.raw), Signal(Multiplier.LATENCY)
        m.d.sync += [low.eq(self.low), high.eq(self.high), raw.eq(self.raw), multiply.eq(Cat(self.multiply, multiply))]
        for n in range(self.lanes):
            m.submodules[f"lane{n}"] = lane = _Lane(multiplier_form=self.multiplier_form)
            m.d.comb += [
                lane.acc.eq(self.acc[n]),
                lane.params.eq(self.params[n]),
                lane.raw.eq(raw),
                lane.multiply.eq(multiply[-1]),
                lane.operand.eq(self.operand[n]),
                lane.operand_zero.eq(self.operand_zero),
                lane.zero_point.eq(self.zero_point),
                lane.late.eq(self.late),
                lane.low.eq(low),
                lane.high.eq(high),
                self.result[n].eq(lane.result),
            ]
        return m


class _Lane(wiring.Component):
    """One element per cycle; as :class:`Requantizer`, but ``raw``, ``low`` and ``high`` are taken one cycle later, ``multiply`` with the
    product."""

    acc: In(signed(32))
    params: In(ChannelParams)
    raw: In(3)
    multiply: In(1)
    operand: In(signed(8))
    operand_zero: In(signed(8))
    zero_point: In(signed(8))
    low: In(signed(8))
    high: In(signed(8))
    late: In(1)
    result: Out(signed(8))

    def __init__(self, *, multiplier_form):
        self.multiplier_form = multiplier_form
        super().__init__()

    def elaborate(self, platform):
        m = Module()

        def after(cycles, value, name):
            """Return ``value`` of some cycles ago."""
            for cycle in range(cycles):
                delayed = Signal(value.shape(), name=f"{name}_{cycle + 1}", reset_less=True)
                m.d.sync += delayed.eq(value)
                value = delayed
            return value

        # 0: the sum wraps as in MLAS.
        total = (self.acc + self.params.bias)[:32].as_signed()
        m.submodules.product = product = Multiplier(width_a=18, width_b=9, form=self.multiplier_form)
        m.d.comb += [product.a.eq(total[:18].as_signed()), product.b.eq(self.operand - self.operand_zero)]
        total = after(1, total, "total")

        # 1…3: a byte of it at the top, as if it had been shifted there, or the product.
        byte = total.as_unsigned().word_select((self.raw - 1)[:2], 8)
        raw = after(1, self.raw.any(), "raw")
        total = after(1, Mux(self.raw.any(), Cat(C(0, 24), byte), total).as_signed(), "chosen")
        total = after(_FRONT - 2, total, "chosen_late")
        raw = after(_FRONT - 1, raw, "raw_late")
        total = after(1, Mux(self.multiply, product.p, total), "sum")
        shifted = raw & ~after(1, self.multiply, "multiply")

        # 4…6: shift out copies of the sign, so that bits 31 and 30 differ.
        lead = []
        for steps in ((16,), (8, 4), (2, 1)):
            found = []
            for step in steps:
                top = total[31 - step :]
                same = Signal(name=f"same{step}")
                moved = Signal(signed(32), name=f"moved{step}")
                m.d.comb += [same.eq(top.all() | ~top.any()), moved.eq(Mux(same, Cat(C(0, step), total[:-step]), total))]
                total = moved
                found.append(same | shifted if step >= 8 else same)
            total = after(1, total, f"normal{steps[-1]}")
            lead = [after(1, bit, f"lead{steps[-1]}_{n}") for n, bit in enumerate(lead + found)]
            shifted = after(1, shifted, f"raw{steps[-1]}")

        # 7: round to 24 significant bits. ``point`` is the place of the binary point in the product, counted from bit 39.
        up = total[6] & (total[7] | total[:6].any())
        rounded = after(1, (total[7:].as_signed() + up)[:26].as_signed(), "rounded")
        mantissa = after(_FRONT + 4, self.params.mantissa, "mantissa")
        shift = after(_FRONT + 4, self.params.shift, "shift")
        zero = after(1, (total[30] == total[31]) | ~mantissa[23], "zero")
        mantissa = after(1, mantissa, "mantissa_last")
        point = after(1, (shift + Cat(reversed(lead)) - 46)[:8].as_signed(), "point")
        negative = after(1, total[31], "negative")

        # 8: multiply; the sum of products follows in two steps.
        halves = [
            (rounded[:_HALF].as_unsigned(), rounded[_HALF:].as_signed()),
            (mantissa[:_HALF].as_unsigned(), mantissa[_HALF:].as_unsigned()),
        ]
        products = []
        for i, a in enumerate(halves[0]):
            for j, b in enumerate(halves[1]):
                widths = [len(half) + (not half.shape().signed) for half in (a, b)]
                multiplier = Multiplier(width_a=widths[0], width_b=widths[1], form=self.multiplier_form)
                m.submodules[f"product{i}{j}"] = multiplier
                m.d.comb += [multiplier.a.eq(a), multiplier.b.eq(b)]
                products.append(multiplier.p)
        low_low, low_high, high_low, high_high = products
        cross = after(1, low_high + high_low, "cross")
        outer = after(1, Cat(low_low[: 2 * _HALF], high_high).as_signed(), "outer")
        empty = ~outer[:_HALF].any()
        tail_empty = after(1, empty, "tail_empty")
        upper = after(1, (outer[_HALF:].as_signed() + cross)[: 49 - _HALF], "upper")
        product = Cat(C(0, _HALF), upper)  # bits below _HALF are in tail_empty alone

        # Everything that decides about the binary point, ready when the product is.
        delay = Multiplier.LATENCY + 1
        point = after(delay, point, "point_late")
        zero, negative = after(delay, zero, "zero_late"), after(delay + 3, negative, "negative_late")
        near = Signal(range(WINDOW))
        m.d.comb += near.eq(point)
        kill = after(1, zero | (point >= WINDOW), "kill")
        saturate = after(3, ~zero & (point < 0), "saturate")
        below = after(1, Cat(near > n for n in range(WINDOW - 1)), "below")  # bit n: product bit 38 + n is a fraction bit below 1/2
        near = after(1, near, "near")

        # 13: ``number`` is the integer part, with the fraction's first bit below it. The bits from there down to half an ulp decide on ties.
        number = after(1, Mux(kill, 0, product[38:].as_signed() >> near)[:11].as_signed(), "number")
        ones = (product[38:47] | ~below).all() & product[24:38].all()
        zeros = ~(product[38:47] & below).any() & ~product[24:38].any()
        wide = product[47] != product[48]  # 48 significant bits, else 47
        low_empty = tail_empty & ~product[_HALF:22].any()
        under = ones & product[23] & (wide | product[22])
        over = zeros & Mux(wide, ~product[23] | (~product[22] & low_empty), ~product[23] & (~product[22] | low_empty))
        under, over = after(1, under & ~kill, "under"), after(1, over, "over")

        # 14: round to the nearest, ties to even.
        odd = number[1] ^ (self.late & self.zero_point[0])
        increment = Mux(number[0], ~over | odd, under & odd)
        value = after(1, (number[1:].as_signed() + self.zero_point + increment)[:11].as_signed(), "value")

        # 15, 16: clip.
        top = after(1, Mux(saturate, ~negative, value > self.high), "top")
        bottom = after(1, Mux(saturate, negative, value < self.low), "bottom")
        value, low, high = after(1, value[:8].as_signed(), "inside"), after(1, self.low, "low_last"), after(1, self.high, "high_last")
        m.d.sync += self.result.eq(Mux(top, high, Mux(bottom, low, value)))
        return m
