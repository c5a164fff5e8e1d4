"""``celosia build``."""

import sys
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from celosia.boards.build import BuildFailed, Progress, build
from celosia.boards.catalog import find
from celosia.boards.toolchain import ToolFailed
from celosia.rtl.config import BadConfig as BadBoard
from celosia.tools.commands.console import output, status
from celosia.tools.errors import BadConfig, BoardError
from celosia.tools.files import write_json
from celosia.tools.session import engine_config

__all__ = ["folder", "run"]


def folder(board, given=None):
    """Return where a board's build goes."""
    return Path(given or Path("build") / board)


class _Shown(Progress):
    """Stages on standard output, what goes on inside them on standard error while that is a terminal."""

    def __init__(self, console, update):
        self.console, self.update = console, update

    def stage(self, name, seconds):
        self.console.print(f"{escape(name)}: {seconds:g} s")

    def detail(self, text):
        if sys.stderr.isatty():
            self.update(escape(text))

    def note(self, text):
        self.console.print(escape(text))


def run(options):
    """Build a bitstream, print what it takes and how fast it is."""
    out = folder(options.board, options.out)
    if out.exists() and not out.is_dir():
        raise BadConfig(f"--out must name a folder, not the file {out}")
    if options.minutes is not None and options.minutes <= 0:
        raise BadConfig(f"--minutes must be more than 0, not {options.minutes:g}")
    try:
        board = find(options.board, config=engine_config(options.engine) if options.engine else None, clock=options.clock)
        with status(f"building {board.name} in {out}; this takes minutes") as update:
            shown = _Shown(output(), update)
            facts = build(board, out, seeds=options.seed, minutes=options.minutes, force=options.force, progress=shown)
    except BadBoard as error:
        raise BadConfig(str(error)) from None
    except (BuildFailed, ToolFailed) as error:
        raise BoardError(str(error)) from None
    if options.json:
        write_json(options.json, {name: value for name, value in facts.items() if name not in ("sources", "key")})
    _print(facts, out)
    return 0


def _print(facts, out):
    console = output()
    if not facts["built"]:
        console.print("nothing has changed since the last build; --force builds again")
    console.print(f"{facts['board']}: engine {facts['engine']} on {facts['device']}")
    table = Table()
    table.add_column("what")
    table.add_column("used", justify="right")
    table.add_column("of", justify="right")
    for name, amount in facts["area"].items():
        table.add_row(name, f"{amount['used']:,}", f"{amount['available']:,}")
    table.add_row("LUT4 per MAC", f"{facts['lut4_per_mac']:g}", "")
    console.print(table)
    for name, clock in facts["clocks"].items():
        console.print(f"clock {escape(name)}: {clock['achieved']:g} MHz, {clock['constraint']:g} MHz needed")
    path = facts["critical_path"]
    if path:
        console.print(
            f"longest path: {path['ns']:g} ns ({path['logic_ns']:g} ns of it logic) from {escape(path['from'])} to {escape(path['to'])}"
        )
    console.print(
        f"bitstream: {escape(facts['bitstream'])} (logs beside it); `celosia flash {facts['board']}` writes it to the board"
    )
