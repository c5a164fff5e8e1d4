"""Element-wise operations: functions of one tensor as tables, and sums, products, minima and maxima of two operands.

Golden: a table holds ONNX Runtime's own 256 results. For two operands, ONNX Runtime computes all 65,536 pairs, and for a function that
differs from channel to channel all 256 values of each; what :mod:`~celosia.tools.ops.fixed_point` finds reproduces every one of them.
"""

from dataclasses import replace

import numpy as np

from celosia.rtl.isa import ADD_FRACTION
from celosia.tools.compiler import ir
from celosia.tools.compiler.ir import Op
from celosia.tools.compiler.legalise import PAIRS
from celosia.tools.ops.family import Family, Lowered, Refused, View, quantised_per_tensor
from celosia.tools.ops.fixed_point import IDENTITY, solve_affine, solve_choice, solve_product, solve_sum
from celosia.tools.ops.reference import pair_table, place_table, unary_table

__all__ = ["FAMILIES", "IDENTITY"]

BYTES = np.arange(256, dtype=np.uint8).view(np.int8).astype(int)
"""The int8 value of each index of a table."""

CHOICES = {"Max": Op.MAX, "Min": Op.MIN}
NO_CONSTANTS = (
    "No fixed-point constants of the engine give ONNX Runtime's result for all {cases}.",
    "Where ratios of scales are short fractions, results are ties that ONNX Runtime's float32 rounds either way: calibrate for other scales.",
)


def one_or_two_operands(operation, features):
    """There must be one or two operands, of which at least one is a tensor of the network.

    Take three or more operands two at a time.
    """
    return 1 <= len(operation.inputs) <= 2 and len(operation.outputs) == 1


def input_is_8_bit(operation, features):
    """Input and output must be quantised to int8 or uint8.

    Put a QuantizeLinear and a DequantizeLinear on both sides, as `celosia quantize` does.
    """
    return all(features.value(name).is_quantised for name in (*operation.inputs, operation.output))


def one_table(operation, features):
    """The function must be of one tensor of the network."""
    return len(operation.inputs) == 1 and len(operation.outputs) == 1


def _copy(operation, view, output, **fields):
    plain = {"scale": np.ones(view.tensor.channels, np.float32), "zero_point": 0}
    return ir.Copy(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=view.tensor.name,
        output=output.name,
        **(plain | fields),
    )


def _like(operation, features, view):
    """Return a view of the output with the same elements in the same places as ``view``."""
    tensor = view.tensor
    size = {"channels": tensor.channels, "height": tensor.height, "width": tensor.width}
    made = features.tensor(operation.output, **size, matrix=not view.is_map and view.is_rows)
    return View(tensor=made, index=view.index)


def _operand(features, name):
    view = features.view(name)
    if view.is_padded:
        return features.rearrange(name)
    by_rows = view.is_rows and not view.is_map and view.tensor.width > 1  # the result is to leave as the rows of a matrix
    return features.rearrange(name, matrix=True) if by_rows else view


def lower_unary(operation, features):
    """Lower any function of one tensor: a table of 256 entries, whatever the order of the elements."""
    return _lookup(operation, features, unary_table(operation, features))


def _lookup(operation, features, table):
    """Return the node that looks up every element of the input; ``table``'s index is the value's bits."""
    view = _operand(features, operation.inputs[0])
    output = _like(operation, features, view)
    table = None if (table == IDENTITY).all() else table
    return Lowered(node=_copy(operation, view, output.tensor, table=table), view=output)


# Two operands ---------------------------------------------------------------------------------------------------------


def _names(operation, features):
    """Return the names of the operands: tensors, and constants of eight bits."""
    if operation.form in ("QLinearAdd", "QLinearMul"):
        return operation.nodes[0].input[0], operation.nodes[0].input[3]
    read = [node.input[0] for node in operation.nodes if node.op_type == "DequantizeLinear"]
    if operation.form in CHOICES:
        read = list(operation.nodes[0].input)
    constants = (name for name in dict.fromkeys(read) if name in features.graph.constants)
    return (*operation.inputs, *constants)


