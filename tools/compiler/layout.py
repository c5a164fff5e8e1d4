"""Pass 'layout': decide how each tensor lies in the activation memory, and which inputs are unfolded on their way in.

===========  ==============================================================================================
dense        graph inputs as the host puts them down: row-major bytes
blocked      ``[channel blocks][y][x]`` words of ``rows`` channels: everything the store unit writes
matrix       ``[M][K blocks]``, for tensors whose last ONNX axis is the channel axis
===========  ==============================================================================================

A vector, and a matrix whose ``K`` is a multiple of ``rows``, is dense and blocked at the same time. Any other dense input is
read through ``UNFOLD``: by a convolution directly, with kernel taps and channels packed onto the rows of the array, and by other
nodes from a blocked copy that an identity convolution makes.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from celosia.rtl.isa import ExecuteInstruction, UnfoldInstruction, largest
from celosia.tools.compiler.depthwise import choose
from celosia.tools.compiler.ir import Conv, Graph, Product, Rearrange, Tensor
from celosia.tools.compiler.knobs import built_without
from celosia.tools.compiler.product import identity, prepare
from celosia.tools.compiler.share import share
from celosia.tools.errors import UnsupportedOperator

__all__ = ["Layout", "Placement", "Unfold", "View", "blocked_view", "is_blocked_when_dense", "lay_out"]

MAX_EXTENT = largest(ExecuteInstruction, "in_height")  # of maps, and of pads
MAX_GROUPS = largest(UnfoldInstruction, "groups")
MAX_UNFOLDED_ROWS = largest(UnfoldInstruction, "kernel_y")


@dataclass(frozen=True, kw_only=True)
class View:
    """A map as an instruction walks it: pixel ``(y, x)`` of block ``b`` is word ``start + b * block_step + y * row_step + x * col_step``."""

    height: int
    width: int
    row_step: int
    block_step: int
    blocks: int
    col_step: int = 1
    start: int = 0

    @property
    def words(self):
        return (self.blocks - 1) * self.block_step + (self.height - 1) * self.row_step + self.width

    def flattened(self):
        """Return the same words as a column of pixels, or None where rows are not contiguous or too many."""
        if self.width == 1:
            return self
        if self.row_step != self.width * self.col_step or self.height * self.width > MAX_EXTENT:
            return None
        return dataclasses.replace(self, height=self.height * self.width, width=1, row_step=self.col_step)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a tensor lies in memory.

    ``view`` is None for dense tensors that can only be unfolded. ``buffer`` is the tensor whose words it shares from word ``offset`` on, None
    where it has a buffer of ``words`` of its own. ``plane`` are the bytes from one channel of a dense tensor to the next, 0 where its shape says it.
    """

    tensor: Tensor
    kind: str
    words: int
    view: View | None
    buffer: str | None = None
    offset: int = 0
    plane: int = 0

    @property
    def home(self):
        """The buffer it lies in: its own, unless it is part of another tensor's."""
        return self.buffer or self.tensor.name

    def addresses(self, base):
        """Return the words it takes up, in any order, if its buffer starts at word ``base``."""
        if self.view is None:
            return base + np.arange(self.words)
        block, row, column = np.ogrid[: self.view.blocks, : self.view.height, : self.view.width]
        base += np.arange(0, self.words, self.view.words)[:, None, None, None] if self.tensor.wide else 0
        return (base + self.offset + block * self.view.block_step + row * self.view.row_step + column).ravel()

    @property
    def dense(self):
        """True where the bytes are the row-major tensor and, if the tensor is uint8, not yet shifted to int8."""
        return self.kind == "dense"


