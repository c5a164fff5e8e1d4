"""Element-wise operations: functions of one tensor as tables, and sums, products, minima and maxima of two operands.

Golden: a table holds ONNX Runtime's own 256 results. For two operands, ONNX Runtime computes all 65,536 pairs, and
what :mod:`~celosia.tools.ops.fixed_point` finds reproduces every one of them.
"""

from dataclasses import replace

import numpy as np

from celosia.tools.compiler import ir
from celosia.tools.compiler.ir import Op
from celosia.tools.compiler.legalise import PAIRS
from celosia.tools.ops.family import Family, Lowered, Refused, View, quantised_per_tensor
from celosia.tools.ops.fixed_point import IDENTITY, solve_choice, solve_product, solve_rescale, solve_sum
from celosia.tools.ops.reference import pair_table, unary_table

__all__ = [
    "BYTES", "FAMILIES", "IDENTITY", "NO_CONSTANTS", "choice", "copy_node", "in_places", "input_is_8_bit", "like", "lookup", "lower_pair",
    "one_table", "operand_names", "operand_view", "shrunk", "zero_point_of",
]  # fmt: skip

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


def copy_node(operation, view, output, **fields):
    """Return the node that takes every element of a view's tensor to the tensor ``output``, as the ``fields`` say."""
    plain = {"scale": np.ones(view.tensor.channels, np.float32), "zero_point": 0}
    return ir.Copy(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=view.tensor.name,
        output=output.name,
        **(plain | fields),
    )


def like(operation, features, view):
    """Return a view of the output with the same elements in the same places as ``view``."""
    tensor = view.tensor
    size = {"channels": tensor.channels, "height": tensor.height, "width": tensor.width}
    made = features.tensor(operation.output, **size, matrix=not view.is_map and view.is_rows)
    return View(tensor=made, index=view.index)


def operand_view(features, name):
    """Return the view of an operand whose tensor can be walked as it lies."""
    view = features.view(name)
    if view.is_padded or not view.is_whole:
        return features.rearrange(name)
    by_rows = view.is_rows and not view.is_map and view.tensor.width > 1  # the result is to leave as the rows of a matrix
    return features.rearrange(name, matrix=True) if by_rows else view


def lower_unary(operation, features):
    """Lower any function of one tensor: a table of 256 entries, whatever the order of the elements."""
    return lookup(operation, features, unary_table(operation, features))


def lookup(operation, features, table):
    """Return the node that looks up every element of the input; ``table``'s index is the value's bits."""
    view = operand_view(features, operation.inputs[0])
    output = like(operation, features, view)
    table = None if (table == IDENTITY).all() else table
    return Lowered(node=copy_node(operation, view, output.tensor, table=table), view=output)


# Two operands ---------------------------------------------------------------------------------------------------------


def operand_names(operation, features):
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
    names = operand_names(operation, features)
    if len(names) != 2:
        raise Refused("The engine combines two operands at a time.", "Split the operator into several.")
    constants = [features.number(name) for name in names]
    shape = features.value(operation.output).shape
    shapes = [features.value(name).shape if array is None else array.shape for name, array in zip(names, constants)]
    table, real = pair_table(operation, features, names, [_is_repeated(own, shape) for own in shapes])
    if names[0] == names[1]:
        return lookup(operation, features, np.diagonal(table)[BYTES + 128])
    for place, array in enumerate(constants):
        if array is not None and array.size == 1:
            line = table.take(int(array.item()) + 128, axis=place)
            return lookup(operation, features, line[BYTES + 128])
    whole = [place for place in (0, 1) if constants[place] is None and shapes[place] == shape]
    if not whole:
        raise Refused("One of the operands must have the shape of the result.", "Expand one of them.")
    place = whole[0]
    if constants[1 - place] is None and shapes[0] == shapes[1]:
        features.alike(names)
    first = operand_view(features, names[place])
    other, used = _other(operation, features, first, names[1 - place], constants[1 - place])
    if other is None:  # both in plain order
        first = features.rearrange(names[place])
        other = _expanded(operation, features, first, names[1 - place])
    output = like(operation, features, first)
    if place:
        table, real = table.T, real.T
    table, real = table[:, used + 128], real[:, used + 128]
    zeros = [zero_point_of(operation, features, names[which]) for which in (place, 1 - place)]
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
        array = shrunk(in_places(first, constant))
        return features.constant(f"{operation.output} (constant)", array, tensor), np.unique(array).astype(np.int64)
    places = in_places(first, operand_view(features, name).index)
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


