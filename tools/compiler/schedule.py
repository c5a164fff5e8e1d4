"""Pass 'schedule': put the tiles into one order of steps and give each an accumulator bank.

The order is that of the program: regions outside, groups of column tiles inside, each group's EXECUTEs followed by its STOREs, banks
taking turns. Run one after the other the steps are correct; how far the units may run apart is the business of pass 'tokens'.
Addresses are still symbolic: a :class:`Ref` names a buffer and an offset in words.
"""

from dataclasses import dataclass

import numpy as np

from celosia.rtl.isa import ExecuteInstruction, Opcode, UnfoldInstruction, largest
from celosia.sim import numerics
from celosia.tools.compiler import depthwise
from celosia.tools.compiler.ir import Conv, Op, Pool, Product
from celosia.tools.compiler.layout import MAX_EXTENT, View
from celosia.tools.compiler.product import folded_bias
from celosia.tools.compiler.rearrange import Moves
from celosia.tools.errors import UnsupportedOperator

__all__ = ["Ref", "Schedule", "Step", "schedule"]

ADDRESS_MASK = largest(ExecuteInstruction, "start")
BYTE_MASK = largest(UnfoldInstruction, "start")
INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Ref:
    """Word ``offset`` of a buffer; the offset may lie outside it where padding is read."""

    buffer: str
    offset: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """An instruction whose addresses and constants are still objects.

    ``fields`` are those of the opcode that are known. ``source`` and ``dest`` become addresses, ``weights`` (int8 ``[tiles, rows, cols]``), ``params``
    (int32 bias, mantissa, shift; ``[3, channels]``), ``add`` (three integers) and ``table`` (int8 ``[256]``) entries of their memories. ``filled`` is a weight tile of a buffer
    in the weight memory: what FILL writes, and EXECUTE reads where it has no constant ``weights``. ``entries`` and ``addition`` are parameters of a buffer in the
    parameter memory, where those are fetched.
    """

    opcode: Opcode
    layer: int
    fields: dict
    source: Ref | None = None
    dest: Ref | None = None
    weights: np.ndarray | None = None
    filled: Ref | None = None
    params: np.ndarray | None = None
    add: tuple | None = None
    operand: Ref | None = None
    table: np.ndarray | None = None
    entries: Ref | None = None
    addition: Ref | None = None

    @property
    def reads(self):
        """Names of the buffers read."""
        return tuple(ref.buffer for ref in (self.source, self.operand) if ref)


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """Steps in program order and the buffers they use: ``buffers`` (name → words) of the activation memory, ``tiles`` (name → weight
    tiles) of the weight memory."""

    tiling: object
    steps: tuple
    buffers: dict
    slots: int
    tiles: dict

    def dump(self):
        """Return the schedule as text."""
        nodes = self.tiling.layout.graph.nodes
        lines = []
        for index, step in enumerate(self.steps):
            refs = "".join(
                f" {name}={ref.buffer}+{ref.offset}" for name in ("source", "operand", "dest", "filled") if (ref := getattr(step, name))
            )
            size = "×".join(str(step.fields[name]) for name in ("tiles", "rows", "tile_rows", "tile_cols") if name in step.fields)
            lines.append(
                f"{index:5} {step.opcode.name:8}{nodes[step.layer].name}: {size}{refs} bank={step.fields.get('bank', '-')}"
            )
        return "\n".join(lines)


def schedule(tiling, config, options, *, slots=None, columns_first=False):
    """Return the :class:`Schedule` of a :class:`~celosia.tools.compiler.tile.Tiling`.

    With ``columns_first`` groups of column tiles are the outer loop, so that each weight tile is used in one go.
    ``slots`` bounds the tiles of unfolded input that exist at once (``options.unfold_slots`` unless given).
    """
    slots = slots or options.unfold_slots
    placements = tiling.layout.placements
    buffers = {name: place.words for name, place in placements.items() if place.home == name}
    tiles = {}
    steps = []
    bank = 0
    fills, filled = _fill_steps(tiling, tiles, config)
    for position, work in enumerate(tiling.works):
        if isinstance(work, Moves):
            for move in work.moves:
                steps.extend(_move_steps(tiling.layout, work, move, bank))
                bank ^= 1
            continue
        builder = _Builder(tiling.layout, work, config, slots, buffers, filled.get(position))
        steps.extend(fills.get(position, ()))
        ahead = 0
        if columns_first and not builder.unfold:
            for group in work.groups:
                for number, region in enumerate(work.regions):
                    steps.extend(builder.execute_steps(number, region, group, bank))
                    steps.extend(builder.store_steps(region, group, bank))
                    bank ^= 1
            continue
        for number, region in enumerate(work.regions):
            while builder.unfold and ahead < min(number + min(options.unfold_lead, slots), len(work.regions)):
                steps.append(builder.unfold_step(ahead))
                ahead += 1
            for group in work.groups:
                steps.extend(builder.execute_steps(number, region, group, bank))
                steps.extend(builder.store_steps(region, group, bank))
                bank ^= 1
    return Schedule(tiling=tiling, steps=tuple(steps), buffers=buffers, slots=slots, tiles=tiles)


