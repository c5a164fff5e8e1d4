"""Read an ONNX file and check that it is one the compiler can work on.

The file's problems become :class:`~celosia.tools.errors.BadModel` sentences here, so that later passes can rely on a graph of
known operators with static shapes.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.printer
import onnxruntime
from onnx import TensorProto

from celosia.tools.compiler.batch import split_batch
from celosia.tools.compiler.rewrite import rewrite
from celosia.tools.errors import BadModel, UnsupportedOperator
from celosia.tools.program import ZIP_MAGIC

__all__ = ["Source", "load", "node_name", "refuse_float", "session_options"]

DOMAINS = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml")


QUANTISING = ("QuantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A checked ONNX model.

    Parameters
    ----------
    file : str
        What error messages call it.
    sha256 : str
        Of the file's bytes.
    model : onnx.ModelProto
        With every input's shape static, a batch dimension of one where it was not fixed, and unnamed nodes named.
    inputs, outputs : tuple
        ``(name, numpy dtype name, shape with batch)``.
    """

    file: str
    sha256: str
    model: onnx.ModelProto
    inputs: tuple
    outputs: tuple

    @property
    def is_quantised(self):
        """The model has a tensor that the engine could compute on."""
        return not _float_problem(self.model)

    def dump(self):
        """Return the graph without its constants as text."""
        graph = onnx.GraphProto()
        graph.CopyFrom(self.model.graph)
        del graph.initializer[:]
        return onnx.printer.to_text(graph)


def node_name(node):
    """Return what the user knows a node by: its name, or ``operator → first output``."""
    return node.name or f"{node.op_type}→{node.output[0] if node.output else '?'}"


def load(path, *, keep=()):
    """Read ``path``.

    Parameters
    ----------
    path : str, Path or bytes
        A file, or what is in it.
    keep : iterable of str
        Values that become further graph outputs, so that no pass can remove them.

    Returns
    -------
    Source

    Raises
    ------
    BadModel
        If the file is missing, damaged, has dynamic shapes, or inputs and outputs that are not tensors.
    UnsupportedOperator
        If a node's operator is not known to ONNX Runtime.
    """
    file, data = _read(path)
    model = _parse(data, file)
    _check_operators(model, file)
    _check_types(model, file)
    rewrite(model)
    _fix_batch(model, file)
    for node in model.graph.node:
        node.name = node_name(node)
    _keep(model, keep, file)
    return Source(
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        model=model,
        inputs=tuple(_describe(value) for value in model.graph.input),
        outputs=tuple(_describe(value) for value in model.graph.output),
    )


def _read(path):
    """Return what error messages call the model, and its bytes."""
    if isinstance(path, bytes):
        return "the model", path
    file = Path(path).name or str(path)
    try:
        return file, Path(path).read_bytes()
    except FileNotFoundError:
        raise BadModel(file, "no such file", f"looked for {Path(path)}") from None
    except IsADirectoryError:
        raise BadModel(file, "is a folder", "give the ONNX file in it") from None
    except OSError as error:
        raise BadModel(file, f"cannot be read ({error.strerror})") from None


def _parse(data, file):
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:
        if data.startswith(ZIP_MAGIC):
            raise BadModel(file, "is a program of `celosia compile` or another archive", "give the ONNX file") from None
        raise BadModel(file, "is not an ONNX file, or is cut short", "export or download it again") from None
    if not model.graph.node or not model.opset_import:
        raise BadModel(file, "holds no ONNX graph", "export or download it again")
    if not model.graph.output:
        raise BadModel(file, "has no graph output", "export it with its outputs")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise BadModel(file, "keeps its weights in another file", "save it as one file: onnx.save(onnx.load(path), path)")
    _constants_only(model)
    return model


def _check_operators(model, file):
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    functions = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx"):
            known = onnx.defs.has(node.op_type, max_inclusive_version=versions.get("ai.onnx", 1))
        else:
            known = node.domain in DOMAINS or (node.domain, node.op_type) in functions
        if not known:
            where = f"domain {node.domain!r}" if node.domain else f"ONNX operator set {versions.get('ai.onnx')}"
            raise UnsupportedOperator(file, node_name(node), node.op_type, f"no operator of this name in {where}")


