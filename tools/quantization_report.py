"""What quantisation cost: signal to quantisation noise of each layer, and how well the outputs agree."""

from dataclasses import asdict, dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from celosia.tools.compiler.importer import session_options

__all__ = ["LayerNoise", "OutputAgreement", "compare_models"]


@dataclass(frozen=True)
class LayerNoise:
    """The error in the result of one node of the float model, everything before it being quantised as well.

    ``decibels`` is ``10 log10(sum x² / sum (x − y)²)`` over all samples; None where there is no error, or no signal.
    """

    name: str
    operator: str
    tensor: str
    decibels: float | None

    def to_dict(self):
        return {"name": self.name, "operator": self.operator, "tensor": self.tensor, "sqnr_db": self.decibels}


@dataclass(frozen=True)
class OutputAgreement:
    """A graph output of both models: ``same_largest`` counts samples whose largest element is in the same place (None if there is one)."""

    name: str
    samples: int
    decibels: float | None
    largest_difference: float
    same_largest: int | None

    def to_dict(self):
        facts = asdict(self)
        facts["sqnr_db"] = facts.pop("decibels")
        return facts


def compare_models(source, quantised, feed, progress=lambda steps: None):
    """Run the float and the quantised model on the same samples.

    Parameters
    ----------
    source : Source
        The prepared float model.
    quantised : str or Path
        What :func:`celosia.tools.quantizer.quantize` wrote.
    feed : dict of name to array ``[samples, *shape with batch]``
    progress : callable
        Called with the number of samples just compared.

    Returns
    -------
    layers : list of LayerNoise
    outputs : list of OutputAgreement
    """
    small = onnx.load(quantised)
    producers = {name: node for node in source.model.graph.node for name in node.output}
    points = [point for point in _quantised_tensors(small) if point[0] in producers]
    outputs = [value.name for value in source.model.graph.output]
    theirs = _session(source.model, [*outputs, *(name for name, _, _, _ in points)])
    plain = _session(small, outputs)
    ours = _session(small, [*outputs, *(name for _, name, _, _ in points)])
    layers = [_Sum() for _ in points]
    ends = [_Sum() for _ in outputs]
    count = len(next(iter(feed.values())))
    for n in range(count):
        sample = {name: array[n] for name, array in feed.items()}
        values = theirs(sample)
        for total, exact, found in zip(ends, values, plain(sample)):
            total.add(exact, found)
        found = ours(sample)
        for total, exact, integers, (_, _, scale, zero) in zip(layers, values[len(outputs) :], found[len(outputs) :], points):
            total.add(exact, (integers.astype(np.float32) - zero) * scale)
        progress(1)
    noise = [
        LayerNoise(producers[name].name, producers[name].op_type, name, total.decibels)
        for total, (name, *_) in zip(layers, points)
    ]
    agreement = [
        OutputAgreement(name, count, total.decibels, total.largest, total.same if total.is_vector else None)
        for name, total in zip(outputs, ends)
    ]
    return noise, agreement


class _Sum:
    """Signal and noise of one tensor over all samples."""

    def __init__(self):
        self.signal = self.noise = self.largest = 0.0
        self.same, self.is_vector = 0, False

    def add(self, exact, found):
        exact, found = np.asarray(exact, np.float64), np.asarray(found, np.float64)
        error = found - exact
        self.signal += float((exact * exact).sum())
        self.noise += float((error * error).sum())
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))
        self.is_vector = exact.size > 1 and exact.size == exact.shape[-1]
        self.same += int(self.is_vector and exact.argmax() == found.argmax())

    @property
    def decibels(self):
        return 10 * float(np.log10(self.signal / self.noise)) if self.signal and self.noise else None


def _quantised_tensors(model):
    """Return ``(float name, name of the integers, scale, zero point)`` of each activation, in the order of the graph."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            scale, zero = (constants[name] for name in node.input[1:3])
            # The quantiser renames the float value of a graph output, not what follows.
            name = readers.get(node.output[0], "") if node.input[0].endswith("_QuantizeLinear_Input") else node.input[0]
            found.append((name, node.output[0], np.float32(scale.item()), int(zero.item())))
    return found


def _session(model, outputs):
    """Return a function that runs ``model`` and returns ``outputs``, which need not be graph outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    session = onnxruntime.InferenceSession(copy.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    return lambda feed: session.run(list(outputs), feed)
