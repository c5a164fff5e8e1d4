"""An engine after synthesis: the netlist that nextpnr is given, as Verilog with models of its cells, for simulation.

Synthesis is the one for bitstreams: the family's own commands and edits (:class:`~celosia.boards.board.Family`). Where Yosys ships a
simulation model of a cell that is the one; the others are in :mod:`celosia.sim.benches.ecp5`.
"""

import json
import tempfile
from pathlib import Path

from celosia.boards.board import YOSYS
from celosia.boards.flow import synthesise
from celosia.boards.toolchain import run
from celosia.rtl.top import Top
from celosia.sim.benches.ecp5 import dp16kd, mult18x18d
from celosia.sim.benches.yosys import yosys_models
from celosia.sim.verilog import rtlil_of

__all__ = ["netlist"]

_LUTS = {"ecp5": ("LUT4", "INIT", "ABCD", "Z"), "ice40": ("SB_LUT4", "LUT_INIT", ("I0", "I1", "I2", "I3"), "O")}
"""By family, the lookup table: cell, parameter, inputs from the lowest address bit on, output."""

_OURS = {"DP16KD": dp16kd, "MULT18X18D": mult18x18d}
"""Models for which Yosys has none."""

_INSIDE = {"CCU2C": ("LUT4", "LUT2")}
"""What Yosys' models are made of."""


def netlist(config, family, device):
    """Return Verilog: a module ``celosia`` with the ports of ``Top(config)``, made of a family's cells, and their models.

    Parameters
    ----------
    config : EngineConfig
    family : Family
        Of an ECP5 or an iCE40.
    device : str
        As its vendor calls it, without package and speed.

    Raises
    ------
    ToolFailed
        If Yosys is missing or fails.
    """
    with tempfile.TemporaryDirectory(prefix="celosia-") as name:
        folder = Path(name)
        (folder / "top.il").write_text(rtlil_of(Top(config, multiplier=family.multiplier)))
        synthesise(folder, family.synthesis("celosia"))
        edited = family.edit(json.loads((folder / "top.json").read_text()), device)
        engine = edited["modules"]["celosia"]
        for cell in engine["cells"].values():  # an output that is cut off is connected to constants
            directions, connections = cell["port_directions"], cell["connections"]
            cell["connections"] = {port: bits for port, bits in connections.items() if directions[port] != "output" or bits[0] != "x"}
        edited["modules"] = {"celosia": engine}  # without Yosys' library
        (folder / "edited.json").write_text(json.dumps(edited))
        lut, *pins = _LUTS[family.name]
        (folder / "lut.v").write_text(_table(lut, *pins))
        # A simulator is lost among thousands of modules with a table each, and takes a vector whose bits depend on each other for a loop.
        script = ["read_json edited.json", "rename -hide */w:* */c:*", "techmap -map lut.v", "splitnets", "clean", "write_verilog -noattr netlist.v"]
        run(YOSYS, ["-q", "-l", "netlist.log", "-p", "; ".join(script)], folder / "netlist.log", writes_log=True)
        text = (folder / "netlist.v").read_text()
    kinds = {cell["type"] for cell in engine["cells"].values()} - {lut, "$scopeinfo"}
    kinds |= {inner for kind in kinds for inner in _INSIDE.get(kind, ())}
    return text + yosys_models(family.name, *sorted(kinds - _OURS.keys())) + "".join(_OURS[kind]() for kind in sorted(kinds & _OURS.keys()))


def _table(cell, parameter, inputs, output):
    """Return a module that says what a lookup table is in Yosys' own terms."""
    return "\n".join([
        f"module {cell}(input {', '.join(inputs)}, output {output});",
        f"parameter [15:0] {parameter} = 0;",
        f"\\$lut #(.WIDTH(4), .LUT({parameter})) _TECHMAP_REPLACE_ (.A({{{', '.join(reversed(inputs))}}}), .Y({output}));",
        "endmodule",
        "",
    ])  # fmt: skip
