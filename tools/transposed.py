"""Transposed convolutions of an ONNX model, and where their exact result is a tie as far as float32 arithmetic can tell.

ONNX Runtime has no integer kernel for ConvTranspose: it multiplies dequantised values and adds up in float32, in an order that depends on
its matrix kernels, and divides by the output scale. Where the exact result lies nearer to halfway between two integers than this
arithmetic resolves, its error decides.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from celosia.sim.reference import transposed_sums
from celosia.tools.compiler import weighted
from celosia.tools.ops.convolution import transposed

__all__ = ["TransposedConvolution", "transposed_convolutions"]


@dataclass(frozen=True, kw_only=True)
class TransposedConvolution:
    """A ConvTranspose with its DequantizeLinear and QuantizeLinear; ``operation`` holds its constants."""

    input: str
    output: str
    dtype: str
    operation: object

    def is_tie(self, x, y):
        """Return where the exact sum is a tie within the error of float32 and ``y`` is one of the two integers.

        Parameters
        ----------
        x, y : integer arrays ``[inferences, 1, channels, …]``
            Input and output of the convolution.
        """
        operands = self.operation.operands
        size, result = (((1,) + array.shape[3:])[-2:] for array in (x, y))
        fields, scale = transposed(self.operation, size, result)
        x = x.reshape(len(x), x.shape[2], *size).astype(np.float64) - int(operands.get("x_zero_point", np.int8(0)).item())
        node, weight = SimpleNamespace(**fields), fields["weight"]
        scale, bias = scale[:, None, None], fields["bias"][:, None, None]
        value = (transposed_sums(node, x, weight, result) + bias) * scale
        magnitude = (transposed_sums(node, np.abs(x), np.abs(weight), result) + np.abs(bias)) * scale
        zero_point = int(operands.get("y_zero_point", np.int8(0)).item())
        # Dequantising rounds twice, each product and each addition once; dividing, rounding and the zero point add three.
        terms = weight[0].size + 8
        error = ((terms + 3) * magnitude + abs(zero_point) + 1) * 2.0**-24
        tie = np.abs(value - np.floor(value) - 0.5) <= error
        return (tie & (np.abs(y.reshape(value.shape).astype(np.int64) - zero_point - value) <= 0.5 + error)).reshape(y.shape)


def transposed_convolutions(model):
    """Return the :class:`TransposedConvolution` tuple of an ONNX model, in its order."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    producers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        operation = weighted.find(node, producers, constants) if node.op_type == "QuantizeLinear" else None
        if operation is not None and operation.form == "FloatConvTranspose":
            zero_point = operation.operands.get("y_zero_point", np.uint8(0))
            facts = {"input": operation.inputs[0], "output": operation.output, "operation": operation}
            found.append(TransposedConvolution(dtype=np.asarray(zero_point).dtype.name, **facts))
    return tuple(found)