def lower_pair(operation, features):
    """Lower a function of two operands: a pass over the larger one that takes the other in as it stores."""
    names = _names(operation, features)
    if len(names) != 2:
        raise Refused("The engine combines two operands at a time.", "Split the operator into several.")
    constants = [features.number(name) for name in names]
    shape = features.value(operation.output).shape
    shapes = [features.value(name).shape if array is None else array.shape for name, array in zip(names, constants)]
    table, real = pair_table(operation, features, names, [_is_repeated(own, shape) for own in shapes])
    if names[0] == names[1]:
        return _lookup(operation, features, np.diagonal(table)[BYTES + 128])
    for place, array in enumerate(constants):
        if array is not None and array.size == 1:
            line = table.take(int(array.item()) + 128, axis=place)
            return _lookup(operation, features, line[BYTES + 128])
    whole = [place for place in (0, 1) if constants[place] is None and shapes[place] == shape]
    if not whole:
        raise Refused("One of the operands must have the shape of the result.", "Expand one of them.")
    place = whole[0]
    if constants[1 - place] is None and shapes[0] == shapes[1]:
        features.alike(names)
    first = _operand(features, names[place])
    other, used = _other(operation, features, first, names[1 - place], constants[1 - place])
    if other is None:  # both in plain order
        first = features.rearrange(names[place])
        other = _expanded(operation, features, first, names[1 - place])
    output = _like(operation, features, first)
    if place:
        table, real = table.T, real.T
    table, real = table[:, used + 128], real[:, used + 128]
    zeros = [_zero_point(operation, features, names[which]) for which in (place, 1 - place)]
    node = _combined(operation, features, first, other, output, table, real, used, zeros)
    return Lowered(node=node, view=output)


def _is_repeated(own, shape):
    """Whether an operand has one element along the innermost axis on which the result has several."""
    own = (1,) * (len(shape) - len(own)) + tuple(own)
    return next((size == 1 for size, several in zip(own[::-1], shape[::-1]) if several > 1), False)


def _other(operation, features, first, name, constant):
    """Return the tensor of the second operand in the first one's order, None where it has another one; and the values it can have."""
    tensor = first.tensor
    if constant is not None:
        array = _shrunk(_in_places(first, constant))
        return features.constant(f"{operation.output} (constant)", array, tensor), np.unique(array).astype(np.int64)
    places = _in_places(first, _operand(features, name).index)
    size = places.shape
    small = features.view(name).tensor
    shape = small.channels, small.height, small.width
    own = np.arange(small.elements).reshape(shape)
    fits = all(one in (1, all_) for one, all_ in zip(shape, size))
    if not fits or not np.array_equal(np.broadcast_to(own, size), places):
        return None, np.arange(-128, 128)
    if small.channels != tensor.channels:
        small = _spread(operation, features, small, tensor.channels)
    return small, np.arange(-128, 128)


def _expanded(operation, features, first, name):
    """Return a tensor of the first operand's size and order with the elements of another one, repeated."""
    elements = features.view(name).elements
    shape = first.index.shape
    spread = replace(elements, part=np.broadcast_to(elements.part, shape), index=np.broadcast_to(elements.index, shape))
    title = f"{operation.output} (operand)"
    lowered = features.lower_elements(name, spread, matrix=first.tensor.matrix, title=title)
    features.extra.append(lowered)
    return lowered.view.tensor


def _spread(operation, features, tensor, channels):
    """Return a tensor of so many channels, each like the only one of ``tensor``: a convolution with ones makes it."""
    made = features.temporary(f"{operation.output} (operand)", tensor, channels=channels)
    node = ir.Conv(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=tensor.name,
        output=made.name,
        scale=np.ones(channels, np.float32),
        zero_point=tensor.zero_point,
        weight=np.ones((channels, 1, 1, 1), np.int8),
        bias=np.zeros(channels, np.int32),
    )
    features.before(node, made)
    return made


def _zero_point(operation, features, name):
    """Return the zero point, in the int8 domain, with which the operation reads an operand."""
    node = operation.nodes[-1]
    if node.op_type.startswith("QLinear"):
        zero = node.input[2 if name == node.input[0] else 5]
    else:
        reader = next((node for node in operation.nodes if node.op_type == "DequantizeLinear" and node.input[0] == name), None)
        zero = reader.input[2] if reader is not None and len(reader.input) > 2 else ""
    array = features.number(zero)
    return int(array.item()) if array is not None else -128 if features.is_unsigned(name) else 0


