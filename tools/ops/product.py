"""Matrix products of two tensors: the left one streams through the array, the right one becomes its weights.

Golden: as for products with constant weights (:mod:`celosia.tools.ops.convolution`); the sum is ``Σ (a − za)(b − zb)``.
"""

import numpy as np

from celosia.tools.compiler import ir
from celosia.tools.compiler.product import places
from celosia.tools.ops.convolution import output_is_8_bit, requantisation_scales
from celosia.tools.ops.family import OTHER_ZERO_POINT, Family, Lowered, Refused, View, quantised_per_tensor, read_zero_point

__all__ = ["FAMILIES", "lower_product", "short_enough"]

MOST_TERMS = ((1 << 31) - (1 << 27)) // (255 * 255 + 2 * 128 * 128)
"""Products whose sum, and each of whose corrections by a zero point, stays inside int32 together with a bias below 2**27."""


def two_tensors(operation, features):
    """A product of two tensors must have no third computed operand: bias, scales and zero points must be constant.

    Store them as initializers; add a computed bias behind the product.
    """
    return len(operation.inputs) == 2


def short_enough(operation, features):
    """The summed axis of a product of two tensors must be so short that the sum fits into 32 bits.

    Cut the axis into parts and add the results.
    """
    shape = features.value(operation.inputs[0]).shape
    return shape[-2 if operation.attributes["x_transposed"] and len(shape) > 1 else -1] <= MOST_TERMS


def _operand(features, name, transposed, column):
    """Return the elements ``[…, rows, columns]`` of an operand and the tensor they are in; a vector is a row, or a ``column``."""
    view = features.view(name)
    if view.is_padded:
        raise Refused("The engine folds Pad into a convolution or pooling only.")
    index = view.index
    if index.ndim == 1:
        index = index[:, None] if column else index[None]
    return index.swapaxes(-1, -2) if transposed else index, view.tensor


def _matrices(features, name, batch, transposed, column):
    """Return places and tensor of an operand, in plain order if need be, and its elements ``[products, rows, columns]``."""
    for plain in (False, True):
        if plain:
            features.rearrange(name, matrix=True)
        index, tensor = _operand(features, name, transposed, column)
        index = np.broadcast_to(index, (*batch, *index.shape[-2:])).reshape(-1, *index.shape[-2:])
        if (found := places(index, tensor)) is not None:
            return found, tensor, index
    raise Refused("The engine multiplies matrices whose rows or columns lie in one piece, and these do not.")


def lower_product(operation, features):
    """Lower ``QLinearMatMul`` and ``QGemm`` of two tensors, each pair of matrices of a batch on its own."""
    left_name, right_name = operation.inputs
    flags = operation.attributes
    shapes = [features.value(name).shape for name in operation.inputs]
    batch = np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    left, x, left_index = _matrices(features, left_name, batch, flags["x_transposed"], False)
    right, w, right_index = _matrices(features, right_name, batch, flags["w_transposed"], True)
    for prefix, tensor in (("x", x), ("w", w)):
        if read_zero_point(operation, prefix, tensor) != tensor.zero_point:
            raise Refused(*OTHER_ZERO_POINT)
    (count, rows, length), columns = left_index.shape, right_index.shape[2]
    if count > 1 and (right_index == right_index[:1]).all():  # one matrix for all of them: one product
        merged = places(left_index.reshape(1, -1, length), x)
        if merged is not None:
            left, right, count, rows = merged, right.first, 1, count * rows
    shape = features.value(operation.output).shape
    made = features.tensor(operation.output, channels=columns, height=count * rows, width=1, matrix=True)
    result = ir.Matrices(pixels=tuple(range(0, count * rows, rows)), channels=(0,) * count, step=1)
    index = result.elements(rows, columns, made)
    scale = requantisation_scales(operation, columns)
    node = ir.Product(
        name=operation.name,
        operator=operation.operator,
        sources=operation.sources,
        input=x.name,
        right=w.name,
        output=made.name,
        rows=rows,
        length=length,
        columns=columns,
        left_at=left,
        right_at=right,
        result_at=result,
        scale=np.broadcast_to(scale, (columns,)),
        bias=_bias(operation, columns),
        zero_point=made.zero_point,
    )
    return Lowered(node=node, view=View(tensor=made, index=index.reshape(shape)))


def _bias(operation, columns):
    bias = operation.operands.get("bias")
    if bias is None:
        return np.zeros(columns, np.int32)
    if np.abs(bias.astype(np.int64)).max(initial=0) >= 1 << 27:
        raise Refused("The bias of a product of two tensors must be less than 2^27.")
    if bias.ndim > 1:
        if (bias != bias[:1]).any():
            raise Refused("The bias must be the same for every row.")
        bias = bias[0]
    return np.broadcast_to(bias.reshape(-1), (columns,)).astype(np.int32)


FAMILIES = (
    Family(
        name="Matrix product of two tensors",
        operators=("Gemm", "MatMul", "QLinearMatMul", "QGemm"),
        forms=("Product",),
        constraints=(two_tensors, quantised_per_tensor, output_is_8_bit, short_enough),
        lower=lower_product,
    ),
)
