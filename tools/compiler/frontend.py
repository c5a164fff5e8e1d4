"""The front half of the compiler: an ONNX file becomes segments for engine and host."""

from dataclasses import dataclass, replace

from celosia.tools.compiler import ir
from celosia.tools.compiler.fuse import fuse
from celosia.tools.compiler.importer import load
from celosia.tools.compiler.legalise import legalise
from celosia.tools.compiler.partition import host_reason, partition
from celosia.tools.compiler.quantise import quantise

__all__ = ["Frontend", "lower"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frontend:
    """What the front half knows of a model.

    Parameters
    ----------
    file, sha256 : str
    inputs, outputs : tuple
        ``(name, numpy dtype name, shape with batch)`` of the ONNX graph.
    segments : tuple
        :class:`~celosia.tools.program.HostSegment` and :class:`~celosia.tools.compiler.ir.Graph` in execution order.
    rows : tuple
        ``(node name, operator, "engine" | "host" | "removed", sentence, suggestion)`` for each node of the ONNX graph, in its order.
    """

    file: str
    sha256: str
    inputs: tuple
    outputs: tuple
    segments: tuple
    rows: tuple


def lower(path, *, keep=(), observe=None):
    """Import, legalise, quantise, partition and fuse the ONNX file ``path``.

    Parameters
    ----------
    path : str or Path
    keep : iterable of str
        ONNX values that must exist as tensors at the end, and become outputs of the last segment that has them.
    observe : function, optional
        Called with the name and result of each pass.

    Raises
    ------
    BadModel, UnsupportedOperator
        See :func:`celosia.tools.compiler.importer.load`.
    """
    observe = observe or (lambda name, result: None)
    keep = tuple(keep)
    source = load(path, keep=keep)
    observe("importer", source)
    graph = legalise(source)
    observe("legalise", graph)
    quantised = quantise(graph)
    observe("quantise", quantised)
    divided = partition(graph, quantised)
    observe("partition", divided)
    segments = tuple(fuse(segment, keep=keep) if isinstance(segment, ir.Graph) else segment for segment in divided.segments)
    observe("fuse", replace(divided, segments=segments))
    return Frontend(
        file=source.file,
        sha256=source.sha256,
        inputs=source.inputs,
        outputs=source.outputs,
        segments=segments,
        rows=_rows(source, quantised.decisions, divided),
    )


def _rows(source, decisions, divided):
    """Return a row for each ONNX node; one that is part of several operations is shown with the last of them."""
    found = {}
    for decision in decisions:
        operation = decision.operation
        on_engine = operation.output in divided.engine or (decision.is_view and operation.output not in divided.host)
        if not on_engine and operation.output not in divided.host:
            continue
        where = "engine" if on_engine else "host"
        note, advice = (decision.lowered.note, "") if on_engine else host_reason(decision)
        for name in operation.sources:
            if name not in found or on_engine:
                found[name] = (where, note, advice, operation)
    rows = []
    for node in source.model.graph.node:
        where, note, advice, operation = found.get(node.name, ("removed", "ONNX Runtime's optimiser leaves it out.", "", None))
        if operation and node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.op_type != operation.operator:
            note, advice = f"part of {operation.name}", ""
        rows.append((node.name, node.op_type, where, note, advice))
    return tuple(rows)
