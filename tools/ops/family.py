"""What an operator family is made of, and where its lowering finds the tensors that exist so far."""

import inspect
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import TensorProto, numpy_helper

from celosia.rtl.isa import ExecuteInstruction, largest
from celosia.tools.compiler import ir
from celosia.tools.ops.elements import Elements, map_size, rearranged

__all__ = [
    "OTHER_ZERO_POINT",
    "Family",
    "Features",
    "Lowered",
    "Refused",
    "View",
    "first_dimension_is_one",
    "quantised_per_tensor",
    "read_zero_point",
    "sentence",
    "suggestion",
    "takes_channels_last",
]


PRODUCTS = ("MatMulInteger", "Product", "ProductInteger", "QGemm", "QLinearMatMul")
RESHAPES = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
MAX_EXTENT, MAX_STRIDE = (largest(ExecuteInstruction, field) for field in ("in_height", "stride_y"))
OTHER_ZERO_POINT = (
    "The engine reads a tensor with the zero point it was quantised with.",
    "Give the DequantizeLinear the zero point of the QuantizeLinear before it.",
)
IN_PLACE = ("Binary", "Places", "QLinearAdd", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "Unary")


class Refused(Exception):
    """A reason against running an operation on the engine: the sentence the user reads, and what they can do about it."""

    def __init__(self, reason, suggestion=""):
        super().__init__(reason)
        self.suggestion = suggestion


@dataclass(frozen=True, kw_only=True)
class Family:
    """Operators that are lowered by one function.

    Parameters
    ----------
    name : str
        What `celosia ops` calls it.
    operators : tuple of str
        ONNX operators as users know them.
    forms : tuple of str
        Keys of :attr:`celosia.tools.compiler.graph.Operation.form`.
    constraints : tuple
        Functions ``(operation, features) -> bool``; the docstring is the sentence the user reads where it returns False, and a
        second paragraph what they can do about it.
    lower : function
        ``(operation, features) -> Lowered``; may raise :class:`Refused`.
    """

    name: str
    operators: tuple
    forms: tuple
    constraints: tuple
    lower: object


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """An ONNX value as elements of an engine tensor.

    Parameters
    ----------
    tensor : ir.Tensor
    index : int64 array
        In the value's ONNX shape: which element of the tensor, counted in ``[channels, height, width]`` order.
    pads : tuple
        (top, left, bottom, right) pixels of ``pad_value`` around the map, not in ``index``.
    """

    tensor: ir.Tensor
    index: np.ndarray
    pads: tuple = (0, 0, 0, 0)
    pad_value: int = 0

    @property
    def is_map(self):
        """The value is the tensor itself: channels, then rows, then columns."""
        return self.index.size == self.tensor.elements and (self.index.ravel() == np.arange(self.index.size)).all()

    @property
    def is_rows(self):
        """The value is a matrix whose rows are the tensor's pixels."""
        shape = self.tensor.channels, self.tensor.height * self.tensor.width
        return self.index.size == self.tensor.elements and (
            (self.index.reshape(-1, shape[0]) == np.arange(self.index.size).reshape(shape).T).all()
        )

    @property
    def is_plain(self):
        """The value can enter or leave the engine as it is."""
        return not self.is_padded and (self.is_rows if self.tensor.matrix else self.is_map)

    @property
    def is_padded(self):
        return any(self.pads)

    @property
    def is_whole(self):
        """Every element of the tensor is in the value, and once."""
        return self.index.size == self.tensor.elements == len(np.unique(self.index))

    @property
    def is_channels_last(self):
        """The value is a map ``[1, C, H, W]`` whose channels lie side by side in a tensor ``1 × H × (W · C)``."""
        tensor, shape = self.tensor, self.index.shape
        if len(shape) != 4 or (tensor.channels, tensor.height, tensor.width) != (1, shape[2], shape[3] * shape[1]):
            return False
        return bool((self.index.transpose(0, 2, 3, 1).ravel() == np.arange(tensor.elements)).all())

    @property
    def elements(self):
        """The :class:`Elements` of the value, padding as constants."""
        index = self.index
        top, left, bottom, right = self.pads
        if self.is_padded:
            pads = ((top, bottom), (left, right))[-(index.ndim - 2) :]
            index = np.pad(index, ((0, 0), (0, 0), *pads), constant_values=-1)
        outside = index < 0
        return Elements(tensors=(self.tensor,), part=-outside.astype(int), index=np.where(outside, self.pad_value, index))


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowered:
    """An operation on the engine: a node and the view of its output, or a view alone where nothing has to be computed.

    ``note`` is a remark for `celosia explain`.
    """

    view: View
    node: ir.Node | None = None
    note: str = ""


