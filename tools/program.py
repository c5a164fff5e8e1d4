"""A compiled program: everything an engine needs to run a network, and the file that holds it.

The file is a zip archive of numpy arrays (``.npz``, no pickle) with one JSON document in it, ``meta``: the whole :class:`Model` with each
array and each host segment's ONNX bytes replaced by its number, and a hash over everything.
"""

import dataclasses
import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from celosia.tools.errors import BadInput, BadProgram

__all__ = ["EngineSegment", "HostSegment", "Layer", "Model", "Port", "Program", "is_program_file", "load", "save"]

FORMAT = "celosia-program 2"
ZIP_MAGIC = b"PK"


@dataclass(frozen=True, kw_only=True)
class Port:
    """A tensor that enters or leaves the engine.

    ``layout`` is ``"dense"`` (plain row-major bytes of ``shape``) or ``"blocked"`` (see :mod:`celosia.rtl.isa`); ``address`` is its first word.
    For ``blocked``, ``channels × height × width``, ``block_step`` and ``row_step`` place it; ``matrix`` says that the ONNX shape is
    ``[M, K]`` with channels last. With ``plane_step`` other than zero the tensor is int32: byte ``k`` of each value lies ``k * plane_step`` words further. ``unsigned`` says that the ONNX dtype is uint8: dense inputs are stored as they are (the engine
    inverts the top bit itself), blocked outputs hold the int8 value and the driver adds 128. ``batched`` says that the ONNX value has
    a batch dimension of one in front of ``shape``. With ``external`` it lies in external memory: ``address`` is a byte's, from the memory's base on,
    and words are ``rows`` bytes each.
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
    plane_step: int = 0
    batched: bool = True
    external: bool = False

    def take(self, inputs, *, several=False):
        """Return the array for this port out of ``inputs``, a dict by name.

        Parameters
        ----------
        several : bool
            A leading axis for several inferences is allowed.

        Raises
        ------
        BadInput
            If it is missing, or of another type or shape than the port's.
        """
        if self.name not in inputs:
            raise BadInput(self.name, "is missing")
        array = np.asarray(inputs[self.name])
        dtype, shape = "uint8" if self.unsigned else "int8", tuple(self.shape)
        if array.dtype != dtype:
            raise BadInput(self.name, f"must be {dtype}, not {array.dtype.name}")
        if array.shape != shape and not (several and array.ndim and array.shape[1:] == shape):
            more = " or one more leading axis," if several else ","
            raise BadInput(self.name, f"must have shape {list(shape)}{more} not {list(array.shape)}")
        return array


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the report says of a node: which instructions are its own, and its multiply-accumulates (useful ones only).

    ``instructions`` holds the bounds of spans, ``(first, last + 1, first, last + 1, …)``: those of a layer need not be neighbours.
    """

    name: str
    operator: str
    sources: tuple
    output: str
    macs: int
    instructions: tuple

    @property
    def spans(self):
        """``range`` of instruction numbers of each span."""
        return tuple(range(first, end) for first, end in zip(self.instructions[::2], self.instructions[1::2]))


