"""Operations that move elements without computing.

The reader takes the elements from where they are, if it can; else a :class:`~celosia.tools.compiler.ir.Rearrange` moves them, for which
the compiler again needs nothing where whole words stay together. Golden: what comes from where is found by ONNX Runtime running the
operation on the numbers of the elements; requantisation is held to its 256 results.
"""

from dataclasses import replace

import numpy as np

from celosia.sim.numerics import channel_params, requantize
from celosia.tools.compiler import ir
from celosia.tools.compiler.legalise import MOVES
from celosia.tools.ops.elements import Elements, map_size
from celosia.tools.ops.family import Family, Lowered, Refused, View, quantised_per_tensor, read_zero_point
from celosia.tools.ops.reference import concat_table, index_map, unary_table

__all__ = ["FAMILIES"]

IDENTITY = np.arange(256, dtype=np.uint8).view(np.int8)
NEIGHBOURS = 8
"""Float32 numbers on each side of a ratio of scales to try."""


def input_is_8_bit(operation, features):
    """The tensor must be quantised to int8 or uint8, and all other operands (shapes, indices, sizes) constant.

    Export with fixed shapes: ONNX Runtime then folds what is computed from them.
    """
    return len(operation.inputs) == 1 and all(
        features.value(name).is_quantised for name in (*operation.inputs, operation.output)
    )


def nearest_only(operation, features):
    """Resize and Upsample must take the nearest element, or be linear and alone: others are computed in floating point.

    Export the model with mode "nearest" or "linear", or write the interpolation as a depthwise ConvTranspose.
    """
    resizes = [node for node in operation.nodes if node.op_type in ("Resize", "Upsample")]
    modes = {attribute.s for node in resizes for attribute in node.attribute if attribute.name == "mode"}
    return modes <= {b"nearest"}


def keeps_quantisation(operation, features):
    """Pad must not change scale and zero point.

    Quantise the padded tensor with the scale and zero point of the one before.
    """
    operands = operation.operands
    names = ("scale", "zero_point")
    return all(np.array_equal(operands.get(f"x_{name}"), operands.get(f"y_{name}")) for name in names)


def pads_are_constant(operation, features):
    """How much Pad adds, and the value, must be constant.

    Export with fixed shapes: ONNX Runtime then folds what is computed from them.
    """
    return len(operation.inputs) == 1 and ("input_1" in operation.operands or "pads" in operation.attributes)


def inputs_are_8_bit(operation, features):
    """What is joined must be quantised to int8 or uint8, with constant scales and zero points.

    Put a QuantizeLinear and a DequantizeLinear before each operand, as `celosia quantize` does.
    """
    names = (*operation.inputs, operation.output)
    scales = sum(name.endswith("_scale") for name in operation.operands)
    known = operation.form == "Concat" or scales == (len(operation.nodes[0].input) - 2) // 3 + 1
    return known and all(features.value(name).is_quantised for name in names)


def lower_movement(operation, features):
    """Lower Reshape, Transpose, Slice, …: the same elements, seen in another order."""
    view = features.view(operation.inputs[0])
    if view.is_padded:
        view = features.rearrange(operation.inputs[0])
    if operation.form in ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
        index = view.index.reshape(features.value(operation.output).shape)
    elif operation.form == "Transpose":
        index = view.index.transpose(operation.attributes.get("perm"))
    else:
        places = index_map(operation, features)
        if (places < 0).any():
            raise Refused("What lies outside of the tensor has no value on the engine, except for Pad.")
        index = view.index.reshape(-1)[places]
    moved = View(tensor=view.tensor, index=index)
    if view.tensor.name in features.inputs and not (moved.is_map or moved.is_rows or moved.is_channels_last or moved.elements.is_cheap):
        raise Refused("What comes from the host is rearranged there.")
    if operation.form != "FloatMove":
        return Lowered(view=moved)
    table = unary_table(operation, features)
    if (table == IDENTITY).all() and view.tensor.unsigned == features.value(operation.output).unsigned:
        return Lowered(view=moved)
    return Lowered(view=_looked_up(operation, features, moved, table))


def _looked_up(operation, features, view, table, number=0):
    """Return the view with every element replaced by its entry in ``table``: of a copy of its tensor, which is made first."""
    old, name = view.tensor, f"{operation.output} (requantised {number})"
    like = features.tensor(operation.output, channels=1, height=1, width=1)
    tensor = replace(old, name=name, scale=like.scale, zero_point=like.zero_point, unsigned=like.unsigned)
    node = ir.Copy(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=old.name,
        output=name,
        scale=np.ones(old.channels, np.float32),
        zero_point=0,
        table=table,
    )
    found = View(tensor=tensor, index=view.index)
    features.extra.append(Lowered(view=found, node=node))
    return found


# Pad --------------------------------------------------------------------------------------------------------------------


