"""Celosia: an open int8 tensor engine for edge inference, with ONNX as its front door."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("celosia")
except PackageNotFoundError:  # running from a tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
