"""Graphs of the intermediate representation without an ONNX file: built by hand, or at random from a seed.

For tests of the compiler, the golden executor and the hardware. Scales are chosen so that results use the range of int8.
"""

import numpy as np

from celosia.tools.compiler.ir import Combine, Conv, Copy, Graph, Pool, Rearrange, Tensor

__all__ = ["GraphBuilder", "matmul_graph", "random_graph", "random_inputs"]


class GraphBuilder:
    """Adds nodes to a graph; each method returns the name of its result.

    Parameters
    ----------
    seed : int
        Of weights, scales and zero points.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.tensors, self.nodes, self.inputs = {}, [], []

    def input(self, channels, height=1, width=1, *, matrix=False, unsigned=False):
        """Add a graph input."""
        name = f"input{len(self.inputs)}"
        self.inputs.append(name)
        self._tensor(name, channels, height, width, matrix, unsigned)
        return name

    def conv(
        self, source, out, *, kernel=(1, 1), stride=(1, 1), dilation=(1, 1), pads=(0, 0, 0, 0), group=1, unsigned=False, **extra
    ):
        """Add a convolution; of a matrix, a product with constant weights."""
        x = self.tensors[source]
        weight = self.rng.integers(-128, 128, (out, x.channels // group, *kernel)).astype(np.int8)
        terms = weight[0].size
        height, width = _output_size((x.height, x.width), kernel, stride, dilation, pads)
        name = self._tensor(None, out, height, width, x.matrix, unsigned)
        scale = (self.rng.uniform(0.3, 3, out) * 40 / (5400 * terms**0.5)).astype(np.float32)
        bias = self.rng.integers(-5000, 5000, out).astype(np.int32)
        shape = {"stride": stride, "dilation": dilation, "pads": pads, "group": group}
        return self._node(Conv, "Conv", source, name, scale=scale, weight=weight, bias=bias, **shape, **extra)

    def pool(self, source, kind, kernel, *, stride=(1, 1), dilation=(1, 1), pads=(0, 0, 0, 0), include_pad=False, **extra):
        """Add a max or average pooling."""
        x = self.tensors[source]
        height, width = _output_size((x.height, x.width), kernel, stride, dilation, pads)
        name = self._tensor(None, x.channels, height, width, False, False)
        most = kernel[0] * kernel[1]
        if kind == "max":
            extra |= {"scale": np.ones(x.channels, np.float32), "zero_point": 0}
        else:
            scale = self.rng.uniform(0.8, 1.2)
            divisors = {count: most if include_pad else count for count in range(1, most + 1)}
            extra |= {
                "scale": np.ones(1, np.float32),
                "scales": {count: np.float32(scale / divisor) for count, divisor in divisors.items()},
            }
        window = {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}
        return self._node(Pool, f"{kind.title()}Pool", source, name, kind=kind, **window, **extra)

    def copy(self, source, *, table=False, **extra):
        """Add an element-wise node, with a random table if asked for."""
        x = self.tensors[source]
        name = self._tensor(None, x.channels, x.height, x.width, x.matrix, False)
        if table:
            extra["table"] = self.rng.integers(-128, 128, 256).astype(np.int8)
        return self._node(Copy, "Copy", source, name, scale=np.ones(x.channels, np.float32), zero_point=0, **extra)

    def addition(self, tensor):
        """Return an :class:`Combine` that adds ``tensor`` to the node it is given to."""
        k_result, k_operand = (int(self.rng.uniform(0.3, 0.9) * 2**24) for _ in range(2))
        return Combine(
            tensor=tensor, k_result=k_result, k_operand=k_operand, k_zero=int(self.rng.integers(-20, 20)) << 24, low=-120
        )

    def rearrange(self, sources, part, index, *, rescaled=False, **extra):
        """Add a rearrangement; ``part`` and ``index`` are those of :class:`Rearrange`, in the shape of the result."""
        name = self._tensor(None, *part.shape, False, False)
        zero_point = self.tensors[name].zero_point
        zeros = [self.tensors[source].zero_point if rescaled else zero_point for source in sources]
        scales = [np.float32(self.rng.choice([0.5, 0.75, 1, 1.7]) if rescaled else 1) for _ in sources]
        arrays = {"part": part, "index": index, "scales": tuple(scales), "zeros": tuple(zeros), "more": tuple(sources[1:])}
        return self._node(Rearrange, "Rearrange", sources[0], name, scale=np.ones(1, np.float32), **arrays, **extra)

    def places(self, source, part=0):
        """Return ``part`` and ``index`` that take a tensor as it is."""
        x = self.tensors[source]
        index = np.arange(x.elements).reshape(x.channels, x.height, x.width)
        return np.full(index.shape, part), index

    def graph(self, outputs):
        """Return the finished :class:`Graph`."""
        return Graph(
            name="graph",
            tensors=dict(self.tensors),
            nodes=tuple(self.nodes),
            inputs=tuple(self.inputs),
            outputs=tuple([outputs] if isinstance(outputs, str) else outputs),
        )

    def _tensor(self, name, channels, height, width, matrix, unsigned):
        name = name or f"tensor{len(self.nodes)}"
        if matrix:
            shape = (height, channels)
        else:
            shape = (channels, height, width) if height * width > 1 else (channels,)
        self.tensors[name] = Tensor(
            name=name,
            channels=channels,
            height=height,
            width=width,
            shape=shape,
            matrix=matrix,
            scale=np.float32(1),
            zero_point=int(self.rng.choice([-128, 127, 0, self.rng.integers(-128, 128)])),
            unsigned=unsigned,
        )
        return name

    def _node(self, cls, operator, source, name, **fields):
        fields = {"zero_point": self.tensors[name].zero_point} | fields
        if self.rng.random() < 0.3:
            fields.setdefault("low", max(-128, fields["zero_point"]))
        number = len(self.nodes)
        self.nodes.append(
            cls(name=f"node{number}", operator=operator, sources=(f"node{number}",), input=source, output=name, **fields)
        )
        return name


def _output_size(size, kernel, stride, dilation, pads):
    return tuple(
        (size[axis] + pads[axis] + pads[axis + 2] - (kernel[axis] - 1) * dilation[axis] - 1) // stride[axis] + 1
        for axis in (0, 1)
    )


def matmul_graph(m, k, n, *, seed=0):
    """Return the graph of one product of an ``m × k`` matrix with constant ``k × n`` weights."""
    builder = GraphBuilder(seed)
    return builder.graph(builder.conv(builder.input(k, m, 1, matrix=True), n))


def random_graph(seed, *, largest=12, nodes=5):
    """Return a random graph: maps up to ``largest`` in each dimension, up to ``nodes`` nodes, every kind of node."""
    builder = GraphBuilder(seed)
    rng = np.random.default_rng([seed, 1])

    def size():
        return int(rng.integers(1, largest + 1))

    style = rng.random()
    unsigned = bool(rng.random() < 0.4)
    if style < 0.15:
        last = builder.input(size() * 2, size(), 1, matrix=True, unsigned=unsigned)
    elif style < 0.25:
        last = builder.input(size() * 3, unsigned=unsigned)
    else:
        last = builder.input(size(), size(), size(), unsigned=unsigned)
    made, outputs = [last], []
    for _ in range(int(rng.integers(1, nodes + 1))):
        x = builder.tensors[last]
        extra = {}
        same = [name for name in made if _shape(builder.tensors[name]) == _shape(x)]
        choice = rng.random()
        if choice < 0.15 and same:
            last = builder.copy(last, table=bool(rng.random() < 0.5), combine=builder.addition(str(rng.choice(same))))
        elif choice < 0.25:
            last = builder.copy(last, table=True)
        elif x.matrix or x.height * x.width == 1:
            last = builder.conv(last, size() * 2, unsigned=bool(rng.random() < 0.3))
        elif choice < 0.45:
            last = builder.pool(last, str(rng.choice(["max", "average"])), **_window(rng, x, pooling=True))
        elif choice < 0.55:
            last = builder.conv(last, x.channels, **_window(rng, x), group=x.channels)
        elif choice < 0.62 and x.channels % 2 == 0:
            last = builder.conv(last, 2 * size(), **_window(rng, x), group=2)
        elif choice < 0.68:
            last = builder.conv(last, size(), kernel=(x.height, x.width))
        else:
            if choice > 0.9 and same:  # a residual block
                extra["combine"] = builder.addition(str(rng.choice(same)))
                last = builder.conv(last, x.channels, kernel=(3, 3), pads=(1, 1, 1, 1), **extra)
            else:
                last = builder.conv(last, size() * 2, **_window(rng, x), unsigned=bool(rng.random() < 0.2))
        made.append(last)
        if rng.random() < 0.15:
            outputs.append(last)
    return builder.graph(tuple(dict.fromkeys([*outputs, last])))


def random_inputs(graph, seed, batch=2):
    """Return ``{name: array [batch, *shape]}`` for a graph, of the dtypes its tensors have."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, (batch, *graph.tensors[name].shape))
        .astype(np.uint8)
        .view(np.uint8 if graph.tensors[name].unsigned else np.int8)
        for name in graph.inputs
    }


def _shape(tensor):
    return tensor.channels, tensor.height, tensor.width, tensor.matrix


def _window(rng, x, *, pooling=False):
    """Return a random kernel, stride, dilation and pads that fit the map."""
    window = {"kernel": [], "stride": [], "dilation": [], "pads": [[], []]}
    for size in (x.height, x.width):
        kernel = int(rng.integers(1, min(size, 5) + 1))
        dilation = int(rng.integers(1, 3)) if (kernel - 1) * 2 < size else 1
        reach = (kernel - 1) * dilation + 1
        most = kernel - 1 if pooling else reach  # a pooling window holds at least one pixel
        if pooling and dilation > 1:
            most = 0
        window["kernel"].append(kernel)
        window["dilation"].append(dilation)
        window["stride"].append(int(rng.integers(1, 4)))
        for side in window["pads"]:
            side.append(int(rng.integers(0, most + 1)) if rng.random() < 0.6 else 0)
    window["pads"] = tuple(window["pads"][0] + window["pads"][1])
    return {name: tuple(value) for name, value in window.items()}
