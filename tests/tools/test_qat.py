"""Models of quantisation-aware training, as PyTorch and Brevitas export them: taken as they are, and exact."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from celosia.tools.check import check_outputs, summary
from celosia.tools.compiler.frontend import lower
from celosia.tools.session import InferenceSession

ENDS = Counter({"QuantizeLinear": 1, "DequantizeLinear": 1})
X = np.random.default_rng(1).normal(0, 1, (20, 3, 8, 8)).astype(np.float32)


class Exporter:
    """Writes fake-quantised layers: each tensor through QuantizeLinear and DequantizeLinear, everything else float."""

    def __init__(self, *, unsigned=False, weights="integers", bias="float", scale_shape=(), bits=8):
        self.unsigned, self.stored, self.bias_form, self.scale_shape, self.bits = unsigned, weights, bias, scale_shape, bits
        self.coarser = 2 ** (8 - bits)
        self.rng = np.random.default_rng(0)
        self.nodes, self.constants = [], {}

    def node(self, operator, inputs, name, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name, value):
        self.constants[name] = np.asarray(value)
        return name

    def activation(self, value, name, scale, *, signed=False):
        """Quantise after a Relu, or around zero."""
        low, kind = (0, np.uint8) if self.unsigned else (-(2 ** (self.bits - 1)), np.int8)
        zero = low + 2 ** (self.bits - 1) if signed else low
        parameters = [
            self.constant(f"{name}_s", np.full(self.scale_shape, scale * self.coarser, np.float32)),
            self.constant(f"{name}_z", np.full(self.scale_shape, zero, kind)),
        ]
        quantised = self.clipped(self.node("QuantizeLinear", [value, *parameters], f"{name}_q"), name, kind)
        return self.node("DequantizeLinear", [quantised, *parameters], name)

    def clipped(self, value, name, kind):
        """Clip integers to fewer bits: PyTorch's 7-bit ranges, and Brevitas' quantise–clip–dequantise."""
        if self.bits == 8:
            return value
        low, high = (0, 2**self.bits - 1) if kind == np.uint8 else (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
        limits = [self.constant(f"{name}_low", kind(low)), self.constant(f"{name}_high", kind(high))]
        return self.node("Clip", [value, *limits], f"{name}_clip")

    def weights(self, name, shape):
        """Quantise per output channel: as stored integers, or as floats with a QuantizeLinear before the DequantizeLinear."""
        real = self.rng.normal(0, 0.2, shape).astype(np.float32)
        scale = (np.abs(real).reshape(shape[0], -1).max(1) * self.coarser / 128).astype(np.float32)
        parameters = [self.constant(f"{name}_s", scale), self.constant(f"{name}_z", np.zeros(shape[0], np.int8))]
        if self.stored == "integers":
            rounded = np.rint(real / scale.reshape(-1, *[1] * (real.ndim - 1))).clip(-128, 127).astype(np.int8)
            quantised = self.constant(f"{name}_q", rounded)
        else:
            quantised = self.node("QuantizeLinear", [self.constant(f"{name}_f", real), *parameters], f"{name}_q", axis=0)
        quantised = self.clipped(quantised, name, np.int8)
        return self.node("DequantizeLinear", [quantised, *parameters], name, axis=0), scale

    def product(self, operator, value, name, shape, input_scale, **attributes):
        weights, scale = self.weights(f"{name}_w", shape)
        inputs, real = [value, weights], self.rng.normal(0, 0.1, shape[0]).astype(np.float32)
        if self.bias_form == "float":
            inputs.append(self.constant(f"{name}_b", real))
        elif self.bias_form == "int32":
            total = (np.float32(input_scale * self.coarser) * scale).astype(np.float32)
            parameters = [self.constant(f"{name}_bs", total), self.constant(f"{name}_bz", np.zeros(shape[0], np.int32))]
            stored = self.constant(f"{name}_bq", np.rint(real / total).astype(np.int32))
            inputs.append(self.node("DequantizeLinear", [stored, *parameters], f"{name}_b", axis=0))
        return self.node(operator, inputs, name, **attributes)

    def batch_normalisation(self, value, name, channels):
        names = [
            self.constant(f"{name}_{what}", self.rng.uniform(low, high, channels).astype(np.float32))
            for what, low, high in (("gamma", 0.5, 2), ("beta", -0.2, 0.2), ("mean", -0.1, 0.1), ("var", 0.5, 2))
        ]
        return self.node("BatchNormalization", [value, *names], name)

    def network(self, *, batch_normalisation=False, bits=8):
        """Conv–Relu, a residual Conv–Add–Relu, global average pooling, Gemm."""
        window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        value = self.activation("x", "x_dq", 0.02, signed=True)
        value = self.product("Conv", value, "conv0", (8, 3, 3, 3), 0.02, **window)
        if batch_normalisation:
            value = self.batch_normalisation(value, "norm", 8)
        value = self.node("Relu", [value], "relu0")
        if bits < 8:
            limits = [self.constant("low", np.float32(0)), self.constant("high", np.float32(0.03 * (2**bits - 1)))]
            value = self.node("Clip", [value, *limits], "clip")
        first = self.activation(value, "a0", 0.03)
        value = self.product("Conv", first, "conv1", (8, 8, 3, 3), 0.03, **window)
        value = self.node("Add", [first, self.activation(value, "a1", 0.03, signed=True)], "add")
        value = self.activation(self.node("Relu", [value], "relu1"), "a2", 0.04)
        value = self.activation(self.node("GlobalAveragePool", [value], "mean"), "a3", 0.02)
        value = self.activation(self.node("Flatten", [value], "flat"), "a4", 0.02)
        value = self.product("Gemm", value, "gemm", (5, 8), 0.02, transB=1)
        value = self.activation(value, "y", 0.02, signed=True)
        graph = helper.make_graph(
            self.nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, 5])],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check(model, tmp_path):
    """Run the model, assert that it is exact, and return how many nodes of each operator ran on the host."""
    path = tmp_path / "qat.onnx"
    onnx.save(model, path)
    session = InferenceSession(path, "test", "golden")
    outputs = session.run(None, {"x": X})
    assert np.ptp(outputs[0]) > 0.5
    assert summary(check_outputs(session, path, {"x": X}, outputs))[1:] == (0, 0)
    return Counter(operator for _, operator, _, _ in session.model.host_nodes)


def explanation(tmp_path):
    return {name: (reason, suggestion) for name, _, where, reason, suggestion in lower(tmp_path / "qat.onnx").rows if where == "host"}


@pytest.mark.parametrize("unsigned", [False, True], ids=["int8", "uint8"])
@pytest.mark.parametrize("weights", ["integers", "floats"])
@pytest.mark.parametrize("bias", ["float", "int32", "none"])
def test_exports_run_on_the_engine_as_they_are(tmp_path, unsigned, weights, bias):
    assert check(Exporter(unsigned=unsigned, weights=weights, bias=bias).network(), tmp_path) == ENDS


@pytest.mark.parametrize("weights", ["integers", "floats"])
@pytest.mark.parametrize("bits", [7, 4])
def test_fewer_bits_by_clipping_integers_run_on_the_engine(tmp_path, weights, bits):
    assert check(Exporter(unsigned=True, weights=weights, bits=bits).network(), tmp_path) == ENDS


def test_batch_normalisation_that_was_not_folded_is_named(tmp_path):
    found = check(Exporter().network(batch_normalisation=True), tmp_path)
    assert found["Conv"] == found["BatchNormalization"] == 1
    reason, suggestion = explanation(tmp_path)["conv0"]
    assert reason == "ONNX Runtime computes this Conv in floating point, for the BatchNormalization after it is not folded into it."
    assert "fuse_modules_qat" in suggestion


def test_four_bits_by_clipping_are_named(tmp_path):
    assert check(Exporter(unsigned=True).network(bits=4), tmp_path)["Conv"] == 1
    reason, suggestion = explanation(tmp_path)["conv0"]
    assert reason.endswith("for the Clip after it limits more than the quantisation does.")
    assert suggestion.startswith("Give the result the range of the Clip, as `celosia quantize` does, or clip the integers")


def test_scales_in_lists_are_taken(tmp_path):
    found = check(Exporter(scale_shape=(1,)).network(), tmp_path)
    assert not {"Conv", "Gemm", "GlobalAveragePool"} & set(found)
