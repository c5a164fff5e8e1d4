"""Convolutions and matrix products whose results are the 32-bit sums themselves.

Golden: the exact sum; the store unit writes its four bytes one after the other.
"""

from dataclasses import replace

import numpy as np

from celosia.tools.ops.convolution import kernel_is_flat, lower_convolution, weights_are_8_bit, weights_are_constant
from celosia.tools.ops.convolution import lower_product as lower_constant_product
from celosia.tools.ops.family import Family, Lowered, first_dimension_is_one
from celosia.tools.ops.product import lower_product, short_enough

__all__ = ["FAMILIES"]


def one_zero_point(operation, features):
    """The input of ConvInteger or MatMulInteger must have one zero point for the whole tensor.

    Give every row the same one, or quantise statically with `celosia quantize`.
    """
    return operation.operands.get("x_zero_point", np.int8(0)).size == 1


def zero_points_are_constant(operation, features):
    """The zero point of the weights must be constant, and so must both if both operands are computed.

    Quantise statically: `celosia quantize` on the float model.
    """
    return len(operation.inputs) == (2 if operation.form == "ProductInteger" else 1)


def operands_are_8_bit(operation, features):
    """The operands of ConvInteger and MatMulInteger must be int8 or uint8."""
    return all(features.value(name).is_quantised for name in operation.inputs)


def zero_point_is_a_number(operation, features):
    """The zero point of the second of two computed operands must be one number.

    Give every column the same one.
    """
    return operation.operands.get("w_zero_point", np.int8(0)).size == 1


def _lower(lower):
    """Return ``lower`` with 32-bit sums as the result."""

    def lower_sums(operation, features):
        lowered = lower(operation, features)
        tensor = replace(lowered.view.tensor, wide=True)
        return Lowered(node=replace(lowered.node, raw=True), view=replace(lowered.view, tensor=tensor), note=lowered.note)

    return lower_sums


_COMMON = (operands_are_8_bit, zero_points_are_constant, one_zero_point)

FAMILIES = (
    Family(
        name="Convolution with 32-bit result",
        operators=("ConvInteger",),
        forms=("ConvInteger",),
        constraints=(*_COMMON, weights_are_constant, weights_are_8_bit, kernel_is_flat, first_dimension_is_one),
        lower=_lower(lower_convolution),
    ),
    Family(
        name="Matrix product with constant weights and 32-bit result",
        operators=("MatMulInteger",),
        forms=("MatMulInteger",),
        constraints=(*_COMMON, weights_are_constant, weights_are_8_bit),
        lower=_lower(lower_constant_product),
    ),
    Family(
        name="Matrix product of two tensors with 32-bit result",
        operators=("MatMulInteger",),
        forms=("ProductInteger",),
        constraints=(*_COMMON, zero_point_is_a_number, short_enough),
        lower=_lower(lower_product),
    ),
)