@dataclass(frozen=True, kw_only=True)
class Program:
    """Memory images for one engine configuration.

    ``instructions``: uint32 ``[n, 8]``, little-endian words. ``weights``: int8 ``[tiles, load_cycles, weight_rows, cols]`` (tile ``t``,
    entry ``i``, bank ``j`` holds row ``j * load_cycles + i``). ``params``: uint32 ``[entries, 2 * lanes]``. ``tables``: uint8 ``[n, 256]``.
    ``memory``: uint8 ``[n]``, what external memory holds from its base on before an inference; instructions only read it. ``memory_bytes`` of external memory
    are in use in all; 0 where everything is on chip.
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
    constants: tuple = ()  # (address, uint8 [words, rows]): what the activation memory holds before and after each inference
    memory: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    memory_bytes: int = 0

    @property
    def owners(self):
        """int32 ``[n]``: the number of the layer that each instruction belongs to, −1 for none."""
        numbers = np.full(len(self.instructions), -1, np.int32)
        for number, layer in enumerate(self.layers):
            for span in layer.spans:
                numbers[span.start : span.stop] = number
        return numbers


@dataclass(frozen=True, kw_only=True)
class HostSegment:
    """Nodes that ONNX Runtime runs: a serialised ONNX model with the values that go in and come out (batch dimension included)."""

    onnx: bytes
    inputs: tuple
    outputs: tuple
    nodes: tuple  # (name, operator, reason, suggestion)


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
    nodes: tuple = field(default=())  # rows of `celosia explain`: (name, operator, where, reason, suggestion)

    @property
    def host_nodes(self):
        """``(name, operator, reason, suggestion)`` of each node that ONNX Runtime runs."""
        return tuple(node for segment in self.segments if isinstance(segment, HostSegment) for node in segment.nodes)


def is_program_file(path):
    """Return whether ``path`` looks like a file of :func:`save` rather than an ONNX file."""
    if isinstance(path, bytes):
        return path.startswith(ZIP_MAGIC)
    try:
        with open(path, "rb") as file:
            return file.read(2) == ZIP_MAGIC
    except OSError:
        return False


def save(model, path):
    """Write a :class:`Model`, or a :class:`Program` as a model of its own, to ``path``."""
    if isinstance(model, Program):
        model = _as_model(model)
    arrays = []
    document = _pack(model, arrays)
    meta = json.dumps({"format": FORMAT, "hash": _hash(document, arrays), "model": document}, sort_keys=True)
    named = {f"array{number}": array for number, array in enumerate(arrays)}
    with open(path, "wb") as file:
        np.savez_compressed(file, meta=np.frombuffer(meta.encode(), np.uint8), **named)


def load(path, config=None):
    """Read a :class:`Model` that :func:`save` wrote.

    Parameters
    ----------
    path : str or Path
    config : EngineConfig, optional
        The engine it shall run on.

    Raises
    ------
    BadProgram
        If the file cannot be read, is damaged, or was compiled for another engine than ``config``.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            meta = json.loads(file["meta"].tobytes())
            arrays = [file[f"array{number}"] for number in range(len(file.files) - 1)]
        if meta["format"] != FORMAT:
            raise BadProgram(
                path, f"is of format {meta['format']!r}, and this version reads {FORMAT!r}; compile the model again"
            )
        if meta["hash"] != _hash(meta["model"], arrays):
            raise BadProgram(path, "is damaged (its hash does not match); compile the model again")
        model = _unpack(meta["model"], arrays)
    except OSError as error:
        raise BadProgram(path, f"cannot be read: {error.strerror or error}") from None
    except (
        LookupError,
        AttributeError,
        EOFError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        raise BadProgram(path, "is not a compiled program, or damaged; compile the model again") from None
    for segment in model.segments:
        if isinstance(segment, EngineSegment) and config is not None and segment.program.digest != config.digest:
            compiled_for = json.loads(segment.program.config)["name"]
            raise BadProgram(
                path,
                f"was compiled for engine {compiled_for!r} (digest {segment.program.digest:#010x}), "
                f"not for {config.name!r} ({config.digest:#010x}); compile the model for this one",
            )
    return model


def _as_model(program):
    def ports(group):
        return tuple((port.name, "uint8" if port.unsigned else "int8", (1, *port.shape)) for port in group)

    segments = (EngineSegment(program=program),)
    return Model(
        source=program.name, sha256="", inputs=ports(program.inputs), outputs=ports(program.outputs), segments=segments
    )


def _pack(value, arrays):
    """Return ``value`` as JSON types; arrays and bytes are appended to ``arrays``."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: _pack(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray | bytes):
        is_bytes = isinstance(value, bytes)
        arrays.append(np.frombuffer(value, np.uint8) if is_bytes else np.ascontiguousarray(value))
        return {"bytes" if is_bytes else "array": len(arrays) - 1}
    if isinstance(value, tuple | list):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value


def _unpack(value, arrays):
    if isinstance(value, list):
        return tuple(_unpack(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "bytes" in value:
        return arrays[value["bytes"]].tobytes()
    classes = {cls.__name__: cls for cls in (EngineSegment, HostSegment, Layer, Model, Port, Program)}
    return classes[value["class"]](**{name: _unpack(item, arrays) for name, item in value["fields"].items()})


def _hash(document, arrays):
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
