"""Signed multiplier: the one place where multipliers are made, in a portable form and as a vendor primitive.

::

    a ─► [input register] ─┐
                           × ─► [pipeline register] ─► [output register] ─► p
    b ─► [input register] ─┘

Accepts operands every cycle; the product follows :data:`LATENCY` cycles later.
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["FORMS", "LATENCY", "Multiplier"]

FORMS = ("portable", "ecp5")
LATENCY = 3
"""Cycles from operands to product, in every form."""


class Multiplier(wiring.Component):
    """A pipelined signed multiplier without enable and without reset.

    Parameters
    ----------
    width_a, width_b : int
        Operand widths; at most 18 bits each.
    form : str
        ``"portable"`` is plain arithmetic between registers. ``"ecp5"`` is one ``MULT18X18D`` with its input, pipeline and
        output registers.

    Members
    -------
    a, b : In(signed)
        The operands.
    p : Out(signed(width_a + width_b))
        The exact product of the operands of :data:`LATENCY` cycles ago.
    """

    LATENCY = LATENCY

    def __init__(self, *, width_a, width_b, form):
        for name, width in (("width_a", width_a), ("width_b", width_b)):
            if not isinstance(width, int) or not 1 <= width <= 18:
                raise ValueError(f"{name} must be between 1 and 18, not {width!r}")
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
        self.width_a = width_a
        self.width_b = width_b
        self.form = form
        super().__init__({
            "a": In(signed(width_a)),
            "b": In(signed(width_b)),
            "p": Out(signed(width_a + width_b)),
        })

    def elaborate(self, platform):
        m = Module()
        if self.form == "ecp5":
            m.submodules.mult18 = self._mult18x18d(m)
        else:
            a = Signal.like(self.a, reset_less=True)
            b = Signal.like(self.b, reset_less=True)
            product = Signal.like(self.p, reset_less=True)
            p = Signal.like(self.p, reset_less=True)
            m.d.sync += [a.eq(self.a), b.eq(self.b), product.eq(a * b), p.eq(product)]
            m.d.comb += self.p.eq(p)
        return m

    def _mult18x18d(self, m):
        a, b = Signal(signed(18)), Signal(signed(18))
        p = Signal(signed(36))
        m.d.comb += [a.eq(self.a), b.eq(self.b), self.p.eq(p)]
        # The four multipliers of a DSP block share four lines of each kind of control: all of them must use the same set.
        # nextpnr times the inputs as registered only where both are.
        parameters = {"p_GSR": "DISABLED", "p_SOURCEB_MODE": "B_SHIFT"}
        for register in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
            for line in ("CLK", "CE", "RST"):
                parameters[f"p_REG_{register}_{line}"] = f"{line}0"
        ports = {f"i_A{n}": a[n] for n in range(18)}
        ports |= {f"i_B{n}": b[n] for n in range(18)}
        ports |= {f"i_C{n}": Const(0, 1) for n in range(18)}
        ports |= {f"o_P{n}": p[n] for n in range(36)}
        return Instance(
            "MULT18X18D", **parameters, **ports,
            i_CLK0=ClockSignal(), i_CE0=Const(1, 1), i_RST0=Const(0, 1),
            i_SIGNEDA=Const(1, 1), i_SIGNEDB=Const(1, 1), i_SOURCEA=Const(0, 1), i_SOURCEB=Const(0, 1),
        )  # fmt: skip
