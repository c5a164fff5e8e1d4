"""Single-port memory: one read or one write per cycle, in a portable form and in the 32 KiB blocks of an iCE40 UltraPlus."""

from amaranth.hdl import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["FORMS", "SinglePortRam"]

FORMS = ("portable", "ice40")

_BLOCK_DEPTH, _BLOCK_WIDTH, _NIBBLE = 1 << 14, 16, 4


class SinglePortRam(wiring.Component):
    """``depth`` words of ``width`` bits with one port.

    Parameters
    ----------
    width : int
        Bits of a word; a multiple of ``granularity``.
    depth : int
    granularity : int
        Bits written together; in the form ``"ice40"`` a multiple of 4 (a write mask bit of the primitive is for four).
    form : str
        ``"portable"`` is a memory of one port as synthesis tools know it. ``"ice40"`` is made of ``SB_SPRAM256KA`` (16,384 words of 16
        bits, Lattice technical note FPGA-TN-02022): as many side by side as ``width`` needs, and as many rows of them as ``depth`` needs. A
        board has four.

    Members
    -------
    addr : ``In``
    en : ``In(1)``
        Read, or write if a bit of ``mask`` is set.
    mask : ``In(width // granularity)``
        The parts to write; only with ``en``.
    w_data : ``In(width)``
    r_data : ``Out(width)``
        Word ``addr`` one cycle after a read. It stays until the next access; after a write it is undefined. Content is undefined at first.
    """

    def __init__(self, *, width, depth, granularity, form="portable"):
        if width % granularity:
            raise ValueError(f"width must be a multiple of granularity ({granularity}), not {width}")
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
        if form == "ice40" and granularity % _NIBBLE:
            raise ValueError(f"granularity must be a multiple of {_NIBBLE} in form 'ice40', not {granularity}")
        self.width = width
        self.depth = depth
        self.granularity = granularity
        self.form = form
        super().__init__({
            "addr": In(range(depth)),
            "en": In(1),
            "mask": In(width // granularity),
            "w_data": In(width),
            "r_data": Out(width),
        })

    def elaborate(self, platform):
        m = Module()
        if self.form == "ice40":
            self._blocks(m)
        else:
            words = memory.Memory(shape=self.width, depth=self.depth, init=[], attrs={"no_rw_check": 1})
            m.submodules.words = words
            write, read = words.write_port(granularity=self.granularity), words.read_port()
            m.d.comb += [
                write.addr.eq(self.addr),
                write.data.eq(self.w_data),
                write.en.eq(Mux(self.en, self.mask, 0)),
                read.addr.eq(self.addr),
                read.en.eq(self.en & ~self.mask.any()),
                self.r_data.eq(read.data),
            ]
        return m

    def _blocks(self, m):
        bits = ceil_log2(_BLOCK_DEPTH)
        inner, row = Signal(bits), Signal(max(1, len(self.addr) - bits))
        m.d.comb += Cat(inner, row).eq(self.addr)
        nibbles = Cat(bit.replicate(self.granularity // _NIBBLE) for bit in self.mask)
        answering = Signal.like(row)
        with m.If(self.en):
            m.d.sync += answering.eq(row)
        for number in range(-(-self.depth // _BLOCK_DEPTH)):
            answer = Signal(self.width, name=f"answer{number}")
            for first in range(0, self.width, _BLOCK_WIDTH):
                last = min(first + _BLOCK_WIDTH, self.width)
                out = Signal(_BLOCK_WIDTH, name=f"out{number}_{first}")
                m.submodules[f"block{number}_{first}"] = Instance(
                    "SB_SPRAM256KA",
                    i_CLOCK=ClockSignal(),
                    i_ADDRESS=inner,
                    i_DATAIN=Cat(self.w_data[first:last], Const(0, _BLOCK_WIDTH - (last - first))),
                    i_MASKWREN=Cat(nibbles[first // _NIBBLE : last // _NIBBLE], Const(0, (_BLOCK_WIDTH - (last - first)) // _NIBBLE)),
                    i_WREN=self.mask.any(),
                    i_CHIPSELECT=self.en & (row == number),
                    i_STANDBY=Const(0, 1),
                    i_SLEEP=Const(0, 1),
                    i_POWEROFF=Const(1, 1),  # active low
                    o_DATAOUT=out,
                )
                m.d.comb += answer[first:last].eq(out)
            with m.If(answering == number):
                m.d.comb += self.r_data.eq(answer)
