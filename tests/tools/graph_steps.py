"""The steps of random networks: each adds one operator, or one small pattern, to a :class:`graph_builder.Builder`.

A step is a function ``(builder, rng, step, values) -> Value or None``; it works on the last of ``values`` and may take earlier ones. It
returns None where it does not fit.
"""

import numpy as np
from graph_builder import evaluate

MAX_MAP = 700  # elements: what the smallest preset holds several of


def window(step, sizes, *, half_pads=False):
    """Return ONNX attributes of a window clamped so that at least one output pixel exists.

    ``half_pads`` keeps every pad below the kernel's size, as pooling wants it.
    """
    rank = len(sizes)
    dilation = step.get("dilation", (1, 1))[:rank]
    kernel, pads = [], [0] * 2 * rank
    for axis, size in enumerate(sizes):
        wanted = step.get("kernel", (1, 1))[axis]
        begin, end = step.get("pads", (0, 0, 0, 0))[axis::2][:2]
        if half_pads:
            begin, end = min(begin, wanted - 1), min(end, wanted - 1)
        kernel.append(max(1, min(wanted, (size + begin + end - 1) // dilation[axis] + 1)))
        if half_pads and kernel[axis] < wanted:
            begin, end = 0, 0
            kernel[axis] = max(1, min(wanted, (size - 1) // dilation[axis] + 1))
        pads[axis], pads[axis + rank] = begin, end
    attributes = {"kernel_shape": kernel, "strides": list(step.get("stride", (1, 1))[:rank]), "pads": pads}
    if any(d != 1 for d in dilation):
        attributes["dilations"] = list(dilation)
    return attributes


def round_up(attributes, sizes):
    """Return whether ``ceil_mode`` leaves every last window inside the map: where it does not, ONNX Runtime's shapes disagree."""
    rank = len(sizes)
    for axis, size in enumerate(sizes):
        begin, end, stride = attributes["pads"][axis], attributes["pads"][axis + rank], attributes["strides"][axis]
        reach = (attributes["kernel_shape"][axis] - 1) * attributes.get("dilations", [1] * rank)[axis] + 1
        if -(-(size + begin + end - reach) // stride) * stride >= size + begin:
            return False
    return True


def is_map(value):
    return len(value.shape) in (3, 4)


def _divisor(rng, number):
    return int(rng.choice([d for d in range(1, number + 1) if number % d == 0]))


# Products ------------------------------------------------------------------------------------------------------------


def conv(builder, rng, step, values):
    if not is_map(values[-1]):
        return None
    channels, *sizes = values[-1].shape[1:]
    attributes = window(step, sizes)
    rank = len(sizes)
    area = np.prod([
        (size + attributes["pads"][axis] + attributes["pads"][axis + rank]) // attributes["strides"][axis] + 1
        for axis, size in enumerate(sizes)
    ])  # fmt: skip
    out, group = int(max(1, min(step.get("out", 3), MAX_MAP // area))), 1
    if step.get("grouped"):
        group = channels if step.get("grouped") == "depthwise" else _divisor(rng, channels)
        out = max(1, out // group) * group
        attributes["group"] = group
    shape = (out, channels // group, *attributes["kernel_shape"])
    return builder.weighted(
        rng, "Conv", values[-1], shape, 0, per_channel=step.get("per_channel", True), bias=step.get("bias", True),
        relu=step.get("relu"), attributes=attributes, unsigned_weights=step.get("unsigned_weights", False),
    )  # fmt: skip


def conv_transpose(builder, rng, step, values):
    if not is_map(values[-1]):
        return None
    channels, *sizes = values[-1].shape[1:]
    kernel = list(step.get("kernel", (2, 2))[: len(sizes)])
    strides = [min(s, 3) for s in step.get("stride", (2, 2))[: len(sizes)]]
    group = _divisor(rng, channels) if rng.random() < 0.3 else 1
    pads = [int(rng.integers(0, k)) if rng.random() < 0.5 else 0 for k in kernel]
    sizes_out = [(n - 1) * s + k - 2 * p for n, s, k, p in zip(sizes, strides, kernel, pads)]
    if min(sizes_out) < 1:
        return None
    attributes = {"strides": strides, "pads": pads * 2, "group": group, "kernel_shape": kernel}
    if rng.random() < 0.3:
        attributes["output_padding"] = [int(rng.integers(0, s)) for s in strides]
    shape = (channels, max(1, step.get("out", 3) // group), *kernel)
    return builder.transposed_convolution(rng, values[-1], shape, attributes, bias=step.get("bias", True))


def gemm(builder, rng, step, values):
    if len(values[-1].shape) != 2:
        return None
    transposed, features, out = step.get("transposed", False), values[-1].shape[1], step.get("out", 5)
    shape = (out, features) if transposed else (features, out)
    return builder.weighted(
        rng, "Gemm", values[-1], shape, 0 if transposed else 1, per_channel=step.get("per_channel", False),
        bias=step.get("bias", True), relu=step.get("relu"), attributes={"transB": int(transposed)},
        unsigned_weights=step.get("unsigned_weights", False),
    )  # fmt: skip


def matmul(builder, rng, step, values):
    if len(values[-1].shape) not in (2, 3):
        return None
    shape = (values[-1].shape[-1], step.get("out", 5))
    return builder.weighted(
        rng, "MatMul", values[-1], shape, 1, per_channel=step.get("per_channel", False), bias=False,
        relu=step.get("relu"), attributes={}, unsigned_weights=step.get("unsigned_weights", False),
    )  # fmt: skip


def product(builder, rng, step, values):
    """Multiply two computed tensors: the last one with an earlier one, or with itself transposed."""
    left = values[-1]
    if len(left.shape) < 3:
        return None
    fitting = [value for value in values if value.shape[:-2] == left.shape[:-2] and value.shape[-2] == left.shape[-1]]
    if fitting and rng.random() < 0.5:
        right = fitting[rng.integers(len(fitting))]
    else:
        order = [*range(len(left.shape) - 2), len(left.shape) - 1, len(left.shape) - 2]
        right = builder.sandwich(rng, "Transpose", [left], attributes={"perm": order}, like=left)
    return builder.multiplied(rng, left, right)


# Pooling and reductions ----------------------------------------------------------------------------------------------


def max_pool(builder, rng, step, values):
    if not is_map(values[-1]):
        return None
    attributes = window(step, values[-1].shape[2:], half_pads=True)
    if step.get("ceil_mode") and round_up(attributes, values[-1].shape[2:]):
        attributes["ceil_mode"] = 1
    return builder.plain(rng, "MaxPool", values[-1], attributes=attributes, rescale=step.get("rescale"))


def average_pool(builder, rng, step, values):
    if not is_map(values[-1]):
        return None
    attributes = window(step, values[-1].shape[2:], half_pads=True) | {"count_include_pad": step.get("count_include_pad", 0)}
    if step.get("ceil_mode") and round_up(attributes, values[-1].shape[2:]):
        attributes["ceil_mode"] = 1
    return builder.pooled(rng, "AveragePool", values[-1], attributes, same_scale=step.get("same_scale"))


def global_average_pool(builder, rng, step, values):
    return builder.pooled(rng, "GlobalAveragePool", values[-1], {}) if is_map(values[-1]) else None


def global_max_pool(builder, rng, step, values):
    return builder.sandwich(rng, "GlobalMaxPool", [values[-1]], like=values[-1]) if is_map(values[-1]) else None


def reduce(builder, rng, step, values):
    rank = len(values[-1].shape)
    axes = list(range(2, rank)) if rank > 2 and rng.random() < 0.5 else [int(rng.integers(1, rank))]
    operator = str(rng.choice(["ReduceMean", "ReduceSum", "ReduceMax"]))
    keep = {"keepdims": 1 if rank - len(axes) < 2 else int(rng.integers(2))}
    if operator == "ReduceSum":
        return builder.sandwich(rng, operator, [values[-1]], constants=[np.array(axes, np.int64)], attributes=keep)
    like = values[-1] if operator == "ReduceMax" and rng.random() < 0.7 else None
    return builder.sandwich(rng, operator, [values[-1]], attributes=keep | {"axes": axes}, like=like)


# Element by element --------------------------------------------------------------------------------------------------

UNARY = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.1}, "Sigmoid": {}, "Tanh": {}, "HardSigmoid": {}, "HardSwish": {}, "Elu": {}, "Selu": {},
    "Softplus": {}, "Softsign": {}, "Erf": {}, "Exp": {}, "Abs": {}, "Neg": {}, "Sign": {}, "Ceil": {}, "Floor": {}, "Round": {},
    "ThresholdedRelu": {"alpha": 0.3}, "Celu": {"alpha": 0.5},
}  # fmt: skip


def unary(builder, rng, step, values):
    value, kind = values[-1], step.get("function", "Sigmoid")
    if kind == "Silu":
        return builder.pattern(rng, value, lambda x: builder.node("Mul", [x, builder.node("Sigmoid", [x])]),
                               lambda x: x / (1 + np.exp(-x)))  # fmt: skip
    if kind == "Rescale":
        return builder.quantise(rng, builder.dequantise(value), value.sample)
    if kind == "Sqrt":
        return builder.pattern(
            rng, value, lambda x: builder.node("Sqrt", [builder.node("Abs", [x])]), lambda x: np.sqrt(np.abs(x))
        )
    return builder.sandwich(rng, kind, [value], attributes=UNARY[kind])


def prelu(builder, rng, step, values):
    if not is_map(values[-1]):
        return None
    slope = rng.normal(0, 0.4, (values[-1].shape[1], *[1] * (len(values[-1].shape) - 2))).astype(np.float32)
    return builder.sandwich(rng, "PRelu", [values[-1]], constants=[slope])


def clip(builder, rng, step, values):
    if builder.form == "qdq":
        relu = step.get("relu") or "relu"
        value = values[-1]
        name = builder.activation(builder.dequantise(value), relu)
        real = value.sample.clip(0 if relu == "relu" else relu[0], None if relu == "relu" else relu[1])
        return builder.quantise(rng, name, real, value if rng.random() < 0.5 else None)
    limits = sorted(int(limit) for limit in rng.integers(builder.limits[0], builder.limits[1] + 1, 2))
    names = [builder.constant("limit", builder.dtype(limit)) for limit in limits]
    value = values[-1]
    real = value.sample.clip(*((limit - value.zero_point) * value.scale for limit in limits))
    return builder.value(builder.node("Clip", [value.name, *names]), real, value.scale, value.zero_point, value.parameters)


def add(builder, rng, step, values):
    """Add an earlier tensor of the same shape, or else a further graph input."""
    other = _operand(builder, rng, step, values)
    if other is None:
        return None
    pair = (values[-1], other) if rng.random() < 0.5 else (other, values[-1])
    return builder.add(rng, *pair, relu=step.get("relu"))


def _operand(builder, rng, step, values):
    earlier = [value for value in values[:-1] if value.shape == values[-1].shape]
    if earlier and not step.get("fresh"):
        return earlier[rng.integers(len(earlier))]
    if len(builder.inputs) < 3:
        return builder.input(rng, values[-1].shape[1:], count=len(values[-1].sample))
    return None


def binary(builder, rng, step, values):
    """Sub, Mul, Min, Max or Add of the last tensor and: another one, a constant, or one that is broadcast."""
    value, operator, kind = values[-1], step.get("function", "Mul"), step.get("operand", "tensor")
    if kind == "constant":
        shapes = [(), (value.shape[1], *[1] * (len(value.shape) - 2)), value.shape[1:]]
        shape = shapes[rng.integers(3)]
        return builder.with_constant(rng, operator, value, rng.normal(0.3, 0.6, shape).astype(np.float32))
    if kind == "broadcast" and len(value.shape) == 4:
        axes = [2, 3] if rng.random() < 0.6 else [1]
        other = builder.sandwich(rng, "ReduceMax", [value], attributes={"axes": axes, "keepdims": 1}, like=value)
    else:
        other = _operand(builder, rng, step, values)
    if other is None:
        return None
    pair = [value, other] if rng.random() < 0.5 else [other, value]
    if operator == "Mul" and builder.form == "qoperator":
        return builder.quantised_binary(rng, "QLinearMul", *pair, pair[0].sample * pair[1].sample)
    same = builder.same_parameters(*pair) and operator in ("Min", "Max")
    return builder.sandwich(rng, operator, pair, like=value if same else None)


# Rearrangements ------------------------------------------------------------------------------------------------------


def pad(builder, rng, step, values):
    value = values[-1]
    if len(value.shape) != 4:
        return None
    top, left, bottom, right = step.get("pads")
    mode = step.get("mode", "constant")
    if mode == "reflect":
        top, bottom = min(top, value.shape[2] - 1), min(bottom, value.shape[2] - 1)
        left, right = min(left, value.shape[3] - 1), min(right, value.shape[3] - 1)
    pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    if builder.form == "qdq" or mode != "constant":
        constants = [pads] + ([np.float32(step.get("fill", 0.0))] if mode == "constant" else [])
        return builder.sandwich(rng, "Pad", [value], constants=constants, attributes={"mode": mode}, like=value)
    name = builder.node(
        "Pad", [value.name, builder.constant("pads", pads), builder.constant("zero", builder.dtype(value.zero_point))]
    )
    sample = np.pad(value.sample, ((0, 0), (0, 0), (top, bottom), (left, right)))
    return builder.value(name, sample, value.scale, value.zero_point, value.parameters)


def flatten(builder, rng, step, values):
    if len(values[-1].shape) == 2:
        return None
    if step.get("reshape"):
        return builder.plain(rng, "Reshape", values[-1], inputs=[builder.constant("shape", np.array([0, -1], np.int64))])
    return builder.plain(rng, "Flatten", values[-1])


def concat(builder, rng, step, values):
    value = values[-1]
    axis = int(rng.integers(1, len(value.shape)))

    def fits(other):
        return len(other.shape) == len(value.shape) and all(
            a == b for n, (a, b) in enumerate(zip(value.shape, other.shape)) if n != axis
        )

    others = [other for other in values if fits(other)]
    parts = [others[rng.integers(len(others))] for _ in range(int(rng.integers(1, 3)))] + [value]
    same = all(builder.same_parameters(value, part) for part in parts)
    return builder.sandwich(rng, "Concat", parts, attributes={"axis": axis}, like=value if same else None)


def slice_(builder, rng, step, values):
    value = values[-1]
    axis = int(rng.integers(1, len(value.shape)))
    size = value.shape[axis]
    start = int(rng.integers(0, size))
    end, stride = int(rng.integers(start + 1, size + 1)), int(rng.integers(1, 3))
    constants = [np.array([number], np.int64) for number in (start, end, axis, stride)]
    return builder.sandwich(rng, "Slice", [value], constants=constants, like=value)


def split(builder, rng, step, values):
    """Split the last tensor in two and go on with one part; the other one stays for a later step."""
    value = values[-1]
    axes = [axis for axis in range(1, len(value.shape)) if value.shape[axis] > 1]
    if not axes:
        return None
    axis = axes[rng.integers(len(axes))]
    first = int(rng.integers(1, value.shape[axis]))
    names = builder.split(builder.dequantise(value), axis, [first, value.shape[axis] - first])
    parts = np.split(value.sample, [first], axis)
    made = [builder.quantise(rng, name, part, value) for name, part in zip(names, parts)]
    values.append(made[0])
    return made[1]


def transpose(builder, rng, step, values):
    order = [0, *(int(axis) for axis in 1 + rng.permutation(len(values[-1].shape) - 1))]
    return builder.sandwich(rng, "Transpose", [values[-1]], attributes={"perm": order}, like=values[-1])


def gather(builder, rng, step, values):
    value = values[-1]
    axis = int(rng.integers(1, len(value.shape)))
    index = rng.integers(0, value.shape[axis], int(rng.integers(1, 5)))
    return builder.sandwich(rng, "Gather", [value], constants=[index.astype(np.int64)], attributes={"axis": axis}, like=value)


def expand(builder, rng, step, values):
    value = values[-1]
    shape = [size if size > 1 else int(rng.integers(1, 5)) for size in value.shape[1:]]
    return builder.sandwich(rng, "Expand", [value], constants=[np.array([1, *shape], np.int64)], like=value)


def depth_to_space(builder, rng, step, values):
    if len(values[-1].shape) != 4 or values[-1].shape[1] % 4:
        return None
    mode = str(rng.choice(["DCR", "CRD"]))
    return builder.sandwich(rng, "DepthToSpace", [values[-1]], attributes={"blocksize": 2, "mode": mode}, like=values[-1])


def space_to_depth(builder, rng, step, values):
    if len(values[-1].shape) != 4 or values[-1].shape[2] % 2 or values[-1].shape[3] % 2:
        return None
    return builder.sandwich(rng, "SpaceToDepth", [values[-1]], attributes={"blocksize": 2}, like=values[-1])


def resize(builder, rng, step, values):
    if len(values[-1].shape) != 4:
        return None
    scales = np.array([1, 1, *rng.integers(1, 4, 2)], np.float32)
    attributes = {"mode": "nearest", "coordinate_transformation_mode": str(rng.choice(["asymmetric", "half_pixel"])),
                  "nearest_mode": str(rng.choice(["floor", "round_prefer_floor"]))}  # fmt: skip
    if rng.random() < 0.5:
        return interpolate(builder, rng, values[-1])
    return builder.sandwich(rng, "Resize", [values[-1]], constants=[None, scales], attributes=attributes, like=values[-1])


def interpolate(builder, rng, value):
    """A linear Resize, of the integers or between DequantizeLinear and QuantizeLinear."""
    attributes = {"mode": "linear", "coordinate_transformation_mode": str(rng.choice(["asymmetric", "half_pixel"]))}
    if rng.random() < 0.5:
        scales = np.array([1, 1, *rng.integers(1, 4, 2)], np.float32)
        like = value if rng.random() < 0.5 else None
        return builder.sandwich(rng, "Resize", [value], constants=[None, scales], attributes=attributes, like=like)
    scales = np.array([1, 1, *rng.choice([1, 2, 4], 2)], np.float32)
    arrays = np.zeros(0, np.float32), scales
    names = [builder.constant(stem, array) for stem, array in zip(("region", "scales"), arrays)]
    y = evaluate("Resize", [value.sample, *arrays], attributes)
    return builder.value(
        builder.node("Resize", [value.name, *names], **attributes), y, value.scale, value.zero_point, value.parameters
    )


def channel_shuffle(builder, rng, step, values):
    value = values[-1]
    if len(value.shape) != 4:
        return None
    group = _divisor(rng, value.shape[1])
    channels, height, width = value.shape[1:]
    inner = (1, group, channels // group, height, width)
    first = builder.sandwich(rng, "Reshape", [value], constants=[np.array(inner, np.int64)], like=value)
    second = builder.sandwich(rng, "Transpose", [first], attributes={"perm": [0, 2, 1, 3, 4]}, like=value)
    return builder.sandwich(rng, "Reshape", [second], constants=[np.array([1, channels, height, width], np.int64)], like=value)


def unsqueeze(builder, rng, step, values):
    if len(values[-1].shape) > 3:
        return None
    axis = np.array([int(rng.integers(1, len(values[-1].shape) + 1))], np.int64)
    return builder.sandwich(rng, "Unsqueeze", [values[-1]], constants=[axis], like=values[-1])


def softmax(builder, rng, step, values):
    return builder.sandwich(rng, "Softmax", [values[-1]], attributes={"axis": -1})


STEPS = {
    "add": add, "averagepool": average_pool, "binary": binary, "channelshuffle": channel_shuffle, "clip": clip, "concat": concat,
    "conv": conv, "convtranspose": conv_transpose, "depthtospace": depth_to_space, "expand": expand, "flatten": flatten,
    "gather": gather, "gemm": gemm, "globalaveragepool": global_average_pool, "globalmaxpool": global_max_pool, "matmul": matmul,
    "maxpool": max_pool, "pad": pad, "prelu": prelu, "product": product, "reduce": reduce, "resize": resize, "slice": slice_,
    "softmax": softmax, "spacetodepth": space_to_depth, "split": split, "transpose": transpose, "unary": unary,
    "unsqueeze": unsqueeze,
}  # fmt: skip
