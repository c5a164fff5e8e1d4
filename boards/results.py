"""Measurements that are kept: one JSON file for each board, made by :mod:`celosia.boards.report`."""

import json
from pathlib import Path

__all__ = ["FOLDER", "recorded"]

FOLDER = Path(__file__).parent / "results"


def recorded(name):
    """Return the record of a board, or None."""
    file = FOLDER / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None
