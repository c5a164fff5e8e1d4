"""Carries that nothing reads: only those are disconnected."""

from celosia.boards.carries import drop_unused_carries


def adder(carry_in, carry_out):
    directions = {"CIN": "input", "S0": "output", "COUT": "output"}
    return {"type": "CCU2C", "port_directions": directions, "connections": {"CIN": [carry_in], "S0": [9], "COUT": [carry_out]}}


def test_only_carries_that_nothing_reads_are_disconnected():
    lut = {"type": "LUT4", "port_directions": {"A": "input"}, "connections": {"A": [5]}}
    other = {"type": "ALU", "port_directions": {"COUT": "output"}, "connections": {"COUT": [8]}}
    cells = {"first": adder("0", 2), "last": adder(2, 3), "to_lut": adder("0", 5), "to_port": adder("0", 6), "lut": lut, "other": other}
    netlist = {"modules": {"top": {"ports": {"o": {"direction": "output", "bits": [6, "0"]}}, "cells": cells}, "black_box": {}}}
    assert drop_unused_carries(netlist) == 1
    carries = {name: cell["connections"].get("COUT") for name, cell in cells.items()}
    assert carries == {"first": [2], "last": ["x"], "to_lut": [5], "to_port": [6], "lut": None, "other": [8]}
    assert drop_unused_carries(netlist) == 0
