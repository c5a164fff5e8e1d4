"""The array on an ECP5-85: its rows lie along the device's rows of DSP blocks, so that words and partial sums go from neighbour to neighbour.

::

    DSP row 10    array row 0 ─► 1 ─► 2 ─► 3 ─► 4 ─► 5 ─┐
    DSP row 34             11 ◄─ 10 ◄─ 9 ◄─ 8 ◄─ 7 ◄─ 6 ◄┘
    DSP row 58           └► 12 ─► 13 ─► 14 ─► 15 ─► accumulators       blocks for the store unit

nextpnr's placer pulls all wires at once and spreads a chain of DSP blocks over the whole device. A block holds four multipliers, which take
four columns of one row of the array: they multiply the same byte.
"""

import re

__all__ = ["lay_out"]

_SLOTS = ((0, "MULT18_0"), (1, "MULT18_1"), (4, "MULT18_4"), (5, "MULT18_5"))
"""Of a block's multipliers, the distance from the block's first column, and what nextpnr calls them there."""

_BLOCKS = {"LFE5U-85F": ((10, 34, 58), (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114))}
"""By device, the rows and the first columns of the DSP blocks, in nextpnr's coordinates."""

_NAME = re.compile(r"\.array\.multiplier_(\d+)_(\d+)(\.mult18)?$")


def lay_out(netlist, device):
    """Say where each of the array's multipliers goes.

    Parameters
    ----------
    netlist : dict
        What Yosys' ``write_json`` writes; changed in place: attribute ``BEL``.
    device : str
        As its vendor calls it, without package and speed.

    Returns
    -------
    int
        How many multipliers were placed: all of the array's, or none where the device is not known or its blocks do not suffice.
    """
    array = {}
    for module in netlist["modules"].values():
        for name, cell in module.get("cells", {}).items():
            found = _NAME.search(name)
            if found and cell["type"] == "MULT18X18D":
                array[int(found[1]), int(found[2])] = cell
    if device not in _BLOCKS or not array:
        return 0
    ys, xs = _BLOCKS[device]
    rows, cols = (1 + max(place[axis] for place in array) for axis in (0, 1))
    blocks = -(-cols // len(_SLOTS))
    along = len(xs) // blocks  # rows of the array in a row of blocks
    if along == 0 or rows > along * len(ys):
        return 0
    for (row, col), cell in array.items():
        line, place = divmod(row, along)
        block, slot = divmod(col, len(_SLOTS))
        if line % 2:
            place = along - 1 - place
        offset, name = _SLOTS[slot]
        cell.setdefault("attributes", {})["BEL"] = f"X{xs[place * blocks + block] + offset}/Y{ys[line]}/{name}"
    return len(array)
