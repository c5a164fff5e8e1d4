"""What a compiled model will cost, layer by layer, predicted by the cycle model: a :class:`~celosia.tools.report.Report` without a run."""

from dataclasses import replace
from functools import partial

from celosia.sim.cycles import predict
from celosia.sim.executor import instructions_of
from celosia.tools.errors import DoesNotFit
from celosia.tools.program import EngineSegment
from celosia.tools.report import Event, Report
from celosia.tools.session import open_model

__all__ = ["LARGEST", "estimate_file", "estimate_model"]

LARGEST = {"act_depth": 1 << 16, "weight_tiles": 1 << 16, "param_depth": 1 << 14, "tables": 16, "program_depth": 1 << 16}
"""Memories as large as the instruction set can address."""

WAITS = 0.5
"""A layer in which no unit works for this part of its cycles is bound by the latency from one unit to the next."""


def estimate_file(path, config, options=None):
    """Compile an ONNX file, or read what `celosia compile` wrote, and estimate it.

    Returns
    -------
    Report, DoesNotFit or None
        With the second, the report is about an engine whose memories are :data:`LARGEST`.

    Raises
    ------
    CelosiaError
        If the model cannot be compiled, or does not fit these memories either.
    """
    try:
        return estimate_model(open_model(path, config, options), config), None
    except DoesNotFit as error:
        problem = error
    large = replace(config, **{knob: max(value, getattr(config, knob)) for knob, value in LARGEST.items()})
    return estimate_model(open_model(path, large, options), large), problem


def estimate_model(model, config):
    """Return the :class:`~celosia.tools.report.Report` of a compiled model: its ``backend`` is ``"estimate"``, each layer has a ``bound``."""
    report = Report(model=model.source, engine=config.name, backend="estimate", inferences=1, peak=config.macs)
    for segment in model.segments:
        if not isinstance(segment, EngineSegment):
            report.add_host(segment)
            continue
        instructions = instructions_of(segment.program)
        found = predict(instructions, config)
        events = [Event(*event) for event in found.timeline()]
        report.add_program(segment.program, found.cycles, events, partial(_bound, found, instructions))
    return report


def _bound(found, instructions, layer, cycles):
    """Return what keeps a layer from taking fewer than its ``cycles``: array, weights, load, store or latency."""
    numbers = [number for span in layer.spans for number in span]
    shares = found.share(instructions, numbers)
    unit = max(shares, key=shares.get)
    if shares[unit] < WAITS * cycles:
        return "latency"
    if unit != "execute":
        return unit
    return "weights" if 2 * found.weights[numbers].sum() > shares[unit] else "array"
