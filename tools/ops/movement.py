"""Operations that move elements without computing: the operation that reads them takes them from where they are."""

import numpy as np

from celosia.tools.compiler import ir
from celosia.tools.ops.family import Family, Lowered, Refused, View

__all__ = ["FAMILIES"]


def input_is_8_bit(operation, features):
    """The tensor must be quantised to int8 or uint8."""
    return len(operation.inputs) == 1 and features.value(operation.inputs[0]).is_quantised


def only_spatial(operation, features):
    """Pad must add a constant to the height and width of a [1, C, H, W] or [1, C, L] tensor."""
    rank = len(features.value(operation.inputs[0]).shape)
    pads = operation.operands.get("input_1", operation.attributes.get("pads"))
    mode = operation.attributes.get("mode", b"constant")
    if pads is None or mode != b"constant" or "input_3" in operation.operands:
        return False
    return rank in (3, 4) and len(pads) == 2 * rank and not any((*pads[:2], *pads[rank : rank + 2])) and min(pads) >= 0


def keeps_quantisation(operation, features):
    """Pad must not change scale and zero point."""
    operands = operation.operands
    names = ("scale", "zero_point")
    return all(np.array_equal(operands.get(f"x_{name}"), operands.get(f"y_{name}")) for name in names)


def lower_movement(operation, features):
    """Lower Reshape, Transpose, …: the same elements, seen in another order."""
    view = features.view(operation.inputs[0])
    if view.is_padded:
        raise Refused("The engine folds Pad into a convolution or pooling only.")
    index = view.index
    if operation.form == "Transpose":
        index = index.transpose(operation.attributes.get("perm"))
    moved = View(tensor=view.tensor, index=index.reshape(features.value(operation.output).shape))
    if view.tensor.name in features.inputs and not (moved.is_map or moved.is_rows):
        raise Refused("What comes from the host is rearranged there.")
    return Lowered(view=moved)


def lower_pad(operation, features):
    """Lower Pad: the next convolution or max pooling reads the value around the map, or a depthwise convolution with a weight of 1."""
    view = features.map(operation.inputs[0], "x", operation)
    if view.is_padded:
        raise Refused("The engine folds one Pad, not two in a row.")
    pads = [int(pad) for pad in operation.operands.get("input_1", operation.attributes.get("pads"))]
    rank = len(pads) // 2
    top, left = ([0] + pads[2:rank])[-2:]
    bottom, right = ([0] + pads[rank + 2 :])[-2:]
    tensor = view.tensor
    fill = operation.operands.get("input_2", np.array(operation.attributes.get("value", 0.0))).item()
    if operation.form == "FloatPad":
        steps = np.rint(np.float32(fill) / np.float32(operation.operands["x_scale"].item()))
        fill = int(np.clip(steps + tensor.zero_point, -128, 127))
    else:
        fill = int(fill) - (128 if tensor.unsigned else 0)
    pads = (top, left, bottom, right)
    foldable = {"QLinearConv": tensor.zero_point, "MaxPool": -128, "FloatMaxPool": -128}
    readers = features.readers(operation.output)
    wanted = operation.output in features.graph.outputs
    if readers and not wanted and all(foldable.get(reader.form) == fill for reader in readers):
        return Lowered(view=View(tensor=tensor, index=view.index, pads=pads, pad_value=fill))
    if fill != tensor.zero_point:
        raise Refused("The engine pads with the zero point, or with the lowest value before MaxPool.")
    height, width = tensor.height + top + bottom, tensor.width + left + right
    output = features.output(operation, channels=tensor.channels, height=height, width=width)
    node = ir.Conv(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=tensor.name,
        output=output.tensor.name,
        scale=np.ones(tensor.channels, np.float32),
        zero_point=tensor.zero_point,
        weight=np.ones((tensor.channels, 1, 1, 1), np.int8),
        bias=np.zeros(tensor.channels, np.int32),
        pads=pads,
        group=tensor.channels,
    )
    return Lowered(node=node, view=output)


FAMILIES = (
    Family(
        name="Rearrangement",
        operators=("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
        forms=("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
        constraints=(input_is_8_bit,),
        lower=lower_movement,
    ),
    Family(
        name="Padding",
        operators=("Pad",),
        forms=("FloatPad", "Pad"),
        constraints=(input_is_8_bit, only_spatial, keeps_quantisation),
        lower=lower_pad,
    ),
)
