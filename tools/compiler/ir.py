"""The compiler's intermediate representation: frozen dataclasses, from the fused graph to the schedule.

Shapes leave out the batch dimension: the engine runs one inference at a time. Every node remembers the ONNX nodes it came
from (``sources``).
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from celosia.rtl.isa import Combine as Op

__all__ = ["Combine", "Conv", "ConvTranspose", "Copy", "Graph", "Matrices", "Node", "Pool", "Product", "Rearrange", "Tensor", "Weighted"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A quantised feature map.

    Parameters
    ----------
    name : str
        The ONNX value (the output of the QuantizeLinear, or of the QLinear operator).
    channels, height, width : int
        Shape in the engine. ``[K]`` vectors are ``K × 1 × 1``; ``[M, K]`` matrices (rows are pixels) ``channels=K, height=M, width=1``;
        1-D maps ``[C, L]`` are ``C × 1 × L``.
    shape : tuple of int
        The ONNX shape without the batch dimension.
    batched : bool
        False where the ONNX shape has no batch dimension of one in front; ``shape`` is then all of it.
    matrix : bool
        True where ``shape`` is ``[M, K]``, i.e. the last ONNX axis is the channel axis; else the first one is.
    scale : float32
    zero_point : int
        In the int8 domain, −128…127 (a uint8 tensor's less 128).
    unsigned : bool
        The ONNX tensor is uint8: same values plus 128.
    wide : bool
        The values are int32, and lie in the memory as four planes of bytes. Only the host reads such a tensor.
    """

    name: str
    channels: int
    height: int
    width: int
    shape: tuple
    batched: bool = True
    matrix: bool = False
    scale: np.float32
    zero_point: int
    unsigned: bool = False
    wide: bool = False

    @property
    def elements(self):
        return self.channels * self.height * self.width

    def dump(self):
        kind = "int32" if self.wide else ("u" if self.unsigned else "") + "int8"
        return f"{self.name} {self.channels}x{self.height}x{self.width} {kind} scale {self.scale:.6g} zero point {self.zero_point}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Combine:
    """A second tensor that a node takes in as it stores its result; see :class:`celosia.rtl.isa.StoreInstruction`.

    Parameters
    ----------
    op : Op
        ``ADD`` by the fields of :class:`celosia.rtl.isa.AddParams`; ``MUL`` multiplies the accumulated value with the operand less
        ``zero_point``, in front of the requantisation; ``MIN`` and ``MAX`` choose between the two bytes.
    tensor : str
        The operand: of the shape of the output, or one that has a single row or column where the output has more.
    k_result, k_operand, k_zero : int
        For ``ADD``.
    zero_point : int
        For ``MUL``, in the int8 domain.
    low, high : int
        What the result is clipped to, except that of ``MUL``.
    """

    op: Op = Op.ADD  # type: ignore[assignment]  # an enumeration of Amaranth
    tensor: str
    k_result: int = 0
    k_operand: int = 0
    k_zero: int = 0
    zero_point: int = 0
    low: int = -128
    high: int = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """What every engine node has.

    ``value`` accumulated for output channel ``c`` becomes
    ``clip(round_half_even(float32 product of value and scale[c]) + zero_point, low, high)``, then ``table[value as uint8]``, then what
    ``combine`` makes of it and the operand. Only ``MUL`` comes first, before the product with the scale.
    """

    name: str
    operator: str
    sources: tuple
    input: str
    output: str
    scale: np.ndarray  # float32 [output channels]
    zero_point: int  # of the requantised value, before table and combination
    low: int = -128
    high: int = 127
    table: np.ndarray | None = None  # int8 [256], index = the value's bits
    combine: Combine | None = None
    raw: bool = False  # the result is the accumulated value itself, bias included, as int32: the output is `wide`
    fused: tuple = ()  # names of ONNX values that exist only inside this node

    @property
    def inputs(self):
        return (self.input,) + ((self.combine.tensor,) if self.combine else ())

    def dump(self):
        """Return one line: kind, window, and what is fused."""
        words = [type(self).__name__, self.name, f"({self.operator})", self.input]
        kernel = getattr(self, "kernel", None) or (self.weight.shape if hasattr(self, "weight") else None)
        if kernel:
            words.append("kernel " + "x".join(map(str, kernel)))
        for name, plain in (("stride", (1, 1)), ("dilation", (1, 1)), ("pads", (0, 0, 0, 0)), ("group", 1)):
            value = getattr(self, name, plain)
            if value != plain:
                words.append(f"{name} {value}")
        if (self.low, self.high) != (-128, 127):
            words.append(f"clip {self.low}…{self.high}")
        if self.table is not None:
            words.append("table")
        if self.combine:
            words.append(f"{self.combine.op.name.lower()} {self.combine.tensor}")
        return " ".join(words)


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighted(Node):
    """What convolutions have in common.

    ``weight`` is ``[out, in / group, kernel_y, kernel_x]``, int8, or int16 of nine bits where a zero point was taken off; ``bias`` int32 as
    ONNX has it: the input's zero point is not yet folded in. ``pads`` are (top, left, bottom, right) and read as the input's zero point.
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)
    pads: tuple = (0, 0, 0, 0)
    group: int = 1


class Conv(Weighted):
    """Convolution; Gemm and MatMul are 1 × 1 convolutions, or ones whose kernel is the whole map."""


class ConvTranspose(Weighted):
    """Transposed convolution: tap ``k`` of input pixel ``i`` goes to output pixel ``i * stride + k * dilation - pad`` (top or left).

    The output's size is that of its tensor.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Node):
    """Max or average pooling over each channel.

    ``kind`` is ``"max"``, ``"average"`` or ``"channels"``, the maximum over a window's pixels and all channels. Pixels outside the map are ignored (``max``) or add nothing (``average``). For ``max`` the accumulated value is the
    maximum itself (int8) and ``scale`` is ``[1.0]`` where the quantisation does not change. For ``average`` it is the sum over the window of (x − zero
    point), and ``scales[n]`` is the float32 factor for a window that has ``n`` pixels inside the map (all the same value where the
    divisor is the kernel's size); ``scale`` is then unused. ``biases[n]`` is added to the sum.
    """

    kind: str
    kernel: tuple
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)
    pads: tuple = (0, 0, 0, 0)
    scales: dict = field(default_factory=dict)
    biases: dict = field(default_factory=dict)

    @property
    def takes_maximum(self):
        return self.kind != "average"


