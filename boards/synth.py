"""Synthesis of an engine preset for an ECP5, with Yosys and nextpnr from PyPI: area and clock, out of any board's context.

``python -m celosia.boards.synth --preset mac64`` is what ``make synth`` runs. Logs, netlist and nextpnr's report stay in the output
folder. Only registers inside the engine bound the clock: the host port's pads are left unconstrained.

A placement that starts from another seed gives another clock, and some placements leave a few wires that the router searches for
without end. So each run has a time limit, and with ``--at-least`` the seeds are tried in their order until one gives that clock.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.lib import wiring
from rich.console import Console
from rich.table import Table

from celosia.boards import flow
from celosia.boards.board import YOSYS
from celosia.boards.ecp5 import Ecp5
from celosia.boards.toolchain import OutOfTime
from celosia.rtl.config import BadConfig, EngineConfig
from celosia.rtl.top import Top

__all__ = ["Bare", "main", "place", "synthesise"]

DEVICES = {"85k": ("LFE5U-85F", "CABGA756"), "45k": ("LFE5U-45F", "CABGA554"), "25k": ("LFE5U-25F", "CABGA381")}
FAMILY = Ecp5()


class Bare(wiring.Component):
    """The engine with its host port, interrupt and memory port only: what a board's top would connect."""

    def __init__(self, *, config, multiplier="ecp5"):
        self._engine = Top(config, multiplier=multiplier)
        members = self._engine.signature.members
        super().__init__({name: members[name] for name in ("bus", "irq", "memory") if name in members})

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = self._engine
        m.d.comb += self.irq.eq(self._engine.irq)
        wiring.connect(m, wiring.flipped(self.bus), self._engine.bus)
        if hasattr(self, "memory"):
            wiring.connect(m, self._engine.memory, wiring.flipped(self.memory))
        return m


def synthesise(config, out):
    """Synthesise ``config`` into the netlist ``out/top.json``; return the seconds it took.

    Raises
    ------
    ToolFailed
        If Yosys is missing or fails.
    """
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    (out / "top.il").write_text(rtlil.convert(Bare(config=config), name="top", emit_src=False))
    start = time.monotonic()
    flow.synthesise(out, FAMILY.synthesis("top"))
    return time.monotonic() - start


def place(config, out, *, device="85k", speed=6, seed=1, clock=100.0, minutes=None):
    """Place and route the netlist in ``out``.

    Parameters
    ----------
    config : EngineConfig
    out : Path
        Folder of :func:`synthesise`; log and report are written there.
    device : str
        Key of :data:`DEVICES`.
    clock : float
        Target in MHz, given to the placer.
    minutes : float, optional
        Time limit.

    Returns
    -------
    dict
        Cells by kind, ``LUT4/MAC``, ``clock`` in MHz, ``critical path``, ``seed``, seconds.

    Raises
    ------
    OutOfTime
        If nextpnr is not finished in time.
    ToolFailed
        If nextpnr is missing or fails.
    """
    start = time.monotonic()
    part, package = DEVICES[device]
    arguments = [FAMILY.SIZES[part], "--package", package, "--speed", str(speed), "--lpf-allow-unconstrained", "--textcfg", "top.placed"]
    report = flow.place(out.absolute(), FAMILY.placer, arguments, seed=seed, clock=clock, minutes=minutes,
                        edit=lambda netlist: FAMILY.edit(netlist, part))  # fmt: skip
    facts = {"engine": config.name, "device": f"ECP5-{device}", "speed": speed, "macs": config.macs}
    facts |= {name: used for name, (used, _) in FAMILY.area(report["utilization"], {}).items()}
    facts["LUT4/MAC"] = round(facts["LUT4"] / config.macs, 1)
    found = flow.facts_of(report)
    facts["clock"] = found["clock"]
    if found["critical_path"]:
        facts["critical path"] = "{from} to {to}".format_map(found["critical_path"])
    return facts | {"seed": seed, "nextpnr seconds": round(time.monotonic() - start)}


def _attempts(config, out, options, console):
    """Place with one seed after the other until the clock is reached; return the facts of the fastest one."""
    best = None
    for seed in options.seed:
        try:
            facts = place(config, out, device=options.device, seed=seed, clock=options.clock, minutes=options.minutes)
        except OutOfTime as stopped:
            console.print(f"seed {seed}: {stopped}", highlight=False)
            continue
        console.print(f"seed {seed}: {facts['clock']} MHz", highlight=False)
        if best is None or facts["clock"] > best["clock"]:
            best = facts
        if options.at_least and best["clock"] >= options.at_least:
            break
    if best is None:
        raise RuntimeError(f"no seed of {options.seed} was routed in {options.minutes:g} minutes")
    (out / "summary.json").write_text(json.dumps(best, indent=2) + "\n")
    return best


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m celosia.boards.synth", description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="mac64", help="engine preset or JSON file (default: mac64)")
    parser.add_argument("--device", default="85k", choices=DEVICES)
    parser.add_argument("--seed", type=int, nargs="+", default=[1], help="of the placer; several are tried one after the other")
    parser.add_argument("--clock", type=float, default=100.0, help="MHz to aim at (default: 100)")
    parser.add_argument("--minutes", type=float, help="limit for each placement")
    parser.add_argument("--out", type=Path, help="folder for logs and netlist (default: build/synth/PRESET)")
    parser.add_argument(
        "--at-least", type=float, metavar="MHZ", help="stop at the first seed that gives this clock; exit with 1 if none does"
    )
    options = parser.parse_args(arguments)
    console = Console()
    try:
        for tool in (YOSYS, FAMILY.placer):
            _ = tool.version
        config = EngineConfig.load(options.preset)
        out = options.out or Path("build/synth") / config.name
        console.print(f"{config.name}: Yosys, then nextpnr with seeds {options.seed}; logs in {out}", highlight=False)
        console.print(f"Yosys: {synthesise(config, out):.0f} s", highlight=False)
        facts = _attempts(config, out, options, console)
    except (BadConfig, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    table = Table(title=f"{facts['engine']} on {facts['device']}, speed grade {facts['speed']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in facts.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value}{' MHz' if name == 'clock' else ''}")
    console.print(table)
    if options.at_least and facts["clock"] < options.at_least:
        print(f"clock {facts['clock']} MHz is below {options.at_least} MHz", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
