"""A model with a fixed batch of N as one for a single inference: the engine runs it N times.

That is right only if inferences do not meet anywhere, which is read off the graph: every operator that takes a batched value must be one
of those below, used such that it keeps the batch along the first dimension and computes each part of it from that part alone. ONNX
Runtime only tells the shapes, with the batch and without: the first dimension of every batched value has to be N times as long.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

__all__ = ["split_batch"]

BROADCAST = frozenset(
    """Abs Acos Acosh Add And Asin Asinh Atan Atanh BiasGelu BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Cos Cosh
    DequantizeLinear Div Elu Equal Erf Exp FastGelu Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow QLinearAdd QLinearLeakyRelu QLinearMul
    QLinearSigmoid QuantizeLinear QuickGelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum
    Swish Tan Tanh ThresholdedRelu Where Xor""".split()
)
"""Operators whose result at a place depends on the operands at that place alone, broadcast as numpy does."""

MAPS = frozenset(
    """AveragePool BatchNormalization Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool
    GroupNormalization InstanceNormalization LRN LpPool MaxPool QLinearAveragePool QLinearConv QLinearGlobalAveragePool SpaceToDepth""".split()
)
"""Operators of ``[N, C, …]`` whose first dimension is a batch by definition."""

RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
"""Operators that keep the elements in row-major order: inferences stay one after the other."""

UNSTRETCHED = frozenset(("Expand", "Resize", "Tile", "Upsample"))
"""Operators that keep the first dimension apart if they do not change its length."""

ALONG = {
    "ArgMax": 0, "ArgMin": 0, "Concat": None, "Gather": 0, "LayerNormalization": -1, "LogSoftmax": -1, "LpNormalization": -1, "QLinearConcat": None,
    "Softmax": -1, "Split": 0, "TopK": -1,
}  # fmt: skip
"""Operators along one axis, and the axis they take by default."""

PRODUCTS = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
"""Operators of two matrices, and where these are among the inputs."""


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
    names = [value.name for value in inputs]
    try:
        values = [_run(one, names, session_options) for one in (model, single)]
    except Exception:  # ONNX Runtime refuses a shape that holds for the whole batch only
        return
    if _Batch(single, names, *values, count).is_apart():
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
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.size and shape[0] > 0 and shape[0] % count == 0:
            shape[0] //= count
            name = f"{node.input[1]}·{node.output[0]}"
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name


def _run(model, inputs, session_options):
    """Return every value of the model by name for inputs of ones, each node computed on its own."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for node in probe.graph.node for name in node.output if name)
    feed = {}
    for value in probe.graph.input:
        if value.name in inputs:
            kind = value.type.tensor_type
            shape = [dim.dim_value for dim in kind.shape.dim]
            feed[value.name] = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    values = feed | dict(zip(names, session.run(names, feed), strict=True))
    return values | {tensor.name: numpy_helper.to_array(tensor) for tensor in probe.graph.initializer}