def _fill_steps(tiling, tiles, config):
    """Return the FILLs in front of each work, and the buffer that its weights are in, both by the work's position.

    Two buffers for each layer take turns, so that one is filled while the other is used. ``tiles`` gets names and sizes.
    """
    layers, before, places = {}, {}, {}
    for position, work in enumerate(tiling.works):
        if getattr(work, "filling", None):
            layers.setdefault(work.layer, []).append((position, work))
    for layer, works in layers.items():
        name = f"{works[0][1].node.output} (weights)"
        size = max(work.filling.tiles for _, work in works)
        tiles[name] = size * min(2, len(works))
        place = tiling.layout.placements[works[0][1].node.right]
        for number, (position, work) in enumerate(works):
            places[position] = Ref(name, number % 2 * size)
            steps = before.setdefault(works[max(0, number - 1)][0], [])
            for fill in work.filling.fills:
                fields = {"rows": fill.rows, "tiles": fill.tiles, "slot": fill.slot, "row_step": fill.row_step * config.rows & BYTE_MASK}
                source = Ref(place.home, place.offset + fill.source)
                filled = Ref(name, number % 2 * size + fill.tile)
                steps.append(Step(opcode=Opcode.FILL, layer=layer, fields=fields, source=source, filled=filled))
    return before, places


