"""Measures generated networks on an engine: cycles, utilisation, compute-only bound, and the comparison with ONNX Runtime."""

from dataclasses import dataclass, fields

from celosia.tools.bench.bounds import model_bound
from celosia.tools.check import check_outputs, summary
from celosia.tools.errors import DoesNotFit
from celosia.tools.session import InferenceSession, engine_config

__all__ = ["SWEEP", "TARGETS", "Measurement", "measure"]

SWEEP = (
    "gemm-64x64x64", "gemm-128x128x128", "gemm-256x256x256", "gemm-512x512x512", "gemm-64x512x512", "gemm-256x64x256", "gemm-1x512x512",
)  # fmt: skip
"""Matrix products that are measured beside the networks."""

TARGETS = {
    "resnet8": (60_000, 55_000),
    "dscnn": (16_000, 14_000),
    "vww": (52_000, 46_000),
    "autoencoder": (8_000, 6_000),
    "gemm-256x256x256": (72_817, 68_985),  # 90 % and 95 % of peak
    "mobilenetv2": (2_400_000, 2_000_000),
    "resnet50": (20_919_733, 18_827_760),  # 72 % and 80 % of peak in the convolutions
}
"""Cycles that engines of 256 multiply-accumulates per cycle must not exceed, and those aimed at."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A row of the table.

    Parameters
    ----------
    name : str
    macs : int
    bound : int
        Compute-only bound in cycles, see :mod:`celosia.tools.bench.bounds`.
    cycles : int or None
        From the doorbell to the end; None if the network does not run, or on the golden executor.
    utilization : float or None
        Multiply-accumulates ÷ (cycles × those that the array can do per cycle).
    ratio : float or None
        ``bound / cycles``.
    must, target : int or None
        Of :data:`TARGETS`.
    elements, differences, ties : int or None
        Output elements compared with ONNX Runtime.
    reason : str
        Why it does not run, or which nodes ran on the host, or "".
    """

    name: str
    macs: int
    bound: int
    cycles: int | None = None
    utilization: float | None = None
    ratio: float | None = None
    must: int | None = None
    target: int | None = None
    elements: int | None = None
    differences: int | None = None
    ties: int | None = None
    reason: str = ""

    def to_dict(self):
        """Return what `--json` writes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def measure(builder, engine, on="verilator", *, options=None, memory=None, seed=0, say=lambda text: None):
    """Compile a network, run it once with a seeded random input and compare every output element with ONNX Runtime.

    Parameters
    ----------
    builder : Builder
        Of :mod:`celosia.tools.bench.networks`.
    engine : str or EngineConfig
    on : str
        As for :class:`~celosia.tools.session.InferenceSession`.
    options : CompilerOptions, optional
    memory : MemoryTiming, optional
    seed : int
        Of the input.
    say : function
        Called with what is being done.

    Returns
    -------
    Measurement, Report or None
        The report of the run is None if the network does not fit the engine.
    """
    config = engine_config(engine)
    data = builder.model().SerializeToString()
    say(f"{builder.name}: compiling")
    must, target = TARGETS.get(builder.name, (None, None)) if config.macs == 256 else (None, None)
    facts = {"name": builder.name, "macs": builder.macs, "must": must, "target": target}
    facts["bound"] = model_bound(data, config, blocked=bool(options and options.blocked_inputs))
    try:
        session = InferenceSession(data, config, on, options=options, memory=memory)
    except DoesNotFit as error:
        return Measurement(**facts, reason=f"does not fit: {error.fact}"), None
    say(f"{builder.name}: running")
    feed = builder.feed(seed=seed)
    outputs = session.run(None, feed)
    elements, differences, ties = summary(check_outputs(session, data, feed, outputs))
    report = session.report
    hosted = [f"{name} ({operator})" for name, operator, _, _ in session.model.host_nodes]
    measurement = Measurement(
        **facts,
        cycles=report.cycles,
        utilization=report.utilization,
        ratio=facts["bound"] / report.cycles if report.cycles else None,
        elements=elements,
        differences=differences,
        ties=ties,
        reason=f"on the host: {', '.join(hosted)}" if hosted else "",
    )
    return measurement, report
