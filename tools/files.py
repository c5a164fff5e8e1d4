"""Reading what users give, and writing files that are either whole or not there."""

import contextlib
import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from celosia.tools.errors import BadFile, BadInput
from celosia.tools.paths import is_device, refuse_output

__all__ = ["naming", "read_inputs", "replacing", "write_json"]


@contextlib.contextmanager
def naming(path):
    """Put the file's name before the sentence of a :exc:`BadInput`."""
    try:
        yield
    except BadInput as error:
        raise BadFile(path, error) from None


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside ``path``; it takes its place when the block ends well, and is removed otherwise.

    Raises
    ------
    BadFile
        If the file cannot be written.
    """
    path = Path(path)
    refuse_output(path)
    if is_device(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, "whole")
            path.write_bytes(Path(folder, "whole").read_bytes())
        return
    target = path.resolve()  # a link stays one
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise BadFile(path, f"cannot be written: {error.strerror or error}") from None


def write_json(path, document):
    """Write ``document`` as JSON to ``path``; see :func:`replacing`."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def read_inputs(path, names):
    """Read the arrays of a ``.npz`` or ``.npy`` file for the graph inputs ``names``.

    Returns
    -------
    dict of name to array
        A ``.npy`` file's array goes to the only input.

    Raises
    ------
    BadFile, BadInput
        If the file cannot be read, or is a ``.npy`` file and there are several inputs.
    """
    path = Path(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if len(names) != 1:
                listed = ", ".join(names)
                raise BadInput(
                    names[0], f"cannot come from {path.name}, which holds one array for the inputs {listed}; use .npz"
                )
            return {names[0]: loaded}
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("a member that is no array")
            return arrays
    except FileNotFoundError:
        raise BadFile(path, "no such file") from None
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        raise BadFile(path, "must be a .npz or .npy file of numbers, and whole; write it with numpy.savez") from None
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror or error}") from None
