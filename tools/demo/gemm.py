"""Write a quantised matrix product as ONNX, with inputs: ``python -m celosia.tools.demo.gemm 256 256 256 -o gemm``.

The files are ``gemm.onnx`` (MatMul of ``[1, M, K]`` activations and ``[K, N]`` weights, int8 QDQ) and ``gemm.npz``.
"""

import argparse

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["gemm", "main"]


def gemm(m, k, n, *, seed=0, count=1):
    """Return ``(model, inputs)`` with random int8 activations and weights."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (k, n)).astype(np.int8)
    x_scale, w_scale = np.float32(0.02), np.float32(0.01)
    # Products of two uniform int8 have a standard deviation of 73²: three of them fit into the output's range.
    y_scale = np.float32(3 * 73.5**2 * np.sqrt(k) * x_scale * w_scale / 128)
    constants = {
        "x_scale": x_scale, "w": weights, "w_scale": w_scale, "y_scale": y_scale,
        "zero": np.int8(0), "x_zero": np.int8(-3), "y_zero": np.int8(5),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_real"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "zero"], ["w_real"]),
        helper.make_node("MatMul", ["x_real", "w_real"], ["y_real"], name="gemm"),
        helper.make_node("QuantizeLinear", ["y_real", "y_scale", "y_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "gemm",
        [helper.make_tensor_value_info("x", TensorProto.INT8, [1, m, k])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [1, m, n])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="celosia")
    return model, {"x": rng.integers(-128, 128, (count, m, k)).astype(np.int8)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("m", "k", "n"):
        parser.add_argument(name, type=int)
    parser.add_argument("-o", "--output", default="gemm", help="file name without suffix (default gemm)")
    options = parser.parse_args(argv)
    model, inputs = gemm(options.m, options.k, options.n)
    onnx.save(model, f"{options.output}.onnx")
    np.savez_compressed(f"{options.output}.npz", **inputs)
    print(f"wrote {options.output}.onnx and {options.output}.npz")


if __name__ == "__main__":
    main()
