"""Running Yosys, nextpnr and the packers: the builds for WebAssembly that come from PyPI.

Every tool runs in a process of its own and in the folder of its files, which it is given by name only: what these builds see as
``/tmp`` is a folder of their own. All they print is kept in a log.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass

__all__ = ["OutOfTime", "Tool", "ToolFailed", "ToolMissing", "run"]

POLL = 0.25
"""Seconds between two looks at a tool's log."""


class ToolFailed(RuntimeError):
    """A tool ended with an error; ``log`` is the path of what it said."""

    def __init__(self, sentence, log=None):
        super().__init__(sentence)
        self.log = log


class ToolMissing(ToolFailed):
    """A tool is not installed."""


class OutOfTime(ToolFailed):
    """A tool did not come to an end within its time limit."""


@dataclass(frozen=True)
class Tool:
    """A tool that is a Python function of its arguments.

    Parameters
    ----------
    module, function : str
        Where the function is.
    package : str
        The package on PyPI.
    takes_arguments : bool
        Whether the function takes the list of arguments; otherwise it reads ``sys.argv``.
    """

    module: str
    function: str
    package: str
    takes_arguments: bool = True

    @property
    def version(self):
        """Version of the package.

        Raises
        ------
        ToolMissing
            If it is not installed.
        """
        try:
            found = importlib.util.find_spec(self.module)
        except ImportError:
            found = None
        if found is None:
            raise ToolMissing(f"{self.package} is missing: pip install 'celosia[synth]'")
        return importlib.metadata.version(self.package)

    def command(self, arguments):
        """Return the command line that runs the tool."""
        given = "sys.argv[1:]" if self.takes_arguments else ""
        code = f"import sys; from {self.module} import {self.function} as run; sys.exit(run({given}))"
        return [sys.executable, "-c", code, *map(str, arguments)]


def run(tool, arguments, log, *, minutes=None, watch=lambda line: None, writes_log=False):
    """Run ``tool`` in the folder of ``log``, and keep there everything it prints; return the seconds it took.

    What ``watch`` raises stops the tool.

    Parameters
    ----------
    tool : Tool
    arguments : list of str
        Files without folders: they lie beside ``log``.
    log : Path
    minutes : float, optional
        Time limit.
    watch : callable
        Called with every line of the log, soon after it was written.
    writes_log : bool
        Whether the tool writes ``log`` itself; what it prints is kept beside it, in a file of the ending ``out``.

    Raises
    ------
    OutOfTime
        If the tool had to be stopped.
    ToolFailed
        If it fails; the message ends with the last error in the log.
    """
    start = time.monotonic()
    log.write_text("")
    printed = log.with_suffix(".out") if writes_log else log
    with printed.open("w") as sink, log.open(errors="replace") as source:
        process = subprocess.Popen(tool.command(arguments), stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, cwd=log.parent)  # fmt: skip
        try:
            ended = _follow(process, source, watch, minutes and start + 60 * minutes)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if not ended:
        raise OutOfTime(f"{tool.package} was stopped after {minutes:g} minutes; its log is {log}", log)
    if process.returncode:
        raise ToolFailed(
            f"{tool.package} failed with exit code {process.returncode}: {_complaint(printed, log)}; its log is {log}", log
        )
    return time.monotonic() - start


def _follow(process, source, watch, deadline):
    """Hand out the lines of a log until the process has ended; return False if the deadline came first."""
    rest = ""
    while True:
        ended = process.poll() is not None
        *lines, rest = (rest + source.read()).split("\n")
        for line in lines:
            watch(line)
        if ended:
            return True
        if deadline and time.monotonic() > deadline:
            return False
        try:
            process.wait(POLL)
        except subprocess.TimeoutExpired:
            pass


def _complaint(*logs):
    """Return the line in which a tool says what is wrong: the last error, or else the last line."""
    lines = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "0 errors" not in line]
    return (errors or lines or ["nothing"])[-1].removeprefix("ERROR: ")
