"""``celosia explain``."""

from collections import Counter

from rich.table import Table

from celosia.tools.commands import AT_THE_ENDS
from celosia.tools.commands.console import output
from celosia.tools.compiler.frontend import lower

__all__ = ["run"]


def run(options):
    """Print a row for each node; return 1 if the host has to run one that does not belong there."""
    found = lower(options.model)
    rows = Table(title=found.file, title_justify="left")
    for title in ("node", "operator", "where", "why"):
        rows.add_column(title, overflow="fold", no_wrap=title == "where")
    for name, operator, where, reason in found.rows:
        rows.add_row(name, operator, where, reason, style={"host": "yellow", "removed": "dim"}.get(where))
    counts = Counter(where for _, _, where, _ in found.rows)
    off = Counter(operator for _, operator, where, _ in found.rows if where == "host" and operator not in AT_THE_ENDS)
    console = output()
    console.print(rows)
    console.print(
        f"{counts['engine']} nodes on the engine, {counts['host']} on the host, {counts['removed']} need not be computed"
    )
    if off:
        listed = ", ".join(f"{operator} × {count}" if count > 1 else operator for operator, count in off.items())
        console.print(f"[yellow]on the host between engine nodes or instead of them: {listed}[/]")
    return 1 if off else 0
