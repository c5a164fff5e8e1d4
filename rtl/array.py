"""The R×C weight-stationary array.

::

            weights of bank j ──(load)──► active weights of row r
                                               │
    word ──► skew (row r: r cycles) ── byte r ─►  ×  ──► + ──► psum of row r
                                                         ▲
                                         psum of row r - 1

Activations are broadcast along a row, partial sums run down the rows through one register each, as narrow as they can be.
The weights of a tile arrive from memory row by row, just in time: the flag ``load`` runs down the rows one cycle ahead of the
first word that meets them, so replacing a tile costs no cycle and no second set of registers.

The depthwise mode makes each column a transposed FIR filter: its channel's byte of the word is broadcast to the ``taps`` rows of
its image row, so that the sum that entered with word ``w`` meets word ``w + k`` in the ``k``-th of them. Image row ``j`` comes
``j * taps`` cycles late, when the sums have come down to its rows::

    image row j ──► delay (j * taps) ── byte of column c ──► mode ──►  ×   in rows j * taps …
                                                     byte r ──┘
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.dual import DualRows
from celosia.rtl.multiplier import FORMS
from celosia.rtl.pairs import PairRows
from celosia.rtl.rows import ProductRows, sum_width

__all__ = ["Array", "array_latency", "sum_width"]


_BUILDERS = {"ecp5_pairs": PairRows, "ice40": DualRows}


def array_latency(rows, form="portable"):
    """Return the cycles from a word at the array's input to its sums at the output."""
    return _BUILDERS.get(form, ProductRows).LATENCY + rows


