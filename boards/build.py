"""Builds a board's bitstream: the stages of :mod:`celosia.boards.flow` in their order, only where something has changed.

Logs, netlist and reports stay in the output folder. ``summary.json`` there is what :func:`build` returned; it is written last.
"""

import hashlib
import json
import re
import time
from importlib import metadata, resources
from pathlib import Path

from celosia.boards.board import YOSYS
from celosia.boards.flow import TooLarge, design_of, facts_of, pack, place, script_of, synthesise
from celosia.boards.toolchain import OutOfTime

__all__ = ["BuildFailed", "Progress", "build", "measure"]


class BuildFailed(RuntimeError):
    """There is no bitstream; the message says why and what to try."""


class Progress:
    """Told what happens; this one keeps it to itself."""

    def stage(self, name, seconds):
        """A stage has ended."""

    def detail(self, text):
        """Something goes on."""

    def note(self, text):
        """Something has happened that should be kept in sight."""


def build(board, out, *, seeds=None, minutes=None, force=False, progress=None):
    """Build the bitstream of ``board`` in the folder ``out``.

    Parameters
    ----------
    board : Board
    out : Path
    seeds : sequence of int, optional
        Of the placer, tried one after the other until the clock closes; the board's own if not given.
    minutes : float, optional
        Time limit of each placement and routing.
    force : bool
        Build even if nothing has changed.
    progress : Progress, optional

    Returns
    -------
    dict
        ``board``, ``device``, ``engine``, ``digest`` (of the configuration), ``design`` (of the logic), ``macs``, ``target`` (the
        engine's clock in MHz), ``area`` (by resource, ``used`` and ``available``), ``lut4_per_mac``, what
        :func:`~celosia.boards.flow.facts_of` says, ``seed``, ``seconds`` by stage, ``bitstream``, ``built`` (False if nothing had
        changed).

    Raises
    ------
    BuildFailed
        If the design does not fit or its clock does not close.
    ToolFailed
        If a tool is missing or fails.
    """
    progress = progress or Progress()
    seeds = list(seeds or board.seeds)
    out = Path(out).absolute()
    settings = [board.name, board.config.to_json(), repr(board.clock), repr(seeds), *_versions(board)]
    sources = _digest(*settings, *_sources())
    before = None if force else _summary(out)
    if before and before["sources"] == sources:
        return before | {"built": False}
    work = _Work(board, out, progress)
    key = _digest(*settings, work.design.rtlil, work.design.constraints, *work.arguments)
    if before and before["key"] == key:
        return before | {"built": False}
    (out / "summary.json").unlink(missing_ok=True)
    facts = _closed(board, work, seeds, minutes)
    bitstream = work.timed("packing", lambda: pack(out, board))
    facts |= {"seconds": work.seconds, "bitstream": str(bitstream), "sources": sources, "key": key}
    (out / "summary.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts | {"built": True}


def measure(board, out, *, seeds, minutes=None, progress=None):
    """Place ``board`` with each of ``seeds``; return what :func:`build` does for each that was routed, whether or not its clock closes."""
    work = _Work(board, Path(out).absolute(), progress or Progress())
    found = []
    for seed in seeds:
        try:
            found.append(work.place(seed, minutes))
        except OutOfTime as stopped:
            work.progress.note(str(stopped))
    return found


class _Work:
    """A board's folder with its netlist."""

    def __init__(self, board, out, progress):
        self.board, self.out, self.progress = board, out, progress
        self.seconds = {}
        platform = board.new_platform()
        self.arguments = [*board.family.synthesis("top"), *board.family.placement(platform), *board.family.packing(platform)]
        out.mkdir(parents=True, exist_ok=True)
        self.design = self.timed("Amaranth", lambda: design_of(board))
        self.cells = None

    def timed(self, stage, work):
        start = time.monotonic()
        result = work()
        self.seconds[stage] = round(time.monotonic() - start, 1)
        self.progress.stage(stage, self.seconds[stage])
        return result

    def synthesise(self):
        """Make the netlist, unless it is there already."""
        commands = self.board.family.synthesis("top")
        key = _digest(self.design.rtlil, *script_of(commands), YOSYS.version)
        stamp, cells = self.out / "netlist.key", self.out / "cells.json"
        (self.out / f"top.{self.board.family.constraints}").write_text(self.design.constraints)
        if stamp.exists() and stamp.read_text() == key and (self.out / "top.json").exists():
            self.cells = json.loads(cells.read_text())["design"]["num_cells_by_type"]
            return
        stamp.unlink(missing_ok=True)
        (self.out / "top.il").write_text(self.design.rtlil)
        self.cells = self.timed("Yosys", lambda: synthesise(self.out, commands, watch=self._yosys_line))
        stamp.write_text(key)

    def place(self, seed, minutes):
        """Place with ``seed``; return the facts."""
        if self.cells is None:
            self.synthesise()
        board = self.board
        watch = _Nextpnr(self, seed)
        report = place(self.out, board.family.placer, board.family.placement(board.new_platform()), seed=seed, clock=board.frequency,
                       edit=lambda netlist: board.family.edit(netlist, board.family.chip(board.platform)), minutes=minutes, watch=watch)  # fmt: skip
        watch.end()
        area = board.family.area(report["utilization"], self.cells)
        macs = board.config.macs
        return {
            "board": board.name, "device": board.device, "engine": board.config.name, "digest": f"{board.config.digest:08x}",
            "design": self.design.digest, "macs": macs, "target": round(board.frequency, 3),
            "area": {name: {"used": used, "available": available} for name, (used, available) in area.items()},
            "lut4_per_mac": round(area["LUT4"][0] / macs, 1), **facts_of(report), "seed": seed,
        }  # fmt: skip

    def _yosys_line(self, line):
        found = re.match(r"\d+(?:\.\d+)*\. Executing (\w+) pass", line)
        if found:
            self.progress.detail(f"Yosys: {found[1].lower()}")


class _Nextpnr:
    """Makes stages and details of the lines of nextpnr's log."""

    def __init__(self, work, seed):
        self.work, self.seed = work, seed
        self.name, self.start = "placing", time.monotonic()

    def __call__(self, line):
        if line.startswith("Info: Routing.."):
            self.end()
            self.name, self.start = "routing", time.monotonic()
        for pattern, text in (
            (r"Info:\s+at iteration #(\d+).*legal = (\d+)", "round {}, wires of length {}"),
            (r"Info:\s+\d+ \|\s+\d+\s+\d+ \|\s+\d+\s+\d+ \|\s+(\d+)\|", "{} arcs left"),
            (r"Info:\s+iter=(\d+) wires=\d+ overused=(\d+)", "round {}, {} wires used twice"),
        ):
            found = re.match(pattern, line)
            if found:
                numbers = (f"{int(number):,}" for number in found.groups())
                self.work.progress.detail(f"{self.name}, seed {self.seed}: {text.format(*numbers)}")

    def end(self):
        stage = f"{self.name}, seed {self.seed}"
        self.work.seconds[stage] = round(time.monotonic() - self.start, 1)
        self.work.progress.stage(stage, self.work.seconds[stage])


def _closed(board, work, seeds, minutes):
    """Return the facts of the first seed with which every clock closes."""
    best = None
    for seed in seeds:
        try:
            facts = work.place(seed, minutes)
        except OutOfTime as stopped:
            work.progress.note(str(stopped))
            continue
        except TooLarge as error:
            raise BuildFailed(
                f"{board.name}: engine {board.config.name!r} does not fit the {board.device}: {error}; give a smaller one with --engine FILE.json"
            ) from None
        if all(clock["achieved"] >= clock["constraint"] for clock in facts["clocks"].values()):
            return facts
        work.progress.note(f"seed {seed}: {facts['clock']:g} MHz")
        best = facts if best is None or facts["clock"] > best["clock"] else best
    tried = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    if best is None:
        raise BuildFailed(
            f"{board.name}: not routed in {minutes:g} minutes with {tried}; try others with --seed, or more time with --minutes"
        )
    raise BuildFailed(_missed(board, best, tried, max(seeds)))


def _missed(board, best, tried, last):
    name, clock = min(best["clocks"].items(), key=lambda entry: entry[1]["achieved"] / entry[1]["constraint"])
    path = best["critical_path"]
    return (
        f"{board.name}: clock {name} does not close: it needs {clock['constraint']:g} MHz and reaches {clock['achieved']:g} MHz with {tried}, "
        f"{clock['constraint'] - clock['achieved']:.1f} MHz too little"
        + (f"; its longest path takes {path['ns']:g} ns, from {path['from']} to {path['to']}" if path else "")
        + f"; try other seeds (--seed {last + 1} {last + 2} {last + 3}) or a slower clock (--clock {int(clock['achieved'])})"
    )


def _digest(*parts):
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]


def _sources():
    """Return everything a design is made of but the board's row: it saves the seconds that elaboration takes."""
    folders = (resources.files("celosia.rtl"), resources.files("celosia.boards"))
    return [
        entry.read_text() for folder in folders for entry in sorted(folder.iterdir(), key=str) if entry.name.endswith(".py")
    ]


def _versions(board):
    """Return the tools' versions; raise :exc:`ToolMissing` before any work is done."""
    tools = [YOSYS, board.family.placer, board.family.packer]
    return [tool.version for tool in tools] + [metadata.version(name) for name in ("amaranth", "amaranth-boards")]


def _summary(out):
    """Return what an earlier build in ``out`` left, if its bitstream is still there."""
    try:
        summary = json.loads((out / "summary.json").read_text())
        return summary if Path(summary["bitstream"]).exists() and {"sources", "key"} <= summary.keys() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
