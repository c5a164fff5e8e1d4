"""Pass 'emit': turn steps into instructions and constants into memory images, and hand them to instruction sinks."""

from dataclasses import dataclass

import numpy as np

from celosia.rtl.isa import ExecuteInstruction, Instruction, Opcode, UnfoldInstruction, largest
from celosia.tools.compiler.constants import ParamImage, TableImage, WeightImage
from celosia.tools.compiler.ir import Conv, Product, Weighted
from celosia.tools.compiler.layout import blocked_view
from celosia.tools.compiler.sinks import BinarySink
from celosia.tools.compiler.tokens import add_tokens
from celosia.tools.errors import DoesNotFit
from celosia.tools.program import Layer, Port, Program

__all__ = ["Emission", "constant_words", "emit", "emit_stream"]

WORD_MASK = largest(ExecuteInstruction, "start")
BYTE_MASK = largest(UnfoldInstruction, "start")
INSTRUCTION_BYTES = 32
MAX_STREAMED = 1 << 16
"""Instructions of a program that lies in external memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Emission:
    """The program, its instructions and the allocation they were made from."""

    program: Program
    instructions: tuple
    allocation: object

    def dump(self):
        """Return the program's listing."""
        from celosia.tools.compiler.sinks import listing

        return listing(self.program)


def emit(allocation, config, options):
    """Return the :class:`Emission` of an :class:`~celosia.tools.compiler.allocate.Allocation`.

    Raises
    ------
    DoesNotFit
        If weights, parameters, tables or instructions exceed their memory.
    """
    schedule = allocation.schedule
    weights, params, tables = WeightImage(config), ParamImage(config), TableImage(config)
    for step in schedule.steps:
        if step.weights is not None:
            weights.add(step.weights)
    filled = weights.reserve(schedule.tiles)
    encoder = _Encoder(allocation.addresses | filled, config, weights, params, tables)
    steps = [encoder.instruction(step) for step in schedule.steps]
    images = weights.image(), params.image(), tables.image()
    if len(steps) + 1 > config.program_depth:
        raise DoesNotFit("program", (len(steps) + 1) * INSTRUCTION_BYTES, config.program_depth * INSTRUCTION_BYTES)
    instructions = (*add_tokens(steps, config), Instruction(Opcode.END))
    sink = BinarySink()
    for instruction in instructions:
        sink.instruction(instruction)
    layout = schedule.tiling.layout
    graph = layout.graph
    names = [*graph.outputs]
    names += [
        node.output
        for node in graph.nodes
        if options.keeps(node.output) and node.output not in layout.copies and node.output not in names
    ]
    program = Program(
        name=graph.name,
        digest=config.digest,
        config=config.to_json(),
        instructions=sink.image(),
        weights=images[0],
        params=images[1],
        tables=images[2],
        inputs=tuple(_port(layout.placements[name], allocation) for name in graph.inputs),
        outputs=tuple(_port(layout.placements[name], allocation) for name in names),
        layers=_layers(schedule, graph),
        act_words=allocation.words,
        constants=tuple(
            (allocation.addresses[name], constant_words(array, layout.placements[name].view, config)) for name, array in graph.constants.items()
        ),
    )
    return Emission(program=program, instructions=instructions, allocation=allocation)


def emit_stream(streamed, config, options):
    """Return the :class:`Emission` of a :class:`~celosia.tools.compiler.stream.Streamed` network, whose ``allocation`` it is.

    Raises
    ------
    DoesNotFit
        If there are more tables, or instructions, than an engine can have.
    """
    graph, external = streamed.graph, streamed.external
    tables = TableImage(config)
    encoder = _Encoder(streamed.addresses, config, WeightImage(config), ParamImage(config), tables)
    steps = [encoder.instruction(step) for step in streamed.steps]
    if len(steps) + 1 >= MAX_STREAMED:
        raise DoesNotFit("program", (len(steps) + 1) * INSTRUCTION_BYTES, MAX_STREAMED * INSTRUCTION_BYTES)
    instructions = (*add_tokens(steps, config), Instruction(Opcode.END))
    sink = BinarySink()
    for instruction in instructions:
        sink.instruction(instruction)
    names = [*graph.outputs]
    names += [node.output for node in graph.nodes if options.keeps(node.output) and node.output not in names]
    spans = [[] for _ in graph.nodes]
    for index, step in enumerate(streamed.steps):
        bounds = spans[step.layer]
        if bounds and bounds[-1] == index:
            bounds[-1] += 1
        else:
            bounds += [index, index + 1]
    image = np.frombuffer(bytes(external.image), np.uint8)
    program = Program(
        name=graph.name,
        digest=config.digest,
        config=config.to_json(),
        instructions=sink.image(),
        weights=np.zeros((0, config.load_cycles, config.weight_rows, config.cols), np.int8),
        params=np.zeros((0, 2 * config.lanes), np.uint32),
        tables=tables.image(),
        inputs=tuple(_external_port(graph.tensors[name], external, config, is_input=True) for name in graph.inputs),
        outputs=tuple(_external_port(graph.tensors[name], external, config) for name in names),
        layers=tuple(_layer(node, graph, tuple(bounds)) for node, bounds in zip(graph.nodes, spans) if bounds),
        act_words=config.act_depth,
        memory=image,
        memory_bytes=len(image) + external.size,
    )
    return Emission(program=program, instructions=instructions, allocation=streamed)