def _combined(operation, features, first, other, output, table, real, used, zeros):
    """Return the node that computes ``table`` of every element of the first tensor and of the other one.

    ``used`` are the other's values, one for each column.
    """
    op = _choice(operation)
    chosen = solve_choice(table, op) if op else None
    if chosen is not None:
        tables = [chosen[0][BYTES + 128], IDENTITY.copy()]
        tables[1][used] = chosen[1]
        if (tables[1] != IDENTITY).any():
            other = _looked_up(operation, features, other, tables[1])
        table = None if (tables[0] == IDENTITY).all() else tables[0]
        return _copy(operation, first, output.tensor, table=table, combine=ir.Combine(op=op, tensor=other.name))
    zero_point = output.tensor.zero_point
    ends = {"low": int(table.min()), "high": int(table.max())}
    if any(node.op_type in ("Mul", "QLinearMul") for node in operation.nodes):
        scale = solve_product(table, real, used, zeros, zero_point)
        if scale is not None:
            combine = ir.Combine(op=Op.MUL, tensor=other.name, zero_point=zeros[1])
            return _copy(operation, first, output.tensor, bias=-zeros[0], scale=scale, zero_point=zero_point, combine=combine, **ends)
    solved = solve_sum(table, real, used)
    if solved is None:
        raise Refused(NO_CONSTANTS[0].format(cases="65,536 pairs of operands"), NO_CONSTANTS[1])
    k_result, k_operand, k_zero = solved
    combine = ir.Combine(tensor=other.name, k_result=k_result, k_operand=k_operand, k_zero=k_zero, **ends)
    return _copy(operation, first, output.tensor, combine=combine)


def _looked_up(operation, features, tensor, table):
    """Return a tensor whose elements are those of ``tensor``, looked up."""
    if tensor.name in features.constants:
        _, array = features.constants[tensor.name]
        return features.constant(tensor.name, table[array.view(np.uint8)], tensor)
    made = features.temporary(f"{operation.output} (looked up)", tensor)
    features.before(_copy(operation, View(tensor=tensor, index=np.zeros(0)), made, table=table), made)
    return made


# One operand and constants that differ from place to place ----------------------------------------------------------


def lower_places(operation, features):
    """Lower a function of one tensor and constants: with a quantised constant as of two operands, else channel by channel."""
    names = _names(operation, features)
    scalar_codes = len(names) == 2 and _is_coded(operation, features, names[1])
    if scalar_codes and not any(node.op_type == "PRelu" for node in operation.nodes):
        try:
            return lower_pair(operation, features)
        except Refused:
            pass
    view = _operand(features, operation.inputs[0])
    table, real = place_table(operation, features)
    tensor, output = view.tensor, _like(operation, features, view)
    places = _in_places(view, np.arange(table[0].size).reshape(table.shape[1:]))
    table, real = (array.reshape(256, -1) for array in (table, real))
    if (table == table[:, :1]).all():
        return _lookup(operation, features, table[BYTES + 128, 0])
    op = _choice(operation)
    chosen = solve_choice(table, op) if op else None
    if chosen is not None:
        other = features.constant(f"{operation.output} (constant)", _shrunk(chosen[1][places]), output.tensor)
        node = _copy(operation, view, output.tensor, table=chosen[0][BYTES + 128], combine=ir.Combine(op=op, tensor=other.name))
        return Lowered(node=node, view=output)
    if (places != places[:, :1, :1]).any():
        raise Refused("The engine has other constants for each channel, not for each pixel.", "Quantise the constant, if it is added.")
    table, real = (array[:, places[:, 0, 0]] for array in (table, real))
    zero_point = output.tensor.zero_point
    solved = _affine(table, real, zero_point)
    if solved is not None:
        return Lowered(node=_scaled(operation, tensor, output.tensor, solved, zero_point), view=output)
    if [node.op_type for node in operation.nodes if node.op_type != "DequantizeLinear"] != ["PRelu", "QuantizeLinear"]:
        raise Refused(NO_CONSTANTS[0].format(cases="256 values of every channel"), NO_CONSTANTS[1])
    return Lowered(node=_prelu(operation, features, view, output, table, real), view=output)


def _in_places(view, array):
    """Return an array that broadcasts to the value's ONNX shape in the order of the engine's tensor: ``[channels, height, width]``."""
    tensor = view.tensor
    flat = np.empty(tensor.elements, array.dtype)
    flat[view.index.ravel()] = np.broadcast_to(array, view.index.shape).ravel()
    return flat.reshape(tensor.channels, tensor.height, tensor.width)


def _shrunk(array):
    """Return ``[channels, height, width]`` with a single row or column where all are equal: the engine repeats it."""
    for axis in (1, 2):
        if (array == array.take([0], axis=axis)).all():
            array = array.take([0], axis=axis)
    return array


