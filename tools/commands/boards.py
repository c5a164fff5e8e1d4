"""``celosia boards``."""

from rich.table import Table

from celosia.boards.catalog import BOARDS
from celosia.boards.results import recorded
from celosia.tools.commands.console import output
from celosia.tools.files import write_json

__all__ = ["run"]


def run(options):
    """List the boards, with the clock that was measured where there is a record."""
    if options.json:
        write_json(options.json, {name: _facts(board) for name, board in BOARDS.items()})
    table = Table(title="boards; `celosia build BOARD` makes the bitstream", title_justify="left")
    for title in ("board", "what it is", "device"):
        table.add_column(title, no_wrap=title == "board")
    for title in ("array", "activations", "weights", "instructions", "link", "clock"):
        table.add_column(title, justify="right")
    for board in BOARDS.values():
        config, record = board.config, recorded(board.name)
        closes = f" ({record['clock']:g} measured)" if record else ""
        table.add_row(
            board.name, board.title, board.device, f"{config.rows} × {config.cols}", f"{config.act_bytes // 1024} KiB",
            f"{config.weight_bytes // 1024} KiB", f"{config.program_depth:,}", board.link, f"{board.frequency:g} MHz{closes}",
        )  # fmt: skip
    output().print(table)
    return 0


def _facts(board):
    config, record = board.config, recorded(board.name)
    return {
        "title": board.title,
        "family": board.family.name,
        "device": board.device,
        "rows": config.rows,
        "cols": config.cols,
        "activation_bytes": config.act_bytes,
        "weight_bytes": config.weight_bytes,
        "program_depth": config.program_depth,
        "digest": f"{config.digest:08x}",
        "link": board.link,
        "baud": board.baud if board.link == "uart" else None,
        "clock": board.frequency,
        "measured_clock": record["clock"] if record else None,
        "flash": [flasher.tool for flasher in board.flashers],
    }
