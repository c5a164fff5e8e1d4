"""The paths of a command, looked at before it does any work."""

from pathlib import Path

from celosia.tools.errors import BadConfig, BadFile

__all__ = ["check_paths", "is_device", "refuse_output"]


def check_paths(inputs, outputs):
    """Refuse, before any work is done, outputs that cannot be written or would replace an input or each other.

    Parameters
    ----------
    inputs, outputs : dict of str to str or None
        Paths by what messages call them; None where the user gave none.

    Raises
    ------
    BadConfig, BadFile
    """
    taken = {name: path for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        if not path:
            raise BadConfig(f"{name} must name a file, not {path!r}")
        refuse_output(path)
        for other, used in taken.items():
            if not is_device(path) and Path(used).resolve() == Path(path).resolve():
                raise BadConfig(f"{name} must be another file than {other} {used}")
        taken[name] = path


def refuse_output(path):
    """Raise :exc:`BadFile` if ``path`` is a folder, read-only, or in no folder."""
    path = Path(path)
    if path.is_dir():
        raise BadFile(path, "cannot be written: it is a folder; give a file name")
    if not path.parent.is_dir():
        raise BadFile(path, f"cannot be written: there is no folder {path.parent}; create it")
    if path.exists() and not path.stat().st_mode & 0o222:
        raise BadFile(path, "cannot be written: it is read-only; give another name")


def is_device(path):
    """Return whether ``path`` is something to write to but not to replace: a device or a pipe."""
    path = Path(path)
    return path.exists() and not path.is_file() and not path.is_dir()
