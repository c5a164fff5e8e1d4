"""Sum, mean and maximum over some axes of a tensor, and GlobalMaxPool.

Golden: the maximum is exact. ``ReduceMean`` and ``ReduceSum`` add dequantised float32 values in ONNX Runtime: near a tie their result can
depend on the order of the additions (:func:`celosia.tools.ops.pooling.near_ties`).
"""

import numpy as np

from celosia.tools.compiler import ir
from celosia.tools.ops.family import OTHER_ZERO_POINT, Family, Lowered, Refused, View, quantised_per_tensor, read_zero_point
from celosia.tools.ops.pooling import average_scale, input_is_8_bit, near_ties, one_output, remark
from celosia.tools.ops.reference import rising_table

__all__ = ["FAMILIES", "reduced_axes"]


def axes_are_constant(operation, features):
    """The axes must be constant.

    Store them as an initializer: ONNX Runtime folds what can be folded.
    """
    return len(operation.inputs) == 1


def reduced_axes(attributes, given, rank):
    """Return the axes of a reduction as non-negative integers, in order; ``given`` is its second input or None."""
    axes = attributes.get("axes") if given is None else np.asarray(given).reshape(-1).tolist()
    if not axes:
        return () if attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in axes))


def _places(operation, features, view):
    """Return the elements of each result: positions in the tensor, ``[results, terms]``, results in the order of the output."""
    index = view.index
    if operation.operator == "GlobalMaxPool":
        axes = tuple(range(2, index.ndim))
    else:
        axes = reduced_axes(operation.attributes, operation.operands.get("input_1"), index.ndim)
    kept = [axis for axis in range(index.ndim) if axis not in axes]
    results = int(np.prod([index.shape[axis] for axis in kept]))
    return index.transpose(*kept, *axes).reshape(results, -1)


def _window(tensor, places):
    """Return what the terms of each result span: (channels, rows, columns) as True where that is the whole axis; None if no such box."""
    shape = tensor.channels, tensor.height, tensor.width
    grid = np.arange(tensor.elements).reshape(shape)
    whole = [bool((coordinate != coordinate[:, :1]).any()) for coordinate in np.unravel_index(places, shape)]
    first = tuple(slice(0, 1) if wide else slice(None) for wide in whole)
    terms = np.prod([size for size, wide in zip(shape, whole) if wide], dtype=int)
    boxes = np.moveaxis(grid, [axis for axis in range(3) if whole[axis]], range(-sum(whole), 0)) if any(whole) else grid
    boxes = {tuple(box) for box in np.sort(boxes.reshape(-1, terms), axis=1).tolist()}
    if places.shape[1] != terms or len(places) != grid[first].size or any(
        tuple(row) not in boxes for row in np.sort(places, axis=1).tolist()
    ):
        return None
    return tuple(whole)


def lower_reduction(operation, features):
    """Lower a reduction: over pixels as pooling, over channels as a convolution with ones or as a maximum of the window's channels."""
    name = operation.inputs[0]
    view = features.rearrange(name) if features.view(name).is_padded else features.view(name)
    places = _places(operation, features, view)
    window = _window(view.tensor, places)
    if window is None:
        view = features.rearrange(name)
        places = _places(operation, features, view)
        window = _window(view.tensor, places)
    if window is None:
        raise Refused("The engine reduces whole rows, columns or channels of a map.")
    tensor, (channels, rows, columns) = view.tensor, window
    size = {
        "channels": 1 if channels else tensor.channels,
        "height": 1 if rows else tensor.height,
        "width": 1 if columns else tensor.width,
    }
    made = features.tensor(operation.output, **size)
    where = np.unravel_index(places[:, 0], (tensor.channels, tensor.height, tensor.width))
    where = [np.zeros_like(place) if wide else place for place, wide in zip(where, (channels, rows, columns))]
    index = np.ravel_multi_index(where, (made.channels, made.height, made.width))
    output = View(tensor=made, index=index.reshape(features.value(operation.output).shape))
    kernel = tensor.height if rows else 1, tensor.width if columns else 1
    common = {
        "name": operation.name,
        "operator": operation.operator,
        "sources": operation.sources,
        "input": tensor.name,
        "output": made.name,
    }
    if operation.form in ("ReduceMax", "FloatReduceMax"):
        table = rising_table(operation, features) if operation.form == "FloatReduceMax" else None
        ones = np.ones(made.channels, np.float32)
        common |= {"scale": ones, "zero_point": 0, "table": table}
        return Lowered(node=ir.Pool(kind="channels" if channels else "max", kernel=kernel, **common), view=output)
    if read_zero_point(operation, "x", tensor) != tensor.zero_point:
        raise Refused(*OTHER_ZERO_POINT)
    count = places.shape[1]
    x_scale, y_scale = (operation.operands[name].item() for name in ("x_scale", "y_scale"))
    scale = average_scale(x_scale, y_scale, count if operation.operator == "ReduceMean" else 1)
    common |= {"scale": np.full(made.channels, scale, np.float32), "zero_point": made.zero_point}
    note = remark(len(near_ties(count, scale, tensor.zero_point, made.zero_point)))
    if not channels:
        node = ir.Pool(kind="average", kernel=kernel, scales={count: scale}, **common)
    else:
        weight = np.ones((1, tensor.channels, *kernel), np.int8)
        node = ir.Conv(weight=weight, bias=np.zeros(1, np.int32), **common)
    return Lowered(node=node, view=output, note=note)


FAMILIES = (
    Family(
        name="Reduction",
        operators=("GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceSum"),
        forms=("FloatReduceMax", "ReduceMax", "ReduceMean", "ReduceSum"),
        constraints=(one_output, axes_are_constant, input_is_8_bit, quantised_per_tensor),
        lower=lower_reduction,
    ),
)