@dataclass(frozen=True, kw_only=True, eq=False)
class Copy(Node):
    """An element-wise node on its own: add ``bias`` (int32, one or a number per channel), requantise (scale one keeps the value), table,
    combination. Same shape in and out."""

    bias: np.ndarray | int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Rearrange(Node):
    """Elements taken from one or several tensors, and constants.

    ``part`` and ``index``, integers ``[channels, height, width]`` of the output, say where each element comes from: it is
    element ``index``, counted in ``[channels, height, width]`` order, of tensor number ``part``; or, where ``part`` is −1, the int8
    constant ``index``. An element ``x`` of part ``p`` becomes ``round_half_even((x - zeros[p]) * scales[p]) + zero_point``, clipped; a constant
    stays what it is. ``scale`` is unused. Tensor 0 is ``input``, the others are ``more``.
    """

    part: np.ndarray
    index: np.ndarray
    scales: tuple  # float32 of each part
    zeros: tuple
    more: tuple = ()

    @property
    def tensors(self):
        return (self.input, *self.more)

    @property
    def inputs(self):
        return tuple(dict.fromkeys((*self.tensors, *super().inputs)))

    @property
    def keeps_values(self):
        """Elements are moved only: not rescaled, clipped, looked up or combined."""
        same = all(scale == 1 and zero == self.zero_point for scale, zero in zip(self.scales, self.zeros))
        return same and (self.low, self.high) == (-128, 127) and self.table is None and self.combine is None


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """Matrices within a tensor, one for each product of a batch.

    Element ``(r, c)`` of matrix ``n`` is channel ``channels[n] + c`` of pixel ``pixels[n] + r * step``; with ``transposed``, element
    ``(c, r)`` is.
    """

    pixels: tuple
    channels: tuple
    step: int
    transposed: bool = False

    @property
    def first(self):
        """The first of the matrices alone."""
        return dataclasses.replace(self, pixels=self.pixels[:1], channels=self.channels[:1])

    def elements(self, rows, columns, tensor):
        """Return int64 ``[matrices, rows, columns]``: the elements of ``tensor`` in ``[channels, height, width]`` order."""
        if self.transposed:
            return dataclasses.replace(self, transposed=False).elements(columns, rows, tensor).swapaxes(1, 2)
        channel = np.array(self.channels, np.int64)[:, None, None] + np.arange(columns)
        pixel = np.array(self.pixels, np.int64)[:, None, None] + np.arange(rows)[:, None] * self.step
        return channel * (tensor.height * tensor.width) + pixel


@dataclass(frozen=True, kw_only=True, eq=False)
class Product(Node):
    """Products of pairs of matrices that are both computed: ``input`` with ``right``, each ``rows × length`` and ``length × columns``.

    The value accumulated is ``Σ (a - za) * (b - zb) + bias``, zero points being those of the tensors. ``scale`` and ``bias`` are those of
    the output tensor's channels.
    """

    right: str
    rows: int
    length: int
    left_at: Matrices
    right_at: Matrices
    result_at: Matrices
    columns: int
    bias: np.ndarray

    @property
    def inputs(self):
        return tuple(dict.fromkeys((self.input, self.right, *super().inputs)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A chain of engine nodes in topological order with the tensors between them."""

    name: str
    tensors: dict  # name → Tensor
    nodes: tuple
    inputs: tuple  # names
    outputs: tuple  # names
    constants: dict = field(default_factory=dict)  # name → int8 [channels, height, width], for tensors that are loaded with the program

    def dump(self):
        """Return a listing: a line for each tensor that comes in and for each node, with the tensor it makes."""
        lines = [f"engine {self.name}: {', '.join(self.inputs)} -> {', '.join(self.outputs)}"]
        lines += [f"  input {self.tensors[name].dump()}" for name in self.inputs]
        lines += [f"  {node.dump()} -> {self.tensors[node.output].dump()}" for node in self.nodes]
        return "\n".join(lines)

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)
