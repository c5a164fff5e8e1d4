"""From a board to its bitstream: design, synthesis, placement and routing, packing, and what nextpnr says about the result.

=============  ======================================================
file           holds
=============  ======================================================
top.il         the design, as Amaranth writes it for Yosys
top.json       the netlist
edited.json    what is placed of it
cells.json     Yosys' count of its cells
report.json    nextpnr's utilisation, clocks and critical paths
top.placed     what the packer takes
=============  ======================================================
"""

import hashlib
import json
import re
from dataclasses import dataclass

from celosia.boards.board import YOSYS
from celosia.boards.toolchain import ToolFailed, run
from celosia.boards.top import BoardTop

__all__ = ["Design", "TooLarge", "design_of", "facts_of", "pack", "place", "script_of", "synthesise"]


class TooLarge(ToolFailed):
    """A design takes more of something than the device has."""


@dataclass(frozen=True)
class Design:
    """What is synthesised: the text for Yosys, the text of the constraints."""

    rtlil: str
    constraints: str

    @property
    def digest(self):
        """Fingerprint of the logic, 16 hexadecimal digits."""
        return hashlib.sha256(self.rtlil.encode()).hexdigest()[:16]


def design_of(board, core=None):
    """Return the :class:`Design` of a board; for ``core`` see :class:`~celosia.boards.top.BoardTop`."""
    platform = board.new_platform()
    plan = platform.prepare(BoardTop(board, core), "top", emit_src=False)
    texts = {name: content.decode() if isinstance(content, bytes) else content for name, content in plan.files.items()}
    return Design(texts["top.il"], texts[f"top.{board.family.constraints}"])


def script_of(commands):
    """Return Yosys' commands around the family's, from ``top.il`` to ``top.json`` and ``cells.json``."""
    return [
        "read_rtlil top.il",
        # ABC9 takes a wire called ``data[0]`` for a bit of ``data`` when it puts logic back, and now and then gives up.
        "rename -hide */w:*[[]*",
        # Yosys looks at ``no_rw_check`` where it joins a memory with the register behind it, so the two are taken apart here. Left as they
        # come, every block RAM gets registers of its width for a read and a write that never meet.
        "memory_nordff",
        *commands,
        "tee -q -o cells.json stat -json",
        "write_json top.json",
    ]


def synthesise(folder, commands, *, watch=lambda line: None):
    """Synthesise ``top.il`` in ``folder``; return Yosys' cells by type.

    Parameters
    ----------
    folder : Path
    commands : list of str
        The family's, for Yosys.

    Raises
    ------
    ToolFailed
        If Yosys fails.
    """
    (folder / "top.ys").write_text("\n".join(script_of(commands)) + "\n")
    run(YOSYS, ["-q", "-l", "yosys.log", "-s", "top.ys"], folder / "yosys.log", watch=watch, writes_log=True)
    return json.loads((folder / "cells.json").read_text())["design"]["num_cells_by_type"]


def place(folder, tool, arguments, *, seed, clock, edit=lambda netlist: netlist, minutes=None, watch=lambda line: None):
    """Place and route ``top.json`` in ``folder``; return nextpnr's report.

    Parameters
    ----------
    folder : Path
    tool : Tool
        The family's nextpnr.
    arguments : list of str
        For device, constraints and result.
    seed : int
    clock : float
        In MHz, of every clock that no constraint speaks of.
    edit : callable
        Makes what is placed of the netlist.
    minutes : float, optional
        Time limit.
    watch : callable
        Called with every line of the log.

    Raises
    ------
    TooLarge
        If the device has too little of something.
    OutOfTime
        If nextpnr is not finished in time.
    ToolFailed
        If nextpnr fails.
    """
    (folder / "report.json").unlink(missing_ok=True)
    (folder / "edited.json").write_text(json.dumps(edit(json.loads((folder / "top.json").read_text()))))
    given = [*arguments, "--json", "edited.json", "--seed", str(seed), "--freq", f"{clock:g}", "--report", "report.json",
             "--timing-allow-fail"]  # fmt: skip

    def look(line):
        found = re.match(r"Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", line)
        if found and int(found[2]) > int(found[3]):
            raise TooLarge(f"the design takes {int(found[2]):,} {found[1]}, and the device has {int(found[3]):,}")
        watch(line)

    run(tool, given, folder / f"nextpnr-{seed}.log", minutes=minutes, watch=look)
    return json.loads((folder / "report.json").read_text())


def pack(folder, board):
    """Pack ``top.placed`` in ``folder``; return the path of the bitstream."""
    run(board.family.packer, board.family.packing(board.new_platform()), folder / "pack.log")
    return folder / f"top.{board.family.bitstream}"


# What nextpnr says ----------------------------------------------------------------------------------------------------


def facts_of(report):
    """Return what a report of nextpnr says about the clocks.

    Returns
    -------
    dict
        ``clocks``: by name, ``achieved`` and ``constraint`` in MHz. ``clock``: what the worst one achieves. ``critical_path``: of
        that clock, ``from``, ``to``, ``ns`` and of these ``logic_ns``.
    """
    clocks = {
        _plain(name): {key: round(entry[key], 2) for key in ("achieved", "constraint")}
        for name, entry in report["fmax"].items()
    }
    if not clocks:
        return {"clocks": {}, "clock": None, "critical_path": None}
    worst = min(clocks, key=lambda name: clocks[name]["achieved"] / clocks[name]["constraint"])
    paths = [path for path in report["critical_paths"] if _edge(path["from"]) == worst == _edge(path["to"])]
    return {"clocks": clocks, "clock": clocks[worst]["achieved"], "critical_path": _path(paths[0]) if paths else None}


def _path(path):
    steps = path["path"]
    return {
        "from": _plain(steps[0]["from"]["cell"]),
        "to": _plain(steps[-1]["to"]["cell"]),
        "ns": round(sum(step["delay"] for step in steps), 2),
        "logic_ns": round(sum(step["delay"] for step in steps if step["type"] != "routing"), 2),
    }


def _edge(name):
    return _plain(name.removeprefix("posedge ").removeprefix("negedge "))


def _plain(name):
    """Return a cell's or net's name without what the tools have added to it."""
    name = re.sub(r"^\$glbnet\$|\$TRELLIS_IO_IN$|\$(?:\w+_)?io(?:buf)?$", "", name)
    return re.sub(r"_(?:TRELLIS_FF|LUT4|CCU2C|PFUMX|L6MUX21|SB_\w+?|DFF\w*?|ALU|LUT\d|MUX2_LUT\d)_(?:[A-Z]\w*_?)*$", "", name)
