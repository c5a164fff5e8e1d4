"""Rewrites of a float model before it is quantised: the same function, in operators whose quantised form the engine runs."""

import numpy as np
from onnx import helper, numpy_helper

from celosia.tools.compiler.legalise import ELEMENTWISE

__all__ = ["convolve_normalisations", "fold_dequantised", "functions_of_one_tensor", "pool_globally"]


def fold_dequantised(model):
    """Replace each DequantizeLinear of constants by the float constant: some exporters store weights in eight bits."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or not all(name in constants for name in node.input if name):
            kept.append(node)
            continue
        values, scale, *zero = (numpy_helper.to_array(constants[name]) for name in node.input if name)
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
        shape = [1] * values.ndim
        if scale.size > 1:
            shape[axis] = -1
        difference = values.astype(np.int32) - (zero[0].astype(np.int32).reshape(shape) if zero else 0)
        real = difference.astype(np.float32) * scale.reshape(shape if values.ndim else ())
        model.graph.initializer.append(numpy_helper.from_array(real.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def pool_globally(model):
    """Turn each AveragePool whose window is the whole map into a GlobalAveragePool."""
    shapes = _shapes(model)
    for node in model.graph.node:
        if node.op_type != "AveragePool":
            continue
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        padded = any(attributes.get("pads", ())) or attributes.get("auto_pad", b"NOTSET").startswith(b"SAME")
        if not padded and shapes.get(node.input[0], [])[2:] == list(attributes["kernel_shape"]):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]


def convolve_normalisations(model):
    """Turn each BatchNormalization that is left (no convolution stands before it) into a convolution of each channel by itself."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    shapes = _shapes(model)
    for node in model.graph.node:
        rank = len(shapes.get(node.input[0], ())) if node.input else 0
        if node.op_type != "BatchNormalization" or rank < 3 or not all(name in constants for name in node.input[1:]):
            continue
        gamma, beta, mean, variance = (constants[name].astype(np.float64) for name in node.input[1:5])
        epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        weight, bias = factor.reshape(-1, *[1] * (rank - 1)), beta - mean * factor
        names = [f"{node.output[0]}·{what}" for what in ("weight", "bias")]
        for name, array in zip(names, (weight, bias)):
            model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        node.CopyFrom(
            helper.make_node("Conv", [node.input[0], *names], node.output[:1], node.name, group=len(gamma), kernel_shape=[1] * (rank - 2))
        )


def functions_of_one_tensor(model):
    """Return the names of nodes that make up a function of one tensor, element by element, in several steps (Silu, Gelu, …).

    Quantised at its ends only, such a function is one table on the engine, and nothing is rounded between its steps.
    """
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    shapes = _shapes(model)
    root, members = {}, {}
    for node in model.graph.node:
        tensors = [name for name in node.input if name and name not in sizes]
        roots = {root.get(name, name) for name in tensors}
        alike = len({tuple(shapes.get(name, ("unknown", name))) for name in (*tensors, node.output[0])}) == 1
        scalar = all(sizes[name] == 1 for name in node.input if name in sizes)
        if node.op_type in ELEMENTWISE and len(roots) == 1 and scalar and (alike or len(tensors) == 1):
            root[node.output[0]] = roots.pop()
            members.setdefault(root[node.output[0]], []).append(node.name)
    return [name for names in members.values() if len(names) > 1 for name in names]


def _shapes(model):
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
