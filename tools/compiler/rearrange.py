"""Part of pass 'tile': a :class:`~celosia.tools.compiler.ir.Rearrange` as copies by the array.

The array moves bytes with weight tiles of zeros and ones: row ``r`` of column ``c`` is one where byte ``r`` of the word read becomes byte ``c`` of the
word written. What a word of the output takes from which bytes is its *signature*; words of one signature that lie at even
distances, and whose sources do as well, are moved together by one ``STORE`` and one ``EXECUTE`` for each word they are made of. The
walk has three levels (blocks, rows and columns of the instructions) with steps of their own, so that any two axes may be exchanged;
only the columns' steps are small. Constants come from the bias alone. What already lies where it belongs is not moved.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from celosia.rtl.isa import ExecuteInstruction, StoreInstruction, largest

__all__ = ["Box", "Move", "Moves", "Tap", "cover", "rearrange"]

MAX_STEP = min(largest(ExecuteInstruction, "stride_x"), largest(StoreInstruction, "col_step"))  # of the columns, in source and destination
MAX_COLUMNS = MAX_ROWS = largest(StoreInstruction, "tile_cols")
MAX_BLOCKS = largest(StoreInstruction, "blocks")
MAX_WIDTH = largest(ExecuteInstruction, "in_width")
MAX_LATTICE = 8  # distance of neighbours in a lattice that is looked for


@dataclass(frozen=True, kw_only=True)
class Box:
    """Cells ``origin[a] + n * stride[a]``, ``n < count[a]``, of a grid ``[blocks, rows, columns]``, and the axes that the levels walk.

    ``levels`` are the axes of the instructions' blocks, rows and columns; None where a level is not used.
    """

    origin: tuple
    count: tuple
    stride: tuple
    levels: tuple

    @property
    def cells(self):
        return tuple(
            slice(first, first + (count - 1) * stride + 1, stride)
            for first, count, stride in zip(self.origin, self.count, self.stride)
        )

    def sizes(self):
        """Return blocks, rows and columns."""
        return tuple(1 if axis is None else self.count[axis] for axis in self.levels)

    def steps(self, words):
        """Return how far apart the ``words`` of neighbouring blocks, rows and columns are."""
        start = words[self.origin]
        steps = []
        for axis in self.levels:
            if axis is None or self.count[axis] == 1:
                steps.append(0)
                continue
            place = list(self.origin)
            place[axis] += self.stride[axis]
            steps.append(int(words[tuple(place)] - start))
        return tuple(steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tap:
    """One EXECUTE of a move: the tensor read (None: nothing), its first word, the steps, and the weight tile."""

    tensor: str | None
    start: int
    steps: tuple
    weights: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Move:
    """One STORE: ``sizes`` and ``steps`` of blocks, rows and columns, first word within the output's buffer, ``params`` ``[3, cols]``."""

    slot: int
    start: int
    sizes: tuple
    steps: tuple
    taps: tuple
    params: np.ndarray

    @property
    def pixels(self):
        return self.sizes[0] * self.sizes[1] * self.sizes[2]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moves:
    """A rearrangement in pieces; what :class:`~celosia.tools.compiler.tile.Work` is for other nodes."""

    layer: int
    node: object
    moves: tuple

    def cycles(self, config):
        """Cycles in which the array issues this work if it never waits."""
        return sum(len(move.taps) * max(move.pixels, config.load_cycles) for move in self.moves)

    def dump(self):
        taps = sum(len(move.taps) for move in self.moves)
        return f"{self.node.name} ({self.node.operator}): {len(self.moves)} moves of {taps} words in all"


def rearrange(layer, node, placements, config):
    """Return the :class:`Moves` of node number ``layer``, whose tensors lie as ``placements`` say."""
    found = []
    for slot in range(config.slots):
        found.extend(_slot_moves(node, placements, config, slot))
    return Moves(layer=layer, node=node, moves=tuple(found))