def lower_pad(operation, features):
    """Lower Pad: the next convolution or max pooling reads the value around the map, or the padded map is put together."""
    view = features.view(operation.inputs[0])
    if view.is_padded:
        view = features.rearrange(operation.inputs[0])
    pads = [int(pad) for pad in operation.operands.get("input_1", operation.attributes.get("pads"))]
    tensor, shape = view.tensor, view.index.shape
    constant = operation.attributes.get("mode", b"constant") == b"constant"
    fill = _fill(operation, tensor) if constant else None
    rank = len(shape)
    spatial = rank in (3, 4) and len(pads) == 2 * rank and min(pads) >= 0 and not any((*pads[:2], *pads[rank : rank + 2]))
    if constant and spatial and view.is_map and map_size(shape) == (tensor.channels, tensor.height, tensor.width):
        foldable = {"QLinearConv": tensor.zero_point, "MaxPool": -128, "FloatMaxPool": -128}
        readers = features.readers(operation.output)
        if operation.output not in features.graph.outputs and readers and all(foldable.get(r.form) == fill for r in readers):
            top, left = ([0] + pads[2:rank])[-2:]
            bottom, right = ([0] + pads[rank + 2 :])[-2:]
            return Lowered(view=View(tensor=tensor, index=view.index, pads=(top, left, bottom, right), pad_value=fill))
    places = index_map(operation, features)
    index = view.index.reshape(-1)[places]
    if not (places < 0).any():
        return Lowered(view=View(tensor=tensor, index=index))
    elements = Elements(tensors=(tensor,), part=-(places < 0).astype(int), index=np.where(places < 0, fill or 0, index))
    return _joined(operation, features, elements)


def _fill(operation, tensor):
    """Return the int8 value that Pad adds."""
    fill = operation.operands.get("input_2", np.array(operation.attributes.get("value", 0.0))).item()
    if operation.form == "FloatPad":
        steps = np.rint(np.float32(fill) / np.float32(operation.operands["x_scale"].item()))
        return int(np.clip(steps + read_zero_point(operation, "x", tensor), -128, 127))
    return int(fill) - (128 if tensor.unsigned else 0)


# Concat -----------------------------------------------------------------------------------------------------------------


def lower_concat(operation, features):
    """Lower Concat and ``QLinearConcat``: elements of several tensors in one; those of another scale are requantised as they are moved."""
    quantised = operation.form == "QLinearConcat"
    like = features.tensor(operation.output, channels=1, height=1, width=1)
    names = iter(operation.inputs)
    count = (len(operation.nodes[0].input) - 2) // 3 if quantised else len(operation.nodes[0].input)
    parts, tensors, rescaled = [], [], []
    for number in range(count):
        constant = operation.operands.get(f"x{number}" if quantised else f"input_{number}")
        table = concat_table(operation, f"x{number}") if quantised else None
        if constant is not None:
            value = (constant ^ 0x80).view(np.int8) if constant.dtype == np.uint8 else constant
            value = value if table is None else table[value.view(np.uint8)]
            parts.append((np.full(value.shape, -1), value.astype(np.int64)))
            continue
        name = next(names)
        view = features.view(name)
        if view.is_padded:
            view = features.rearrange(name)
        scale, zero, view = _requantised(operation, features, view, number, table, like)
        key = view.tensor.name, scale, zero
        if key not in rescaled:
            rescaled.append(key)
            tensors.append(view.tensor)
        parts.append((np.full(view.index.shape, rescaled.index(key)), view.index))
    axis = operation.attributes["axis"]
    part, index = (np.concatenate(arrays, axis) for arrays in zip(*parts))
    if not tensors:
        raise Refused("A constant is not computed on the engine.")
    scales, zeros = tuple(scale for _, scale, _ in rescaled), tuple(zero for _, _, zero in rescaled)
    same = len(tensors) == 1 and (part == 0).all() and scales[0] == 1 and zeros[0] == like.zero_point
    if same and tensors[0].unsigned == like.unsigned:
        return Lowered(view=View(tensor=tensors[0], index=index))
    elements = Elements(tensors=tuple(tensors), part=part, index=index, scales=scales, zeros=zeros, like=like)
    return _joined(operation, features, elements)


def _requantised(operation, features, view, number, table, like):
    """Return scale and zero point that requantise a part as ``table`` does, and its view; a looked-up copy's if there are none."""
    if table is None or (table == IDENTITY).all():
        return np.float32(1), like.zero_point, view
    operands = operation.operands
    zero_point = operands.get(f"x{number}_zero_point")
    zero = (int(zero_point.item()) if zero_point is not None else 0) - (128 if view.tensor.unsigned else 0)
    with np.errstate(all="ignore"):
        ratio = np.float32(operands[f"x{number}_scale"].item()) / np.float32(operands["y_scale"].item())
    for scale in _neighbours(ratio):
        try:
            found = requantize(IDENTITY.astype(np.int32), -zero, *channel_params(scale), like.zero_point)
        except ValueError:
            break
        if (found == table).all():
            return scale, zero, view
    return np.float32(1), like.zero_point, _looked_up(operation, features, view, table, number)


def _neighbours(ratio):
    """Yield a float32 number and those next to it, the nearest first."""
    yield ratio
    below = above = ratio
    for _ in range(NEIGHBOURS):
        below, above = np.nextafter(below, np.float32(0)), np.nextafter(above, np.float32(np.inf))
        yield from (below, above)


def _joined(operation, features, elements):
    return features.lower_elements(operation.output, elements)


FAMILIES = (
    Family(
        name="Rearrangement",
        operators=tuple(sorted({*MOVES} - {"Pad"})),
        forms=(*(move for move in MOVES if move != "Pad"), "FloatMove"),
        constraints=(input_is_8_bit, nearest_only, quantised_per_tensor),
        lower=lower_movement,
    ),
    Family(
        name="Padding",
        operators=("Pad",),
        forms=("FloatPad", "Pad"),
        constraints=(input_is_8_bit, pads_are_constant, keeps_quantisation, quantised_per_tensor),
        lower=lower_pad,
    ),
    Family(
        name="Joining",
        operators=("Concat", "QLinearConcat"),
        forms=("Concat", "QLinearConcat"),
        constraints=(inputs_are_8_bit,),
        lower=lower_concat,
    ),
)