def _choice(operation):
    return next((CHOICES[node.op_type] for node in operation.nodes if node.op_type in CHOICES), None)


def _is_coded(operation, features, name):
    """Whether a constant's bytes say all: one scale and zero point, and nothing else differs from place to place."""
    plural = [
        one
        for node in operation.nodes
        for one in (node.input[1:2] if node.op_type == "DequantizeLinear" else node.input)
        if (array := features.number(one)) is not None and array.size > 1
    ]
    return not plural or plural == [name]


def _affine(table, real, zero_point, **limits):
    """Return weight, bias and scale of each channel (columns of ``table``), or None."""
    found, known = [], {}
    for channel in range(table.shape[1]):
        key = table[:, channel].tobytes(), real[:, channel].tobytes()
        if key not in known:
            known[key] = solve_affine(table[:, channel], real[:, channel], zero_point, **limits)
        if known[key] is None:
            return None
        found.append(known[key])
    return found


def _scaled(operation, tensor, output, solved, zero_point, *, high=127):
    """Return a depthwise convolution that multiplies each channel, adds its constant and requantises."""
    weight, bias, scale = (np.array(column) for column in zip(*solved))
    return ir.Conv(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=tensor.name,
        output=output.name,
        scale=scale.astype(np.float32),
        zero_point=zero_point,
        high=high,
        weight=weight.astype(np.int8).reshape(-1, 1, 1, 1),
        bias=(bias + weight * tensor.zero_point).astype(np.int32),
        group=tensor.channels,
    )


def _prelu(operation, features, view, output, table, real):
    """Lower PRelu with a slope for each channel: a table for the positive values, and a product for the negative ones.

    Usually the result is the larger of the two: up to a slope of one the product is the smaller one on the positive side, and one whose
    slope is not negative can be cut off at zero. Else it is their sum, of which one is always zero.
    """
    tensor, zero_point = view.tensor, output.tensor.zero_point
    zero = _zero_point(operation, features, operation.inputs[0]) + 128
    negative, nothing = np.arange(256) < zero, int(table[zero, 0])
    made = features.temporary(f"{operation.output} (slopes)", output.tensor)
    for high in (127, nothing):
        solved = _affine(table, real, zero_point, exact=negative, high=high)
        if solved is not None:
            features.before(_scaled(operation, tensor, made, solved, zero_point, high=high), made)
            positive = np.where(negative, -128, table[:, 0]).astype(np.int8)[BYTES + 128]
            return _copy(operation, view, output.tensor, table=positive, combine=ir.Combine(op=Op.MAX, tensor=made.name))
    not_positive = np.arange(256) <= zero
    solved = _affine(table, real, zero_point, exact=not_positive, below=not_positive)
    if solved is None:
        raise Refused(NO_CONSTANTS[0].format(cases="256 values of every channel"), NO_CONSTANTS[1])
    cut = features.temporary(f"{operation.output} (negative)", tensor)
    features.before(_copy(operation, view, cut, high=zero - 128), cut)
    features.before(_scaled(operation, cut, made, solved, zero_point), made)
    positive = np.where(negative, nothing, table[:, 0]).astype(np.int8)[BYTES + 128]
    one = 1 << ADD_FRACTION
    combine = ir.Combine(tensor=made.name, k_result=one, k_operand=one, k_zero=-nothing * one)
    return _copy(operation, view, output.tensor, table=positive, combine=combine)


FAMILIES = (
    Family(
        name="Two operands",
        operators=("Add", "Max", "Min", "Mul", "Sub", "QLinearAdd", "QLinearMul"),
        forms=(*PAIRS, "Max", "Min"),
        constraints=(one_or_two_operands, input_is_8_bit, quantised_per_tensor),
        lower=lower_pair,
    ),
    Family(
        name="One tensor and constants by channel",
        operators=("Add", "Div", "Max", "Min", "Mul", "PRelu", "Sub"),
        forms=("Places",),
        constraints=(one_table, input_is_8_bit, quantised_per_tensor),
        lower=lower_places,
    ),
    Family(
        name="Function of one tensor",
        operators=(
            "Abs", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
            "Neg", "Pow", "PRelu", "QLinearLeakyRelu", "QLinearSigmoid", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu",
            "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "…",
        ),
        forms=("Unary", "QLinearLeakyRelu", "QLinearSigmoid", "Abs", "Clip", "Neg", "Relu", "Sign"),
        constraints=(one_table, input_is_8_bit),
        lower=lower_unary,
    ),
)  # fmt: skip
