"""``celosia bench``."""

import io
import statistics
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

import celosia
from celosia.tools.bench.convs import SHAPES, cause
from celosia.tools.bench.measure import SWEEP, measure
from celosia.tools.bench.networks import NETWORKS, conv, network
from celosia.tools.commands.console import output, status
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.errors import BadFile
from celosia.tools.files import replacing, write_json
from celosia.tools.session import engine_config

__all__ = ["run"]


LOW = 0.5
"""Ratio of bound to cycles below which the cause is named."""


def run(options):
    """Measure the networks, or with ``--convs`` the convolutions; return 1 if an element differs from ONNX Runtime's."""
    config = engine_config(options.engine)
    names = options.names or (() if options.convs else (*NETWORKS, *SWEEP))
    builders = [network(name) for name in names]
    layers = [conv(*shape) for shape in SHAPES] if options.convs else []
    if options.save:
        return save([*builders, *layers], options.save)
    rows, found, causes = [], [], {}
    with status(f"preparing {config.name}") as say:
        for builder in builders:
            rows.append(measure(builder, config, options.on, memory=options.memory, say=say)[0])
        for builder in layers:
            row, report = measure(builder, config, options.on, options=CompilerOptions(blocked_inputs=True), memory=options.memory, say=say)
            found.append(row)
            if report and report.traces and row.ratio < LOW:
                causes[row.name] = cause(report.traces[0], row.bound, config)
    if options.json:
        facts = {"engine": config.name, "on": options.on, "version": celosia.__version__, "peak": config.macs}
        facts["networks"] = [row.to_dict() for row in rows]
        facts["convolutions"] = [row.to_dict() | {"cause": causes.get(row.name, "")} for row in found]
        write_json(options.json, facts)
    console = output()
    if rows:
        console.print(table(rows, f"{config.name} ({options.on}), one inference"))
    if found:
        print_convolutions(console, found, causes, f"{config.name} ({options.on}), single convolutions")
    for row in (*rows, *found):
        if row.reason:
            console.print(f"[dim]{row.name}: {escape(row.reason)}[/]")
    return print_differences(console, [*rows, *found])


def print_convolutions(console, rows, causes, title):
    """Print the sweep, its median ratio, and how many are below :data:`LOW`."""
    result = Table(title=escape(title), title_justify="left", expand=False)
    result.add_column("channels × size, outputs, kernel, stride", max_width=24)
    for name in ("cycles", "bound", "utilisation", "ratio", "different"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column(f"below {LOW}, because")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells = _number(row.cycles), _number(row.bound), _percent(row.utilization), ratio, _number(row.differences)
        result.add_row(row.name.removeprefix("conv-"), *cells, causes.get(row.name, ""))
    console.print(result)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    if ratios:
        low = sum(ratio < LOW for ratio in ratios)
        console.print(f"median ratio of {len(ratios)} convolutions: {statistics.median(ratios):.2f}; {low} below {LOW}")


def save(builders, folder):
    """Write each network and an input for it to ``folder``."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(folder, f"cannot be made: {error.strerror or error}") from None
    for builder in builders:
        inputs = io.BytesIO()
        np.savez_compressed(inputs, **builder.feed())
        for suffix, data in (("onnx", builder.model().SerializeToString()), ("npz", inputs.getvalue())):
            with replacing(folder / f"{builder.name}.{suffix}") as path:
                path.write_bytes(data)
        output().print(f"wrote {folder / builder.name}.onnx and .npz")
    return 0


def table(rows, title):
    """Return the measurements as a :class:`rich.table.Table`."""
    result = Table(title=escape(title), title_justify="left", expand=False)
    result.add_column("network", overflow="fold")
    for name in ("MACs", "cycles", "utilisation", "bound", "ratio", "must", "target", "different"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        late = row.must and row.cycles and row.cycles > row.must
        cycles = _number(row.cycles)
        result.add_row(
            row.name, _number(row.macs), f"[red]{cycles}[/]" if late else cycles, _percent(row.utilization), _number(row.bound),
            "" if row.ratio is None else f"{row.ratio:.2f}", _number(row.must), _number(row.target), _number(row.differences),
        )  # fmt: skip
    return result


def print_differences(console, rows):
    """Say whether the outputs are ONNX Runtime's; return the exit code."""
    ran = [row for row in rows if row.elements is not None]
    elements, differences, ties = (sum(getattr(row, key) for row in ran) for key in ("elements", "differences", "ties"))
    colour = "red" if differences else "green"
    console.print(f"[{colour}]{differences:,} of {elements:,} output elements differ from ONNX Runtime[/]" + (f", {ties:,} ties" if ties else ""))
    return 1 if differences else 0


def _number(value):
    return "" if value is None else f"{value:,}"


def _percent(value):
    return "" if value is None else f"{value:.1%}"