class _Builder:
    """Makes the steps of one work."""

    def __init__(self, layout, work, config, slots, buffers, filled=None):
        self.layout, self.graph = layout, layout.graph
        self.work, self.node, self.layer, self.config = work, work.node, work.layer, config
        self.filled = filled
        self.input = self.graph.tensors[self.node.input]
        self.output = self.graph.tensors[self.node.output]
        self.unsigned = layout.placements[self.node.input].dense and self.input.unsigned
        self.unfold = layout.unfolds.get(self.node.output)
        if isinstance(self.node, Conv):
            self.kernel = self.node.weight.shape[2:]
            self.bias = _folded_bias(self.graph, self.node, self.input)
        else:
            self.kernel = getattr(self.node, "kernel", (1, 1))
            self.bias = getattr(self.node, "bias", 0)
        if isinstance(self.node, Product):
            self.bias = folded_bias(self.node, self.input, self.graph.tensors[self.node.right])
        self.stride, self.dilation = (getattr(self.node, name, (1, 1)) for name in ("stride", "dilation"))
        self.pads = getattr(self.node, "pads", (0, 0, 0, 0))
        self.params = {}
        if self.unfold:
            self.slots = min(slots, len(work.regions))
            self.slot_words = max(self.unfolded_view(region).words for region in work.regions)
            self.ring = f"{self.node.output} (unfolded input)"
            buffers[self.ring] = self.slots * self.slot_words

    def ref(self, name, offset=0):
        """Return word ``offset`` of a tensor, wherever it lies."""
        place = self.layout.placements[name]
        return Ref(place.home, place.offset + offset)

    # Unfolding --------------------------------------------------------------------------------------------------------

    def unfolded_view(self, region):
        """Return how the unfolded input of a region lies in its slot: all that its taps need, padding included."""
        if self.unfold.matrix:
            groups = self.unfold.groups
            return View(height=region.height, width=1, row_step=groups, block_step=1, blocks=groups)
        height, width = region.height, region.width
        if not self.unfold.fold_y:
            height = (height - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        if not self.unfold.fold_x:
            width = (width - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1
        groups = self.unfold.groups
        return View(height=height, width=width, row_step=groups * width, block_step=width, blocks=groups)

    def unfold_step(self, number):
        region, unfold, tensor = self.work.regions[number], self.unfold, self.input
        view, place = self.unfolded_view(region), self.layout.placements[self.node.input]
        y0, x0 = (region.y, 0) if unfold.matrix else self._origin(region)
        row, plane = (tensor.channels, self.config.rows) if unfold.matrix else (tensor.width, place.plane or tensor.height * tensor.width)
        stride_y = self.stride[0] if unfold.fold_y and view.height > 1 else 1
        stride_x = self.stride[1] if unfold.fold_x and view.width > 1 else 1
        columns = self.config.rows // unfold.streams
        if row > MAX_EXTENT:  # there is only one row then
            row = 0
        first = max(x0, 0)
        end = x0 + (view.width - 1) * stride_x + columns
        inside = columns if unfold.matrix else min(tensor.width, end) - first
        start = y0 * row + first
        y0, in_height = _near(y0, tensor.height)
        if view.width > MAX_EXTENT:
            reason = "the columns that its taps span are more than the load unit unfolds at once"
            raise UnsupportedOperator(self.graph.name, self.node.name, self.node.operator, reason)
        slots, tap_rows = unfold.groups * unfold.streams, unfold.kernel_y * (unfold.groups if unfold.matrix else tensor.channels)
        channel, ky = divmod(slots - 1, unfold.kernel_y)
        fields = {
            "kernel_y": unfold.kernel_y,
            "streams": unfold.streams,
            "groups": unfold.groups,
            "last_streams": tap_rows - slots + unfold.streams,
            "tile_rows": view.height,
            "tile_cols": view.width,
            "y0": y0,
            "stride_y": stride_y,
            "stride_x": stride_x,
            "in_height": in_height if inside > 0 else 0,
            "left": max(-x0, 0) if inside > 0 else 0,
            "inside": max(inside, 1),
            "row_step": row,
            "channel_step": plane - (unfold.kernel_y - 1) * row & BYTE_MASK,
            "tile_step": stride_y * row - channel * plane - ky * row & BYTE_MASK,
            "pad": (tensor.zero_point + (128 if tensor.unsigned else 0)) & 0xFF,
        }
        fields["start"] = start  # bytes; the buffer's own address is added later
        dest = Ref(self.ring, number % self.slots * self.slot_words)
        return Step(opcode=Opcode.UNFOLD, layer=self.layer, fields=fields, source=self.ref(self.node.input), dest=dest)

    def _origin(self, region):
        return region.y * self.stride[0] - self.pads[0], region.x * self.stride[1] - self.pads[1]

    # Execution --------------------------------------------------------------------------------------------------------

    def execute_steps(self, number, region, group, bank):
        """Yield the EXECUTEs of a group; column tiles take consecutive accumulator entries."""
        if self.unfold:
            view, base = self.unfolded_view(region), Ref(self.ring, number % self.slots * self.slot_words)
            y0 = x0 = 0
            stride_y = 1 if self.unfold.fold_y else self.stride[0]
            stride_x = 1 if self.unfold.fold_x else self.stride[1]
        else:
            view, base = self.work.source, self.ref(self.node.input)
            y0, x0 = self._origin(region)
            stride_y, stride_x = self.stride
        maximum = isinstance(self.node, Pool) and self.node.takes_maximum
        acc = 0
        for column in group.columns:
            for order, chunk in enumerate(column.chunks):
                step_y, step_x = self.dilation if not column.filter else (column.filter.rows * self.dilation[0], column.filter.taps)
                y, x = y0 + chunk.ky * step_y, x0 + chunk.kx * step_x
                (near_y, in_height), (near_x, in_width) = _near(y, view.height), _near(x, view.width)
                fields = {
                    "y0": near_y,
                    "x0": near_x,
                    "in_height": in_height if chunk.pad is None else 0,
                    "in_width": in_width,
                    "tile_rows": region.height,
                    "tile_cols": region.width,
                    "kernel_y": chunk.kernel_y,
                    "kernel_x": chunk.kernel_x,
                    "blocks": chunk.blocks,
                    "stride_y": stride_y if region.height > 1 else 1,
                    "stride_x": stride_x if region.width > 1 else 1,
                    "dilation_y": self.dilation[0] if chunk.kernel_y > 1 else 1,
                    "dilation_x": step_x if chunk.kernel_x > 1 else 1,
                    "row_step": stride_y * view.row_step & ADDRESS_MASK,
                    "ky_step": self.dilation[0] * view.row_step & ADDRESS_MASK,
                    "block_step": view.block_step,
                    "pad": -128 if maximum else self.input.zero_point if chunk.pad is None else chunk.pad,
                    "acc": acc,
                    "bank": bank,
                    "unsigned": int(self.unsigned),
                    "hold": int(chunk.hold or (column.per_block and not column.filter)),
                    "per_block": int(column.per_block),
                    "accumulate": int(order > 0),
                    "max": int(maximum),
                }
                if column.filter:
                    gap, tail = depthwise.stream(column.filter, stride_x, x0, region.width, view.width)
                    fields |= {"depthwise": 1, "gap": gap, "tail": tail, "slot": column.slot, "stride_x": stride_x}
                    fields["dilation_y"] = min(self.dilation[0], depthwise.MAX_DILATION)
                offset = base.offset + view.start + chunk.block * view.block_step + y * view.row_step + x
                yield Step(
                    opcode=Opcode.EXECUTE,
                    layer=self.layer,
                    fields=fields,
                    source=Ref(base.buffer, offset),
                    weights=chunk.weights,
                    filled=Ref(self.filled.buffer, self.filled.offset + chunk.filled) if chunk.weights is None else None,
                )
            acc += column.out_blocks * region.pixels

    def store_steps(self, region, group, bank):
        """Yield one STORE per slot of a group."""
        node, dest = self.node, self.work.dest
        dest_words = self.layout.placements[node.output].view.words
        acc = 0
        for slot in sorted({column.slot for column in group.columns}):
            columns = [column for column in group.columns if column.slot == slot]
            first, blocks = columns[0].out_block, sum(column.out_blocks for column in columns)
            params, advance = self._channel_params(first, blocks, slot, region.count)
            offset = dest.start + first * dest.block_step + region.y * dest.row_step + region.x * dest.col_step
            fields = {
                "row_step": dest.row_step,
                "block_step": dest.block_step & ADDRESS_MASK,
                "col_step": dest.col_step if region.width > 1 else 1,
                "slot": slot,
                "tile_rows": region.height,
                "tile_cols": region.width,
                "blocks": blocks,
                "acc": acc,
                "bank": bank,
                "advance": int(advance),
                "zero_point": node.zero_point,
                "low": node.low,
                "high": node.high,
            }
            extra = {}
            if node.table is not None:
                fields["use_table"] = 1
                extra["table"] = node.table
            if node.combine:
                fields |= {"combine": node.combine.op, "combine_low": node.combine.low, "combine_high": node.combine.high}
                extra["operand"] = self.ref(node.combine.tensor, self._operand(first, region, fields))
                if node.combine.op == Op.ADD:
                    extra["add"] = (node.combine.k_result, node.combine.k_operand, node.combine.k_zero)
                elif node.combine.op == Op.MUL:
                    fields |= {"combine_low": node.combine.zero_point, "combine_high": 0}
            for plane in range(4 if node.raw else 1):
                yield Step(
                    opcode=Opcode.STORE,
                    layer=self.layer,
                    fields=fields | ({"raw": plane + 1} if node.raw else {}),
                    dest=self.ref(node.output, offset + plane * dest_words),
                    params=params,
                    **extra,
                )
            acc += blocks * region.pixels

    def _operand(self, first, region, fields):
        """Set the steps of the operand's tensor in ``fields``; return the offset of the first word."""
        view = self.work.operand
        row_step = view.row_step if view.height > 1 else 0
        fields |= {"operand_block_step": view.block_step & ADDRESS_MASK, "operand_row_step": row_step, "operand_still": int(view.width == 1)}
        return view.start + first * view.block_step + region.y * row_step + (region.x * view.col_step if view.width > 1 else 0)

    def _channel_params(self, first, blocks, slot, count):
        """Return the parameters ``[3, channels]`` of the column tiles of a STORE, and whether each block has its own."""
        key = first, blocks, slot, count
        if key in self.params:
            return self.params[key]
        cols, channels = self.config.cols, self.output.channels
        if isinstance(self.node, Conv):
            scale, bias = np.broadcast_to(self.node.scale, channels), self.bias
        elif isinstance(self.node, Pool) and self.node.kind == "average":
            scales = self.node.scales
            scale = np.full(
                channels, scales.get(count, max(scales.values())), np.float32
            )  # windows of padding only sum to zero
            bias = np.full(channels, self.node.biases.get(count, 0) - self.input.zero_point * self.kernel[0] * self.kernel[1])
        else:
            scale, bias = np.broadcast_to(self.node.scale, channels), np.broadcast_to(self.bias, channels)
        advance = isinstance(self.node, Conv) or (scale != scale[0]).any() or (bias != bias[0]).any()
        tiles = np.arange(first, first + (blocks if advance else 1)) * self.config.slots + slot
        index = (tiles[:, None] * cols + np.arange(cols)).reshape(-1)
        real = index < channels
        if not advance:
            index, real = np.zeros_like(index), np.ones_like(real)  # all channels are alike
        params = np.zeros((3, len(index)), np.int64)
        params[0, real] = bias[index[real]]
        params[1, real], params[2, real] = numerics.channel_params(scale[index[real]])
        self.params[key] = params, advance
        return self.params[key]


def _near(at, extent):
    """Return a coordinate and the extent of the map it counts in so that both fit their fields: what is far behind does not matter."""
    if extent <= MAX_EXTENT and at <= MAX_EXTENT:
        return at, extent
    return min(at, 0), max(0, min(extent - max(at, 0), MAX_EXTENT))


def _move_steps(layout, work, move, bank):
    """Yield the EXECUTEs and the STORE of a :class:`~celosia.tools.compiler.rearrange.Move`.

    The blocks are those of ``per_block``. Rows and columns of the walk are no coordinates: every word counts as inside the map.
    """
    node, layer = work.node, work.layer
    blocks, rows, columns = move.sizes
    home = layout.placements[node.output].home
    size = {"tile_rows": rows, "tile_cols": columns, "blocks": blocks, "bank": bank}
    for order, tap in enumerate(move.taps):
        place = layout.placements[tap.tensor] if tap.tensor else None
        block_step, row_step, column_step = tap.steps
        fields = {
            "kernel_y": 1,
            "kernel_x": 1,
            "in_height": 1 if place else 0,  # without a source, all is padding
            "in_width": (columns - 1) * column_step + 1,
            "stride_x": column_step,
            "row_step": row_step & ADDRESS_MASK,
            "block_step": block_step & ADDRESS_MASK,
            "unsigned": int(bool(place) and place.dense and place.tensor.unsigned),
            "hold": 1,
            "per_block": 1,
            "accumulate": int(order > 0),
            **size,
        }
        source = Ref(place.home, tap.start) if place else Ref(home, move.start)
        yield Step(opcode=Opcode.EXECUTE, layer=layer, fields=fields, source=source, weights=tap.weights)
    block_step, row_step, column_step = move.steps
    fields = {
        "row_step": row_step & ADDRESS_MASK,
        "block_step": block_step & ADDRESS_MASK,
        "col_step": column_step,
        "slot": move.slot,
        "zero_point": node.zero_point,
        "low": node.low,
        "high": node.high,
        "use_table": int(node.table is not None),
        **size,
    }
    yield Step(
        opcode=Opcode.STORE, layer=layer, fields=fields, dest=Ref(home, move.start), params=move.params, table=node.table
    )


def _folded_bias(graph, node, tensor):
    """Return the bias with the input's zero point folded in, int32 (it may wrap: the accumulator does as well).

    Raises
    ------
    UnsupportedOperator
        If some input could make the true sum leave int32.
    """
    weight = node.weight.reshape(len(node.weight), -1).astype(np.int64)
    positive, negative = np.maximum(weight, 0).sum(1), np.minimum(weight, 0).sum(1)
    most, least = 127 - tensor.zero_point, -128 - tensor.zero_point
    bias = node.bias.astype(np.int64)
    if (bias + positive * most + negative * least > INT32.max).any() or (
        bias + positive * least + negative * most < INT32.min
    ).any():
        raise UnsupportedOperator(graph.name, node.name, node.operator, "its sums can exceed 32 bits")
    return (bias - tensor.zero_point * weight.sum(1)).astype(np.int32)
