"""What can go wrong for a user: each class takes the facts and builds the one sentence the user reads."""

__all__ = ["BadConfig", "BadFile", "BadInput", "BadModel", "BadProgram", "BoardError", "CelosiaError", "DoesNotFit", "EngineError", "HostNodes", "UnsupportedOperator", "onnx_runtime_says"]

from celosia.rtl.config import BadConfig as _BadConfig

_KNOBS = {
    "activation": "act_depth", "weight": "weight_tiles", "parameter": "param_depth", "program": "program_depth", "table": "tables"
}  # fmt: skip


class CelosiaError(Exception):
    """Base of every error whose message is meant for the user; the command line prints it and exits with 1."""


class BadConfig(CelosiaError, _BadConfig):
    """An engine configuration that cannot be used."""


class BadFile(CelosiaError):
    """A file that cannot be read or written: ``BadFile(path, problem)``."""

    def __init__(self, file, problem):
        super().__init__(f"{file}: {problem}")


class BadModel(CelosiaError):
    """An ONNX file that cannot be read or compiled: ``BadModel(file, problem, remedy)``."""

    def __init__(self, file, problem, remedy=""):
        super().__init__(f"{file}: {problem}" + (f"; {remedy}" if remedy else ""))


class UnsupportedOperator(CelosiaError):
    """A node that neither the engine nor the host runs."""

    def __init__(self, file, node, operator, reason):
        super().__init__(f"{file}: node {node!r} ({operator}): {reason}")


class HostNodes(CelosiaError):
    """Nodes on the host where ``--strict`` allows none: one sentence each, on a line of its own.

    ``nodes`` are ``(name, operator, reason, suggestion)``.
    """

    def __init__(self, file, nodes):
        lines = [
            f"{file}: node {name!r} ({operator}): {reason.rstrip('.')}; --strict allows no node on the host"
            for name, operator, reason, _ in nodes
        ]
        super().__init__("\n".join(lines))


class BadInput(CelosiaError):
    """An input array that does not match the graph: ``BadInput(name, problem)``."""

    def __init__(self, name, problem):
        super().__init__(f"input {name!r} {problem}")


class BadProgram(CelosiaError):
    """A program file that is damaged or was compiled for another engine."""

    def __init__(self, file, problem):
        super().__init__(f"{file}: {problem}")


class DoesNotFit(CelosiaError):
    """A network that is too large for a memory: names the memory and the bytes missing. ``fact`` is that sentence alone."""

    def __init__(self, memory, needed, available, what=""):
        self.memory = memory
        self.fact = (
            f"the {memory} memory is {needed - available:,} bytes too small: "
            f"{needed:,} needed{f' ({what})' if what else ''}, {available:,} available"
        )
        super().__init__(self.fact)

    def name(self, file, engine):
        """Say of which model and engine this is, and what to do; return the error itself."""
        remedy = "choose another preset"
        if self.memory in _KNOBS:
            remedy += f", or a JSON file with a larger {_KNOBS[self.memory]}"
        self.args = (f"{file}: does not fit engine {engine!r}: {self}; {remedy}",)
        return self


class BoardError(CelosiaError):
    """A bitstream that cannot be built, or not be written to the board."""


class EngineError(CelosiaError):
    """The engine stopped with an error, or did not finish."""


def onnx_runtime_says(error):
    """Return what an exception of ONNX Runtime says on one line, without error codes, source files and C++ signatures."""
    text = (" ".join(str(error).split()) or type(error).__name__).rpartition(" : ")[2]
    before, found, after = text.partition("/onnxruntime_src/")
    if found:
        depth, place = 0, after.find("(")
        while 0 <= place < len(after):
            depth += {"(": 1, ")": -1}.get(after[place], 0)
            place += 1
            if not depth:
                break
        text = before + after[place:].removeprefix(" const").lstrip() if place > 0 else before
    return text
