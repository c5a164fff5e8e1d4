"""A model with a fixed batch of N as one for a single inference: the engine runs it N times.

That is right only if inferences do not meet anywhere. Two things are asked of the model made for one inference: that every value has
its old shape, but for a first dimension that was N times as long; and that ONNX Runtime, given random inputs, computes the same with it
for each inference as with the old one for all together.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

__all__ = ["split_batch"]


def split_batch(model, inputs, session_options):
    """Make ``model`` one for a single inference, in place, if its batch can be taken apart.

    Parameters
    ----------
    model : onnx.ModelProto
        With static shapes.
    inputs : list of onnx.ValueInfoProto
        The graph inputs that are not constant.
    session_options : function
        Returns the options of the reference.
    """
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inputs]
    batch = {shape[0] if len(shape) > 1 else 0 for shape in shapes}
    if len(batch) != 1 or (count := batch.pop()) < 2:
        return
    single = onnx.ModelProto()
    single.CopyFrom(model)
    _shrink(single, {value.name for value in inputs}, count)
    if _agree(model, single, shapes, inputs, count, session_options):
        model.CopyFrom(single)


def _shrink(model, inputs, count):
    """Set the first dimension of inputs and outputs to one, and that of the constant shapes of Reshape."""
    graph = model.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        if shape.dim and shape.dim[0].dim_value == count and (value.name in inputs or value in graph.output):
            shape.dim[0].dim_value = 1
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.size and shape[0] > 0 and shape[0] % count == 0:
            shape[0] //= count
            name = f"{node.input[1]}·{node.output[0]}"
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name


def _agree(model, single, shapes, inputs, count, session_options):
    """Whether both models have the same values on random inputs, inference by inference."""
    rng = np.random.default_rng(0)
    feed = {value.name: _random(rng, model, value, shape) for value, shape in zip(inputs, shapes)}
    try:
        whole = _run(model, feed, session_options)
        for place in sorted({0, count // 2, count - 1}):
            one = _run(single, {name: array[place : place + 1] for name, array in feed.items()}, session_options)
            if not all(_same(whole[name], array, place, count) for name, array in one.items()):
                return False
            ends = [value.name for value in model.graph.output if value.name in one]
            if any(len(whole[name]) != count * len(one[name]) for name in ends):  # an output of the whole batch
                return False
    except Exception:  # ONNX Runtime refuses a shape that holds for the whole batch only
        return False
    return True


def _random(rng, model, value, shape):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(max(limits.min, -128), min(limits.max, 255) + 1, shape).astype(dtype)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = [
        constants[node.input[1]].ravel()[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] == value.name and node.input[1] in constants
    ]
    return (rng.uniform(-160, 160, shape) * (scales[0] if scales else 0.01)).astype(dtype)


def _run(model, feed, session_options):
    """Return every value of the model by name, each node computed on its own."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for node in probe.graph.node for name in node.output if name)
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def _same(whole, one, place, count):
    """Whether ``one`` is the part of ``whole`` that belongs to an inference, or does not depend on the inference at all.

    Float sums may be ordered by the size of the batch: a rounding may then fall the other way, and a few others behind it.
    """
    size = one.shape[0] if one.ndim else 0
    if size and whole.shape == (count * size, *one.shape[1:]):  # an inference's pixels may lie along the first dimension
        part = whole[place * size : (place + 1) * size]
    elif whole.shape == one.shape:
        if one.dtype == np.int64:  # a shape, perhaps with the batch in it: what is made with it tells
            return True
        part = whole
    else:
        return False
    if one.dtype.kind == "b" or (one.dtype.kind != "f" and one.dtype.itemsize > 1):
        return np.array_equal(part, one)
    step = 1 if one.dtype.kind != "f" else float(np.abs(one[np.isfinite(one)]).max(initial=0)) / 64
    return bool(np.isclose(part.astype(np.float64), one, rtol=0, atol=2 * step, equal_nan=True).mean() >= 0.98)
