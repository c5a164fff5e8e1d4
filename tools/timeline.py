"""The timeline of a run: one self-contained SVG with what each unit did, cycle by cycle, coloured by layer."""

from html import escape

__all__ = ["timeline"]

UNITS = ("load", "execute", "store", "transfer")
WIDTH, LEFT, LANE, GAP = 1400, 92, 22, 5
COLOURS = ("#3b7dd8", "#d9822b", "#2b9a66", "#b8477f", "#7a5fc7", "#8f8a2b", "#1f93a8", "#c4513f")
DARK_COLOURS = ("#6ea8f5", "#f0a65a", "#5cc795", "#e27fb0", "#a991ec", "#c2bc5b", "#58c3d6", "#ee8373")

STYLE = """
.c{fill:none} text{font:12px system-ui,sans-serif;fill:#222} .page{fill:#fff} .lane{fill:#f0f0f2} .small{font-size:10.5px;fill:#555}
.title{font-size:16px;font-weight:600} .tick{stroke:#bbb;stroke-width:1} .band{opacity:.22} .event{stroke:#fff;stroke-width:.4}
@media (prefers-color-scheme:dark){text{fill:#e8e8ea} .page{fill:#17181b} .lane{fill:#24262b} .small{fill:#a5a7ad} .tick{stroke:#4a4d55}
.event{stroke:#17181b} .band{opacity:.3}}
"""


def timeline(program, events, cycles, *, title):
    """Return the SVG text.

    The time axis is cut into strips, one below the other. Above each strip's lanes stand the layers that the array works on; every
    rectangle is one instruction and says in its tooltip which.

    Parameters
    ----------
    program : Program
    events : sequence of Event
    cycles : int
    title : str
    """
    units = [unit for unit in UNITS if unit != "transfer" or any(event.unit == unit for event in events)]
    strips = max(1, min(8, -(-cycles // 9000)))
    span = -(-cycles // strips)
    plot = WIDTH - LEFT - 16
    strip_height = 20 + len(units) * (LANE + GAP) + 34
    legend_rows = -(-len(program.layers) // 4)
    height = 64 + strips * strip_height + 20 + legend_rows * 18 + 10
    layer_of = {index: number for number, layer in enumerate(program.layers) for span in layer.spans for index in span}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">',
        f"<style>{STYLE}{_palette()}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="16" y="28">{escape(title)}</text>',
        f'<text class="small" x="16" y="46">{cycles:,} cycles from the doorbell to done; {_shares(units, events, cycles)}</text>',
    ]
    for strip in range(strips):
        first, top = strip * span, 64 + strip * strip_height
        last = min(first + span, cycles)
        scale = plot / span
        parts += _axis(first, last, span, top, scale, len(units))
        parts += _bands(program, events, layer_of, first, last, top, scale)
        for lane, unit in enumerate(units):
            y = top + 20 + lane * (LANE + GAP)
            parts.append(f'<text x="16" y="{y + 15}">{unit}</text>')
            parts.append(f'<rect class="lane" x="{LEFT}" y="{y}" width="{(last - first) * scale:.1f}" height="{LANE}"/>')
            for event in events:
                if event.unit == unit and event.start < last and event.end > first:
                    parts.append(
                        _event(
                            program, layer_of, event, max(event.start, first) - first, min(event.end, last) - first, y, scale
                        )
                    )
    parts += _legend(program, 64 + strips * strip_height + 12)
    return "\n".join([*parts, "</svg>", ""])


def _palette():
    light = "".join(f".l{n}{{fill:{colour}}}" for n, colour in enumerate(COLOURS))
    dark = "".join(f".l{n}{{fill:{colour}}}" for n, colour in enumerate(DARK_COLOURS))
    return f".none{{fill:#888}}{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _colour(number):
    return "none" if number is None else f"l{number % len(COLOURS)}"


def _shares(units, events, cycles):
    """Say which part of the time each unit was at work."""
    said = []
    for unit in units:
        busy, reached = 0, 0
        for event in sorted((event for event in events if event.unit == unit), key=lambda event: event.start):
            busy += max(0, event.end - max(event.start, reached))
            reached = max(reached, event.end)
        said.append(f"{unit} {busy / cycles:.0%}")
    return "at work: " + ", ".join(said)


def _axis(first, last, span, top, scale, lanes):
    step = next(size * 10**power for power in range(1, 9) for size in (1, 2, 5) if span / (size * 10**power) <= 12)
    bottom = top + 20 + lanes * (LANE + GAP)
    for cycle in range(-(-first // step) * step, last + 1, step):
        x = LEFT + (cycle - first) * scale
        yield f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 20}" y2="{bottom + 3}"/>'
        yield f'<text class="small" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{cycle:,}</text>'


def _bands(program, events, layer_of, first, last, top, scale):
    """Mark from the first to the last EXECUTE of each layer, with its name where there is room."""
    extent = {}
    for event in events:
        number = layer_of.get(event.index)
        if event.unit == "execute" and number is not None:
            start, end = extent.get(number, (event.start, event.end))
            extent[number] = min(start, event.start), max(end, event.end)
    for number, (start, end) in extent.items():
        start, end = max(start, first), min(end, last)
        if start >= end:
            continue
        x, width = LEFT + (start - first) * scale, (end - start) * scale
        yield f'<rect class="band {_colour(number)}" x="{x:.1f}" y="{top + 2}" width="{width:.1f}" height="15"/>'
        name = program.layers[number].name
        room = int(width / 6.2)
        if room >= 4:
            shown = name if len(name) <= room else name[: room - 1] + "…"
            yield f'<text class="small" x="{x + 3:.1f}" y="{top + 13}">{escape(shown)}</text>'


def _event(program, layer_of, event, start, end, y, scale):
    number = layer_of.get(event.index)
    name = program.layers[number].name if number is not None else "no layer"
    return (
        f'<rect class="event {_colour(number)}" x="{LEFT + start * scale:.1f}" y="{y}" width="{max(0.6, (end - start) * scale):.1f}" '
        f'height="{LANE}"><title>{escape(name)}: instruction {event.index}, cycles {event.start:,} to {event.end:,}</title></rect>'
    )


def _legend(program, top):
    column = (WIDTH - 32) // 4
    for number, layer in enumerate(program.layers):
        x, y = 16 + number % 4 * column, top + number // 4 * 18
        text = f"{layer.name} ({layer.operator})"
        shown = text if len(text) <= 50 else text[:49] + "…"
        yield f'<rect class="{_colour(number)}" x="{x}" y="{y}" width="11" height="11" rx="2"/>'
        yield f'<text class="small" x="{x + 17}" y="{y + 10}">{escape(shown)}</text>'
