"""Bring QDQ and QOperator models into one set of quantised operations.

Which nodes are computed in integers is ONNX Runtime's decision (a Relu that quantisation already contains disappears, a Conv
followed by one that it does not contain is computed in float32, …). So its own graph optimiser makes it: what comes back has
``QLinearConv``, ``QGemm``, ``QLinearAdd`` where the reference computes in integers. What is still float between a
DequantizeLinear and a QuantizeLinear, with one quantised tensor going in, becomes one operation as well.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from celosia.tools.compiler import integer, weighted
from celosia.tools.compiler.graph import Operation, OperationGraph, Value, references
from celosia.tools.compiler.importer import node_name, session_options
from celosia.tools.errors import BadModel, onnx_runtime_says

__all__ = ["ELEMENTWISE", "MOVES", "NoShapes", "legalise", "refused"]


class NoShapes(BadModel):
    """A model whose shapes stay unknown, for ONNX Runtime cannot run it with inputs of zeros."""


OPERANDS = {
    "ConvInteger": ("x", "w", "x_zero_point", "w_zero_point"),
    "MatMulInteger": ("x", "w", "x_zero_point", "w_zero_point"),
    "QLinearConv": ("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias"),
    "QGemm": ("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "bias", "y_scale", "y_zero_point"),
    "QLinearMatMul": ("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point"),
    "QLinearAdd": ("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point"),
    "QLinearMul": ("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point"),
    "QLinearAveragePool": ("x", "x_scale", "x_zero_point", "y_scale", "y_zero_point"),
    "QLinearGlobalAveragePool": ("x", "x_scale", "x_zero_point", "y_scale", "y_zero_point"),
    "QLinearLeakyRelu": ("x", "x_scale", "x_zero_point", "y_scale", "y_zero_point"),
    "QLinearSigmoid": ("x", "x_scale", "x_zero_point", "y_scale", "y_zero_point"),
    "Reshape": ("x", "shape"),
    "Squeeze": ("x", "axes"),
    "Unsqueeze": ("x", "axes"),
}
"""Names of the inputs of the operators that do not stand between DequantizeLinear and QuantizeLinear."""

MOVES = (
    "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample",
)  # fmt: skip
"""Operators that only move elements, whatever their type: if their other operands are constant, and Resize takes the nearest."""

ELEMENTWISE = frozenset(
    """Abs Acos Acosh Add Asin Asinh Atan Atanh BiasGelu Cast Ceil Celu Clip Cos Cosh Div Elu Erf Exp FastGelu Floor Gelu HardSigmoid
    HardSwish Identity LeakyRelu Log Max Mean Min Mish Mod Mul Neg Pow PRelu QuickGelu Reciprocal Relu Round Selu Shrink Sigmoid Sign
    Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu""".split()
)
"""Operators whose result at a place depends on the operands at that place alone, broadcast as numpy does."""

PAIRS = ("Binary", "QLinearAdd", "QLinearMul")
"""Forms of two operands ``a`` and ``b``, one of which may be constant."""

SANDWICHES = {
    "AveragePool": "FloatPool", "GlobalMaxPool": "FloatReduceMax", "MaxPool": "FloatMaxPool", "Pad": "FloatPad",
    "ReduceMax": "FloatReduceMax", "ReduceMean": "ReduceMean", "ReduceSum": "ReduceSum",
}  # fmt: skip
"""Operators understood between DequantizeLinear and QuantizeLinear, and the form they take."""


def legalise(source):
    """Return the :class:`~celosia.tools.compiler.graph.OperationGraph` of a :class:`~celosia.tools.compiler.importer.Source`.

    Raises
    ------
    BadModel
        If ONNX Runtime refuses the model; the sentence carries its reason. :exc:`NoShapes` if it refuses to run it.
    """
    model = _optimise(source)
    values = _values(source, model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    origins = _Origins(source.model, model)
    operations = []
    islands = _Islands(model, values, constants)
    for node in model.graph.node:
        if all(name in constants for name in node.output if name):
            continue
        operation = None
        if node.op_type == "QuantizeLinear":
            operation = islands.find(node) or _weighted(node, islands.producers, constants)
        operation = operation or _single(node, constants)
        parts = integer.split(operation, values, constants) if operation.form in integer.INTEGER else _outputs(operation)
        for part in parts:
            operations.append(replace(part, **origins.find(part)))
    made = {name for operation in operations for name in operation.outputs} | {name for name, *_ in source.inputs}
    for value in model.graph.output:
        if value.name in constants and value.name not in made:
            operation = _constant_output(value.name, constants[value.name], values)
            operations.append(replace(operation, **origins.find(operation)))
    header = onnx.ModelProto()
    header.CopyFrom(model)
    header.ClearField("graph")
    graph = OperationGraph(
        file=source.file,
        operations=tuple(operations),
        values=values,
        inputs=tuple(name for name, *_ in source.inputs),
        outputs=tuple(value.name for value in model.graph.output),
        constants=constants,
        header=header,
    )
    return replace(graph, values=_quantisation(graph))


def _optimise(source):
    """Return the model after ONNX Runtime's optimiser, without those rewrites that are for its CPU kernels only."""
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            onnxruntime.InferenceSession(
                source.model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=[*integer.FUSIONS],
            )
        except Exception as error:
            raise refused(source, error) from None
        model = onnx.load(options.optimized_model_filepath)
    for node in model.graph.node:  # constants as initializers, so that there is one kind
        if node.op_type == "Constant":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(next(a.t for a in node.attribute if a.name == "value"))
            tensor.name = node.output[0]
            model.graph.initializer.append(tensor)
    return model


