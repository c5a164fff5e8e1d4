"""Networks larger than the chip: sections, cut into parts that fit, and the transfers between them.

Sections are computed in parts (:mod:`~celosia.tools.compiler.sections`). Tensors between sections lie in external memory, blocked; weights and
parameters are fetched in chunks. What each part needs is a list of buffers with lifetimes in the three memories;
:mod:`~celosia.tools.compiler.stage` gives them places and puts the transfers into program order.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from celosia.rtl.isa import Memory, Opcode, TransferInstruction, largest
from celosia.tools.compiler.constants import ParamImage
from celosia.tools.compiler.emit import constant_words
from celosia.tools.compiler.ir import Graph
from celosia.tools.compiler.layout import blocked_view
from celosia.tools.compiler.schedule import Ref, Step
from celosia.tools.compiler.sections import plan
from celosia.tools.compiler.stage import Buffer, Store, Transfer, arrange

__all__ = ["External", "Streamed", "nest", "stream"]

MAX_RUN, MAX_ROWS = (largest(TransferInstruction, name) for name in ("run", "rows"))


class External:
    """The map of external memory: constants first, then tensors."""

    def __init__(self, config):
        self.config, self.image, self.size = config, bytearray(), 0
        self.known, self.tensors = {}, {}

    def constant(self, data):
        """Return the byte at which ``data`` lies; equal data lie once."""
        data = bytes(data)
        if data not in self.known:
            self.known[data] = len(self.image)
            self.image += data + bytes(-len(data) % 64)
        return self.known[data]

    def tensor(self, name, size):
        """Return the first byte of a tensor behind the constants, counted from their end."""
        if name not in self.tensors:
            self.tensors[name] = self.size
            self.size += -(-size // 64) * 64
        return self.tensors[name]


def nest(dims):
    """Return the loops of TRANSFERs that move a box: ``dims`` are ``(count, external step, local step)`` in entries, in any order.

    Returns
    -------
    list of ``(external offset, local offset, run, rows, planes)``
        In entries; ``rows`` and ``planes`` are ``(count, external step, local step)``.
    """
    dims = sorted((dim for dim in dims if dim[0] > 1), key=lambda dim: dim[1])
    run = 1
    while dims and dims[0][1] == dims[0][2] == run and run * dims[0][0] <= MAX_RUN:
        run *= dims.pop(0)[0]
    outer = [(0, 0)]
    while len(dims) > 2 or any(count > MAX_ROWS for count, *_ in dims):
        count, external, local = dims.pop(max(range(len(dims)), key=lambda n: (dims[n][0] > MAX_ROWS, n)))
        outer = [(e + n * external, p + n * local) for e, p in outer for n in range(count)]
    rows, planes = [*dims, (1, 0, 0), (1, 0, 0)][:2]
    return [(external, local, run, rows, planes) for external, local in outer]


def moves(tensor, box, place, config, *, write):
    """Return TRANSFER fields for a part of a blocked tensor, with ``external`` counted from the tensor's first byte and ``local`` from its buffer's first word."""
    rows, view = config.rows, place.view
    outside = blocked_view(tensor, rows)
    block = box.channels[0] // rows
    blocks = -(-box.channels[1] // rows) - block
    start = block * outside.block_step + box.rows[0] * outside.row_step + box.columns[0]
    dims = [(blocks, outside.block_step, view.block_step), (box.shape[1], outside.row_step, view.row_step), (box.shape[2], 1, 1)]
    if tensor.wide:
        dims.append((4, outside.words, view.words))
    for external, local, run, (r, re, rl), (p, pe, pl) in nest(dims):
        yield {
            "memory": Memory.ACTIVATIONS, "write": int(write), "run": run, "rows": r, "planes": p,
            "external": (start + external) * rows, "local": place.offset + local,
            "external_row_step": re * rows, "local_row_step": rl, "external_plane_step": pe * rows, "local_plane_step": pl,
        }  # fmt: skip


class _Assembly:
    """Joins the steps of all parts and collects their buffers."""

    def __init__(self, graph, config, external):
        self.graph, self.config, self.external = graph, config, external
        self.layers = {node.output: number for number, node in enumerate(graph.nodes)}
        self.steps, self.buffers, self.stores = [], [], []
        self.shared, self.part = {}, 0

    def buffer(self, name, memory, size, layer):
        buffer = Buffer(name=f"{len(self.buffers)} {name}", memory=memory, size=size, layer=layer)
        self.buffers.append(buffer)
        return buffer

    def add(self, section, lowered):
        """Add the steps of a part."""
        layout, last = lowered.schedule.tiling.layout, self.layers[section.nodes[-1].output]
        layers = [self.layers.get(node.output, last) for node in layout.graph.nodes]
        written = {step.dest.buffer for step in lowered.schedule.steps if step.dest}
        shared, self.shared = self.shared, {}
        bound, start = {}, len(self.steps)
        self.part += 1
        for name in lowered.reads:
            place, box = lowered.placements[name], lowered.part.boxes[name]
            if place.home != name or name in written:
                continue
            key = name, box, place.view
            if key not in shared:
                shared[key] = self.buffer(name, Memory.ACTIVATIONS, lowered.schedule.buffers[name], last)
                shared[key].tensor = name, box
                shared[key].fetch = list(self.transfers(name, box, place, shared[key], last, write=False))
            bound[name] = self.shared[key] = shared[key]
        for name, words in lowered.schedule.buffers.items():
            if name not in bound:
                bound[name] = self.buffer(name, Memory.ACTIVATIONS, words, last)
        for name in lowered.reads:
            place = lowered.placements[name]
            if bound.get(name) is None or not bound[name].fetch:
                home = bound[place.home]
                for transfer in self.transfers(name, lowered.part.boxes[name], place, home, last, write=False):
                    home.use(len(self.steps), self.part)
                    self.steps.append(transfer)
        filled = {name: self.buffer(name, Memory.WEIGHTS, tiles, last) for name, tiles in lowered.schedule.tiles.items()}
        weights = self.weights(lowered.schedule.steps, layers, shared)
        params = self.params(lowered.schedule.steps, layers, shared)
        ends = {}
        for step in lowered.schedule.steps:
            index, changes = len(self.steps), {"layer": layers[step.layer]}
            for name in ("source", "dest", "operand"):
                if ref := getattr(step, name):
                    changes[name] = self.used(bound[ref.buffer], ref.offset)
            if step.dest:
                ends[step.dest.buffer] = index
            if step.filled:
                changes["filled"] = self.used(filled[step.filled.buffer], step.filled.offset)
            elif step.weights is not None:
                changes |= {"weights": None, "filled": self.used(*weights[id(step.weights)])}
            if step.params is not None:
                changes |= {"params": None, "entries": self.used(*params[id(step.params)])}
            if step.add is not None:
                changes |= {"add": None, "addition": self.used(*params[step.add])}
            self.steps.append(dataclasses.replace(step, **changes))
        for name in lowered.writes:
            place = lowered.placements[name]
            home = bound[place.home]
            end = ends.get(place.home, max(start, len(self.steps) - 1))
            home.use(min(end, home.first), self.part)
            home.use(end, self.part)
            home.kept = True
            box = lowered.part.boxes[name]
            transfers = list(self.transfers(name, box, place, home, last, write=True))
            self.stores.append(Store(end, transfers, name, box))

    def used(self, buffer, offset):
        buffer.use(len(self.steps), self.part)
        return Ref(buffer.name, offset)

    def transfers(self, name, box, place, buffer, layer, *, write):
        """Yield the :class:`Transfer` s of a part of a tensor."""
        tensor, rows = self.graph.tensors[name], self.config.rows
        if place.dense:
            self.external.tensor(name, tensor.elements + 2 * rows)
            if place.plane:
                yield from self.channels(name, box, place, buffer, layer)
                return
            start = box.rows[0] * (tensor.channels if tensor.matrix else tensor.width)
            for first in range(0, place.words, MAX_RUN):
                fields = _flat(Memory.ACTIVATIONS, start + first * rows, first, min(MAX_RUN, place.words - first))
                yield Transfer(buffer=buffer, fields=fields, tensor=name, layer=layer, entry=rows)
            return
        if name not in self.graph.constants:
            self.external.tensor(name, blocked_view(tensor, rows).words * (4 if tensor.wide else 1) * rows)
        for fields in moves(tensor, box, place, self.config, write=write):
            if name in self.graph.constants:
                words = constant_words(self.graph.constants[name], blocked_view(tensor, rows), self.config)
                fields["external"] += self.external.constant(words.tobytes())
            yield Transfer(
                buffer=buffer, fields=fields, tensor=None if name in self.graph.constants else name, layer=layer, entry=rows
            )

    def channels(self, name, box, place, buffer, layer):
        """Yield the transfers of some rows of each channel of a dense tensor, whose bytes keep their places within words."""
        tensor, rows = self.graph.tensors[name], self.config.rows
        plane, size = tensor.height * tensor.width, box.shape[1] * tensor.width
        even = plane % rows == 0 and place.plane % rows == 0
        for channel in range(1 if even else tensor.channels):
            skip = channel * plane % rows
            start = channel * plane + box.rows[0] * tensor.width - skip
            fields = _flat(Memory.ACTIVATIONS, start, channel * place.plane // rows, -(-(skip + size) // rows))
            if even:
                fields |= {"rows": tensor.channels, "external_row_step": plane, "local_row_step": place.plane // rows}
            yield Transfer(buffer=buffer, fields=fields, tensor=name, layer=layer, entry=rows)

    def weights(self, steps, layers, shared):
        """Return buffer and tile of each array of weights, those that are used after each other fetched together."""
        config, found = self.config, {}
        arrays, seen = [], set()
        for step in steps:
            if step.weights is not None and id(step.weights) not in seen:
                seen.add(id(step.weights))
                arrays.append((layers[step.layer], step.weights))
        total = sum(len(array) for _, array in arrays)
        for layer, chunk in _chunks(arrays, max(1, config.weight_tiles // 8)):
            data = np.concatenate(chunk).reshape(-1, config.weight_rows, config.load_cycles, config.cols).transpose(0, 2, 1, 3).tobytes()
            address, size = self.external.constant(data), sum(map(len, chunk))
            key = "weights", address, size
            if key not in shared:
                shared[key] = buffer = self.buffer(f"weights of layer {self.graph.nodes[layer].name}", Memory.WEIGHTS, size, layer)
                entries = size * config.load_cycles
                for first in range(0, entries, MAX_RUN):
                    fields = _flat(
                        Memory.WEIGHTS, address + first * config.weight_rows * config.cols, first, min(MAX_RUN, entries - first)
                    )
                    buffer.fetch.append(
                        Transfer(buffer=buffer, fields=fields, tensor=None, layer=layer, entry=config.weight_rows * config.cols)
                    )
            if total <= config.weight_tiles // 2:
                self.shared[key] = shared[key]
            offset = 0
            for array in chunk:
                found[id(array)] = shared[key], offset
                offset += len(array)
        return found

    def params(self, steps, layers, shared):
        """Return buffer and entry of each array of parameters and each addition."""
        config, found, groups = self.config, {}, []
        for step in steps:
            for key, value in ((id(step.params), step.params), (step.add, step.add)):
                if value is None or key in found:
                    continue
                layer = layers[step.layer]
                if not groups or groups[-1][0] != layer or groups[-1][1].entries >= max(1, config.param_depth // 8):
                    groups.append((layer, ParamImage(config)))
                image = groups[-1][1]
                found[key] = len(groups) - 1, image.add_addition(*value) if value is step.add else image.add_channels(value)
        buffers = []
        for layer, image in groups:
            address = self.external.constant(image.image().tobytes())
            key = "params", address, image.entries
            if key not in shared:
                shared[key] = buffer = self.buffer(
                    f"parameters of layer {self.graph.nodes[layer].name}", Memory.PARAMS, image.entries, layer
                )
                fields = _flat(Memory.PARAMS, address, 0, image.entries)
                buffer.fetch.append(Transfer(buffer=buffer, fields=fields, tensor=None, layer=layer, entry=8 * config.lanes))
            if sum(one.entries for _, one in groups) <= config.param_depth // 2:
                self.shared[key] = shared[key]
            buffers.append(shared[key])
        return {key: (buffers[group], entry) for key, (group, entry) in found.items()}


def _flat(memory, external, local, run):
    steps = dict.fromkeys(("external_row_step", "local_row_step", "external_plane_step", "local_plane_step"), 0)
    return {"memory": memory, "write": 0, "external": external, "local": local, "run": run, "rows": 1, "planes": 1, **steps}


def _chunks(arrays, most):
    """Yield ``(layer, arrays)``: neighbours of one layer, ``most`` tiles at a time where single arrays are not larger."""
    chunk, of, size = [], None, 0
    for layer, array in arrays:
        if chunk and (layer != of or size + len(array) > most):
            yield of, chunk
            chunk, size = [], 0
        chunk.append(array)
        of, size = layer, size + len(array)
    if chunk:
        yield of, chunk


@dataclass(frozen=True, kw_only=True, eq=False)
class Streamed:
    """A network's steps, transfers among them, and where everything lies."""

    graph: Graph
    steps: tuple
    addresses: dict
    external: External

    def dump(self):
        """Return the steps as text."""
        return "\n".join(f"{index:6} {step.opcode.name:8} {self.graph.nodes[step.layer].name}" for index, step in enumerate(self.steps))