@dataclass(frozen=True, kw_only=True)
class Unfold:
    """How a convolution's dense input is packed onto the rows.

    With ``fold_y`` (``fold_x``) the kernel's taps along that axis lie side by side in a word, and the stride is taken while unfolding;
    otherwise the array walks them. A word holds ``streams`` rows of taps, ``groups`` words all of them. ``matrix`` inputs keep their
    ``[M][K blocks]`` order and only get padded to whole words.
    """

    fold_y: bool
    fold_x: bool
    kernel_y: int
    streams: int
    groups: int
    matrix: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The graph, perhaps with copies of inputs added, where its tensors lie, and the unfolding of nodes by output name."""

    graph: Graph
    placements: dict
    unfolds: dict
    copies: frozenset = frozenset()

    @property
    def spread(self):
        """Names of the maps with unused words between their rows, the largest first."""
        views = {name: place.view for name, place in self.placements.items() if place.view and not place.buffer}
        names = [name for name, view in views.items() if view.width > 1 and view.row_step > view.width]
        return sorted(names, key=lambda name: self.placements[name].words, reverse=True)

    def dump(self):
        """Return the layout as text."""
        lines = []
        for name, place in self.placements.items():
            view = place.view
            if place.buffer and view is None:
                lines.append(f"{name}: the bytes of {place.home}")
                continue
            if place.buffer:
                lines.append(f"{name}: in {place.home} from word {place.offset}, block_step {view.block_step} row_step {view.row_step}")
                continue
            steps = f" block_step {view.block_step} row_step {view.row_step}" if view else ""
            lines.append(f"{name}: {place.kind}, {place.words} words{steps}")
        for name, unfold in self.unfolds.items():
            taps = f"{unfold.streams} rows of taps a word, {unfold.groups} words a pixel"
            lines.append(f"input of {name}: unfolded, {taps}")
        return "\n".join(lines)


def lay_out(graph, config, options, *, contiguous=(), windows=None, planes=None):
    """Return the :class:`Layout` of ``graph``; the maps named ``contiguous`` have no words between their rows.

    ``windows`` are tensors that lie within others: name → (name, (rows, columns) to skip). ``planes`` are bytes between the channels of dense
    tensors that are parts of larger ones.

    Raises
    ------
    UnsupportedOperator
        If a map or a node is beyond what the instructions can express.
    """
    graph, made, aliases = prepare(graph, config, options.keeps)
    packed = {name for name in graph.inputs if options.blocked_inputs and graph.tensors[name].channels >= config.rows}
    graph, copies = _copy_inputs(graph, packed, config)
    odd = _read_row_by_row(graph, config).difference(contiguous)
    placements = {name: _place(tensor, name in graph.inputs and name not in packed, name in odd, config) for name, tensor in graph.tensors.items()}
    for name, plane in (planes or {}).items():
        tensor = graph.tensors[name]
        words = -(-((tensor.channels - 1) * plane + tensor.height * tensor.width) // config.rows)
        placements[name] = dataclasses.replace(placements[name], plane=plane, words=words)
    for name, tensor in aliases.items():
        placements[name] = Placement(tensor=graph.tensors[name], kind="dense", words=0, view=None, buffer=tensor)
    fixed = {*aliases, *aliases.values()}
    fixed |= {name for node in graph.nodes if isinstance(node, Product) for name in (*node.inputs, node.output)}
    for name, (of, skip) in (windows or {}).items():
        tensor, view = graph.tensors[name], placements[of].view
        offset = skip[0] * view.row_step + skip[1] * view.col_step
        view = dataclasses.replace(view, height=tensor.height, width=tensor.width)
        placements[name] = dataclasses.replace(placements[name], words=0, view=view, buffer=of, offset=offset)
        fixed |= {name, of}
    placements = share(graph, placements, config, fixed)
    unfolds = {}
    for node in graph.nodes:
        _check_limits(graph, node, config)
        if placements[node.input].view is None:
            unfolds[node.output] = _choose_unfold(graph, node, config)
    return Layout(graph=graph, placements=placements, unfolds=unfolds, copies=frozenset((*made, *copies)))


def _read_row_by_row(graph, config):
    """Return the names of the maps whose rows the depthwise mode reads side by side, so that they must lie in different banks.

    Maps that some node takes as one row of pixels stay contiguous.
    """
    wanted, contiguous = set(), set()
    for node in graph.nodes:
        source, dest = graph.tensors[node.input], graph.tensors[node.output]
        sizes = (source.height, source.width), (dest.height, dest.width)
        if choose(node, source, sizes[1], config):
            wanted.add(node.input)
        if isinstance(node, Product) or (sizes[0] != sizes[1] and source.height * source.width == dest.height * dest.width):
            contiguous |= {*node.inputs, node.output}
    return wanted - contiguous if config.depthwise_rows > 1 else set()


def blocked_view(tensor, rows, odd=False):
    """Return how a tensor lies in blocks of ``rows`` channels, with ``odd`` an odd number of words from row to row."""
    blocks = -(-tensor.channels // rows)
    if tensor.matrix and tensor.width == 1:
        return View(height=tensor.height, width=1, row_step=blocks, block_step=1, blocks=blocks)
    row_step = tensor.width | 1 if odd and tensor.height > 1 else tensor.width
    return View(
        height=tensor.height, width=tensor.width, row_step=row_step, block_step=tensor.height * row_step, blocks=blocks
    )


def is_blocked_when_dense(tensor, rows):
    """Whether the plain bytes of a tensor are the words of its blocks."""
    return tensor.height * tensor.width == 1 or (tensor.matrix and tensor.channels % rows == 0)


def _place(tensor, is_dense, odd, config):
    view = blocked_view(tensor, config.rows, odd)
    if not is_dense:
        words = view.words * (4 if tensor.wide else 1)
        return Placement(tensor=tensor, kind="matrix" if tensor.matrix else "blocked", words=words, view=view)
    words = -(-tensor.elements // config.rows)
    if not is_blocked_when_dense(tensor, config.rows):
        view = None
        words += tensor.matrix  # unfolding whole words reads past the end of the last row
    return Placement(tensor=tensor, kind="dense", words=words, view=view)


def _copy_inputs(graph, packed, config):
    """Insert an identity convolution for every dense input that a node cannot read as it is; ``packed`` ones are not dense."""
    renamed = {}
    nodes, tensors = [], dict(graph.tensors)
    for name in graph.inputs:
        if name in packed:
            continue
        tensor = tensors[name]
        blocked = is_blocked_when_dense(tensor, config.rows)
        as_input = any(name in _plain_reads(node, tensor) for node in graph.nodes) and not blocked
        as_operand = any(name in _raw_reads(node) for node in graph.nodes) and (not blocked or tensor.unsigned)
        if as_input or as_operand:
            copy = f"{name} (blocked)"
            renamed[name] = copy
            tensors[copy] = dataclasses.replace(tensor, name=copy)
            nodes.append(identity(tensor, copy))
    for node in graph.nodes:
        changes = {}
        if node.input in renamed and node.input in _plain_reads(node, tensors[node.input]):
            changes["input"] = renamed[node.input]
        if isinstance(node, Rearrange):
            changes["more"] = tuple(renamed.get(name, name) for name in node.more)
        if isinstance(node, Product):
            changes["right"] = renamed.get(node.right, node.right)
        if node.combine and node.combine.tensor in renamed:
            changes["combine"] = dataclasses.replace(node.combine, tensor=renamed[node.combine.tensor])
        nodes.append(dataclasses.replace(node, **changes) if changes else node)
    return graph.replace(nodes=tuple(nodes), tensors=tensors), renamed.values()


def _plain_reads(node, tensor):
    """Return the tensors whose words the node reads by itself; a convolution's may be unfolded, the rows of a matrix as they are."""
    if isinstance(node, Conv):
        return (node.input,) if tensor.matrix and node.weight.shape[2:] != (1, 1) else ()
    return node.tensors if isinstance(node, Rearrange) else (node.input,)


