"""A profile as one HTML page: no scripts, nothing fetched; readable on a phone and in the dark."""

import math
from html import escape

import numpy as np

from celosia.rtl.isa import Memory, Opcode
from celosia.sim.executor import instructions_of
from celosia.sim.footprint import execute_reads, fill_words, store_words, transfer_entries, unfold_bytes, unfold_words
from celosia.tools.profile.causes import CAUSES, UNEXPLAINED
from celosia.tools.timeline import COLOURS, DARK_COLOURS, timeline

__all__ = ["page"]

CAUSE_COLOURS = ("#2b9a66", "#d9b02b", "#c4513f", "#8f8f96", "#d9822b", "#b8477f", "#7a5fc7", "#1f93a8", "#3b7dd8", "#b9b9bf", "#000000")
COLUMNS, BANDS = 240, 64
"""Of the memory map: columns of time and bands of words."""

STYLE = """
:root{color-scheme:light dark;--ink:#222;--page:#fff;--soft:#f0f0f2;--quiet:#5c5c62;--line:#d5d5da}
@media (prefers-color-scheme:dark){:root{--ink:#e8e8ea;--page:#17181b;--soft:#24262b;--quiet:#a5a7ad;--line:#3c3f45}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:1rem;font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page)}
h1{font-size:1.35rem;margin:.2rem 0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}p{margin:.3rem 0}
.quiet,small{color:var(--quiet)}.wide{overflow-x:auto}.facts{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem}.facts b{font-size:1.25rem}
.bar{display:flex;height:1.3rem;border-radius:3px;overflow:hidden;background:var(--soft);min-width:60px}.bar i{display:block;height:100%}
.key{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:.15rem .8rem;margin:.5rem 0;font-size:.87rem}
.key i{display:inline-block;width:.75rem;height:.75rem;border-radius:2px;margin-right:.4rem}
table{border-collapse:collapse;width:100%;font-size:.87rem}th,td{padding:.2rem .5rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;max-width:15rem;overflow:hidden;text-overflow:ellipsis}td.bars{min-width:9rem}
svg{display:block;width:100%;height:auto}.wide svg{min-width:640px}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}.axis{stroke:var(--quiet);stroke-width:1}.roof{fill:none;stroke:var(--ink);stroke-width:2}
"""


