"""The array's rows along the rows of DSP blocks."""

import re

import pytest

from celosia.boards.floorplan import lay_out


def netlist(rows, cols):
    cells = {f"core.engine.execute.array.multiplier_{row}_{col}.mult18": {"type": "MULT18X18D"} for row in range(rows) for col in range(cols)}
    cells["core.engine.store.adder.result_low0.mult18"] = {"type": "MULT18X18D"}
    cells["core.engine.execute.array.multiplier_0_0.p"] = {"type": "TRELLIS_FF"}
    return {"modules": {"top": {"cells": cells}}}


def places(net):
    found = {}
    for name, cell in net["modules"]["top"]["cells"].items():
        if "BEL" in cell.get("attributes", {}):
            row, col = map(int, re.search(r"_(\d+)_(\d+)", name).groups())
            x, y = map(int, re.match(r"X(\d+)/Y(\d+)/MULT18_[0145]$", cell["attributes"]["BEL"]).groups())
            found[row, col] = x, y
    return found


@pytest.mark.parametrize("rows, cols", [(16, 8), (8, 8), (4, 4), (12, 12)])
def test_rows_that_follow_each_other_are_neighbours_in_different_places(rows, cols):
    net = netlist(rows, cols)
    assert lay_out(net, "LFE5U-85F") == rows * cols
    found = places(net)
    assert len(found) == len(set(found.values())) == rows * cols
    for (row, col), (x, y) in found.items():
        if col:
            assert y == found[row, 0][1] and abs(x - found[row, 0][0]) <= 11 * (cols // 4)
        if row:
            assert abs(x - found[row - 1, col][0]) + abs(y - found[row - 1, col][1]) <= 11 * (cols // 4) + 24


@pytest.mark.parametrize("rows, cols, device", [(16, 16, "LFE5U-85F"), (4, 4, "LFE5U-25F"), (0, 0, "LFE5U-85F")])
def test_what_does_not_fit_or_is_not_known_is_left_to_the_placer(rows, cols, device):
    net = netlist(rows, cols)
    assert lay_out(net, device) == 0 and not places(net)