def _slot_moves(node, placements, config, slot):
    """Yield the moves that write one slot of the output's words."""
    dest = placements[node.output]
    grid = dest.view.blocks, dest.view.height, dest.view.width
    part, index = (_columns(array, dest.view.blocks, config, slot, fill) for array, fill in ((node.part, -2), (node.index, 0)))
    owner, word, lane = _sources(node, part, index, placements, config)
    words = dest.offset + _grid_words(dest.view)
    # A column's word is known by the first column that has the same one.
    first = np.where(
        part >= 0, np.argmax((word[:, :, None] == word[:, None]) & (owner[:, :, None] == owner[:, None]), axis=2), -1
    )
    keys = np.concatenate([first, lane, part, np.where(part == -1, index, 0)], axis=1).astype(np.int16)
    real = part > -2
    moved = real.any(axis=1)
    if node.keeps_values:
        home = [
            place
            for place, name in enumerate(node.tensors)
            if placements[name].home == dest.home and not _flips(placements[name])
        ]
        own = np.isin(part, home) & (word == words.reshape(-1, 1)) & (lane == slot * config.cols + np.arange(config.cols))
        moved &= ~(own | ~real).all(axis=1)
    _, inverse = np.unique(np.ascontiguousarray(keys).view(f"V{keys.shape[1] * 2}").ravel(), return_inverse=True)
    inverse = np.where(moved, inverse.ravel(), -1).reshape(grid)
    for signature in range(inverse.max() + 1):
        mask = inverse == signature
        if not mask.any():
            continue
        example = int(np.flatnonzero(mask)[0])
        columns = np.unique(first[example][first[example] >= 0])
        sources = [word[:, column].reshape(grid) for column in columns]
        tiles = [_selection(first[example] == column, lane[example], config) for column in columns]
        names = [node.tensors[part[example, column]] for column in columns]
        params = _params(node, part[example], index[example])
        for box in cover(mask, sources, words, config.acc_depth):
            taps = [
                Tap(tensor=name, start=int(source[box.origin]), steps=box.steps(source), weights=tile)
                for name, source, tile in zip(names, sources, tiles)
            ]
            nothing = Tap(tensor=None, start=0, steps=(0, 0, 0), weights=_selection([], [], config))
            yield Move(
                slot=slot,
                start=int(words[box.origin]),
                sizes=box.sizes(),
                steps=box.steps(words),
                taps=tuple(taps) or (nothing,),
                params=params,
            )


def _flips(placement):
    """Whether reading the tensor inverts the top bit of its bytes."""
    return placement.dense and placement.tensor.unsigned


def _columns(array, blocks, config, slot, fill):
    """Return ``[cells, cols]``: what the columns of each output word are, ``fill`` where there is no such channel."""
    channels, height, width = array.shape
    padded = np.full((blocks * config.rows, height, width), fill, np.int64)
    padded[:channels] = array
    padded = padded.reshape(blocks, config.slots, config.cols, height, width)[:, slot]
    return np.ascontiguousarray(padded.transpose(0, 2, 3, 1)).reshape(-1, config.cols)


def _grid_words(view):
    block, row, column = np.ogrid[: view.blocks, : view.height, : view.width]
    return block * view.block_step + row * view.row_step + column


def _sources(node, part, index, placements, config):
    """Return tensor, word within the tensor's buffer, and byte of each column's source; −1 where it has none."""
    owner, word, lane = (np.full(part.shape, -1, np.int64) for _ in range(3))
    for number, name in enumerate(node.tensors):
        place = placements[name]
        here = part == number
        channel, pixel = np.divmod(index[here], place.tensor.height * place.tensor.width)
        row, column = np.divmod(pixel, place.tensor.width)
        block, byte = np.divmod(channel, config.rows)
        owner[here], lane[here] = number, byte
        word[here] = place.offset + block * place.view.block_step + row * place.view.row_step + column
    return owner, word, lane


