"""Rows of the array with two products per ``SB_MAC16`` of the iCE40 UltraPlus: weights and partial sums live in the DSPs.

A DSP works as two signed 8 × 8 multipliers, each with an adder of 16 bits. It adds the lower half of the partial sum that comes from
the row above, and its register of operand A, held but for the cycle in which a tile arrives, is the weight register::

    weights of two columns ─► A (held) ─┐
                                        × ─► register ─► + ─► register ─► lower 16 bits of the sums
    activations ─► B ───────────────────┘                ▲
                         lower 16 bits of the row above ─┘

What is above bit 15 is kept in logic. With ``s`` the sign of the product, ``c`` and ``r`` bit 15 of the sum before and after::

    upper half += 1 if c & ~s & ~r,   upper half -= 1 if ~c & s & r

``s`` is taken from the signs of the factors: a product of zero with ``s`` = 1 leaves ``c`` = ``r``, and nothing is counted.
"""

from amaranth.hdl import *
from amaranth.lib import data
from amaranth.utils import ceil_log2

__all__ = ["DualRows"]


class DualRows:
    """Builds rows of ``cols`` multiply-accumulates of ``cols / 2`` DSPs; see :class:`celosia.rtl.array.Array`."""

    LATENCY = 1

    def __init__(self, *, cols):
        self.cols = cols

    def prepare(self, m, weights, name):
        """Return what the rows need of the ``weights`` of a bank: themselves, and their signs one cycle later."""
        signs = Signal(self.cols, name=f"signs_{name}", reset_less=True)
        m.d.sync += signs.eq(Cat(weight[7] for weight in weights))
        return weights, signs

    def row(self, m, row, load, weights, operands, above):
        """Build one row; return the lower and the upper part of its partial sums."""
        arriving, arriving_signs = weights
        signs, late_load = Signal(self.cols, name=f"signs{row}", reset_less=True), Signal(name=f"late_load{row}")
        m.d.sync += late_load.eq(load)
        with m.If(late_load):
            m.d.sync += signs.eq(arriving_signs)
        lower = Signal(data.ArrayLayout(16, self.cols), name=f"lower{row}")
        for col in range(0, self.cols, 2):
            m.submodules[f"mac_{row}_{col}"] = Instance(
                "SB_MAC16", **_PARAMETERS, **_CONSTANTS,
                i_CLK=ClockSignal(), i_AHOLD=~load,
                i_A=Cat(arriving[col], arriving[col + 1]), i_B=operands.word_select(col // 2, 16),
                i_D=above[0][col] if row else Const(0, 16), i_C=above[0][col + 1] if row else Const(0, 16),
                o_O=Cat(lower[col], lower[col + 1]),
            )  # fmt: skip
        return lower, [self._upper(m, row, col, operands, signs, above, lower) for col in range(self.cols)]

    def _upper(self, m, row, col, operands, signs, above, lower):
        """Return what is above bit 15 of a partial sum."""
        if not row:
            return Const(0, 0)
        name, width = f"{row}_{col}", ceil_log2(row + 1)
        sign = Signal(name=f"sign{name}", reset_less=True)
        more, less = Signal(name=f"more{name}", reset_less=True), Signal(name=f"less{name}", reset_less=True)
        before = Signal(signed(width), name=f"before{name}", reset_less=True)
        after = Signal(signed(width), name=f"after{name}")
        m.d.sync += sign.eq(operands[8 * col + 7])
        negative, top = sign ^ signs[col], above[0][col][15]
        m.d.sync += [
            more.eq(top & ~negative),
            less.eq(~top & negative),
            before.eq(above[1][col] if row > 1 else top.as_signed()),
        ]
        result = lower[col][15]
        m.d.comb += after.eq(before + (more & ~result) - (less & result))
        return after

    def sums(self, m, below):
        """Return the sums of the columns."""
        return [Cat(lower, upper).as_signed() for lower, upper in zip(*below)]


_PARAMETERS = {
    f"p_{name}": Const(value, width)
    for name, value, width in (
        ("NEG_TRIGGER", 0, 1), ("A_REG", 1, 1), ("B_REG", 0, 1), ("C_REG", 0, 1), ("D_REG", 0, 1),
        ("TOP_8x8_MULT_REG", 1, 1), ("BOT_8x8_MULT_REG", 1, 1),
        ("PIPELINE_16x16_MULT_REG1", 0, 1), ("PIPELINE_16x16_MULT_REG2", 0, 1),
        ("TOPOUTPUT_SELECT", 1, 2), ("TOPADDSUB_LOWERINPUT", 1, 2), ("TOPADDSUB_UPPERINPUT", 1, 1), ("TOPADDSUB_CARRYSELECT", 0, 2),
        ("BOTOUTPUT_SELECT", 1, 2), ("BOTADDSUB_LOWERINPUT", 1, 2), ("BOTADDSUB_UPPERINPUT", 1, 1), ("BOTADDSUB_CARRYSELECT", 0, 2),
        ("MODE_8x8", 1, 1), ("A_SIGNED", 1, 1), ("B_SIGNED", 1, 1),
    )
}  # fmt: skip
_CONSTANTS = {"i_CE": Const(1, 1)} | {
    f"i_{name}": Const(0, 1)
    for name in (
        "BHOLD", "CHOLD", "DHOLD", "IRSTTOP", "IRSTBOT", "ORSTTOP", "ORSTBOT", "OLOADTOP", "OLOADBOT", "ADDSUBTOP", "ADDSUBBOT",
        "OHOLDTOP", "OHOLDBOT", "CI", "ACCUMCI", "SIGNEXTIN",
    )
}  # fmt: skip
