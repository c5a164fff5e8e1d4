"""From a float model to one that runs on the engine: ONNX Runtime's static quantisation with the choices the engine likes.

============  ================================================================================================
step          by
============  ================================================================================================
prepare       ``quant_pre_process``: constant and batch-norm folding, shapes; and :mod:`celosia.tools.float_rewrites`
calibrate     ``quantize_static`` runs the float model on the calibration samples and notes ranges
quantise      QDQ form; activations int8 with a zero point, so that a Relu is the lower end of its range and disappears (ONNX
              Runtime would compute the layer in float if it did not); weights int8, symmetric, per output channel
============  ================================================================================================

A Softmax that makes a graph output stays float: eight bits of probabilities are of no use to its reader.
"""

import contextlib
import io
import logging
import tempfile
from dataclasses import replace

import numpy as np
import onnx
import onnx.version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from celosia.tools.compiler.importer import load
from celosia.tools.errors import BadInput, BadModel, onnx_runtime_says
from celosia.tools.float_rewrites import convolve_normalisations, fold_dequantised, functions_of_one_tensor, pool_globally
from celosia.tools.session import check_feed

__all__ = ["METHODS", "prepare", "quantize", "split"]

METHODS = {
    "percentile": CalibrationMethod.Percentile,
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
}
"""How ranges follow from what was seen, the default first: the 99.999th percentile lost least on the MLPerf Tiny networks."""
OPSET = 13
"""The first one with scales per channel."""

ACTIVATIONS = (
    "Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Mish", "PRelu", "Selu", "Softplus", "Softsign", "Tanh", "ThresholdedRelu"
)  # fmt: skip
"""Operators that are quantised besides those ONNX Runtime quantises of itself."""

FLOAT_AT_THE_END = ("Softmax", "LogSoftmax")
CHUNK = 16
"""Samples whose activations are in memory at the same time."""

HELD_BACK = 5
"""One of so many samples is held back unless the user says how many."""


def prepare(path):
    """Return the float model in ``path`` as quantisation wants it: one opset, folded constants and batch norms, known shapes.

    Returns
    -------
    Source
        As :func:`celosia.tools.compiler.importer.load` returns it, for the prepared model.

    Raises
    ------
    BadModel, UnsupportedOperator
        If the file cannot be read, holds a quantised model, or cannot be prepared.
    """
    source = load(path)
    operators = {node.op_type for node in source.model.graph.node}
    if any(operator == "QuantizeLinear" or operator.startswith(("QLinear", "QGemm")) for operator in operators):
        raise BadModel(source.file, "is quantised already", "`celosia run` takes it as it is")
    model = source.model
    with tempfile.TemporaryDirectory() as folder, _quiet():
        try:
            if any(entry.domain in ("", "ai.onnx") and entry.version < OPSET for entry in model.opset_import):
                model = onnx.version_converter.convert_version(model, OPSET)
            fold_dequantised(model)
            onnx.save(model, f"{folder}/float.onnx")
            quant_pre_process(f"{folder}/float.onnx", f"{folder}/prepared.onnx", skip_symbolic_shape=True)
        except Exception as error:
            raise BadModel(source.file, f"cannot be prepared for quantisation: {onnx_runtime_says(error)[:300]}") from None
        prepared = replace(load(f"{folder}/prepared.onnx"), file=source.file)
    pool_globally(prepared.model)
    convolve_normalisations(prepared.model)
    return prepared


def quantize(source, feed, output, *, method="percentile", per_channel=True, progress=lambda steps: None):
    """Quantise a prepared model and write it to the file ``output``.

    Parameters
    ----------
    source : Source
        From :func:`prepare`.
    feed : dict of name to array
        Calibration samples, as :func:`celosia.tools.session.check_feed` returns them: ``[samples, *shape with batch]``.
    output : Path
    method : str
        A key of :data:`METHODS`.
    per_channel : bool
        A weight scale for each output channel, else one for each tensor.
    progress : callable
        Called with the number of samples just calibrated.

    Raises
    ------
    BadModel
        If ONNX Runtime cannot quantise it.
    """
    reader = _Reader(feed, progress)
    chunk = next(size for size in range(min(CHUNK, len(reader)), 0, -1) if len(reader) % size == 0)
    made = {value.name for value in source.model.graph.output}
    at_the_end = [node.name for node in source.model.graph.node if node.op_type in FLOAT_AT_THE_END and node.output[0] in made]
    model = onnx.ModelProto()
    model.CopyFrom(source.model)  # quantize_static moves the weights out of the one it is given
    try:
        with _quiet():
            quantize_static(
                model,
                output,
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry, *ACTIVATIONS}),
                nodes_to_exclude=[*at_the_end, *functions_of_one_tensor(model)],
                calibrate_method=METHODS[method],
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, "CalibStridedMinMax": chunk, "ForceQuantizeNoInputCheck": True},
            )
    except Exception as error:
        raise BadModel(source.file, f"cannot be quantised: {onnx_runtime_says(error)[:300]}") from None


def split(source, feed, held_back=None):
    """Check the samples and divide them into those to calibrate with and those held back, which are spread evenly.

    Parameters
    ----------
    source : Source
    feed : dict of name to array
        What the user gave: the first dimension is the number of samples.
    held_back : int, optional
        One of five unless given.

    Returns
    -------
    calibration, held_back : dict of name to array
        ``[samples, *shape with batch]``; the same samples in both where there is only one.

    Raises
    ------
    BadInput
    """
    arrays, count = check_feed(source, feed)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            sample = int(np.argwhere(~np.isfinite(array))[0][0])
            raise BadInput(name, f"holds a value that is not finite, in sample {sample}")
    wanted = max(1, count // HELD_BACK) if held_back is None else held_back
    if count == 1 and held_back is None:
        return arrays, arrays
    if not 1 <= wanted < count:
        samples, less = f"{count} sample{'s' * (count != 1)}", ", or a smaller --held-back" * (wanted > 1)
        raise BadInput(
            next(iter(arrays)),
            f"holds {samples}, of which {wanted} cannot be held back; give at least {wanted + 1}{less}",
        )
    back = np.zeros(count, bool)
    back[(np.arange(wanted) * count + count // 2) // wanted] = True
    return {name: array[~back] for name, array in arrays.items()}, {name: array[back] for name, array in arrays.items()}


class _Reader(CalibrationDataReader):
    """Hands the calibration samples to ONNX Runtime."""

    def __init__(self, feed, progress):
        self.feed, self.progress = feed, progress
        self.place, self.end = 0, len(self)

    def __len__(self):
        return len(next(iter(self.feed.values())))

    def set_range(self, start_index, end_index):
        self.place, self.end = start_index, end_index

    def get_next(self):
        if self.place >= self.end:
            return None
        sample = {name: array[self.place] for name, array in self.feed.items()}
        self.place += 1
        self.progress(1)
        return sample


@contextlib.contextmanager
def _quiet():
    """Keep what ONNX Runtime's quantiser prints and logs from the user; its exceptions say what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
