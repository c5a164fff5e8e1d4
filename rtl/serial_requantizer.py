"""Requantiser that takes :data:`PERIOD` cycles for an element, without vendor multipliers: for devices that have none to spare.

The arithmetic is that of :mod:`celosia.rtl.requantizer`, and the golden function :func:`celosia.sim.numerics.requantize`. Three elements
are under way at a time, each in the same phase of its stage::

    phase      0                1                2                3
    sum                                                          acc + bias ─► sum
    normalise  << 8 if it can   << 8 if it can   << 8 if it can   << 4, 2, 1; round to 24 bits ─► multiplier
               scale
    multiply   8 bits           8 bits           8 bits           8 bits; find the binary point
    round      + zero point, clip ─► result

The multiplier's digits are those of base 4 with values −1 … 2, so that a partial product costs one LUT4 per bit.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from celosia.rtl.isa import ChannelParams
from celosia.rtl.requantizer import WINDOW

__all__ = ["LATENCY", "PERIOD", "SerialRequantizer"]

PERIOD = 4
"""Cycles per element."""

LATENCY = 2 * PERIOD + 2
"""Cycles from phase 3 with an element's operands to its result, which stays for :data:`PERIOD` cycles."""


_ORIGIN = 46
"""Shift of the scale, and of the sum to the left, with which the binary point is the lowest at which the result is not saturated."""


