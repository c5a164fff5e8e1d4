"""Program, weights and channel parameters in one single-port memory of 32-bit words, for devices without block RAM for them.

::

    one access per cycle ◄── row loader · store unit's parameters · fetch · host
    row loader ◄── pause_load ── parameters
"""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from celosia.rtl.fetch import ProgramReadSignature
from celosia.rtl.interfaces import HostSignature, ParamWordReadSignature, WeightReadSignature
from celosia.rtl.isa import INSTRUCTION_BITS
from celosia.rtl.memory import HostView
from celosia.rtl.spram import SinglePortRam

__all__ = ["ConstantMemory", "places"]

WORD_BITS = 32


def places(config):
    """Return ``{name: (first word, words)}`` of program, weights and params.

    Each begins at a multiple of a power of two that it is not larger than, so that its words' addresses are the two joined. No gaps
    are needed with the largest first.
    """
    sizes = {
        "program": config.program_depth * INSTRUCTION_BITS // WORD_BITS,
        "weights": config.weight_bytes * 8 // WORD_BITS,
        "params": config.param_depth * 64 * config.lanes // WORD_BITS,
    }
    found, first = {}, 0
    for name in sorted(sizes, key=lambda name: -ceil_log2(sizes[name])):
        found[name] = first, sizes[name]
        first += 1 << ceil_log2(sizes[name])
    return found


class ConstantMemory(wiring.Component):
    """Stands in for :class:`~celosia.rtl.memory.ProgramMemory`, :class:`~celosia.rtl.memory.WeightMemory` and
    :class:`~celosia.rtl.memory.ParamMemory`, with the same latencies.

    In a cycle the first in the order of the members that asks is served. While the first half of a parameter is asked for, no tile may be
    begun: so its second half need not wait, nor the store unit for more than one tile.

    Parameters
    ----------
    config : EngineConfig
        With ``constant_ports`` = 1.
    form : str
        Of the RAM, see :class:`~celosia.rtl.spram.SinglePortRam`.

    Members
    -------
    weights : ``In(WeightReadSignature)``
    params : ``In(ParamWordReadSignature)``
    program : ``In(ProgramReadSignature)``
    host_program, host_weights, host_params : ``In(HostSignature)``
        Used one at a time.
    pause_load : ``Out(1)``
        ``weights.en`` must not rise in the next cycle.
    """

    def __init__(self, *, config, form="portable"):
        self.config = config
        self.form = form
        super().__init__({
            "weights": In(WeightReadSignature(cols=config.cols)),
            "params": In(ParamWordReadSignature()),
            "program": In(ProgramReadSignature(bits=WORD_BITS)),
            **{f"host_{name}": In(HostSignature()) for name in places(config)},
            "pause_load": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        shared = places(self.config)
        depth = max(first + words for first, words in shared.values())
        m.submodules.ram = ram = SinglePortRam(width=WORD_BITS, depth=depth, granularity=WORD_BITS, form=self.form)

        def place(name, addr):
            first, words = shared[name]
            return addr[: ceil_log2(words)] | first

        asked, value, writes = 0, 0, []  # by the host: its address, what it writes, and whether
        for name, (_, words) in shared.items():
            host = getattr(self, f"host_{name}")
            view = HostView(m, host, size=WORD_BITS // 8, depth=words)
            asks = view.writes(0)
            writes.append(view.writes(0))
            value |= view.value
            if self.config.debug:
                asks |= host.re
                view.answer_from(m, ram.r_data)
            asked |= Mux(asks, place(name, view.entry), 0)
        m.d.comb += [
            ram.en.eq(1),
            ram.w_data.eq(value),
            self.params.ready.eq(~self.weights.en),
            self.program.ready.eq(~(self.weights.en | self.params.valid)),
            self.pause_load.eq(self.params.valid & ~self.params.addr[0]),
        ]
        with m.If(self.weights.en):
            m.d.comb += ram.addr.eq(place("weights", self.weights.addr))
        with m.Elif(self.params.valid):
            m.d.comb += ram.addr.eq(place("params", self.params.addr))
        with m.Elif(self.program.valid):
            m.d.comb += ram.addr.eq(place("program", self.program.addr))
        with m.Else():
            m.d.comb += [ram.addr.eq(asked), ram.mask.eq(Cat(writes).any())]
        for port in (self.weights, self.params, self.program):
            m.d.comb += Value.cast(port.data).eq(ram.r_data)
        return m