def zero_point_of(operation, features, name):
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
    op = choice(operation)
    chosen = solve_choice(table, op) if op else None
    if chosen is not None:
        second = np.arange(-128, 128, dtype=np.int8)
        second[used + 128] = chosen[1]
        if (second[used + 128] != used).any():
            other = _mapped(operation, features, other, second, output.tensor, zeros[1])
        fields = _mapping(first.tensor, chosen[0], output.tensor, zeros[0])
        return copy_node(operation, first, output.tensor, combine=ir.Combine(op=op, tensor=other.name), **fields)
    zero_point = output.tensor.zero_point
    ends = {"low": int(table.min()), "high": int(table.max())}
    if any(node.op_type in ("Mul", "QLinearMul") for node in operation.nodes):
        scale = solve_product(table, real, used, zeros, zero_point)
        if scale is not None:
            combine = ir.Combine(op=Op.MUL, tensor=other.name, zero_point=zeros[1])
            return copy_node(operation, first, output.tensor, bias=-zeros[0], scale=scale, zero_point=zero_point, combine=combine, **ends)
    solved = solve_sum(table, real, used)
    if solved is None:
        raise Refused(NO_CONSTANTS[0].format(cases="65,536 pairs of operands"), NO_CONSTANTS[1])
    k_result, k_operand, k_zero = solved
    combine = ir.Combine(tensor=other.name, k_result=k_result, k_operand=k_operand, k_zero=k_zero, **ends)
    return copy_node(operation, first, output.tensor, combine=combine)


def _mapped(operation, features, tensor, table, output, zero):
    """Return a tensor whose elements are those of ``tensor``, mapped by ``table`` (−128 first) to the quantisation of ``output``."""
    if tensor.name in features.constants:
        _, array = features.constants[tensor.name]
        return features.constant(tensor.name, table[array.astype(int) + 128], tensor)
    made = features.temporary(f"{operation.output} (requantised)", tensor)
    fields = _mapping(tensor, table, output, zero)
    features.before(copy_node(operation, View(tensor=tensor, index=np.zeros(0)), made, **fields), made)
    return made


def _mapping(tensor, table, output, zero):
    """Return the fields of a copy that maps a tensor by ``table`` (−128 first): by requantisation if that does, for tables are few."""
    if (table == np.arange(-128, 128)).all():
        return {}
    scale = solve_rescale(table, tensor.scale / output.scale, zero, output.zero_point)
    if scale is None:
        return {"table": table[BYTES + 128]}
    ends = {"low": int(table.min()), "high": int(table.max())}
    return {"bias": -zero, "scale": scale, "zero_point": output.zero_point, **ends}


def in_places(view, array):
    """Return an array that broadcasts to the value's ONNX shape in the order of the engine's tensor: ``[channels, height, width]``."""
    tensor = view.tensor
    flat = np.empty(tensor.elements, array.dtype)
    flat[view.index.ravel()] = np.broadcast_to(array, view.index.shape).ravel()
    return flat.reshape(tensor.channels, tensor.height, tensor.width)


def shrunk(array):
    """Return ``[channels, height, width]`` with a single row or column where all are equal: the engine repeats it."""
    for axis in (1, 2):
        if (array == array.take([0], axis=axis)).all():
            array = array.take([0], axis=axis)
    return array


def choice(operation):
    """Return ``MIN`` or ``MAX`` where the operation chooses between two values, else None."""
    return next((CHOICES[node.op_type] for node in operation.nodes if node.op_type in CHOICES), None)


FAMILIES = (
    Family(
        name="Two operands",
        operators=("Add", "Max", "Min", "Mul", "Sub", "QLinearAdd", "QLinearMul"),
        forms=(*PAIRS, "Max", "Min"),
        constraints=(one_or_two_operands, input_is_8_bit, quantised_per_tensor),
        lower=lower_pair,
    ),
    Family(
        name="Function of one tensor",
        operators=(
            "Abs", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
            "Neg", "Pow", "PRelu", "QLinearLeakyRelu", "QLinearSigmoid", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu",
            "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "…",
        ),
        forms=("Unary", "QLinearLeakyRelu", "QLinearSigmoid", "Abs", "Clip", "Neg", "Relu", "Sign"),
        constraints=(one_table, input_is_8_bit, quantised_per_tensor),
        lower=lower_unary,
    ),
)  # fmt: skip