class Array(wiring.Component):
    """Multiplies one activation word per cycle with a resident weight tile.

    Parameters
    ----------
    rows, cols : int
        Shape of the array.
    weight_rows : int
        Weight rows that arrive per cycle; row ``r`` comes through bank ``r // (rows / weight_rows)``.
    multiplier : str
        One of :data:`celosia.rtl.multiplier.FORMS`; the sums are the same in all of them.

        ============== ============================================================================================
        ``portable``   plain arithmetic
        ``ecp5``       a ``MULT18X18D`` for each product
        ``ecp5_pairs`` a ``MULT18X18D`` for two products, see :mod:`celosia.rtl.pairs`; no depthwise mode
        ``ecp5_mixed`` as ``ecp5`` in the first columns, multipliers of LUTs in the others, see :mod:`celosia.rtl.carry`
        ``ice40``      an ``SB_MAC16`` for two products and their sums, see :mod:`celosia.rtl.dual`
        ``gowin``      a ``MULT9X9`` for each product
        ============== ============================================================================================
    image_rows : int
        Image rows of the depthwise mode, of ``rows // image_rows`` taps each; 0 if there is none.
    dsps : int, optional
        With ``ecp5_mixed``, how many multipliers may be DSPs: ``dsps // rows`` columns are. Half of the columns if not given.

    Members
    -------
    word : In
        ``rows`` int8, any cycle; not skewed.
    word1, … : In
        The words of the other image rows.
    depthwise : In(1)
        With a word: its sums are those of the depthwise mode. They need the words of the next ``taps - 1`` cycles too.
    slot : In(3)
        With a word: which ``cols`` bytes of it the columns get in the depthwise mode.
    load : In(1)
        A weight tile arrives, for the words from the next cycle on: row ``r`` of it is on its bank exactly ``r`` cycles later.
        Not again before ``rows / weight_rows`` cycles.
    weights : In
        One row of ``cols`` int8 for each bank.
    sums : Out
        ``cols`` sums of the word :func:`array_latency` cycles ago.
    """

    def __init__(self, *, rows, cols, weight_rows, multiplier, image_rows=0, dsps=None):
        if rows % weight_rows:
            raise ValueError(f"weight_rows must divide rows ({rows}), not {weight_rows}")
        if multiplier not in FORMS:
            raise ValueError(f"multiplier must be one of {', '.join(FORMS)}, not {multiplier!r}")
        if multiplier in _BUILDERS and cols % 2:
            raise ValueError(f"cols must be even for {multiplier}, not {cols}")
        if image_rows and multiplier == "ecp5_pairs":
            raise ValueError("image_rows must be 0 with ecp5_pairs, where two columns share an activation")
        if dsps is not None and multiplier != "ecp5_mixed":
            raise ValueError("dsps is for ecp5_mixed only")
        self.rows = rows
        self.cols = cols
        self.weight_rows = weight_rows
        self.multiplier = multiplier
        self.image_rows = image_rows
        self.dsps = rows * cols // 2 if dsps is None else dsps
        word = data.ArrayLayout(signed(8), rows)
        super().__init__({
            "word": In(word),
            **{f"word{row}": In(word) for row in range(1, image_rows)},
            "depthwise": In(1),
            "slot": In(3),
            "load": In(1),
            "weights": In(data.ArrayLayout(data.ArrayLayout(signed(8), cols), weight_rows)),
            "sums": Out(data.ArrayLayout(signed(sum_width(rows)), cols)),
        })

    @property
    def words(self):
        """The words of all image rows, in order."""
        return [self.word, *(getattr(self, f"word{row}") for row in range(1, self.image_rows))]

    def elaborate(self, platform):
        m = Module()
        load, skewed, depthwise = self.load, self.word, self.depthwise
        taps = self.rows // self.image_rows if self.image_rows else 0
        columns = self._columns(m, taps)
        builder = self._builder()
        banks = [builder.prepare(m, weights, f"bank{bank}") for bank, weights in enumerate(self.weights)]
        sums = None
        for row in range(self.rows):
            weights = banks[row // (self.rows // self.weight_rows)]
            operands = self._operands(m, row, skewed[0], depthwise, columns[row // taps] if row < len(columns) * taps else None)
            sums = builder.row(m, row, load, weights, operands, sums)
            load, depthwise = self._next(m, load, f"load{row}"), self._next(m, depthwise, f"depthwise{row}")
            # The skew triangle: each row takes the first byte and passes the others on, one cycle later.
            rest = Signal(data.ArrayLayout(signed(8), self.rows - row - 1), name=f"skew{row}", reset_less=True)
            m.d.sync += Value.cast(rest).eq(Value.cast(skewed)[8:])
            skewed = rest
        m.d.comb += [mine.eq(value) for mine, value in zip(self.sums, builder.sums(m, sums))]
        return m

    def _builder(self):
        if self.multiplier in _BUILDERS:
            return _BUILDERS[self.multiplier](cols=self.cols)
        soft = self.cols - min(self.dsps // self.rows, self.cols) if self.multiplier == "ecp5_mixed" else 0
        return ProductRows(cols=self.cols, form=self.multiplier, soft=soft)

    def _next(self, m, flag, name):
        register = Signal(name=name)
        m.d.sync += register.eq(flag)
        return register

    def _columns(self, m, taps):
        """Return the bytes of the columns for each image row, in the cycle in which its rows of the array take them."""
        columns = []
        for row, word in enumerate(self.words[: self.image_rows]):
            late = Value.cast(word).word_select(self.slot[: ceil_log2(self.rows // self.cols)], 8 * self.cols)
            for age in range(row * taps):
                late, value = Signal(8 * self.cols, name=f"columns{row}_{age}", reset_less=True), late
                m.d.sync += late.eq(value)
            columns.append(late)
        return columns

    def _operands(self, m, row, byte, depthwise, columns):
        """Return the activation of each column; ``columns`` are those of the depthwise mode, None in rows that have none."""
        if columns is None:
            return byte.replicate(self.cols)
        operands = Signal(8 * self.cols, name=f"operands{row}")
        m.d.comb += operands.eq(Mux(depthwise, columns, byte.replicate(self.cols)))
        return operands