class _Batch:
    """Follows the batch through the graph of a model made for one inference.

    ``whole`` and ``single`` are all values by name, with the batch and for one inference. What does not depend on the inputs, but perhaps
    on their shapes, is not batched: where it is an operand, it must be the same in both.
    """

    def __init__(self, model, inputs, whole, single, count):
        self.graph = model.graph
        self.whole, self.single, self.count = whole, single, count
        self.batched = set(inputs)

    def is_apart(self):
        """Whether every value that depends on the inputs, and every output, consists of the parts of the inferences."""
        for node in self.graph.node:
            if not any(name in self.batched for name in _references(node)):
                continue
            if node.op_type in ("Shape", "Size"):
                continue
            if not self._keeps_apart(node):
                return False
            self.batched.update(name for name in node.output if name)
        shapes = [(self.whole.get(name), self.single.get(name)) for name in self.batched]
        apart = all(_is_batch(whole, single, self.count) for whole, single in shapes)
        return apart and all(value.name in self.batched for value in self.graph.output)

    def _keeps_apart(self, node):
        operator, attributes = node.op_type, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if any(isinstance(value, onnx.GraphProto) for value in attributes.values()):
            return False
        places = [place for place, name in enumerate(node.input) if name in self.batched]
        others = [name for place, name in enumerate(node.input) if name and place not in places]
        if operator in RESHAPES:
            return places == [0]
        if not all(np.array_equal(self.whole[name], self.single[name]) for name in others):
            return False
        if operator in BROADCAST:
            rank = self.single[node.output[0]].ndim
            return all(self.single[node.input[place]].ndim == rank for place in places) and all(
                self._is_repeated(name, rank) for name in others
            )
        if operator in PRODUCTS:
            return self._product(node, places)
        if operator == "Concat" or operator == "QLinearConcat":
            data = range(2, len(node.input), 3) if operator == "QLinearConcat" else range(len(node.input))
            return places == list(data) and attributes["axis"] % self.single[node.input[places[0]]].ndim != 0
        if places != [0]:
            return False
        shape = self.single[node.input[0]].shape
        if operator in MAPS:
            # A second output counts places over the whole batch, or is a mean over it.
            return len(node.output) == 1 and len(shape) > 2 and not attributes.get("training_mode", 0)
        if operator in ("Gemm", "QGemm"):
            bias = node.input[2 if operator == "Gemm" else 6 :][:1]
            return not attributes.get("transA", 0) and all(self._is_repeated(name, 2) for name in bias if name)
        if operator == "Dropout":
            return len(node.output) == 1 and len(node.input) < 3
        if operator == "Transpose":
            return attributes.get("perm", [-1])[0] == 0
        if operator in UNSTRETCHED:
            result = self.whole[node.output[0]].shape
            crops = attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
            return not crops and len(result) == len(shape) and result[0] == len(self.whole[node.input[0]])
        if operator in ALONG:
            return attributes.get("axis", ALONG[operator]) % len(shape) != 0
        axes = self._axes(node, attributes, len(shape))
        return axes is not None and 0 not in axes

    def _is_repeated(self, name, rank):
        """Whether an operand is the same for each row of the first dimension of a result of so many dimensions."""
        shape = self.single[name].shape
        return len(shape) < rank or shape[0] == 1

    def _product(self, node, places):
        """Whether each row, or each matrix, of the first dimension is multiplied on its own."""
        matrices = PRODUCTS[node.op_type]
        left, right = (self.single[node.input[place]] for place in matrices)
        rank = max(left.ndim, right.ndim)
        by_row = {"QLinearMatMul": (1, 2, 6, 7), "MatMulInteger": (2,)}.get(node.op_type, ())  # scales and zero points
        numbers = all(self.single[name].size == 1 for place, name in enumerate(node.input) if name and place in by_row)
        if not numbers or not set(places) <= set(matrices):
            return False
        if places == [matrices[0]]:
            return left.ndim == rank and rank >= 2 and (right.ndim <= 2 if rank == 2 else self._is_repeated(node.input[matrices[1]], rank))
        if rank < 3 or any(self.single[node.input[place]].ndim < rank for place in places):
            return False
        return len(places) == 2 or self._is_repeated(node.input[matrices[0]], rank)

    def _axes(self, node, attributes, rank):
        """Return the axes along which the node joins or selects elements, None where that is unknown."""
        operands = [self.single[name] if name else None for name in node.input]
        if node.op_type.startswith("Reduce"):
            given = attributes.get("axes") if len(operands) < 2 else operands[1]
            return None if given is None or not len(given) else [int(axis) % rank for axis in given]
        if node.op_type == "Slice":
            given = attributes.get("axes") if len(operands) < 4 else operands[3]
            return None if given is None else [int(axis) % rank for axis in given]
        if node.op_type == "Pad":
            pads = attributes.get("pads") if len(operands) < 2 else operands[1]
            given = range(rank) if len(operands) < 4 or operands[3] is None else [int(axis) % rank for axis in operands[3]]
            return [axis for place, axis in enumerate(given) if pads[place] or pads[place + len(pads) // 2]]
        return None


def _references(node):
    """Return the names a node, or a graph within it, reads."""
    names = list(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            names += [name for inner in body.node for name in _references(inner)]
            names += [value.name for value in body.output]
    return names


def _is_batch(whole, single, count):
    """Whether two arrays have one shape but for the first dimension, which is ``count`` times as long in the first one."""
    return (
        isinstance(whole, np.ndarray)
        and isinstance(single, np.ndarray)
        and single.ndim > 0
        and whole.shape == (count * single.shape[0], *single.shape[1:])
    )
