"""``celosia flash``."""

import shutil
import subprocess
from pathlib import Path

from celosia.boards.catalog import find
from celosia.rtl.config import BadConfig as BadBoard
from celosia.tools.commands.build import folder
from celosia.tools.commands.console import output
from celosia.tools.errors import BadConfig, BadFile, BoardError

__all__ = ["run"]


def run(options):
    """Write a bitstream to the board, with the first of the board's programs that is installed."""
    try:
        board = find(options.board)
    except BadBoard as error:
        raise BadConfig(str(error)) from None
    file = Path(options.file or folder(board.name) / f"top.{board.family.bitstream}")
    if not file.is_file():
        raise BadFile(file, "no such file" if options.file else f"not built yet; `celosia build {board.name}` makes it")
    for flasher in board.flashers:
        if shutil.which(flasher.tool):
            return _write(flasher, file)
    ways = " or ".join(f"{flasher.tool} ({flasher.install})" for flasher in board.flashers)
    raise BoardError(f"nothing here can write to {board.name}: install {ways}")


def _write(flasher, file):
    command = [flasher.tool, *(argument.format(file) for argument in flasher.arguments)]
    output().print(" ".join(command), highlight=False)
    code = subprocess.run(command).returncode
    if code:
        raise BoardError(f"{flasher.tool} ended with exit code {code}; is the board connected, and may this user open it?")
    kept = "until the board is switched off" if flasher.volatile else "for good"
    output().print(f"{file.name} is in the board, {kept}")
    return 0
