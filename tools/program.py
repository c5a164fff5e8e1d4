"""A compiled program: everything an engine needs to run a network, and the file that holds it."""

from dataclasses import dataclass, field

import numpy as np

__all__ = ["EngineSegment", "HostSegment", "Layer", "Model", "Port", "Program"]


@dataclass(frozen=True, kw_only=True)
class Port:
    """A tensor that enters or leaves the engine.

    ``layout`` is ``"dense"`` (plain row-major bytes of ``shape``) or ``"blocked"`` (see :mod:`celosia.rtl.isa`); ``address`` is its first word.
    For ``blocked``, ``channels × height × width``, ``block_step`` and ``row_step`` place it; ``matrix`` says that the ONNX shape is
    ``[M, K]`` with channels last. ``unsigned`` says that the ONNX dtype is uint8: dense inputs are stored as they are (the engine
    inverts the top bit itself), blocked outputs hold the int8 value and the driver adds 128.
    """

    name: str
    shape: tuple
    unsigned: bool
    layout: str
    address: int
    channels: int = 0
    height: int = 0
    width: int = 0
    block_step: int = 0
    row_step: int = 0
    matrix: bool = False


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the report says of a node: which instructions are its own, and its multiply-accumulates (useful ones only)."""

    name: str
    operator: str
    sources: tuple
    output: str
    macs: int
    instructions: tuple  # (first, last + 1)


@dataclass(frozen=True, kw_only=True)
class Program:
    """Memory images for one engine configuration.

    ``instructions``: uint32 ``[n, 8]``, little-endian words. ``weights``: int8 ``[tiles, load_cycles, weight_rows, cols]`` (tile ``t``,
    entry ``i``, bank ``j`` holds row ``j * load_cycles + i``). ``params``: uint32 ``[entries, 2 * lanes]``. ``tables``: uint8 ``[n, 256]``.
    """

    name: str
    digest: int
    config: str  # JSON
    instructions: np.ndarray
    weights: np.ndarray
    params: np.ndarray
    tables: np.ndarray
    inputs: tuple
    outputs: tuple
    layers: tuple
    act_words: int = 0  # words of the activation memory in use


@dataclass(frozen=True, kw_only=True)
class HostSegment:
    """Nodes that ONNX Runtime runs: a serialised ONNX model with the values that go in and come out (batch dimension included)."""

    onnx: bytes
    inputs: tuple
    outputs: tuple
    nodes: tuple  # (name, operator, reason)


@dataclass(frozen=True, kw_only=True)
class EngineSegment:
    """A program and the ONNX values at its ports."""

    program: Program


@dataclass(frozen=True, kw_only=True)
class Model:
    """A compiled ONNX model: segments in execution order.

    ``inputs`` and ``outputs`` are ``(name, numpy dtype name, shape with batch)`` of the ONNX graph; ``source`` its file name; ``sha256`` its hash.
    """

    source: str
    sha256: str
    inputs: tuple
    outputs: tuple
    segments: tuple
    nodes: tuple = field(default=())  # rows of `celosia explain`: (name, operator, where, reason)