def page(profiles, *, title, engine, source):
    """Return the HTML text.

    Parameters
    ----------
    profiles : sequence of Profile
        Engine segments.
    title, engine : str
    source : str
        Where the events come from.
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)} on {escape(engine)}</title><style>{STYLE}{_layer_colours()}</style></head><body>",
        f'<h1>{escape(title)} on {escape(engine)}</h1><p class="quiet">Cycles from the doorbell to done; {escape(source)}.</p>',
    ]
    for number, profile in enumerate(profiles, 1):
        if len(profiles) > 1:
            parts.append(f"<h2>Part {number} of {len(profiles)}</h2>")
        parts += _facts(profile)
        parts += ["<h2>Why the array does not multiply all the time</h2>", _bar(profile.causes), _key(profile)]
        parts += ["<h2>Layers</h2>", _table(profile)]
        parts += ["<h2>Timeline</h2>", f'<div class="wide">{timeline(profile.program, profile.events, profile.cycles, title="What each unit does")}</div>']
        parts += ["<h2>Roofline</h2>", _roofline(profile)]
        parts += ["<h2>Activation memory</h2>", _memory_map(profile)]
    return "\n".join([*parts, "</body></html>", ""])


def _layer_colours():
    light = "".join(f".l{n}{{fill:{colour}}}" for n, colour in enumerate(COLOURS))
    dark = "".join(f".l{n}{{fill:{colour}}}" for n, colour in enumerate(DARK_COLOURS))
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _facts(profile):
    macs = sum(layer.macs for layer in profile.layers)
    outside = sum(layer.external_bytes for layer in profile.layers)
    facts = {"cycles": f"{profile.cycles:,}", "multiply-accumulates": f"{macs:,}",
             "of the array's peak": f"{macs / (profile.cycles * profile.config.macs):.1%}"}  # fmt: skip
    if outside:
        facts["bytes of external memory"] = f"{outside:,}"
    facts["unexplained"] = f"{profile.causes[UNEXPLAINED] / profile.cycles:.2%}"
    yield '<div class="facts">' + "".join(f"<span><b>{value}</b> {name}</span>" for name, value in facts.items()) + "</div>"


def _colour(cause):
    return CAUSE_COLOURS[[*CAUSES, UNEXPLAINED].index(cause)]


def _bar(causes):
    total = causes.total() or 1
    cells = "".join(
        f'<i style="width:{100 * causes[cause] / total:.3f}%;background:{_colour(cause)}" title="{cause}: {causes[cause]:,} cycles"></i>'
        for cause in (*CAUSES, UNEXPLAINED)
        if causes[cause]
    )
    return f'<div class="bar">{cells}</div>'


def _key(profile):
    said = CAUSES | {UNEXPLAINED: "no cause found"}
    rows = (
        f'<span><i style="background:{_colour(cause)}"></i><b>{cause}</b> {profile.causes[cause]:,} ({profile.causes[cause] / profile.cycles:.1%}): '
        f"{escape(said[cause])}</span>"
        for cause in said
        if profile.causes[cause] or cause == UNEXPLAINED
    )
    return f'<div class="key">{"".join(rows)}</div>'


def _table(profile):
    outside = any(layer.external_bytes for layer in profile.layers)
    heads = ["layer", "operator", "MACs", "cycles", "of peak", "mostly", "", "bytes", *(["external"] if outside else [])]
    lines = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for layer in profile.layers:
        if not layer.cycles and not layer.macs:
            continue
        peak = f"{layer.macs / (layer.cycles * profile.config.macs):.1%}" if layer.macs and layer.cycles else ""
        cells = [escape(layer.name), escape(layer.operator), f"{layer.macs:,}", f"{layer.cycles:,}", peak, layer.bound]
        row = "".join(f"<td>{cell}</td>" for cell in cells) + f'<td class="bars">{_bar(layer.causes)}</td><td>{layer.memory_bytes:,}</td>'
        lines.append(f"<tr>{row}{f'<td>{layer.external_bytes:,}</td>' if outside else ''}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _roofline(profile):
    """Draw multiply-accumulates per cycle over those per byte: of external memory, or where there is none of the engine's memories."""
    config = profile.config
    outside = any(layer.external_bytes for layer in profile.layers)
    width = config.memory_bytes if outside else config.rows + config.weight_rows * config.cols
    what = "external memory" if outside else "activation and weight memory"
    size = [layer.external_bytes if outside else layer.memory_bytes for layer in profile.layers]
    points = [
        (layer.macs / count, layer.macs / layer.cycles, number, layer)
        for number, (layer, count) in enumerate(zip(profile.layers, size))
        if layer.macs and layer.cycles and count
    ]
    if not points:
        return "<p>No layer multiplies.</p>"
    low = math.floor(math.log10(min([x for x, *_ in points] + [config.macs / width]))) - 0.2
    high = math.ceil(math.log10(max([x for x, *_ in points] + [config.macs / width]))) + 0.2
    bottom, top = math.floor(math.log10(min(y for _, y, *_ in points))), math.log10(config.macs) + 0.3

    def place(x, y):
        return 60 + (math.log10(x) - low) / (high - low) * 820, 300 - (math.log10(y) - bottom) / (top - bottom) * 280

    knee = config.macs / width
    roof = [(10**low, max(10**low * width, 10**bottom)), (knee, config.macs), (10**high, config.macs)]
    parts = ['<svg viewBox="0 0 900 345" role="img" aria-label="Roofline">', '<path class="axis" d="M60 300H880M60 300V20" fill="none"/>']
    parts.append('<path class="roof" d="M' + "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in roof) + '"/>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        x, _ = place(10**power, config.macs)
        parts.append(f'<text x="{x:.0f}" y="316" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(bottom, math.floor(top) + 1):
        _, y = place(knee, 10**power)
        parts.append(f'<text x="54" y="{y + 4:.0f}" text-anchor="end">{10.0**power:g}</text>')
    for x, y, number, layer in points:
        a, b = place(x, y)
        said = f"{layer.name}: {y:.1f} per cycle, {x:.1f} per byte"
        parts.append(f'<circle class="l{number % len(COLOURS)}" cx="{a:.1f}" cy="{b:.1f}" r="6"><title>{escape(said)}</title></circle>')
    parts.append(f'<text x="470" y="338" text-anchor="middle">multiply-accumulates per byte of {what}</text>')
    parts.append(f'<text x="64" y="14">multiply-accumulates per cycle; the roof is {config.macs} and {width} bytes per cycle</text></svg>')
    return f'<div class="wide">{"".join(parts)}</div>'


def _memory_map(profile):
    """Draw which layer's data lie where in the activation memory over time, as long as they will be read."""
    config = profile.config
    instructions, owners = instructions_of(profile.program), profile.program.owners
    depth = max(1, min(config.act_depth, profile.program.act_words or config.act_depth))
    owner, since = np.full(BANDS, -1), np.zeros(BANDS)
    last = np.zeros(BANDS)
    boxes = []

    def close(band):
        if owner[band] >= 0 and last[band] > since[band]:
            boxes.append((int(owner[band]), band, since[band], last[band]))

    for event in sorted(profile.events, key=lambda event: event.end):
        reads, writes = _words(instructions[event.index], config)
        for words in reads:
            bands = np.unique(np.clip(words * BANDS // depth, 0, BANDS - 1))
            last[bands] = np.maximum(last[bands], event.end)
        for words in writes:
            for band in np.unique(np.clip(words * BANDS // depth, 0, BANDS - 1)):
                if owner[band] != owners[event.index]:
                    close(band)
                    owner[band], since[band] = owners[event.index], event.start
                last[band] = max(last[band], event.end)
    for band in range(BANDS):
        close(band)
    scale = 820 / profile.cycles
    parts = ['<svg viewBox="0 0 900 300" role="img" aria-label="Activation memory over time"><path class="axis" d="M60 270H880M60 270V14" fill="none"/>']
    for number, band, start, end in boxes:
        said = f"{profile.layers[number].name}: words from {band * depth // BANDS:,} on, cycles {int(start):,} to {int(end):,}"
        parts.append(
            f'<rect class="l{number % len(COLOURS)}" x="{60 + start * scale:.1f}" y="{270 - (band + 1) * 4:.0f}" width="{max(0.5, (end - start) * scale):.1f}" '
            f'height="4"><title>{escape(said)}</title></rect>'
        )
    parts.append(f'<text x="54" y="24" text-anchor="end">{depth:,}</text><text x="54" y="270" text-anchor="end">0</text>')
    parts.append(f'<text x="60" y="288">cycle 0</text><text x="880" y="288" text-anchor="end">{profile.cycles:,}</text></svg>')
    note = "Words over time, coloured by the layer that wrote them, from then until they are read last; as fine as the drawing."
    return f'<p class="quiet">{note}</p><div class="wide">{"".join(parts)}</div>'


def _words(i, config):
    """Return the words of the activation memory that an instruction reads and writes, as lists of arrays."""
    if i.opcode is Opcode.EXECUTE:
        address, inside = execute_reads(i, config)
        return [address[inside]], []
    if i.opcode is Opcode.STORE:
        dest, operand = store_words(i)
        return ([operand] if operand is not None else []), [dest]
    if i.opcode is Opcode.UNFOLD:
        address, exists = unfold_bytes(i)
        return [address[exists] // config.rows], [unfold_words(i)]
    if i.opcode is Opcode.FILL:
        return [fill_words(i, config)], []
    if i.opcode is Opcode.TRANSFER and i.memory == Memory.ACTIVATIONS:
        local = transfer_entries(i, config)[1]
        return ([local], []) if i.write else ([], [local])
    return [], []
