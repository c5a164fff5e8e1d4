"""Why an operation that no family takes runs on the host: the first of ``REASONS`` that holds.

As with the constraints of the operator families, the docstring is what the user reads: a sentence, then what to do about it.
``{operator}`` is the operation's operator and ``{reader}`` that of the operation after it.
"""


from celosia.tools.ops import FORMS
from celosia.tools.ops.family import Refused, sentence, suggestion

__all__ = ["REASONS", "refusal"]

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")


class _Case:
    """An operation with what the reasons ask for."""

    def __init__(self, operation, values, features):
        self.operation, self.values, self.features = operation, values, features
        self.operator = operation.operator.removeprefix("QLinear").removeprefix("Fused")
        self.readers = [reader.operator for name in operation.outputs for reader in features.readers(name)]
        if operation.form.startswith("Fused"):
            self.readers.append(operation.attributes.get("activation", b"Relu").decode())
        self.reader = ""

    def is_read_by(self, *operators):
        self.reader = next((reader for reader in self.readers if reader in operators), "")
        return bool(self.reader)


def conversion(case):
    """Quantisation between float and integer tensors is done on the host.

    At the ends of a network, give it int8 inputs and outputs; inside, quantise the float node beside it.
    """
    return case.operation.form in ("QuantizeLinear", "DequantizeLinear")


def constant(case):
    """It does not depend on the network's inputs: the host holds the result."""
    return not case.operation.inputs


def run_time_zero_point(case):
    """The zero point is computed at run time: the host takes off what it adds to the sums.

    Quantise statically: `celosia quantize` on the float model.
    """
    return case.operation.form == "ZeroPoint"


def dynamic_quantisation(case):
    """DynamicQuantizeLinear needs the whole tensor before it knows its scale: the host computes it.

    Quantise statically: `celosia quantize` on the float model.
    """
    return case.operation.form == "DynamicQuantizeLinear"


def normalises_rows(case):
    """{operator} divides by a sum that differs from row to row, in floating point: the host computes it.

    The layers around it stay on the engine; a final Softmax may be left out where only the largest value counts.
    """
    return case.operator in ("LogSoftmax", "Softmax")


def normalises_by_deviation(case):
    """{operator} divides by a deviation that differs from row to row, in floating point: the host computes it.

    The layers around it stay on the engine; a BatchNormalization in its place would fold into them.
    """
    return case.operator in ("LayerNormalization", "SimplifiedLayerNormalization")


def gives_places(case):
    """{operator} gives 64-bit places instead of values: the host computes it.

    At the end of a network that is one small step after the engine's last layer.
    """
    return case.operator in ("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "TopK")


def no_such_operator(case):
    """The engine has no {operator}.

    The layers around it stay on the engine; `celosia ops` lists the operators to replace it by.
    """
    return all(value.dtype.kind != "f" for value in case.values)


def batch_normalisation_after_it(case):
    """ONNX Runtime computes this {operator} in floating point, for the BatchNormalization after it is not folded into it.

    Fold it into the weights before the export: torch.ao.quantization.fuse_modules_qat, or merge_bn of Brevitas.
    """
    return case.operator in PRODUCTS and case.is_read_by("BatchNormalization")


def activation_limits_more(case):
    """ONNX Runtime computes this {operator} in floating point, for the {reader} after it limits more than the quantisation does.

    Give the result the range of the {reader}, as `celosia quantize` does, or clip the integers behind the QuantizeLinear.
    """
    return case.operator in PRODUCTS and case.is_read_by("Relu", "Clip")


def limits_more_than_quantisation(case):
    """ONNX Runtime computes this {operator} in floating point, for it limits more than the quantisation after it does.

    Give the result the range of the {operator}, as `celosia quantize` does, or clip the integers behind the QuantizeLinear.
    """
    return case.operator in ("Relu", "Clip") and case.is_read_by("QuantizeLinear")


def batch_normalisation(case):
    """BatchNormalization is computed in floating point, for it is not folded into the layer before it.

    Fold it into the weights before the export: torch.ao.quantization.fuse_modules_qat, or merge_bn of Brevitas.
    """
    return case.operator == "BatchNormalization"


def not_quantised(case):
    """ONNX Runtime computes this {operator} in floating point: not all of its operands and its result are quantised.

    Quantise the float model with `celosia quantize`, or add the missing QuantizeLinear and DequantizeLinear.
    """
    return any(case.operator in family.operators for family in FORMS.values())


def floating_point(case):
    """{operator} is computed in floating point."""
    return True


REASONS = (
    conversion, constant, run_time_zero_point, dynamic_quantisation, normalises_rows, normalises_by_deviation, gives_places,
    no_such_operator, batch_normalisation_after_it, activation_limits_more, limits_more_than_quantisation, batch_normalisation, not_quantised,
    floating_point,
)  # fmt: skip


def refusal(operation, values, features):
    """Return the :class:`Refused` for an operation that no family takes; ``values`` are its inputs and outputs."""
    case = _Case(operation, values, features)
    reason = next(reason for reason in REASONS if reason(case))
    words = {"operator": case.operator, "reader": case.reader}
    return Refused(sentence(reason).format(**words), suggestion(reason).format(**words))
