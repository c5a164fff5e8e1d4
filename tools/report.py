"""What a run cost: cycles, multiply-accumulates and utilisation, layer by layer."""

from collections import defaultdict
from dataclasses import dataclass, field

import celosia

__all__ = ["Event", "LayerReport", "Report", "attribute", "table"]

UNITS = ("load", "execute", "store")
PRIORITY = ("execute", "store", "load", "transfer")
"""Whose layer a cycle is counted for when several units work: the array is what the engine is built around."""


@dataclass(frozen=True)
class Event:
    """One instruction in one unit, from cycle ``start`` up to but not including cycle ``end``, counted from the doorbell.

    In ``stall`` of them it had work and could not go on; in ``wait`` cycles before, the unit was free and the instruction lacked tokens.
    """

    unit: str
    index: int
    start: int
    end: int
    stall: int = 0
    wait: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One row: a node on the engine (``cycles`` is None where time does not exist, on the golden executor) or on the host.

    ``bound`` says what keeps it from taking fewer cycles: ``array``, ``weights`` (the array takes weights), ``load``, ``store`` or ``latency``;
    empty where that is not known.
    """

    name: str
    operator: str
    where: str
    cycles: int | None
    macs: int
    utilization: float | None
    reason: str = ""
    bound: str = ""

    def to_dict(self):
        """Return what `--json` writes of the layer."""
        keys = ["name", "operator", "where", "cycles", "macs", "utilization"]
        keys += ["reason"] * (self.where == "host") + ["bound"] * bool(self.bound)
        return {key: getattr(self, key) for key in keys}


@dataclass(kw_only=True)
class Report:
    """The figures of a run.

    Parameters
    ----------
    model, engine, backend : str
    inferences : int
    peak : int
        Multiply-accumulates that the array can do per cycle.
    cycles : int or None
        Per inference, from the doorbell to done; of several engine segments the sum.
    layers : list of LayerReport
    unexplained : int or None
        Cycles in which no unit worked.
    elements, differences, ties : int or None
        Output elements compared with ONNX Runtime; None without a comparison. ``ties`` are counted in neither of the others' favour.
    traces : list
        ``(program, events)`` of each engine segment's first inference.
    """

    model: str
    engine: str
    backend: str
    inferences: int = 0
    peak: int = 1
    cycles: int | None = None
    layers: list = field(default_factory=list)
    unexplained: int | None = None
    elements: int | None = None
    differences: int | None = None
    ties: int | None = None
    traces: list = field(default_factory=list)

    @property
    def macs(self):
        return sum(layer.macs for layer in self.layers)

    @property
    def utilization(self):
        """Part of the array's multiply-accumulates that were useful, of one inference."""
        return self.macs / (self.cycles * self.peak) if self.cycles else None

    def to_dict(self):
        """Return what `--json` writes."""
        return {
            "model": self.model,
            "engine": self.engine,
            "on": self.backend,
            "version": celosia.__version__,
            "inferences": self.inferences,
            "cycles": self.cycles,
            "macs": self.macs,
            "utilization": self.utilization,
            "elements": self.elements,
            "differences": self.differences,
            "ties": self.ties,
            "unexplained_cycles": self.unexplained,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def add_program(self, program, cycles, events, bound=lambda layer, cycles: ""):
        """Append the layers of an engine segment that took ``cycles`` (None on the golden executor) with these events (none on a board).

        ``bound`` is called for what bounds a layer that took so many cycles.
        """
        shares, unexplained = [None] * len(program.layers), None
        if cycles:
            self.cycles = (self.cycles or 0) + cycles
        if cycles and events:
            shares, unexplained = attribute(events, program.layers, cycles)
            self.unexplained = (self.unexplained or 0) + unexplained
            self.traces.append((program, events, cycles))
        for layer, share in zip(program.layers, shares):
            utilization = layer.macs / (share * self.peak) if share else None
            self.layers.append(
                LayerReport(
                    name=layer.name,
                    operator=layer.operator,
                    where="engine",
                    cycles=share,
                    macs=layer.macs,
                    utilization=utilization,
                    bound=bound(layer, share),
                )
            )

    def add_host(self, segment):
        """Append the nodes of a host segment."""
        for name, operator, reason, _ in segment.nodes:
            self.layers.append(
                LayerReport(name=name, operator=operator, where="host", cycles=None, macs=0, utilization=None, reason=reason)
            )


def attribute(events, layers, cycles):
    """Divide the cycles of a run among its layers.

    Every cycle is counted once: for the layer whose instruction runs in the execute unit, else in the store unit, else in the load
    unit; of two instructions in one unit (the older one finishing, the next one begun) for the older.

    Parameters
    ----------
    events : iterable of Event
    layers : sequence of Layer
    cycles : int

    Returns
    -------
    list of int, int
        Cycles of each layer, and those in which no unit worked; they add up to ``cycles``.
    """
    layer_of = {index: number for number, layer in enumerate(layers) for span in layer.spans for index in span}
    edges = defaultdict(list)
    for event in events:
        start, end = max(event.start, 0), min(event.end, cycles)
        if start < end:
            edges[start].append((event, True))
            edges[end].append((event, False))
    shares, unexplained, before = [0] * len(layers), 0, 0
    active = {unit: set() for unit in PRIORITY}
    for cycle in sorted(edges.keys() | {cycles}):
        index = next((min(active[unit]) for unit in PRIORITY if active[unit]), None)
        if index in layer_of:
            shares[layer_of[index]] += cycle - before
        else:
            unexplained += cycle - before
        before = cycle
        for event, begins in edges[cycle]:
            (active[event.unit].add if begins else active[event.unit].discard)(event.index)
    return shares, unexplained


def table(report):
    """Return the report as a :class:`rich.table.Table`."""
    from rich.markup import escape
    from rich.table import Table

    timed = report.cycles is not None
    bounded = any(layer.bound for layer in report.layers)
    result = Table(
        title=f"{escape(report.model)} on {report.engine} ({report.backend}), one inference", title_justify="left", expand=False
    )
    result.add_column("layer", overflow="fold")
    result.add_column("operator", overflow="fold")
    result.add_column("where")
    for title in ("cycles", "MACs", "utilisation"):
        result.add_column(title, justify="right", no_wrap=True)
    if bounded:
        result.add_column("bound by")
    for layer in report.layers:
        host = layer.where == "host"
        result.add_row(
            escape(layer.name), layer.operator, layer.where, _number(layer.cycles), "" if host else _number(layer.macs),
            _percent(layer.utilization) if layer.macs else "", *[layer.bound] * bounded, style="dim" if host else None,
        )  # fmt: skip
    if timed and report.unexplained:
        result.add_row("(no unit at work)", "", "", _number(report.unexplained), "", "", style="dim")
    result.add_section()
    result.add_row("total", "", "", _number(report.cycles), _number(report.macs), _percent(report.utilization), style="bold")
    return result


def _number(value):
    return "" if value is None else f"{value:,}"


def _percent(value):
    return "" if value is None else f"{value:.1%}"
