"""Signed multiplier: the one place where multipliers are made, in a portable form and as vendor primitives.

::

    a ─► [input register] ─┐
                           × ─► [pipeline register] ─► [output register] ─► p
    b ─► [input register] ─┘

Accepts operands every cycle; the product follows :data:`LATENCY` cycles later.
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["FORMS", "LATENCY", "Multiplier", "mult18x18d"]

FORMS = ("portable", "ecp5", "ecp5_pairs", "ecp5_mixed", "ice40", "gowin")
"""Ways to build the engine's multipliers, with equal results; those of one family differ only in the array."""

LATENCY = 3
"""Cycles from operands to product, in every form."""


class Multiplier(wiring.Component):
    """A pipelined signed multiplier without enable and without reset.

    Parameters
    ----------
    width_a, width_b : int
        Operand widths; at most 18 bits each.
    form : str
        One of :data:`FORMS`. ``"portable"`` and ``"ice40"`` are plain arithmetic between registers. The ECP5 forms are one
        ``MULT18X18D``, ``"gowin"`` is one ``MULT9X9`` or ``MULT18X18``, with their input, pipeline and output registers.

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
        if self.form.startswith("ecp5"):
            m.submodules.mult18 = mult18x18d(m, self.a, self.b, self.p)
        elif self.form == "gowin":
            m.submodules.mult = _gowin(m, self.a, self.b, self.p)
        else:
            a = Signal.like(self.a, reset_less=True)
            b = Signal.like(self.b, reset_less=True)
            product = Signal.like(self.p, reset_less=True)
            p = Signal.like(self.p, reset_less=True)
            m.d.sync += [a.eq(self.a), b.eq(self.b), product.eq(a * b), p.eq(product)]
            m.d.comb += self.p.eq(p)
        return m


def mult18x18d(m, a, b, p):
    """Return a ``MULT18X18D`` that drives ``p`` with the product of ``a`` and ``b``, with all of its registers."""
    wide_a, wide_b, wide_p = Signal(signed(18)), Signal(signed(18)), Signal(signed(36))
    m.d.comb += [wide_a.eq(a), wide_b.eq(b), p.eq(wide_p)]
    # The four multipliers of a DSP block share four lines of each kind of control: all of them must use the same set.
    # nextpnr times the inputs as registered only where both are.
    parameters = {"p_GSR": "DISABLED", "p_SOURCEB_MODE": "B_SHIFT"}
    for register in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
        for line in ("CLK", "CE", "RST"):
            parameters[f"p_REG_{register}_{line}"] = f"{line}0"
    ports = {f"i_A{n}": wide_a[n] for n in range(18)}
    ports |= {f"i_B{n}": wide_b[n] for n in range(18)}
    ports |= {f"i_C{n}": Const(0, 1) for n in range(18)}
    ports |= {f"o_P{n}": wide_p[n] for n in range(36)}
    return Instance(
        "MULT18X18D", **parameters, **ports,
        i_CLK0=ClockSignal(), i_CE0=Const(1, 1), i_RST0=Const(0, 1),
        i_SIGNEDA=Const(1, 1), i_SIGNEDB=Const(1, 1), i_SOURCEA=Const(0, 1), i_SOURCEB=Const(0, 1),
    )  # fmt: skip


def _gowin(m, a, b, p):
    """Return the smallest Gowin multiplier that drives ``p`` with the product of ``a`` and ``b``, with all of its registers."""
    width = 9 if max(len(a), len(b)) <= 9 else 18
    wide_a, wide_b, wide_p = Signal(signed(width)), Signal(signed(width)), Signal(signed(2 * width))
    m.d.comb += [wide_a.eq(a), wide_b.eq(b), p.eq(wide_p)]
    registers = {f"p_{name}": Const(1, 1) for name in ("AREG", "BREG", "PIPE_REG", "OUT_REG")}
    return Instance(
        f"MULT{width}X{width}", **registers,
        i_A=wide_a, i_B=wide_b, i_SIA=Const(0, width), i_SIB=Const(0, width), i_ASIGN=Const(1, 1), i_BSIGN=Const(1, 1),
        i_ASEL=Const(0, 1), i_BSEL=Const(0, 1), i_CE=Const(1, 1), i_CLK=ClockSignal(), i_RESET=Const(0, 1), o_DOUT=wide_p,
    )  # fmt: skip
