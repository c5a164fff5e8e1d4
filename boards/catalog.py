"""All boards by name."""

import dataclasses

from celosia.boards import ecp5, gowin, ice40
from celosia.rtl.config import BadConfig

__all__ = ["BOARDS", "find"]

BOARDS = {board.name: board for board in (*ecp5.BOARDS, *ice40.BOARDS, *gowin.BOARDS)}


def find(name, *, config=None, clock=None):
    """Return the board ``name``, with another engine or clock if given.

    Raises
    ------
    BadConfig
        If there is no such board, or its PLL cannot make such a clock, or the engine has a memory port.
    """
    if name not in BOARDS:
        raise BadConfig(f"the board must be one of {', '.join(BOARDS)}, not {name!r}")
    board = BOARDS[name]
    if config is not None and config.memory_bytes:
        raise BadConfig(f"{name}: boards have nothing behind a memory port; the engine {config.name} must have memory_bytes = 0, not {config.memory_bytes}")
    changes = {key: value for key, value in (("config", config), ("clock", clock)) if value is not None}
    board = dataclasses.replace(board, **changes)
    try:
        board.family.pll.best(board.oscillator, board.clock)
    except ValueError as error:
        raise BadConfig(f"{name}: {error}") from None
    return board