def _external_port(tensor, external, config, *, is_input=False):
    view = blocked_view(tensor, config.rows)
    facts = {"name": tensor.name, "shape": tuple(tensor.shape), "unsigned": tensor.unsigned, "batched": tensor.batched}
    facts |= {"address": len(external.image) + external.tensors[tensor.name], "external": True}
    if is_input:
        return Port(layout="dense", **facts)
    return Port(
        layout="blocked",
        channels=tensor.channels,
        height=tensor.height,
        width=tensor.width,
        block_step=view.block_step,
        row_step=view.row_step,
        matrix=tensor.matrix,
        plane_step=view.words if tensor.wide else 0,
        **facts,
    )


class _Encoder:
    """Replaces the references of steps by numbers."""

    def __init__(self, addresses, config, weights, params, tables):
        self.addresses, self.config = addresses, config
        self.weights, self.params, self.tables = weights, params, tables

    def address(self, ref):
        return self.addresses[ref.buffer] + ref.offset & WORD_MASK

    def instruction(self, step):
        fields = dict(step.fields)
        if step.opcode == Opcode.TRANSFER:
            ref = step.source or step.dest or step.filled or step.entries
            tile = self.config.load_cycles if step.filled else 1
            fields["local"] = self.addresses[ref.buffer] * tile + ref.offset
        elif step.opcode == Opcode.UNFOLD:
            fields["start"] = self.addresses[step.source.buffer] * self.config.rows + fields["start"] & BYTE_MASK
            fields["dest"] = self.address(step.dest)
        elif step.opcode == Opcode.EXECUTE:
            fields["start"] = self.address(step.source)
            tile = self.weights.add(step.weights) if step.filled is None else self.address(step.filled)
            fields["weights"] = min(tile, WORD_MASK)
        elif step.opcode == Opcode.FILL:
            fields["source"] = self.address(step.source) * self.config.rows & BYTE_MASK
            fields["weights"] = self.address(step.filled)
        else:
            fields["dest"] = self.address(step.dest)
            if step.entries is not None:
                fields["params"] = self.address(step.entries)
            else:
                fields["params"] = min(self.params.add_channels(step.params), (1 << 14) - 1)
            if step.table is not None:
                fields["table"] = min(self.tables.add(step.table), 15)
            if step.operand is not None:
                fields["operand"] = self.address(step.operand)
            if step.addition is not None:
                fields["combine_params"] = self.address(step.addition)
            elif step.add is not None:
                fields["combine_params"] = min(self.params.add_addition(*step.add), (1 << 14) - 1)
        return Instruction(step.opcode, **fields)


def constant_words(array, view, config):
    """Return the words of a constant tensor ``[channels, height, width]``."""
    channels, block = np.arange(len(array)) % config.rows, np.arange(len(array)) // config.rows
    words = np.zeros((view.words, config.rows), np.uint8)
    place = block[:, None, None] * view.block_step + np.arange(view.height)[:, None] * view.row_step + np.arange(view.width)
    words[place, channels[:, None, None]] = array.view(np.uint8)
    return words


def _port(placement, allocation):
    tensor, view = placement.tensor, placement.view
    address = allocation.addresses[placement.home] + placement.offset
    facts = {"name": tensor.name, "shape": tuple(tensor.shape), "unsigned": tensor.unsigned, "address": address}
    facts["batched"] = tensor.batched
    if placement.dense:
        return Port(layout="dense", **facts)
    return Port(
        layout="blocked",
        channels=tensor.channels,
        height=tensor.height,
        width=tensor.width,
        block_step=view.block_step,
        row_step=view.row_step,
        matrix=tensor.matrix,
        plane_step=view.words if tensor.wide else 0,
        **facts,
    )


def _layers(schedule, graph):
    spans = {}
    for index, step in enumerate(schedule.steps):
        first, _ = spans.get(step.layer, (index, index))
        spans[step.layer] = first, index + 1
    return tuple(
        _layer(node, graph, spans[number])
        for number, node in enumerate(graph.nodes)
        if number in spans  # a rearrangement may have nothing to move
    )


def _layer(node, graph, instructions):
    return Layer(
        name=node.name,
        operator=node.operator,
        sources=tuple(node.sources),
        output=node.output,
        macs=_macs(node, graph),
        instructions=instructions,
    )


def _macs(node, graph):
    if isinstance(node, Product):
        return len(node.left_at.pixels) * node.rows * node.length * node.columns
    if not isinstance(node, Weighted) or node.operator == "Rearrange":
        return 0
    pixels = graph.tensors[node.output if isinstance(node, Conv) else node.input]  # each meets every tap
    return pixels.height * pixels.width * int(np.prod(node.weight.shape))