@dataclass(kw_only=True, eq=False)
class Features:
    """The values the engine has so far: :class:`View` by name. Others become ``inputs`` of the engine, tensors by name, when
    they are asked for.

    ``first`` holds the views of values before they were rearranged, and ``moved`` the :class:`Lowered` of values that were views until an operation needed them in another order. ``extra`` are further ones
    that have to be computed before the present operation: a value in a second order, or requantised. ``constants`` are
    ``(ir.Tensor, int8 [channels, height, width])`` by name.
    """

    graph: object
    views: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    first: dict = field(default_factory=dict)
    moved: dict = field(default_factory=dict)
    extra: list = field(default_factory=list)
    constants: dict = field(default_factory=dict)

    def __post_init__(self):
        self._consumers = self.graph.consumers()
        self._producers = {name: (operation,) for name, operation in self.graph.producers().items()}

    def value(self, name):
        return self.graph.values[name]

    def is_unsigned(self, name):
        """Return whether a value or constant is uint8."""
        constant = self.graph.constants.get(name)
        return self.value(name).unsigned if constant is None else constant.data_type == TensorProto.UINT8

    def number(self, name):
        """Return the array of a constant, uint8 as int8 less 128; None if ``name`` is none."""
        if name not in self.graph.constants:
            return None
        array = numpy_helper.to_array(self.graph.constants[name])
        return (array ^ np.uint8(0x80)).view(np.int8) if array.dtype == np.uint8 else array

    def temporary(self, name, like, *, channels=None):
        """Return a new :class:`ir.Tensor` that is no value of the model, of the size and quantisation of ``like``."""
        channels = channels or like.channels
        shape = (channels, like.height, like.width)
        return replace(like, name=name, channels=channels, shape=shape, batched=True, matrix=False)

    def constant(self, name, array, like):
        """Return a new :class:`ir.Tensor` that holds the int8 ``array [channels, height, width]``, with the quantisation of ``like``."""
        size = dict(zip(("channels", "height", "width"), array.shape))
        tensor = replace(like, name=name, shape=array.shape, batched=True, matrix=False, **size)
        self.constants[name] = tensor, np.ascontiguousarray(array, np.int8)
        return tensor

    def before(self, node, tensor):
        """Compute ``tensor`` by ``node`` before the present operation."""
        self.extra.append(Lowered(node=node, view=View(tensor=tensor, index=np.arange(tensor.elements))))

    def readers(self, name):
        """Return the operations that read a value."""
        return self._consumers.get(name, ())

    def view(self, name):
        """Return the :class:`View` of a value.

        Raises
        ------
        Refused
            If the value is not an 8-bit tensor with a batch of one.
        """
        if name not in self.views:
            self.views[name] = self._input(name)
            self.inputs[name] = self.views[name].tensor
        return self.views[name]

    def map(self, name, prefix, operation, *, padded=True):
        """Return the view of ``name`` as a whole feature map with the zero point ``operation`` reads it with.

        What lies in another order, or has padding that ``operation`` cannot fold, is rearranged first.
        """
        view = self.view(name)
        size = view.tensor.channels, view.tensor.height, view.tensor.width
        if not view.is_map or map_size(view.index.shape) != size or (view.is_padded and not padded):
            view = self.rearrange(name)
        if read_zero_point(operation, prefix, view.tensor) != view.tensor.zero_point:
            raise Refused(*OTHER_ZERO_POINT)
        return view

    def alike(self, names):
        """Return views of values of one shape whose elements lie in the same order in tensors of the same size, rearranged if need be."""
        views = [self.view(name) for name in names]
        if all(_same_places(view, views[0]) for view in views):
            return views
        matrix = any(_is_laid_out(view, True) for view in views)
        if not matrix and not any(_is_laid_out(view, False) for view in views):
            matrix = any(self._matrix_use(name) == "rows" for name in names)
        return [view if _is_laid_out(view, matrix) else self.rearrange(name, matrix=matrix) for name, view in zip(names, views)]

    def rearrange(self, name, *, matrix=False):
        """Return a view of the value ``name`` in plain order: as a feature map, or as a ``matrix`` whose rows are pixels."""
        view = self.view(name)
        key = name, matrix
        first = self.first.setdefault(name, view)
        if _is_laid_out(first, matrix):
            self.views[name] = first
            return first
        if key not in self.moved:
            whole = view.elements
            if view.tensor.name in self.inputs and not whole.is_cheap:
                raise Refused("What comes from the host is rearranged there.")
            taken = view.tensor.name == name or (name, not matrix) in self.moved
            title = f"{name} ({'rows' if matrix else 'rearranged'})" if taken else name
            lowered = self.lower_elements(name, whole, matrix=matrix, title=title)
            self.moved[key] = lowered
            if taken:
                self.extra.append(lowered)
        self.views[name] = self.moved[key].view
        return self.views[name]

    def lower_elements(self, name, elements, *, matrix=None, title=None):
        """Return the :class:`Lowered` rearrangement that gives the value ``name`` the ``elements``, as a tensor called ``title``."""
        if matrix is None:
            rows = elements.index.ndim > 1 and int(np.prod(elements.index.shape[:-1])) > 1
            matrix = rows and (self._matrix_use(name) == "rows" or elements.is_better_as_matrix)
        if not elements.is_bounded(matrix=matrix):
            raise Refused("Neighbouring channels come from too many places: the elements would be picked one by one.")
        operation = next(iter(self._producers.get(name, ())), None)
        tensor, index, node = rearranged(elements, operation, title or name, matrix=matrix)
        return Lowered(view=View(tensor=tensor, index=index), node=node)

    def tensor(self, name, *, channels, height, width, matrix=False):
        """Return the new :class:`ir.Tensor` of the value ``name``; the pixels of a matrix are its rows."""
        value = self.value(name)
        if matrix:
            height, width = height * width, 1
        return ir.Tensor(
            name=name,
            channels=channels,
            height=height,
            width=width,
            shape=tuple(value.shape[1:] if value.shape[:1] == (1,) else value.shape),
            batched=value.shape[:1] == (1,),
            matrix=matrix,
            scale=np.float32(1.0 if value.scale is None else value.scale),
            zero_point=value.zero_point,
            unsigned=value.unsigned,
        )

    def output(self, operation, *, channels, height, width):
        """Return the view of an operation's output that is a feature map in the order of the engine."""
        shape = self.value(operation.output).shape
        tensor = self.tensor(operation.output, channels=channels, height=height, width=width)
        return View(tensor=tensor, index=np.arange(tensor.elements).reshape(shape))

    def _input(self, name):
        value = self.value(name)
        if not value.is_quantised:
            raise Refused(f"Value {name!r} must be int8 or uint8, not {value.dtype}.")
        shape, use = self._input_shape(name)
        matrix = use == "rows"
        if matrix:
            channels, height = shape[-1], int(np.prod(shape[:-1]))
            tensor = self.tensor(name, channels=channels, height=height, width=1, matrix=True)
            return View(tensor=tensor, index=np.arange(tensor.elements).reshape(channels, height).T.reshape(value.shape))
        channels, height, width = map_size(shape)
        if use == "columns" and height == 1:  # the product's result is a column of pixels
            height, width = width, 1
        tensor = self.tensor(name, channels=channels, height=height, width=width)
        return View(tensor=tensor, index=np.arange(tensor.elements).reshape(value.shape))

    def _input_shape(self, name):
        """Return the shape in which an input is used, since a plain dense one has any; and how a matrix product uses it."""
        value = self.value(name)
        shape = value.shape
        while len(consumers := self._consumers.get(name, ())) == 1:
            (consumer,) = consumers
            if consumer.form in RESHAPES:
                name = consumer.output
                shape = self.value(name).shape
                continue
            if consumer.form == "Transpose" and _channels_come_last(consumer, shape):
                if self._is_read_by_convolutions(consumer.output, shape):
                    return (1, 1, shape[1], shape[2] * shape[3]), ""
                if np.prod(shape[1:-1]) <= MAX_EXTENT:
                    return shape, "rows"
            break
        use = self._matrix_use(name) if len(shape) > 1 else ""
        return shape, "" if use == "rows" and np.prod(shape[:-1]) == 1 else use

    def _is_read_by_convolutions(self, name, shape):
        """Whether convolutions can take the channels of a ``[1, H, W, C]`` input from side by side."""
        readers, channels = self.readers(name), shape[-1]
        if len(shape) != 4 or not readers or name in self.graph.outputs or shape[2] * channels > MAX_EXTENT:
            return False
        strides = [max(reader.attributes.get("strides", (1,))) for reader in readers]
        return all(takes_channels_last(reader) for reader in readers) and max(strides) * channels <= MAX_STRIDE

    def _matrix_use(self, name, seen=()):
        """Return whether a product reads ``"rows"`` or ``"columns"`` of the value, itself or behind operations that move no element."""
        seen, waiting = set(seen), [name]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for operation in (*self._consumers.get(name, ()), *self._producers.get(name, ())):
                if operation.form in PRODUCTS:
                    return "columns" if operation.attributes.get("x_transposed") else "rows"
                if operation.form == "Transpose" and operation.inputs[0] == name and self._swaps_last(operation):
                    return {"rows": "columns", "columns": "rows"}.get(self._matrix_use(operation.output, seen), "")
                keeps_rows = operation.form in RESHAPES and (
                    self.value(operation.inputs[0]).shape[-1:] == self.value(operation.output).shape[-1:]
                )
                if operation.form in IN_PLACE or keeps_rows:
                    waiting.extend((*operation.inputs, *operation.outputs))
        return ""

    def _swaps_last(self, operation):
        rank = len(self.value(operation.output).shape)
        order = operation.attributes.get("perm") or list(range(rank))[::-1]
        return list(order) == [*range(rank - 2), rank - 1, rank - 2]