def _raw_reads(node):
    """Return the tensors whose bytes the node takes as int8."""
    return (*([node.right] if isinstance(node, Product) else []), *([node.combine.tensor] if node.combine else []))


def _choose_unfold(graph, node, config):
    """Choose the packing that takes the array, or else the load unit, the fewest cycles."""
    tensor, out = graph.tensors[node.input], graph.tensors[node.output]
    if tensor.height > 1 and (tensor.channels if tensor.matrix else tensor.width) > MAX_EXTENT:
        raise UnsupportedOperator(graph.name, node.name, node.operator, f"its input must have at most {MAX_EXTENT} columns")
    if tensor.matrix:
        return Unfold(
            fold_y=False, fold_x=False, kernel_y=1, streams=1, groups=-(-tensor.channels // config.rows), matrix=True
        )  # fmt: skip
    kernel_y, kernel_x = node.weight.shape[2:]
    column_tiles = -(-out.channels // config.cols)
    best = None
    for fold_y, fold_x in ((True, True), (False, True), (False, False)):
        if fold_x and kernel_x > 1 and (node.dilation[1] > 1 or kernel_x > config.rows):
            continue
        if fold_y and kernel_y > 1 and (node.dilation[0] > 1 or kernel_y > MAX_UNFOLDED_ROWS):
            continue
        taps_y, taps_x = kernel_y if fold_y else 1, kernel_x if fold_x else 1
        tap_rows = tensor.channels * taps_y
        streams = min(config.unfold_streams, config.rows // taps_x, tap_rows)
        groups = -(-tap_rows // streams)
        if groups > MAX_GROUPS:
            continue
        passes = groups * (kernel_y // taps_y) * (kernel_x // taps_x)
        execute = passes * out.height * out.width * column_tiles
        words_y = out.height if fold_y else tensor.height
        steps = (out.width - 1) * node.stride[1] if fold_x else tensor.width - 1
        load = groups * words_y * (steps + config.rows // streams)
        unfold = Unfold(fold_y=fold_y, fold_x=fold_x, kernel_y=taps_y, streams=streams, groups=groups)
        if best is None or (max(execute, load), load) < best[0]:
            best = ((max(execute, load), load), unfold)
    if best is None:
        raise UnsupportedOperator(graph.name, node.name, node.operator, f"its input has {tensor.channels} channels to unfold")
    return best[1]


def _check_limits(graph, node, config):
    missing = built_without(node, config)
    if missing:
        raise UnsupportedOperator(graph.name, node.name, node.operator, missing[1])
    if max(getattr(node, "pads", (0,))) > MAX_EXTENT:
        raise UnsupportedOperator(graph.name, node.name, node.operator, f"its pads must be at most {MAX_EXTENT}")
