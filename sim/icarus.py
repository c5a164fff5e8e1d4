"""An engine in Icarus Verilog: slow, and independent of Verilator."""

import subprocess
from importlib import resources

import numpy as np
from amaranth.hdl import Shape

from celosia.rtl.sequencer import EngineTrace
from celosia.rtl.top import Top
from celosia.sim.cache import cached, digest, hardware_digest
from celosia.sim.events import EVENT, events_of
from celosia.sim.transport import Transport, TransportError
from celosia.sim.verilog import verilog

__all__ = ["IcarusError", "IcarusTransport"]

# Of the sources as they are imported here, not as they may be when a model is built.
_HARDWARE = hardware_digest()


class IcarusError(RuntimeError):
    """Icarus Verilog is missing, refuses the design, or ended early."""


class IcarusTransport(Transport):
    """A simulation process that talks over its standard streams with ``testbench.v``.

    Parameters
    ----------
    config : EngineConfig
    cache, on_build
        As of :func:`celosia.sim.verilator.build.build`.
    """

    def __init__(self, config, *, cache=None, on_build=lambda: None):
        bench = resources.files("celosia.sim").joinpath("testbench.v").read_text()

        def make(folder):
            on_build()
            (folder / "celosia.v").write_text(verilog(Top(config)))
            (folder / "testbench.v").write_text(bench)
            bits = Shape.cast(EngineTrace).width
            _call("iverilog", "-g2005", f"-DTIMELINE_BITS={bits}", "-o", "engine.vvp", "celosia.v", "testbench.v", cwd=folder)
            return folder / "."

        key = f"icarus-{config.rows}x{config.cols}-{digest(_HARDWARE, f'{config.digest:08x}', bench)}"
        program = cached(key, make, folder=cache) / "engine.vvp"
        try:
            self._process = subprocess.Popen(
                ["vvp", "-n", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii"
            )
        except OSError as error:
            raise IcarusError(f"Icarus Verilog (vvp) cannot be started: {error.strerror}") from None
        self._recording = False
        self._events = np.zeros(0, EVENT)

    def write(self, address, words):
        words = np.asarray(words, np.uint32)
        _, done = self._command(f"w {address:x} {len(words):x} " + " ".join(f"{word:x}" for word in words.tolist()))
        if done[0] < len(words):
            raise TransportError("write", address + 4 * done[0])

    def read(self, address, count):
        lines, done = self._command(f"r {address:x} {count:x}")
        if done[0] < count:
            raise TransportError("read", address + 4 * done[0])
        # Bits that were never written are unknown here and anything elsewhere.
        return np.array([int(line.replace("x", "0").replace("X", "0"), 16) for line in lines], np.uint32)

    def wait(self, limit):
        lines, (cycles, irq) = self._command(f"g {limit:x}")
        if self._recording:
            changes = (line.split()[1:] for line in lines)
            self._events = events_of([(int(cycle, 16), int(value, 16)) for cycle, value in changes], cycles)
        return bool(irq)

    def record(self, on):
        self._recording = bool(on)
        self._send(f"t {int(on)}")

    def events(self):
        return self._events

    def close(self):
        if self._process.poll() is None:
            self._send("q")
            self._process.communicate()

    def _send(self, command):
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def _command(self, command):
        self._send(command)
        lines = []
        for line in self._process.stdout:
            if line.startswith("="):
                return lines, [int(word, 16) for word in line.split()[1:]]
            lines.append(line.strip())
        raise IcarusError("the Icarus simulation ended early: " + " ".join(lines[-3:]))


def _call(*command, cwd):
    try:
        result = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise IcarusError(f"Icarus Verilog ({command[0]}) cannot be started: {error.strerror}") from None
    if result.returncode:
        raise IcarusError(f"Icarus Verilog refused the design: {(result.stdout + result.stderr).strip()[-2000:]}")
