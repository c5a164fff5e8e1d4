"""``celosia quantize``."""

from collections import Counter
from pathlib import Path

from rich.markup import escape
from rich.table import Table

import celosia
from celosia.tools.commands.console import output, progress, status
from celosia.tools.compiler.frontend import lower
from celosia.tools.errors import BadConfig
from celosia.tools.files import naming, read_inputs, replacing, write_json
from celosia.tools.quantization_report import compare_models
from celosia.tools.quantizer import prepare, quantize, split

__all__ = ["run"]


def run(options):
    """Quantise, report and write the model; it is written only if all of that went well."""
    if options.held_back is not None and options.held_back < 1:
        raise BadConfig(f"--held-back must be at least 1, not {options.held_back}")
    with status("preparing"):
        source = prepare(options.model)
    feed = read_inputs(options.calibration, [name for name, _, _ in source.inputs])
    with naming(options.calibration):
        calibration, held_back = split(source, feed, options.held_back)
    counts = [len(next(iter(part.values()))) for part in (calibration, held_back)]
    with replacing(options.output) as path:
        with progress("calibrating", counts[0]) as advance:
            quantize(
                source, calibration, path, method=options.method, per_channel=options.per_channel, progress=advance
            )  # fmt: skip
        with progress("comparing with the float model", counts[1]) as advance:
            layers, outputs = compare_models(source, path, held_back, advance)
        found = lower(path)
        if options.json:
            document = _document(options, source, counts, layers, outputs, found)
            write_json(options.json, document)
    _print(options, source, counts, layers, outputs, found)
    return 0


def _document(options, source, counts, layers, outputs, found):
    return {
        "model": source.file,
        "output": Path(options.output).name,
        "version": celosia.__version__,
        "method": options.method,
        "per_channel": options.per_channel,
        "calibration_samples": counts[0],
        "held_back_samples": counts[1],
        "layers": [layer.to_dict() for layer in layers],
        "outputs": [one.to_dict() for one in outputs],
        "nodes": Counter(where for _, _, where, *_ in found.rows),
        "host_nodes": [{"name": name, "operator": operator, "reason": reason} for name, operator, reason in _on_host(found)],
    }


def _on_host(found):
    return [(name, operator, reason) for name, operator, where, reason, _ in found.rows if where == "host"]


def _print(options, source, counts, layers, outputs, found):
    console = output()
    same = counts == [1, 1]
    rows = Table(title=f"{escape(source.file)}: error of quantisation, on {counts[1]} held-back samples", title_justify="left")
    rows.add_column("layer", overflow="fold")
    rows.add_column("operator")
    rows.add_column("signal to noise", justify="right")
    for layer in layers:
        rows.add_row(escape(layer.name), layer.operator, _decibels(layer.decibels))
    console.print(rows)
    for one in outputs:
        largest = f", the largest element agrees in {one.same_largest} of {one.samples}" if one.same_largest is not None else ""
        console.print(
            f"output {escape(one.name)}: signal to noise {_decibels(one.decibels)}, largest difference {one.largest_difference:.4g}{largest}"
        )
    if same:
        console.print("[yellow]only one sample: it was both calibrated and compared with; give more[/]")
    placed = Counter(where for _, _, where, *_ in found.rows)
    names = ", ".join(f"{name} ({operator})" for name, operator, _ in _on_host(found))
    console.print(
        f"{escape(options.output)}: {placed['engine']} nodes on the engine" + (f"; on the host: {escape(names)}" if names else "")
    )


def _decibels(value):
    return "exact" if value is None else f"{value:.1f} dB"