def stream(graph, config, options):
    """Return the :class:`Streamed` network.

    Raises
    ------
    DoesNotFit
        If some layer cannot be cut into parts that fit; the message names it.
    """
    options = dataclasses.replace(options, max_pixels=max(options.max_pixels, config.acc_depth // 2), min_tiles=1, blocked_inputs=False)
    outputs = {*graph.outputs}
    reads = {name for node in graph.nodes for name in node.inputs}
    outputs |= {node.output for node in graph.nodes if options.keeps(node.output) or node.output in reads}
    external = External(config)
    assembly = _Assembly(graph, config, external)
    for section in plan(graph, config, options, outputs):
        for lowered in section.parts:
            assembly.add(section, lowered)
    for name in graph.inputs:
        external.tensor(name, graph.tensors[name].elements + 2 * config.rows)
    slots = arrange(assembly.steps, assembly.buffers, assembly.stores, config)
    addresses = {buffer.name: buffer.address for buffer in assembly.buffers}
    steps = []
    for index, before in enumerate(slots):
        now = assembly.steps[index : index + 1]
        for one in (*before, *now):
            steps.append(_step(one, external) if isinstance(one, Transfer) else one)
    return Streamed(graph=graph, steps=tuple(steps), addresses=addresses, external=external)


def _step(transfer, external):
    fields = dict(transfer.fields)
    if transfer.tensor is not None:
        fields["external"] += len(external.image) + external.tensors[transfer.tensor]
    ref = Ref(transfer.buffer.name, fields.pop("local"))
    if fields["write"]:
        where = "source"
    else:
        where = {Memory.ACTIVATIONS: "dest", Memory.WEIGHTS: "filled", Memory.PARAMS: "entries"}[fields["memory"]]
    return Step(opcode=Opcode.TRANSFER, layer=transfer.layer, fields=fields, **{where: ref})
