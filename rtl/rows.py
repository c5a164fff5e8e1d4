"""Rows of the array with one multiplier for each product."""

from amaranth.hdl import *
from amaranth.lib import data
from amaranth.utils import ceil_log2

from celosia.rtl import multiplier
from celosia.rtl.carry import SoftMultiplier
from celosia.rtl.multiplier import Multiplier

__all__ = ["ProductRows", "sum_width"]


def sum_width(rows):
    """Return the width of the exact sum of ``rows`` products of two int8."""
    return 16 + ceil_log2(rows)


class ProductRows:
    """Builds rows of ``cols`` multiply-accumulates; see :class:`celosia.rtl.array.Array`.

    A builder of rows has the cycles from an activation to the sums that count it as ``LATENCY``, less one for each row, and three
    methods: ``prepare`` returns what the rows of a bank need of its weights, ``row`` builds a row and returns its partial sums,
    ``sums`` returns the sums of the columns.

    Parameters
    ----------
    cols : int
    form : str
        Of the multipliers.
    soft : int
        The last columns, which have multipliers of LUTs.
    """

    LATENCY = multiplier.LATENCY

    def __init__(self, *, cols, form, soft=0):
        self.cols = cols
        self.form = form
        self.soft = soft

    def prepare(self, m, weights, name):
        """Return the ``weights`` of a bank."""
        return weights

    def row(self, m, row, load, weights, operands, above):
        """Build one row; return its partial sums.

        ``load`` and ``weights`` come a cycle before the ``operands``, of 8 bits for each column; ``above`` is what the row above
        returned, None in the first one.
        """
        active = Signal(data.ArrayLayout(signed(8), self.cols), name=f"active{row}", reset_less=True)
        sums = Signal(data.ArrayLayout(signed(sum_width(row + 1)), self.cols), name=f"psum{row}", reset_less=True)
        with m.If(load):
            m.d.sync += active.eq(weights)
        for col in range(self.cols):
            soft = col >= self.cols - self.soft
            product = SoftMultiplier(form="ecp5") if soft else Multiplier(width_a=8, width_b=8, form=self.form)
            m.submodules[f"multiplier_{row}_{col}"] = product
            m.d.comb += [product.a.eq(operands.word_select(col, 8)), product.b.eq(active[col])]
            m.d.sync += sums[col].eq(product.p + above[col] if row else product.p)
        return sums

    def sums(self, m, below):
        """Return the sums of the columns."""
        return list(below)
