"""``celosia explore``."""

import math
from html import escape as html
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from celosia.tools.commands.console import output, progress
from celosia.tools.errors import BadConfig
from celosia.tools.explore.space import read_space
from celosia.tools.explore.sweep import COSTS, front, sweep
from celosia.tools.files import replacing, write_json

__all__ = ["draw", "run"]


def run(options):
    """Sweep the space, print the Pareto front and write what was asked for."""
    area = options.area or options.clock
    if options.cost in ("lut4", "dsp", "ram") and not area:
        raise BadConfig(f"--cost {options.cost} needs --area: Yosys counts it")
    space = read_space(options.space, options.models)
    with progress(f"{len(space.configs)} configurations", len(space.configs)) as advance:
        rows = sweep(space, options.out, area=area, clock=options.clock, scheduler=options.scheduler, workers=options.workers, done=lambda row: advance(1))
    if options.clock:
        for row in rows:
            row["milliseconds"] = row["mean"] / row["mhz"] / 1000 if row.get("mhz") and row["mean"] else None
    time = "milliseconds" if options.clock else "mean"
    best = front(rows, options.cost, time)
    if options.json:
        write_json(options.json, {"models": space.models, "cost": options.cost, "front": [row["name"] for row in best], "results": rows})
    if options.svg:
        with replacing(options.svg) as path:
            path.write_text(draw(rows, best, options.cost, time), encoding="utf-8")
    console = output()
    console.print(table(best, space.models, options.cost, time))
    missing = [row for row in rows if not row.get(time)]
    console.print(f"{len(rows)} configurations, {len(best)} of them on the front; {space.refused} combinations are none; results in {options.out}")
    if missing:
        console.print(f"[yellow]{len(missing)} have no result[/], for example {escape(missing[0]['name'])}: {escape(missing[0]['problem'])}")
    return 0


def table(rows, models, cost, time):
    """Return the front as a :class:`rich.table.Table`."""
    result = Table(title=f"Pareto front: {time} of cycles × {COSTS[cost]}", title_justify="left", expand=False)
    result.add_column("configuration", overflow="fold")
    costs = [name for name in COSTS if any(name in row for row in rows)]
    extra = [name for name in ("mhz", "milliseconds") if any(name in row for row in rows)]
    for name in (*(Path(model).stem for model in models), "mean", *costs, *extra):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row['cycles'][model]:,}" for model in models] + [f"{row['mean']:,.0f}"]
        cells += [f"{row[name]:,.0f}" if name in row else "" for name in costs] + [f"{row[name]:.4g}" for name in extra]
        result.add_row(escape(row["name"]), *cells)
    return result


def draw(rows, best, cost, time):
    """Return an SVG of all results, cycles over cost on logarithmic axes, the front as a line."""
    usable = [row for row in rows if row.get(time) and row.get(cost)]
    on_front = {row["key"] for row in best}

    def scale(name, low, high):
        values = [math.log10(row[name]) for row in usable] or [0, 1]
        first, last = min(values) - 0.05, max(values) + 0.05
        return lambda value: low + (math.log10(value) - first) / (last - first) * (high - low)

    x, y = scale(cost, 80, 780), scale(time, 420, 30)
    style = (
        ".page{fill:#fff}text{font:13px system-ui,sans-serif;fill:#222}.dot{fill:#b9b9bf}.best{fill:#2b9a66}.line{fill:none;stroke:#2b9a66;stroke-width:2}"
        ".axis{fill:none;stroke:#777}@media (prefers-color-scheme:dark){.page{fill:#17181b}text{fill:#e8e8ea}.dot{fill:#5c5f66}}"
    )
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 480" role="img" aria-label="Pareto front">',
        f'<style>{style}</style><rect class="page" width="800" height="480"/><path class="axis" d="M80 30V420H780"/>',
        f'<text x="430" y="465" text-anchor="middle">{html(COSTS[cost])}</text><text x="80" y="20">{html(time)} (logarithmic axes)</text>',
    ]
    if best:
        parts.append('<path class="line" d="M' + "L".join(f"{x(row[cost]):.1f} {y(row[time]):.1f}" for row in best) + '"/>')
    for row in usable:
        kind = "best" if row["key"] in on_front else "dot"
        said = f"{row['name']}: {row[time]:,.4g}, {row[cost]:,.4g}"
        parts.append(f'<circle class="{kind}" cx="{x(row[cost]):.1f}" cy="{y(row[time]):.1f}" r="5"><title>{html(said)}</title></circle>')
    for row in (best[:1] + best[-1:]) if len(best) > 1 else best:
        parts.append(f'<text x="{x(row[cost]) + 8:.1f}" y="{y(row[time]) - 8:.1f}">{row[time]:,.4g}; {row[cost]:,.4g}</text>')
    return "\n".join([*parts, "</svg>", ""])
