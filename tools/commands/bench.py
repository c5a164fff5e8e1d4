"""``celosia bench``."""

import io
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

import celosia
from celosia.tools.bench.measure import SWEEP, measure
from celosia.tools.bench.networks import NETWORKS, network
from celosia.tools.commands.console import output, status
from celosia.tools.errors import BadFile
from celosia.tools.files import replacing, write_json
from celosia.tools.session import engine_config

__all__ = ["run"]


def run(options):
    """Measure the networks; return 1 if an element differs from ONNX Runtime's."""
    config = engine_config(options.engine)
    builders = [network(name) for name in options.names or (*NETWORKS, *SWEEP)]
    if options.save:
        return save(builders, options.save)
    rows = []
    with status(f"preparing {config.name}") as say:
        for builder in builders:
            rows.append(measure(builder, config, options.on, say=say)[0])
    if options.json:
        facts = {"engine": config.name, "on": options.on, "version": celosia.__version__, "peak": config.macs}
        write_json(options.json, facts | {"networks": [row.to_dict() for row in rows]})
    console = output()
    console.print(table(rows, f"{config.name} ({options.on}), one inference"))
    for row in rows:
        if row.reason:
            console.print(f"[dim]{row.name}: {escape(row.reason)}[/]")
    return print_differences(console, rows)


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