def _selection(columns, lanes, config):
    """Return the weight tile that moves byte ``lanes[c]`` to each column ``c`` that is chosen."""
    tile = np.zeros((1, config.rows, config.cols), np.int8)
    chosen = np.flatnonzero(columns)
    tile[0, np.asarray(lanes, int)[chosen], chosen] = 1
    return tile


def _params(node, part, index):
    """Return bias, mantissa and shift of each column."""
    from celosia.sim.numerics import channel_params

    scale, bias = np.ones(len(part), np.float32), np.zeros(len(part), np.int64)
    for number in range(len(node.tensors)):
        scale[part == number], bias[part == number] = node.scales[number], -node.zeros[number]
    bias[part == -1] = index[part == -1] - node.zero_point
    return np.stack([bias, *channel_params(scale)])


# Boxes ------------------------------------------------------------------------------------------------------------------


def cover(mask, sources, dest, limit):
    """Cut cells into boxes.

    Parameters
    ----------
    mask : bool ``[blocks, rows, columns]``
        The cells.
    sources : list of int arrays ``[blocks, rows, columns]``
        The words that each cell is made of.
    dest : int array ``[blocks, rows, columns]``
        The word that each cell is.
    limit : int
        Most cells of a box.

    Returns
    -------
    list of Box
        Every cell is in one of them; each source and the destination have even steps in it.
    """
    left = mask.copy()
    boxes = []
    walks = [levels for levels in itertools.permutations((0, 1, 2, None), 3) if _is_useful(levels, mask.shape)]
    while left.any():
        origin = np.unravel_index(int(left.argmax()), left.shape)
        best, most = None, 0
        for levels in walks:
            box, size = _grow(left, (*sources, dest), origin, levels, limit)
            if size > most:
                best, most = box, size
        left[best.cells] = False
        boxes.append(best)
    return boxes


def _is_useful(levels, shape):
    """Whether a choice of axes for the levels is one of those to try: outer levels are used before axes are left out."""
    return levels == (0, 1, 2) or (None not in levels[:2] and all(axis is None or shape[axis] > 1 for axis in levels))


def _grow(left, words, origin, levels, limit):
    """Return the box at ``origin`` that grows along the levels' axes, innermost first, and its number of cells."""
    count, stride = [1, 1, 1], [1, 1, 1]
    room = limit
    for level in (2, 1, 0):
        axis = levels[level]
        if axis is None or left.shape[axis] - origin[axis] < 2 or room < 2:
            continue
        most = min(room, (MAX_BLOCKS, MAX_ROWS, MAX_COLUMNS)[level])
        best = 1
        for step in range(1, min(MAX_LATTICE, left.shape[axis] - origin[axis] - 1) + 1):
            reach = _reach(left, words, origin, count, stride, axis, step, most, columns=level == 2)
            if reach > best:
                best, stride[axis] = reach, step
        count[axis] = best
        room //= best
    box = Box(origin=tuple(map(int, origin)), count=tuple(count), stride=tuple(stride), levels=levels)
    return box, count[0] * count[1] * count[2]


def _reach(left, words, origin, count, stride, axis, step, most, *, columns):
    """Return how many neighbours at distance ``step`` along ``axis`` the box can hold."""
    cells = [slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(origin, count, stride)]
    cells[axis] = slice(origin[axis], min(left.shape[axis], origin[axis] + (most - 1) * step + 1), step)
    others = tuple(other for other in range(3) if other != axis)
    good = left[tuple(cells)].all(axis=others)
    if len(good) < 2 or not good[1]:
        return 1
    number = np.arange(len(good))
    shape = [1, 1, 1]
    shape[axis] = -1
    for array in words:
        part = np.moveaxis(array[tuple(cells)], axis, 0)
        apart = int(part[1].flat[0] - part[0].flat[0])
        if columns:
            if not 0 <= apart <= MAX_STEP:
                return 1
            good &= number * apart < MAX_WIDTH
        good &= (part - part[0] == (number * apart)[:, None, None]).all(axis=(1, 2))
    return len(good) if good.all() else int(good.argmin())
