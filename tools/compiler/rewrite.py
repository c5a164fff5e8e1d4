"""Rewrite what ONNX defines and ONNX Runtime does not implement, so that there is a reference and a host for it."""

import numpy as np
from onnx import helper, numpy_helper

__all__ = ["rewrite"]


def rewrite(model):
    """Rewrite the nodes of ``model`` in place.

    ConvInteger with a zero point for each output channel becomes one ConvInteger per channel, side by side: ONNX Runtime has it with
    one zero point only.
    """
    nodes, constants = [], []
    for node in model.graph.node:
        count = _zero_points(model, node) if node.op_type == "ConvInteger" else 1
        nodes.extend(_channel_by_channel(node, count, constants) if count > 1 else [node])
    if constants:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants)


def _zero_points(model, node):
    """Return how many zero points the weights of a ConvInteger without groups have."""
    if len(node.input) < 4 or any(attribute.name == "group" and attribute.i != 1 for attribute in node.attribute):
        return 1
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    shapes |= {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    return int(np.prod(shapes.get(node.input[3], [])))


def _channel_by_channel(node, count, constants):
    name = node.name or node.output[0]

    def constant(text, value):
        constants.append(numpy_helper.from_array(np.array(value, np.int64), f"{name}·{text}"))
        return f"{name}·{text}"

    axis, made, parts = constant("axis", [0]), [], []
    for channel in range(count):
        bounds = [constant(f"{what}{channel}", [place]) for what, place in (("from", channel), ("to", channel + 1))]
        pieces = []
        for place in (1, 3):
            pieces.append(f"{name}·input{place}·{channel}")
            made.append(helper.make_node("Slice", [node.input[place], *bounds, axis], [pieces[-1]], pieces[-1]))
        parts.append(f"{name}·{channel}")
        inputs = [node.input[0], pieces[0], node.input[2], pieces[1]]
        convolution = helper.make_node("ConvInteger", inputs, [parts[-1]], parts[-1])
        convolution.attribute.extend(node.attribute)
        made.append(convolution)
    return [*made, helper.make_node("Concat", parts, node.output, node.name, axis=1)]
