"""Part of pass 'layout': let rearranged tensors share words, so that nothing has to be moved.

A part of a concatenation is written by its producer where the concatenation wants it, and a slice is read where it lies, if words stay whole:
each element keeps its byte within the word, and the words of a block are evenly spaced. What the tensors then have in common
:func:`~celosia.tools.compiler.rearrange.rearrange` finds in place.
"""

import dataclasses

import numpy as np

from celosia.tools.compiler.ir import Rearrange

__all__ = ["share"]


def share(graph, placements, config, fixed=()):
    """Return the placements of ``graph``'s tensors, some of them within others; ``fixed`` ones stay as they are."""
    placements = dict(placements)
    nodes = [node for node in graph.nodes if isinstance(node, Rearrange) and node.keeps_values]
    for node in reversed(nodes):  # a part of a part lies in the whole
        for part, name in enumerate(node.tensors):
            if name not in graph.inputs and name not in fixed and placements[name].buffer is None:
                words = _written_words(node, part, placements, config)
                _place(placements, name, node.output, words)
    homes = {place.buffer for place in placements.values()}
    for node in nodes:
        if placements[node.output].buffer is None and node.output not in homes and node.output not in fixed:
            words = _read_words(node, placements, config)
            _place(placements, node.output, node.input, words)
    return placements


def _place(placements, name, owner, words):
    """Let ``name`` lie at ``words`` (``[blocks, height, width]``) of the buffer of ``owner``, if its instructions can address it there."""
    place, whole = placements[name], placements[owner]
    if words is None:
        return
    blocks, height, width = words.shape
    start = words.flat[0]
    row_step = int(words[0, 1, 0] - start) if height > 1 else place.view.row_step
    block_step = int(words[1, 0, 0] - start) if blocks > 1 else place.view.block_step
    block, row, column = np.ogrid[:blocks, :height, :width]
    even = (words == start + block * block_step + row * row_step + column).all()
    if not even or row_step < 0 or block_step < 0:
        return
    view = dataclasses.replace(place.view, row_step=row_step, block_step=block_step)
    kind = "matrix" if place.tensor.matrix else "blocked"
    placements[name] = dataclasses.replace(place, kind=kind, words=0, view=view, buffer=whole.home, offset=int(start))


def _words(place, channel, row, column, config):
    view = place.view
    return place.offset + channel // config.rows * view.block_step + row * view.row_step + column


def _written_words(node, part, placements, config):
    """Return the words of the output in which the whole of tensor ``part`` lies as in its own, or None."""
    place, out = placements[node.tensors[part]], placements[node.output]
    tensor = place.tensor
    at = np.flatnonzero(node.part == part)
    elements, first = np.unique(node.index.reshape(-1)[at], return_index=True)
    if place.dense or len(elements) < tensor.elements:
        return None
    channel, row, column = np.unravel_index(at[first], node.part.shape)
    own = elements // (tensor.height * tensor.width)
    # Bytes beyond its channels are written as well: nobody else's may be there.
    blocks, out_blocks = own // config.rows, channel // config.rows
    rest, out_rest = tensor.channels - blocks * config.rows, out.tensor.channels - out_blocks * config.rows
    if (own % config.rows != channel % config.rows).any() or (
        np.minimum(rest, config.rows) < np.minimum(out_rest, config.rows)
    ).any():
        return None
    words = _words(out, channel, row, column, config).reshape(tensor.channels, tensor.height, tensor.width)
    return _by_block(words, config)


def _read_words(node, placements, config):
    """Return the words of the input in which the output lies as in its own, or None."""
    place = placements[node.input]
    tensor = place.tensor
    if node.more or (node.part < 0).any() or (place.dense and tensor.unsigned):
        return None
    channel, row, column = np.unravel_index(node.index, (tensor.channels, tensor.height, tensor.width))
    if (channel % config.rows != np.arange(len(channel))[:, None, None] % config.rows).any():
        return None
    return _by_block(_words(place, channel, row, column, config), config)


def _by_block(words, config):
    """Return the words of the blocks, from those of the channels; None where the channels of a block do not lie together."""
    first = words[:: config.rows]
    same = words == np.repeat(first, config.rows, axis=0)[: len(words)]
    return first if same.all() else None
