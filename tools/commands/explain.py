"""``celosia explain``."""

from collections import Counter

from rich.markup import escape
from rich.table import Table

from celosia.tools.commands.console import output
from celosia.tools.compiler.frontend import lower
from celosia.tools.compiler.pipeline import compile_frontend
from celosia.tools.errors import DoesNotFit
from celosia.tools.files import write_json
from celosia.tools.session import engine_config

__all__ = ["ON_THE_HOST", "run"]

ON_THE_HOST = 3
"""The exit code where the host runs a node."""


def run(options):
    """Print a row for each node; return 0 if all run on the engine, else :data:`ON_THE_HOST`."""
    config = engine_config(options.engine)
    found = lower(options.model, config)
    problem = _problem(found, config)
    if options.json:
        write_json(options.json, _document(found, config, problem))
    counts = Counter(where for _, _, where, _, _ in found.rows)
    console = output()
    console.print(_table(found))
    console.print(
        f"{counts['engine']} nodes on the engine, {counts['host']} on the host, {counts['removed']} need not be computed"
    )
    for suggestion, names in _suggestions(found).items():
        shown = ", ".join(names) if len(names) < counts["host"] or len(names) == 1 else f"all {len(names)} nodes on the host"
        console.print(f"[yellow]{escape(shown)}[/]: {escape(suggestion)}")
    if problem:
        raise problem
    return ON_THE_HOST if counts["host"] else 0


def _problem(found, config):
    """Return the :exc:`DoesNotFit` of a model that is too large for the engine, else None."""
    try:
        compile_frontend(found, config)
    except DoesNotFit as problem:
        return problem
    return None


def _table(found):
    rows = Table(title=escape(found.file), title_justify="left")
    for title in ("node", "operator", "where", "why"):
        rows.add_column(title, overflow="fold", no_wrap=title == "where")
    for name, operator, where, reason, _ in found.rows:
        rows.add_row(escape(name), operator, where, escape(reason), style={"host": "yellow", "removed": "dim"}.get(where))
    return rows


def _suggestions(found):
    """Return the nodes on the host by what the user can do about them."""
    names = {}
    for name, _, where, _, suggestion in found.rows:
        if where == "host" and suggestion:
            names.setdefault(suggestion, []).append(name)
    return names


def _document(found, config, problem):
    keys = ("name", "operator", "where", "reason", "suggestion")
    return {
        "model": found.file,
        "engine": config.name,
        "problem": str(problem or ""),
        "nodes": [dict(zip(keys, row)) for row in found.rows],
    }