def takes_channels_last(operation):
    """Whether an operation is a convolution whose taps and channels may change places: not grouped, not dilated."""
    attributes = operation.attributes
    plain = attributes.get("group", 1) == 1 and max(attributes.get("dilations", (1,))) == 1
    return operation.form == "QLinearConv" and plain


def _size(tensor):
    return tensor.channels, tensor.height, tensor.width


def _same_places(one, other):
    return (
        _size(one.tensor) == _size(other.tensor)
        and not (one.is_padded or other.is_padded)
        and bool((one.index == other.index).all())
    )


def _is_laid_out(view, matrix):
    """Whether a view is what :meth:`Features.rearrange` makes of a value."""
    channels, *rest = map_size(view.index.shape)
    if matrix:
        shape = view.index.shape
        channels, rest = shape[-1], [int(np.prod(shape[:-1])), 1]
    return view.is_plain and view.tensor.matrix == matrix and _size(view.tensor) == (channels, *rest)


def _channels_come_last(transpose, shape):
    """Whether the transposition of a ``[1, …, C]`` value moves its last axis to the second place."""
    rank = len(shape)
    return rank > 2 and list(transpose.attributes.get("perm", ())) == [0, rank - 1, *range(1, rank - 1)]


def sentence(function):
    """Return what the user reads of a constraint: the first paragraph of its docstring, on one line."""
    return " ".join(inspect.getdoc(function).split("\n\n")[0].split())


