"""Functions of one tensor and of constants that differ from channel to channel: products, sums, quotients, PRelu.

Golden: ONNX Runtime computes the result for all 256 values at every place, and what :mod:`~celosia.tools.ops.fixed_point` finds
reproduces every one of them.
"""

import numpy as np

from celosia.rtl.isa import ADD_FRACTION
from celosia.tools.compiler import ir
from celosia.tools.compiler.ir import Op
from celosia.tools.ops.elementwise import (
    BYTES,
    NO_CONSTANTS,
    choice,
    copy_node,
    in_places,
    input_is_8_bit,
    like,
    lookup,
    lower_pair,
    one_table,
    operand_names,
    operand_view,
    shrunk,
    zero_point_of,
)
from celosia.tools.ops.family import Family, Lowered, Refused, quantised_per_tensor
from celosia.tools.ops.fixed_point import solve_affine, solve_choice
from celosia.tools.ops.reference import place_table

__all__ = ["FAMILIES"]


def lower_places(operation, features):
    """Lower a function of one tensor and constants: with a quantised constant as of two operands, else channel by channel."""
    names = operand_names(operation, features)
    scalar_codes = len(names) == 2 and _is_coded(operation, features, names[1])
    if scalar_codes and not any(node.op_type == "PRelu" for node in operation.nodes):
        try:
            return lower_pair(operation, features)
        except Refused:
            pass
    view = operand_view(features, operation.inputs[0])
    table, real = place_table(operation, features)
    tensor, output = view.tensor, like(operation, features, view)
    places = in_places(view, np.arange(table[0].size).reshape(table.shape[1:]))
    table, real = (array.reshape(256, -1) for array in (table, real))
    if (table == table[:, :1]).all():
        return lookup(operation, features, table[BYTES + 128, 0])
    op = choice(operation)
    chosen = solve_choice(table, op) if op else None
    if chosen is not None:
        other = features.constant(f"{operation.output} (constant)", shrunk(chosen[1][places]), output.tensor)
        node = copy_node(operation, view, output.tensor, table=chosen[0][BYTES + 128], combine=ir.Combine(op=op, tensor=other.name))
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
    zero = zero_point_of(operation, features, operation.inputs[0]) + 128
    negative, nothing = np.arange(256) < zero, int(table[zero, 0])
    made = features.temporary(f"{operation.output} (slopes)", output.tensor)
    for high in (127, nothing):
        solved = _affine(table, real, zero_point, exact=negative, high=high)
        if solved is not None:
            features.before(_scaled(operation, tensor, made, solved, zero_point, high=high), made)
            positive = np.where(negative, -128, table[:, 0]).astype(np.int8)[BYTES + 128]
            return copy_node(operation, view, output.tensor, table=positive, combine=ir.Combine(op=Op.MAX, tensor=made.name))
    not_positive = np.arange(256) <= zero
    solved = _affine(table, real, zero_point, exact=not_positive, below=not_positive)
    if solved is None:
        raise Refused(NO_CONSTANTS[0].format(cases="256 values of every channel"), NO_CONSTANTS[1])
    cut = features.temporary(f"{operation.output} (negative)", tensor)
    features.before(copy_node(operation, view, cut, high=zero - 128), cut)
    features.before(_scaled(operation, cut, made, solved, zero_point), made)
    positive = np.where(negative, nothing, table[:, 0]).astype(np.int8)[BYTES + 128]
    one = 1 << ADD_FRACTION
    combine = ir.Combine(tensor=made.name, k_result=one, k_operand=one, k_zero=-nothing * one)
    return copy_node(operation, view, output.tensor, table=positive, combine=combine)


FAMILIES = (
    Family(
        name="One tensor and constants by channel",
        operators=("Add", "Div", "Max", "Min", "Mul", "PRelu", "Sub"),
        forms=("Places",),
        constraints=(one_table, input_is_8_bit, quantised_per_tensor),
        lower=lower_places,
    ),
)  # fmt: skip