def _check_types(model, file):
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if value.type.WhichOneof("value") not in ("tensor_type", None):
                raise BadModel(file, f"{what} {value.name!r} is not a tensor", "the engine and its driver know tensors only")
            kind = value.type.tensor_type.elem_type
            if kind and onnx.helper.tensor_dtype_to_np_dtype(kind).type.__module__ != "numpy":
                name = TensorProto.DataType.Name(kind).lower()
                raise BadModel(file, f"{what} {value.name!r} is {name}, and ONNX Runtime exchanges numpy's own types only")


def refuse_float(path):
    """Raise :exc:`BadModel` for an ONNX file that is not quantised: nothing of it would run on the engine."""
    file, data = _read(path)
    problem = _float_problem(_parse(data, file))
    if problem:
        stem = Path(file).stem
        raise BadModel(file, problem, f"quantise it first: celosia quantize {file} --calibration DATA.npz -o {stem}_int8.onnx")


def _float_problem(model):
    """Return what is wrong with a model of which nothing would run on the engine; nothing if it is quantised."""
    if any(value.type.tensor_type.elem_type in (TensorProto.INT8, TensorProto.UINT8) for value in model.graph.input):
        return ""
    operators = {node.op_type for node in model.graph.node}
    if any(operator in QUANTISING or operator.startswith(("QLinear", "QGemm")) for operator in operators):
        return ""
    if "DequantizeLinear" in operators:
        return "computes in float: only its weights are quantised"
    return "is a float model: no node of it is quantised"


def _constants_only(model):
    """Take the constants out of the graph inputs, where older exporters list them: ONNX Runtime would let a caller change them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, 4)


def _fix_batch(model, file):
    """Set the batch dimension of every graph input to one, and drop shapes that were computed with another one.

    A dynamic batch is one inference. A fixed batch of N becomes one as well if the N inferences are independent of each other
    (:mod:`celosia.tools.compiler.batch`); where they are not, the first dimension stays as it is.
    """
    inputs = list(model.graph.input)
    is_float, changed = bool(_float_problem(model)), False
    for value in inputs:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            raise BadModel(file, f"input {value.name!r} has no shape", "export it with a fixed input shape")
        for axis, dim in enumerate(kind.shape.dim):
            if dim.dim_value > 0 or (is_float and dim.HasField("dim_value")):
                continue
            if axis:
                raise BadModel(
                    file,
                    f"input {value.name!r} has a dynamic shape: dimension {axis} is {dim.dim_param or 'unknown'!r}",
                    "export it with a fixed shape, or fix it with python -m onnxruntime.tools.make_dynamic_shape_fixed",
                )
            dim.dim_value = 1
            changed = True
    if changed:
        del model.graph.value_info[:]
        for value in model.graph.output:
            shape = value.type.tensor_type.shape
            if shape.dim and not shape.dim[0].dim_value > 0:
                shape.dim[0].dim_value = 1
    if not is_float:  # a float model runs on the host as it is
        split_batch(model, inputs, session_options)


def _keep(model, keep, file):
    outputs = {value.name for value in model.graph.output}
    produced = {name for node in model.graph.node for name in node.output}
    for name in keep:
        if name in outputs or name in {value.name for value in model.graph.input}:
            continue
        if name not in produced:
            raise BadModel(file, f"has no value {name!r} to keep")
        model.graph.output.append(onnx.ValueInfoProto(name=name))
        outputs.add(name)


def _describe(value):
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else ""
    return value.name, dtype, tuple(dim.dim_value for dim in kind.shape.dim)


def session_options():
    """Return the ONNX Runtime options under which its integers are the reference: its integer kernels, wherever it has them."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.log_severity_level = 4  # what it logs of errors is in its exceptions
    return options
