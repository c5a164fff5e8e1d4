"""Celosia: an open int8 tensor engine for edge inference, with ONNX as its front door."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("celosia")
except PackageNotFoundError:  # running from a tree that was never installed
    __version__ = "0.0.0"

__all__ = ["CelosiaError", "EngineConfig", "InferenceSession", "__version__"]

_HOMES = {
    "CelosiaError": "celosia.tools.errors",
    "EngineConfig": "celosia.rtl.config",
    "InferenceSession": "celosia.tools.session",
}


def __getattr__(name):
    # Loaded when first used: hardware alone needs neither ONNX nor its runtime.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
