"""The rows of the board tables, and the designs that are made of them."""

import pytest

from celosia.boards.catalog import BOARDS, find
from celosia.boards.ecp5 import Ecp5Pll
from celosia.boards.flow import design_of
from celosia.boards.gowin import GowinPll
from celosia.boards.ice40 import Ice40Pll
from celosia.rtl.config import PRESETS, BadConfig
from celosia.rtl.uart import MIN_DIVISOR
from celosia.tools.session import engine_config


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_an_engine_of_its_name_with_a_clock_and_a_line(name):
    board = find(name)
    assert board.name == board.config.name == name
    assert engine_config(name) is board.config
    assert 0.95 * board.clock <= board.frequency <= board.clock
    if board.link == "uart":
        assert board.divisor >= MIN_DIVISOR
        assert abs(board.frequency * 1e6 / board.divisor / board.baud - 1) < 0.01
    assert board.device
    assert board.flashers and all("{}" in flasher.arguments for flasher in board.flashers)


@pytest.mark.parametrize("name", BOARDS)
def test_all_pins_exist(name):
    board = find(name)
    platform = board.new_platform()
    platform.request(board.link, 0, dir="-")
    for resource, number in {led[:2] for _, led in board.leds.items()}:
        platform.request(resource, number, dir="-")


@pytest.mark.parametrize("pll, frequency, target, expected", [
    (Ecp5Pll, 25.0, 75.0, (75.0, {"CLKI_DIV": 1, "CLKFB_DIV": 3, "CLKOP_DIV": 8})),
    (Ecp5Pll, 48.0, 100.0, (100.0, {"CLKI_DIV": 12, "CLKFB_DIV": 25, "CLKOP_DIV": 6})),
    (Ice40Pll, 12.0, 24.0, (24.0, {"DIVR": 0, "DIVF": 63, "DIVQ": 5, "FILTER_RANGE": 1})),
    (GowinPll, 27.0, 60.0, (60.0, {"IDIV_SEL": 8, "FBDIV_SEL": 19, "ODIV_SEL": 16})),
])  # fmt: skip
def test_dividers_are_those_of_the_vendors_calculators(pll, frequency, target, expected):
    assert pll.best(frequency, target) == expected


def test_a_pll_never_runs_faster_than_asked():
    for target in (33.3, 61.7, 99.9):
        assert 0.95 * target < Ecp5Pll.best(25.0, target)[0] <= target


def test_an_unknown_board_or_clock_is_one_sentence():
    with pytest.raises(BadConfig, match=r"^the board must be one of ulx3s_85f, .*, not 'arty'$"):
        find("arty")
    with pytest.raises(BadConfig, match=r"^icebreaker: no dividers give at most 1 MHz from 12 MHz$"):
        find("icebreaker", clock=1)
    with pytest.raises(BadConfig, match="test_port must have memory_bytes = 0, not 4"):
        find("icebreaker", config=PRESETS["test_port"])


def test_another_clock_or_engine_leaves_the_board_as_it_is():
    board = find("ulx3s_12f")
    assert find("ulx3s_12f", clock=25.0).frequency == 25.0
    assert find("ulx3s_12f", config=PRESETS["test"]).config is PRESETS["test"]
    assert find("ulx3s_12f") == board


def test_a_design_is_the_same_every_time_and_has_the_boards_pins():
    first, second = (design_of(find("icebreaker")) for _ in range(2))
    assert first == second
    assert "attribute \\src" not in first.rtlil
    assert {"set_io clk12_0__io 35", "set_io uart_0__rx__io 6", "set_io uart_0__tx__io 9", "set_io led_g_0__io 37"} <= set(
        first.constraints.splitlines()
    )
    assert "SB_PLL40_PAD" in first.rtlil


def test_gowin_pins_are_in_its_own_constraints():
    design = design_of(find("tang_nano_20k"))
    assert 'IO_LOC "uart_0__rx__io" 70;' in design.constraints
    assert "rPLL" in design.rtlil
