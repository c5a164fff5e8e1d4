"""Element-wise operations: functions of one tensor as tables, and the sum of two tensors.

Golden: a table holds ONNX Runtime's own 256 results. For an addition the 65,536 results of ONNX Runtime are reproduced by
:func:`celosia.sim.numerics.add_residual` with constants that are proven on all of them.
"""

import numpy as np

from celosia.sim.numerics import solve_add
from celosia.tools.compiler import ir
from celosia.tools.ops.family import Family, Lowered, Refused, View, quantised_per_tensor
from celosia.tools.ops.reference import addition_table, unary_table

__all__ = ["FAMILIES", "IDENTITY"]

IDENTITY = np.arange(256, dtype=np.uint8).view(np.int8)


def two_tensors(operation, features):
    """Both operands must be tensors of the network, not constants."""
    return len(operation.inputs) == 2


def same_shape(operation, features):
    """Both operands must have the same shape: the engine does not broadcast."""
    return features.value(operation.inputs[0]).shape == features.value(operation.inputs[1]).shape


def input_is_8_bit(operation, features):
    """Input and output must be quantised to int8 or uint8."""
    return all(features.value(name).is_quantised for name in (*operation.inputs, operation.output))


def one_table(operation, features):
    """The function must be of one tensor of the network, with the same result at every place."""
    return len(operation.inputs) == 1 and len(operation.outputs) == 1


def _copy(operation, view, output, **fields):
    return ir.Copy(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=view.tensor.name,
        output=output.tensor.name,
        scale=np.ones(view.tensor.channels, np.float32),
        zero_point=0,
        **fields,
    )


def _like(operation, features, view):
    """Return a view of the output with the same elements in the same places as ``view``."""
    tensor = view.tensor
    size = {"channels": tensor.channels, "height": tensor.height, "width": tensor.width}
    made = features.tensor(operation.output, **size, matrix=not view.is_map and view.is_rows)
    return View(tensor=made, index=view.index)


def lower_unary(operation, features):
    """Lower any function of one tensor: a table of 256 entries, whatever the order of the elements."""
    view = features.view(operation.inputs[0])
    if view.is_padded:
        view = features.rearrange(operation.inputs[0])
    output = _like(operation, features, view)
    table = unary_table(operation, features)
    if (table == IDENTITY).all():
        table = None
    return Lowered(node=_copy(operation, view, output, table=table), view=output)


def lower_addition(operation, features):
    """Lower ``QLinearAdd``: a copy of the first operand that adds the second; fusing moves the addition into the producer."""
    first, second = features.alike(operation.inputs)
    solved = _solve(operation, features, first.tensor.unsigned)
    if solved is None:
        raise Refused("No fixed-point constants of the engine give ONNX Runtime's sum for all 65,536 pairs of operands.")
    output = _like(operation, features, first)
    k_result, k_operand, k_zero = solved
    add = ir.Combine(
        tensor=second.tensor.name, k_result=int(k_result), k_operand=int(k_operand), k_zero=int(k_zero)
    )
    return Lowered(node=_copy(operation, first, output, combine=add), view=output)


def _solve(operation, features, unsigned):
    """Return the constants of the addition; zero points go in as those of int8 tensors."""
    quantisation = []
    for prefix in "aby":
        zero_point = operation.operands.get(f"{prefix}_zero_point")
        zero = int(zero_point.item()) if zero_point is not None else 0
        quantisation += [operation.operands[f"{prefix}_scale"].item(), zero - (128 if unsigned else 0)]
    return solve_add(addition_table(operation, features), *quantisation)


FAMILIES = (
    Family(
        name="Addition",
        operators=("Add", "QLinearAdd"),
        forms=("QLinearAdd",),
        constraints=(two_tensors, same_shape, input_is_8_bit, quantised_per_tensor),
        lower=lower_addition,
    ),
    Family(
        name="Function of one tensor",
        operators=(
            "Abs", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg", "QLinearLeakyRelu",
            "QLinearSigmoid", "QuantizeLinear", "Relu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "…",
        ),
        forms=("Unary", "QLinearLeakyRelu", "QLinearSigmoid", "Abs", "Clip", "Neg", "Relu", "Sign"),
        constraints=(one_table, input_is_8_bit),
        lower=lower_unary,
    ),
)  # fmt: skip
