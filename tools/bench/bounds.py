"""Compute-only bounds: the cycles that an array of R rows and C columns needs if nothing but its multipliers takes time.

One pass streams every output pixel of a node once through one weight tile and takes a cycle a pixel. The passes follow from how channels and
taps are packed; what is left over of a tile stands idle:

==================  ==============================================================================================================
node                passes
==================  ==============================================================================================================
convolution         ``taps · ⌈inputs / R⌉ · ⌈outputs / C⌉``; of a grouped one, only the blocks of inputs that a column tile has weights for
of a graph input    ``⌈kernel_y · inputs / ⌊R / kernel_x⌋⌉ · ⌈outputs / C⌉`` if that is fewer: rows of kernel taps are packed as the input is loaded
depthwise           ``⌈taps / R⌉ · ⌈channels / C⌉``, where the engine has the depthwise mode
product             ``⌈length / R⌉ · ⌈columns / C⌉`` for each pair of matrices, one pixel for each row
transposed          as a convolution; each pixel of its input meets every tap
everything else     none: it multiplies nothing
==================  ==============================================================================================================

Filling the pipeline, loading weights, unfolding the input and storing results cost nothing here. With ``weight_rows``, a pass takes at least
as long as an array that loads so many rows per cycle needs for its weight tile.
"""

from celosia.tools.compiler.frontend import lower
from celosia.tools.compiler.ir import Conv, Graph, Product, Weighted

__all__ = ["bound", "model_bound"]


def bound(node, graph, config, *, weight_rows=None, blocked=False):
    """Return the compute-only bound of a node of ``graph`` in cycles.

    Parameters
    ----------
    node : Node
    graph : Graph
    config : EngineConfig
        Of which only ``rows``, ``cols`` and whether it has a depthwise mode count.
    weight_rows : int, optional
        Rows of weights loaded per cycle; by default weights are there when they are needed.
    blocked : bool
        Graph inputs of at least ``rows`` channels come in words of channels, as with
        :attr:`celosia.tools.compiler.options.CompilerOptions.blocked_inputs`: their taps are not packed.
    """
    least = 0 if weight_rows is None else -(-config.rows // weight_rows)
    if isinstance(node, Product):
        passes = -(-node.length // config.rows) * -(-node.columns // config.cols)
        return len(node.left_at.pixels) * passes * max(node.rows, least)
    if not isinstance(node, Weighted) or node.operator == "Rearrange":
        return 0
    pixels = graph.tensors[node.output if isinstance(node, Conv) else node.input]
    return _passes(node, graph, config, blocked) * max(pixels.height * pixels.width, least)


def _passes(node, graph, config, blocked):
    tensor = graph.tensors[node.input]
    outputs, inputs, *kernel = node.weight.shape
    taps = kernel[0] * kernel[1]
    if config.depthwise_rows and isinstance(node, Conv) and node.group == outputs == tensor.channels > 1:
        return -(-taps // config.rows) * -(-outputs // config.cols)
    dense = node.input in graph.inputs and not tensor.matrix and not (blocked and tensor.channels >= config.rows)
    passes, per_group = 0, outputs // node.group
    for first in range(0, outputs, config.cols):
        last = min(first + config.cols, outputs) - 1
        start, end = first // per_group * inputs, (last // per_group + 1) * inputs
        passes += taps * (-(-end // config.rows) - start // config.rows)
    if node.group == 1 and isinstance(node, Conv) and dense and kernel[1] <= config.rows:
        passes = min(passes, -(-kernel[0] * inputs // (config.rows // kernel[1])) * -(-outputs // config.cols))
    return passes


def model_bound(model, config, **options):
    """Return the sum of :func:`bound` over an ONNX file, or what is in it; nodes on the host count nothing."""
    graphs = [segment for segment in lower(model, config).segments if isinstance(segment, Graph)]
    return sum(bound(node, graph, config, **options) for graph in graphs for node in graph.nodes)
