"""``celosia run``."""

from contextlib import nullcontext

import numpy as np
from rich.markup import escape

from celosia.tools.check import check_layers, check_outputs, summary
from celosia.tools.commands.console import output, progress, status
from celosia.tools.compiler.importer import refuse_float
from celosia.tools.errors import BadConfig, BadProgram, HostNodes
from celosia.tools.files import naming, read_inputs, replacing, write_json
from celosia.tools.places import is_place
from celosia.tools.program import is_program_file
from celosia.tools.report import table
from celosia.tools.session import InferenceSession, check_feed
from celosia.tools.timeline import timeline

__all__ = ["execute", "print_comparison", "refuse_host_nodes", "run", "write_files", "write_report"]

SHOWN = 10
"""Tensors with differences that are listed by name."""


def run(options):
    """Run the model; return 1 if a comparison found a difference."""
    if options.check and is_program_file(options.model):
        raise BadProgram(options.model, "--check compares with ONNX Runtime and needs the ONNX file: run that instead")
    if options.limit is not None and options.limit < 1:
        raise BadConfig(f"--limit must be at least 1, not {options.limit}")
    if not is_program_file(options.model):
        refuse_float(options.model)
    with status("compiling"):
        session = InferenceSession(options.model, options.engine, options.on, memory=options.memory)
    if options.strict:
        refuse_host_nodes(session.model)
    feed = read_inputs(options.input, [argument.name for argument in session.get_inputs()])
    feed = {name: array[: options.limit] if array.ndim else array for name, array in feed.items()}
    with naming(options.input):
        check_feed(session.model, feed)
    outputs = execute(session, feed)
    found = compare(session, options, feed, outputs) if options.check else None
    write_files(session, options, outputs)
    output().print(table(session.report))
    print_host_nodes(session.model)
    return print_comparison(found) if options.check else 0


def print_host_nodes(model):
    """Name the nodes that ONNX Runtime ran."""
    nodes = model.host_nodes
    if nodes:
        names = ", ".join(f"{name} ({operator})" for name, operator, _, _ in nodes)
        output().print(f"[yellow]on the host, in ONNX Runtime: {escape(names)}[/]; `celosia explain` says why")


def refuse_host_nodes(model):
    """Raise :exc:`HostNodes` if a node runs on the host."""
    if model.host_nodes:
        raise HostNodes(model.source, model.host_nodes)


def execute(session, feed):
    """Run with a progress bar; return the outputs."""
    _, count = check_feed(session.model, feed)
    with status(f"connecting to {session.on}" if is_place(session.on) else "preparing the simulator") as say:
        session.prepare(
            on_build=lambda: say(f"building the simulator of {session.config.name}, once for this engine (a minute)")
        )
    with progress(f"running on {session.config.name} ({session.on})", count) as advance:
        return session.run(None, feed, progress=advance)


def compare(session, options, feed, outputs):
    """Compare with ONNX Runtime, note the totals in the report and return the comparisons."""
    report = session.report
    if options.check == "layers":
        with progress("running with every tensor kept", report.inferences) as advance:
            found = check_layers(session, options.model, feed, progress=advance)
    else:
        with nullcontext() if options.on == "golden" else status("comparing with ONNX Runtime"):
            found = check_outputs(session, options.model, feed, outputs)
    report.elements, report.differences, report.ties = summary(found)
    return found


def write_files(session, options, outputs):
    """Write what ``--output``, ``--json`` and ``--timeline`` ask for."""
    write_report(session.report, options)  # which may refuse: first
    if getattr(options, "output", None):
        names = [argument.name for argument in session.get_outputs()]
        with replacing(options.output) as path, open(path, "wb") as file:
            np.savez(file, **dict(zip(names, outputs)))


def write_report(report, options):
    """Write what ``--json`` and ``--timeline`` ask for."""
    if options.timeline and not report.traces:
        raise BadConfig(f"--timeline needs cycles, and there are none: the engine runs no node of {report.model}")
    if options.json:
        write_json(options.json, report.to_dict())
    if options.timeline:
        program, events, cycles = max(report.traces, key=lambda trace: trace[2])
        with replacing(options.timeline) as path:
            path.write_text(timeline(program, events, cycles, title=f"{report.model} on {report.engine}"))


def print_comparison(found):
    """Print the result of a comparison; return the exit code."""
    console = output()
    elements, differences, ties = summary(found)
    wrong = [comparison for comparison in found if comparison.differences]
    for comparison in wrong[:SHOWN]:
        console.print(f"[red]{escape(str(comparison))}[/]")
    if len(wrong) > SHOWN:
        console.print(f"… and {len(wrong) - SHOWN} more tensors")
    about = f"; {ties:,} average-pool ties, where float32 falls either way" if ties else ""
    colour = "red" if differences else "green"
    console.print(
        f"[{colour}]{differences:,} differences[/] from ONNX Runtime in {elements:,} elements of {len(found)} tensors{about}"
    )
    return 1 if differences else 0
