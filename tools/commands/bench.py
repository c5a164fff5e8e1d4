"""``celosia bench``."""

import io
import statistics
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

import celosia
from celosia.tools.bench.convs import SHAPES, cause
from celosia.tools.bench.levers import variants
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
    config, clock = engine_config(options.engine), clock_of(options.engine)
    if options.levers:
        return levers(config, options)
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
        if clock:
            facts["clock_mhz"] = clock
            for one, row in zip(facts["networks"], rows):
                one["milliseconds"], one["gmacs_per_second"] = at_clock(row, clock) if row.cycles else (None, None)
        facts["convolutions"] = [row.to_dict() | {"cause": causes.get(row.name, "")} for row in found]
        write_json(options.json, facts)
    console = output()
    if rows:
        console.print(table(rows, f"{config.name} ({options.on}), one inference"))
    for row in rows if clock else ():
        if row.cycles:
            milliseconds, speed = at_clock(row, clock)
            console.print(f"{row.name}: {milliseconds:.3g} ms and {speed:.3g} GMAC/s at the {clock:g} MHz of the board {options.engine}")
    if found:
        print_convolutions(console, found, causes, f"{config.name} ({options.on}), single convolutions")
    for row in (*rows, *found):
        if row.reason:
            console.print(f"[dim]{row.name}: {escape(row.reason)}[/]")
    return print_differences(console, [*rows, *found])


def levers(config, options):
    """Measure each lever and print a line for it; return as :func:`run`."""
    result = Table(title=escape(f"What the knobs of {config.name} buy ({options.on}), cycles of one inference"), title_justify="left", expand=False)
    result.add_column("lever", overflow="fold")
    for name in ("network", "with"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("pulled back to")
    for name in ("without", "more"):
        result.add_column(name, justify="right", no_wrap=True)
    rows, found, whole = [], [], {}
    with status(f"preparing {config.name}") as say:
        for lever, builder, knobs, changed in variants(config):
            if builder.name not in whole:
                whole[builder.name] = measure(builder, config, options.on, memory=options.memory, say=say)[0]
            best, row = whole[builder.name], measure(builder, changed, options.on, memory=options.memory, say=say)[0]
            rows += [best, row]
            more = row.cycles / best.cycles - 1 if row.cycles and best.cycles else None
            found.append({"lever": lever, "network": builder.name, "with": best.cycles, "knobs": knobs, "without": row.cycles, "more": more})
            result.add_row(lever, builder.name, _number(best.cycles), knobs, _number(row.cycles), "" if more is None else f"{more:+.1%}")
    if options.json:
        write_json(options.json, {"engine": config.name, "on": options.on, "version": celosia.__version__, "levers": found})
    console = output()
    console.print(result)
    for row, line in zip(rows[1::2], found):
        if row.reason:
            console.print(f"[dim]{row.name} with {line['knobs']}: {escape(row.reason)}[/]")
    return print_differences(console, rows)


def clock_of(engine):
    """Return the clock in MHz that a board of that name runs its engine at, or None if it is no board."""
    from celosia.boards.catalog import BOARDS  # here: the boards' pins take a while to import

    return BOARDS[engine].clock if engine in BOARDS else None


def at_clock(row, clock):
    """Return the milliseconds of an inference and its 10^9 multiply-accumulates per second, at a clock in MHz."""
    return row.cycles / clock / 1000, row.macs * clock / row.cycles / 1000


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