def refused(source, error):
    """Return the :exc:`BadModel` for what ONNX Runtime says when it makes a session of the model."""
    return BadModel(source.file, f"ONNX Runtime refuses it: {onnx_runtime_says(error)}")


def _values(source, model):
    """Return type and shape of every value, as ONNX Runtime computes them for an input of zeros."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    del probe.graph.output[:]
    for node in probe.graph.node:
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name and name not in constants)
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feed = {name: np.zeros(shape, dtype) for name, dtype, shape in source.inputs}
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        arrays = dict(zip(names, session.run(names, feed), strict=True)) | feed
    except Exception as error:
        raise NoShapes(source.file, f"ONNX Runtime cannot run it with inputs of zeros: {onnx_runtime_says(error)}") from None
    return {
        name: Value(name=name, dtype=array.dtype, shape=array.shape)
        for name, array in arrays.items()
        if isinstance(array, np.ndarray)
    }


def _attributes(node):
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_linear(node):
    """Whether a node interpolates between neighbours."""
    return node.op_type in ("Resize", "Upsample") and _attributes(node).get("mode") == b"linear"


def _outputs(operation):
    """Return an operation for each output of a Split: each is a slice of its own."""
    if operation.form != "Split":
        return (operation,)
    return tuple(replace(operation, outputs=(name,)) for name in operation.outputs)


def _operand_names(node):
    if node.op_type == "QLinearConcat":
        parts = range((len(node.input) - 2) // 3)
        return ("y_scale", "y_zero_point", *(f"x{part}{name}" for part in parts for name in ("", "_scale", "_zero_point")))
    return OPERANDS.get(node.op_type, ())


def _single(node, constants):
    """Return the operation of one node on its own."""
    names = _operand_names(node)
    operands = {
        names[position] if position < len(names) else f"input_{position}": numpy_helper.to_array(constants[name])
        for position, name in enumerate(node.input)
        if name in constants
    }
    attributes, form = _attributes(node), "Interpolation" if _is_linear(node) else node.op_type
    if node.op_type in ("MatMulInteger", "QGemm", "QLinearMatMul"):
        operands, attributes = _product(operands, attributes)
        form = node.op_type if "w" in operands or node.op_type == "MatMulInteger" else "Product"
    return Operation(
        name=node_name(node),
        operator=node.op_type,
        form=form,
        inputs=tuple(name for name in references(node) if name not in constants),
        outputs=tuple(name for name in node.output if name),
        operands=operands,
        attributes=attributes,
        nodes=(node,),
    )


def _constant_output(name, tensor, values):
    """Return the operation for a graph output that does not depend on any input; ``values`` get it."""
    array = numpy_helper.to_array(tensor)
    values[name] = Value(name=name, dtype=array.dtype, shape=array.shape)
    node = onnx.helper.make_node("Constant", [], [name], f"{name} (constant)", value=tensor)
    return Operation(name=node.name, operator="Constant", form="Constant", inputs=(), outputs=(name,), nodes=(node,))


def _weighted(quantize, producers, constants):
    operation = weighted.find(quantize, producers, constants)
    if operation is None or operation.form not in ("QGemm", "QLinearMatMul"):
        return operation
    operands, attributes = _product(operation.operands, operation.attributes)
    return replace(operation, operands=operands, attributes=attributes)


def _product(operands, attributes):
    """Call the constant operand of a matrix product ``w``, whichever it is.

    The attribute ``swapped`` says that it is the first one, ``x_transposed`` that the summed axis is the last but one of the tensor, and
    ``w_transposed`` that it is the last one of the constant.
    """
    left, right = bool(attributes.get("transA", 0)), bool(attributes.get("transB", 0))
    if "x" not in operands or "w" in operands:
        return operands, attributes | {"swapped": False, "x_transposed": left, "w_transposed": right}
    exchanged = {}
    for name, array in operands.items():
        stem, _, rest = name.partition("_")
        exchanged["_".join(filter(None, ({"x": "w", "w": "x"}.get(stem, stem), rest)))] = array
    return exchanged, attributes | {"swapped": True, "x_transposed": not right, "w_transposed": not left}


class _Islands:
    """Finds float operations between DequantizeLinear and QuantizeLinear that have one or two quantised inputs."""

    def __init__(self, model, values, constants):
        self.values = values
        self.constants = constants
        self.producers = {name: node for node in model.graph.node for name in node.output}

    def find(self, quantize):
        """Return the operation that ends with the node ``quantize``, or None."""
        nodes, sources = [quantize], {}
        if not all(name in self.constants for name in quantize.input[1:]):
            return None
        if not self._collect(quantize.input[0], nodes, sources):
            return None
        inner = [node for node in nodes[1:] if node.op_type != "DequantizeLinear"]
        main = inner[0] if inner else quantize
        tensors = tuple(dict.fromkeys(node.input[0] for node in sources.values()))
        form = self._form(quantize, nodes, inner, tensors)
        if form is None:
            return None
        operands = {}
        ends = {node.input[0]: node for node in sources.values()}
        for prefix, node in (*zip("ab" if form == "Binary" else "x", (ends[name] for name in tensors)), ("y", quantize)):
            for suffix, name in zip(("scale", "zero_point"), node.input[1:]):
                operands[f"{prefix}_{suffix}"] = numpy_helper.to_array(self.constants[name])
        for position, name in enumerate(main.input if inner else ()):
            if name in self.constants:
                operands[f"input_{position}"] = numpy_helper.to_array(self.constants[name])
        return Operation(
            name=node_name(main),
            operator=main.op_type,
            form=form,
            inputs=tensors,
            outputs=(quantize.output[0],),
            operands=operands,
            attributes=_attributes(main) if inner else {},
            nodes=tuple(reversed(nodes)),
        )

    def _form(self, quantize, nodes, inner, tensors):
        """Return what an island of these nodes is computed as, or None."""
        if len(tensors) == 1 and len(inner) == 1 and inner[0].op_type in SANDWICHES:
            return SANDWICHES[inner[0].op_type]
        if len(tensors) == 1 and len(inner) == 1 and _is_linear(inner[0]):
            return "Interpolation"
        if len(tensors) == 1 and inner and all(node.op_type in MOVES for node in inner):
            return "FloatMove"
        shapes = [self.values[name].shape for name in tensors]
        if not all(node.op_type in ELEMENTWISE for node in inner) or len(tensors) not in (1, 2):
            return None
        if np.broadcast_shapes(*shapes) != self.values[quantize.output[0]].shape:
            return None
        read = [name for node in nodes for name in (node.input[:1] if node.op_type == "DequantizeLinear" else node.input)]
        one_number = all(np.prod(self.constants[name].dims, dtype=int) == 1 for name in read if name in self.constants)
        if len(tensors) == 2:
            return "Binary" if one_number else None
        return "Unary" if one_number else "Places"

    def _collect(self, name, nodes, sources):
        """Walk back from the float value ``name``; every path must end at a constant or the DequantizeLinear of something."""
        if name in self.constants or not name:
            return True
        node = self.producers.get(name)
        if node is None or len(nodes) > 16:
            return False
        if node in nodes:
            nodes.remove(node)  # seen from a later consumer: it has to come before that one as well
        nodes.append(node)
        if node.op_type == "DequantizeLinear":
            if node.input[0] not in self.constants:
                sources[node.output[0]] = node
            return all(constant in self.constants for constant in node.input[1:])
        known = node.op_type in ELEMENTWISE or node.op_type in SANDWICHES or node.op_type in MOVES
        return known and len(node.output) == 1 and all(self._collect(one, nodes, sources) for one in node.input)


class _Origins:
    """Maps operations back to the nodes of the user's model, through the values that both graphs have."""

    def __init__(self, original, optimised):
        self.producers = {name: node for node in original.graph.node for name in node.output}
        self.kept = {name for node in optimised.graph.node for name in node.output}
        self.kept |= {value.name for value in original.graph.input}

    def find(self, operation):
        """Return the fields ``sources`` and ``operator`` of ``operation`` in the user's terms."""
        seen, waiting = {}, [name for name in operation.outputs if name in self.producers]
        kept = self.kept - {name for node in operation.nodes for name in node.output}
        while waiting:
            node = self.producers.get(waiting.pop())
            if node is not None and node.name not in seen:
                seen[node.name] = node
                waiting.extend(name for name in node.input if name not in kept or name not in self.producers)
        inner = [node for node in seen.values() if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
        named = next((node for node in inner if node.name == operation.name), inner[-1] if len(inner) == 1 else None)
        operator = named.op_type if named is not None else operation.operator
        return {"sources": tuple(reversed(seen)) or (operation.name,), "operator": operator}


def _quantisation(graph):
    """Return the values with scale and zero point, as producers, else consumers state them; moves pass them on."""
    found = {}

    def note(name, operation, prefix):
        scale, zero_point = operation.operands.get(f"{prefix}_scale"), operation.operands.get(f"{prefix}_zero_point")
        value = graph.values.get(name)
        if scale is None or scale.size != 1 or value is None or not value.is_quantised or name in found:
            return
        offset = 128 if value.unsigned else 0
        found[name] = np.float32(scale.item()), (int(zero_point.item()) if zero_point is not None else 0) - offset

    for operation in graph.operations:
        note(operation.output, operation, "y")
    for operation in graph.operations:
        if operation.form in (*PAIRS, "Product", "ProductInteger"):
            prefixes = ("a", "b") if operation.form in PAIRS else ("x", "w")
            activations = [prefix for prefix in prefixes if prefix not in operation.operands]
            for name, prefix in zip(operation.inputs, activations):
                note(name, operation, prefix)
        elif operation.form == "QLinearConcat":
            parts = [f"x{n}" for n in range(len(operation.operands)) if f"x{n}_scale" in operation.operands]
            for name, prefix in zip(operation.inputs, (part for part in parts if part not in operation.operands)):
                note(name, operation, prefix)
        elif operation.inputs:
            prefix = "" if operation.form == "DequantizeLinear" else "x_"
            operands = operation.operands
            if not prefix and "input_1" in operands:
                operands = {"x_scale": operands["input_1"], "x_zero_point": operands.get("input_2")}
            note(operation.inputs[0], replace(operation, operands={k: v for k, v in operands.items() if v is not None}), "x")
    passing = [operation for operation in graph.operations if operation.form in (*MOVES, "Interpolation", "MaxPool", "ReduceMax") and operation.inputs]
    for order in (passing, passing[::-1]):
        for operation in order:
            source, target = operation.inputs[0], operation.output
            for one, other in ((source, target), (target, source)):
                if one in found and other not in found and graph.values[other].is_quantised:
                    found[other] = found[one]
    return {
        name: replace(value, scale=found[name][0], zero_point=found[name][1]) if name in found else value
        for name, value in graph.values.items()
    }
