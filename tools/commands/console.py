"""What the commands print: tables on standard output, progress on standard error and only on a terminal."""

import contextlib
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["output", "progress", "status"]

WIDTH = 120
"""Columns where standard output is a file."""


def output():
    """Return the console of standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, soft_wrap=False)


def _errors():
    return Console(stderr=True)


@contextlib.contextmanager
def progress(text, total):
    """Show a progress bar; yields the function to call with the number of steps just done."""
    if not sys.stderr.isatty():
        yield lambda steps: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors(), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda steps: bar.advance(task, steps)


@contextlib.contextmanager
def status(text):
    """Show that something takes a while; yields a function that changes the text."""
    if not sys.stderr.isatty():
        yield lambda changed: print(changed, file=sys.stderr)
        return
    with _errors().status(text) as shown:
        yield shown.update