def suggestion(function):
    """Return what the user can do about a constraint: the further paragraphs of its docstring, or nothing."""
    return " ".join(" ".join(inspect.getdoc(function).split("\n\n")[1:]).split())


def read_zero_point(operation, prefix, tensor):
    """Return the zero point, in the int8 domain, with which ``operation`` reads ``tensor``."""
    if f"{prefix}_scale" not in operation.operands:
        return tensor.zero_point
    zero_point = operation.operands.get(f"{prefix}_zero_point")
    return (int(zero_point.item()) if zero_point is not None else 0) - (128 if tensor.unsigned else 0)


def quantised_per_tensor(operation, features):
    """Activations must have one constant scale and zero point for the whole tensor.

    Quantise activations per tensor, and only weights per channel, as `celosia quantize` does.
    """
    named = [name for name in operation.operands if name.rpartition("_scale")[0] in ("x", "y", "a", "b")]
    known = all(features.value(name).is_quantised for name in operation.inputs)  # no computed scale among the inputs
    return known and all(operation.operands[name].size == 1 for name in named if name.endswith("_scale"))


def first_dimension_is_one(operation, features):
    """The first dimension of every tensor must be 1: the engine runs one inference at a time.

    Export the model with a batch of 1, and feed as many inferences as there are.
    """
    names = (*operation.inputs, *operation.outputs)
    return all(features.value(name).shape[:1] == (1,) for name in names)
