"""``celosia profile``."""

import json

import numpy as np
from rich.markup import escape
from rich.table import Table

import celosia
from celosia.sim.cycles import predict
from celosia.sim.executor import instructions_of
from celosia.tools.commands.console import output, status
from celosia.tools.commands.run import execute, print_host_nodes
from celosia.tools.compiler.importer import refuse_float
from celosia.tools.errors import BadConfig
from celosia.tools.files import naming, read_inputs, replacing, write_json
from celosia.tools.places import is_place
from celosia.tools.profile.causes import CAUSES, UNEXPLAINED, profile_program
from celosia.tools.profile.page import page
from celosia.tools.profile.trace import trace
from celosia.tools.program import EngineSegment, is_program_file
from celosia.tools.report import Event
from celosia.tools.session import InferenceSession, check_feed

__all__ = ["run"]


def run(options):
    """Profile one inference; print the table and write what was asked for."""
    if options.on == "golden" or is_place(options.on):
        raise BadConfig(f"profile needs what only a simulator sees, and on {options.on!r} there is none of it; use --on verilator or --predict")
    if not is_program_file(options.model):
        refuse_float(options.model)
    with status("compiling"):
        session = InferenceSession(options.model, options.engine, options.on, memory=options.memory)
    profiles = predicted(session) if options.predict else measured(session, options)
    if not profiles:
        raise BadConfig(f"{session.model.source}: the engine runs no node of it, so that there are no cycles to explain; see `celosia explain`")
    source = "predicted by the cycle model" if options.predict else f"recorded in simulation ({options.on})"
    if options.html:
        text = page(profiles, title=session.model.source, engine=session.config.name, source=source)
        with replacing(options.html) as path:
            path.write_text(text, encoding="utf-8")
    if options.trace:
        with replacing(options.trace) as path:
            path.write_text(json.dumps(trace(profiles, f"{session.model.source} on {session.config.name}")), encoding="utf-8")
    if options.json:
        facts = {"model": session.model.source, "engine": session.config.name, "on": "predicted" if options.predict else options.on}
        write_json(options.json, facts | {"version": celosia.__version__, "segments": [profile.to_dict() for profile in profiles]})
    console = output()
    for profile in profiles:
        console.print(table(profile, f"{session.model.source} on {session.config.name}, {source}"))
        console.print(causes_table(profile))
    print_host_nodes(session.model)
    return 0


def measured(session, options):
    """Run one inference in a simulator; return the profiles of its engine segments."""
    if options.input:
        feed = read_inputs(options.input, [argument.name for argument in session.get_inputs()])
        feed = {name: array[:1] if array.ndim else array for name, array in feed.items()}
        with naming(options.input):
            check_feed(session.model, feed)
    else:  # what the engine computes does not change its cycles
        feed = {name: np.zeros([max(size, 1) for size in shape], dtype) for name, dtype, shape in session.model.inputs}
    execute(session, feed)
    return [profile_program(program, session.config, events, cycles) for program, events, cycles in session.report.traces]


def predicted(session):
    """Return the profiles of the engine segments as the cycle model predicts them."""
    profiles = []
    for segment in session.model.segments:
        if isinstance(segment, EngineSegment):
            found = predict(instructions_of(segment.program), session.config)
            events = [Event(*place, wait=int(row["wait"])) for place, row in zip(found.timeline(), found.events)]
            profiles.append(profile_program(segment.program, session.config, events, found.cycles))
    return profiles


def table(profile, title):
    """Return the layers as a :class:`rich.table.Table`."""
    outside = any(layer.external_bytes for layer in profile.layers)
    result = Table(title=escape(title), title_justify="left", expand=False)
    result.add_column("layer", overflow="fold")
    result.add_column("operator", overflow="fold")
    for name in ("MACs", "cycles", "of peak", "mostly", "then", "bytes", *(["external"] if outside else [])):
        result.add_column(name, justify="right", no_wrap=name != "then")
    for layer in profile.layers:
        if not layer.cycles and not layer.macs:
            continue
        peak = f"{layer.macs / (layer.cycles * profile.config.macs):.1%}" if layer.macs and layer.cycles else ""
        first, *others = [f"{cause} {count / layer.cycles:.0%}" for cause, count in layer.causes.most_common(3)] or [""]
        cells = [escape(layer.name), layer.operator, f"{layer.macs:,}", f"{layer.cycles:,}", peak, first, ", ".join(others)]
        result.add_row(*cells, f"{layer.memory_bytes:,}", *([f"{layer.external_bytes:,}"] if outside else []))
    return result


def causes_table(profile):
    """Return the cycles of the run by cause."""
    result = Table(title="Where the cycles go", title_justify="left", expand=False)
    result.add_column("cause")
    result.add_column("cycles", justify="right")
    result.add_column("", justify="right")
    result.add_column("meaning", overflow="fold")
    for cause, meaning in CAUSES.items():
        if profile.causes[cause]:
            result.add_row(cause, f"{profile.causes[cause]:,}", f"{profile.causes[cause] / profile.cycles:.1%}", meaning)
    result.add_row(UNEXPLAINED, f"{profile.causes[UNEXPLAINED]:,}", f"{profile.causes[UNEXPLAINED] / profile.cycles:.2%}", "no cause found", style="dim")
    result.add_section()
    result.add_row("total", f"{profile.cycles:,}", "", "", style="bold")
    return result
