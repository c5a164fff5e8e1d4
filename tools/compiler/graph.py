"""The graph between ONNX and the intermediate representation: quantised operations with their constants resolved."""

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Operation", "OperationGraph", "Value", "references"]


def references(node):
    """Return the values a node reads: its inputs, and what the bodies of an If, Loop or Scan take from outside."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            inner = {value.name for value in (*body.input, *body.initializer)} | {name for n in body.node for name in n.output}
            found += [name for n in body.node for name in references(n) if name not in inner]
            found += [value.name for value in body.output if value.name not in inner]
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """A tensor between operations, batch included. ``scale`` is None where the value is not quantised or nobody says."""

    name: str
    dtype: np.dtype
    shape: tuple
    scale: np.float32 | None = None
    zero_point: int = 0  # in the int8 domain

    @property
    def unsigned(self):
        return self.dtype == np.uint8

    def dump(self):
        quantisation = f" scale {self.scale:.6g} zero point {self.zero_point}" if self.scale is not None else ""
        return f"{self.dtype}{list(self.shape)}{quantisation}"

    @property
    def is_quantised(self):
        return self.dtype in (np.dtype(np.int8), np.dtype(np.uint8))


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One operation as ONNX Runtime runs it.

    Parameters
    ----------
    name : str
        Of the ONNX node that gave it its operator.
    operator : str
        As the user wrote it (``Conv``, ``QLinearConv``, …).
    form : str
        What it is computed as, the key into :data:`celosia.tools.ops.FORMS`; the operator itself where no form fits.
    inputs, outputs : tuple of str
        Values that are not constant.
    operands : dict
        Constant arrays by their name in the operator's definition (``x_scale``, ``w``, …).
    attributes : dict
    nodes : tuple of onnx.NodeProto
        What a host segment runs in its place.
    sources : tuple of str
        Names of the nodes of the user's model.
    """

    name: str
    operator: str
    form: str
    inputs: tuple
    outputs: tuple
    operands: dict = field(default_factory=dict)
    attributes: dict = field(default_factory=dict)
    nodes: tuple = ()
    sources: tuple = ()

    @property
    def output(self):
        return self.outputs[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class OperationGraph:
    """Operations in topological order.

    ``constants`` are ``onnx.TensorProto`` by name, ``header`` a ModelProto without a graph (opsets and IR version of ``nodes``).
    """

    file: str
    operations: tuple
    values: dict
    inputs: tuple
    outputs: tuple
    constants: dict
    header: object

    def dump(self):
        lines = []
        for operation in self.operations:
            made = ", ".join(f"{name} {self.values[name].dump()}" for name in operation.outputs if name in self.values)
            lines.append(f"{operation.name}: {operation.form}({', '.join(operation.inputs)}) -> {made}")
        return "\n".join(lines)

    def producers(self):
        return {name: operation for operation in self.operations for name in operation.outputs}

    def consumers(self):
        found = {}
        for operation in self.operations:
            for name in operation.inputs:
                found.setdefault(name, []).append(operation)
        return found
