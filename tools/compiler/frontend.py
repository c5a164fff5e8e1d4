"""The front half of the compiler: an ONNX file becomes segments for engine and host."""

from dataclasses import dataclass, replace

import onnxruntime

from celosia.tools.compiler import ir
from celosia.tools.compiler.fuse import fuse
from celosia.tools.compiler.importer import load, session_options
from celosia.tools.compiler.legalise import NoShapes, legalise, refused
from celosia.tools.compiler.partition import host_reason, partition
from celosia.tools.compiler.quantise import quantise
from celosia.tools.program import HostSegment

__all__ = ["Frontend", "lower"]

NOT_QUANTISED = "The engine computes on int8 and uint8 tensors, and this model has none."
NO_SHAPES = "ONNX Runtime cannot run this model with inputs of zeros, so that its shapes stay unknown."
QUANTISATION = ("QuantizeLinear", "DequantizeLinear")
RUN_IT = "Look whether ONNX Runtime runs the model with real inputs, and export it with fixed shapes and a batch of 1."
QUANTISE = "Quantise the float model with `celosia quantize`."


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


def lower(path, config=None, *, keep=(), observe=None):
    """Import, legalise, quantise, partition and fuse the ONNX file ``path``.

    Parameters
    ----------
    path : str or Path
    config : EngineConfig, optional
        What the engine was built without runs on the host.
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
    if not source.is_quantised:
        return _on_the_host(source, NOT_QUANTISED, QUANTISE)
    try:
        graph = legalise(source)
    except NoShapes:
        return _on_the_host(source, NO_SHAPES, RUN_IT)
    observe("legalise", graph)
    quantised = quantise(graph, config)
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


def _on_the_host(source, reason, suggestion):
    """Return the front end of a model that the engine has no part in: ONNX Runtime runs it as it is."""
    nodes = tuple((node.name, node.op_type, reason, suggestion) for node in source.model.graph.node)
    data = source.model.SerializeToString()
    try:
        onnxruntime.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise refused(source, error) from None
    segment = HostSegment(
        onnx=data,
        inputs=tuple(name for name, *_ in source.inputs),
        outputs=tuple(name for name, *_ in source.outputs),
        nodes=nodes,
    )
    return Frontend(
        file=source.file,
        sha256=source.sha256,
        inputs=source.inputs,
        outputs=source.outputs,
        segments=(segment,),
        rows=tuple((name, operator, "host", *why) for name, operator, *why in nodes),
    )


def _known_name(operation, operators):
    """Return the name of ``operation``, or of its last node in the file where ONNX Runtime has given it a new one."""
    if operation.name in operators:
        return operation.name
    inner = [name for name in operation.sources if operators.get(name, "QuantizeLinear") not in QUANTISATION]
    return inner[-1] if inner else operation.name


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
    rows, operators = [], {node.name: node.op_type for node in source.model.graph.node}
    for node in source.model.graph.node:
        where, note, advice, operation = found.get(node.name, ("removed", "ONNX Runtime's optimiser leaves it out.", "", None))
        if operation and node.op_type in QUANTISATION and node.op_type != operation.operator:
            note, advice = f"part of {_known_name(operation, operators)}", ""
        rows.append((node.name, node.op_type, where, note, advice))
    return tuple(rows)