class SerialRequantizer(wiring.Component):
    """Requantises the element that is there in phase 3.

    Members
    -------
    phase : ``In(2)``
        Counts the cycles in which ``run`` is high.
    run : ``In(1)``
        While low, everything stays as it is.
    acc : ``In(signed(32))``
        In phase 3.
    param : ``In(32)``
        The low half of :class:`~celosia.rtl.isa.ChannelParams`, the bias, in phase 3, and the high half in the following phase 0.
    raw : ``In(3)``, zero_point, low, high : ``In(signed(8))``
        As :class:`~celosia.rtl.requantizer.Requantizer`'s; the same for all elements under way.
    result : ``Out(signed(8))``
    """

    phase: In(2)
    run: In(1)
    acc: In(signed(32))
    param: In(32)
    raw: In(3)
    zero_point: In(signed(8))
    low: In(signed(8))
    high: In(signed(8))
    result: Out(signed(8))

    def elaborate(self, platform):
        m = Module()
        last = self.phase == PERIOD - 1
        mantissa, shift = Signal(24), Signal(6)  # of the element in the stage "normalise"
        params = data.View(ChannelParams, self.param.replicate(2))
        with m.If(self.run & (self.phase == 0)):
            m.d.sync += [mantissa.eq(params.mantissa), shift.eq(params.shift)]
        rounded, lead, none = self._normalise(m, last)
        multiplicand, place = Signal(24), Signal(7)
        zero, negative = Signal(), Signal()
        with m.If(self.run & last):
            m.d.sync += [
                multiplicand.eq(mantissa),
                place.eq(shift + lead),
                zero.eq(none | ~mantissa[23]),
                negative.eq(rounded[-1]),
            ]
        product = self._multiply(m, last, rounded, multiplicand)
        self._round(m, last, product, place, zero, negative)
        return m

    def _normalise(self, m, last):
        """Return the sum without copies of its sign and rounded to 24 significant bits, how far it was shifted, and whether it is zero."""
        total, eights = Signal(signed(32)), Signal(2)
        # A byte of the sum is brought to the top, as if it had been shifted there from the bottom.
        raw = self.raw.any()
        same = total[23:].all() | ~total[23:].any()
        move = Mux(raw, self.phase < (4 - self.raw)[:3], same)
        with m.If(self.run):
            with m.If(last):
                m.d.sync += [total.eq(self.acc + self.param.as_signed()), eights.eq(raw.replicate(2))]
            with m.Elif(move):
                m.d.sync += [total.eq(total << 8), eights.eq(Mux(raw, 3, eights + 1))]
            with m.If(raw & (self.phase == PERIOD - 2)):
                m.d.sync += total[:24].eq(0)
        value, found = total, []
        for step in (4, 2, 1):
            top = value[31 - step :]
            same = Signal(name=f"same{step}")
            shifted = Signal(signed(32), name=f"shifted{step}")
            m.d.comb += [same.eq(top.all() | ~top.any()), shifted.eq(Mux(same, Cat(C(0, step), value[:-step]), value))]
            value = shifted
            found.append(same)
        # What is below the first bit cut off matters only in that it is there: bits of the sum that the shifts do not lift above.
        moved = Cat(reversed(found))
        lost = Signal()
        with m.Switch(moved):
            for shift in range(6):
                with m.Case(shift):
                    m.d.comb += lost.eq(total[: 6 - shift].any())
        up = value[6] & (value[7] | lost)
        return (value[7:].as_signed() + up)[:26].as_signed(), Cat(reversed(found), eights), value[30] == value[31]

    def _multiply(self, m, last, rounded, multiplicand):
        """Return the product, to be taken in phase 3."""
        # Low digits leave ``low`` at the bottom, the product's enter at the top.
        low, high, carry = Signal(32), Signal(signed(26)), Signal()
        carries, total, digits = carry, high, []
        for digit in range(4):
            bits = low[2 * digit : 2 * digit + 2]
            value = Signal(3, name=f"digit{digit}")
            choice = Signal(2, name=f"choice{digit}")
            part, both = Signal(26, name=f"part{digit}"), Signal(signed(28), name=f"both{digit}")
            minus = choice == 3
            m.d.comb += [
                value.eq(bits + carries),
                choice.eq(value[:2]),  # 4 is 0, and as 3 carries
                both.eq(Cat(1, total).as_signed() + Cat(minus, part).as_signed()),
            ]
            once, twice = Cat(multiplicand, C(0, 2)), Cat(C(0, 1), multiplicand, C(0, 1))
            m.d.comb += part.eq(Cat(Mux(choice[1], Mux(choice[0], ~a, b), choice[0] & a) for a, b in zip(once, twice)))
            carries = value[2] | minus
            digits.append(both[1:3])
            total = both[3:].as_signed()
        with m.If(self.run):
            m.d.sync += [low.eq(Cat(low[8:], *digits)), high.eq(total), carry.eq(carries)]
            with m.If(last):
                m.d.sync += [low.eq(rounded), high.eq(0), carry.eq(0)]
        return Cat(low[8:], *digits, total)[:49].as_signed()

    def _round(self, m, last, product, place, zero, negative):
        """Round the product at its binary point, add the zero point and clip; see :class:`celosia.rtl.requantizer.Requantizer`."""
        near, number = Signal(range(WINDOW)), Signal(signed(11))
        under, over, saturate, sign = Signal(), Signal(), Signal(), Signal()
        kill = zero | (place >= _ORIGIN + WINDOW)
        below = Cat(near > n for n in range(WINDOW - 1))
        ones = (product[38:47] | ~below).all() & product[24:38].all()
        zeros = ~(product[38:47] & below).any() & ~product[24:38].any()
        wide, low_empty = product[47] != product[48], ~product[:22].any()
        m.d.comb += near.eq(place[:4] - _ORIGIN % 16)
        with m.If(self.run & last):
            m.d.sync += [
                number.eq(Mux(kill, 0, product[38:].as_signed() >> near)),
                under.eq(ones & product[23] & (wide | product[22]) & ~kill),
                over.eq(zeros & Mux(wide, ~product[23] | (~product[22] & low_empty), ~product[23] & (~product[22] | low_empty))),
                saturate.eq(~zero & (place < _ORIGIN)),
                sign.eq(negative),
            ]
        increment = Mux(number[0], ~over | number[1], under & number[1])
        value = (number[1:].as_signed() + self.zero_point + increment)[:11].as_signed()
        top, bottom = Mux(saturate, ~sign, value > self.high), Mux(saturate, sign, value < self.low)
        with m.If(self.run & (self.phase == 0)):
            m.d.sync += self.result.eq(Mux(top, self.high, Mux(bottom, self.low, value[:8].as_signed())))
