"""What is read from nextpnr's log and report."""

import json

import pytest

from celosia.boards.flow import TooLarge, facts_of, place
from celosia.boards.toolchain import Tool

SHELL = Tool("subprocess", "call", "shell")


def step(kind, delay, cell):
    return {"type": kind, "delay": delay, "from": {"cell": cell}, "to": {"cell": cell}}


REPORT = {
    "fmax": {
        "$glbnet$pll.clk": {"achieved": 61.234, "constraint": 75.0},
        "$glbnet$slow$TRELLIS_IO_IN": {"achieved": 50.0, "constraint": 25.0},
    },
    "critical_paths": [
        {"from": "<async>", "to": "posedge $glbnet$pll.clk", "path": [step("source", 99, "pin")]},
        {
            "from": "posedge $glbnet$pll.clk",
            "to": "posedge $glbnet$pll.clk",
            "path": [
                step("clk-to-q", 0.5, "engine.host.addr_TRELLIS_FF_Q_2"),
                step("routing", 2.25, "x"),
                step("setup", 0.25, "engine.bank1.0.11"),
            ],
        },
    ],
    "utilization": {},
}


def test_the_worst_clock_is_the_one_that_misses_most_and_its_path_is_named():
    facts = facts_of(REPORT)
    assert facts["clocks"] == {
        "pll.clk": {"achieved": 61.23, "constraint": 75.0},
        "slow": {"achieved": 50.0, "constraint": 25.0},
    }
    assert facts["clock"] == 61.23
    assert facts["critical_path"] == {"from": "engine.host.addr", "to": "engine.bank1.0.11", "ns": 3.0, "logic_ns": 0.75}


def test_a_report_without_clocks_has_no_path():
    assert facts_of({"fmax": {}, "critical_paths": []}) == {"clocks": {}, "clock": None, "critical_path": None}


def log_of(tmp_path, text):
    (tmp_path / "text").write_text(text)
    (tmp_path / "made.json").write_text(json.dumps(REPORT))
    return ["sh", "-c", "cat text; cp made.json report.json"]


def test_a_design_that_is_too_large_ends_at_once_with_both_numbers(tmp_path):
    (tmp_path / "top.json").write_text("{}")
    log = "Info: Device utilisation:\nInfo: \t         TRELLIS_FF:      7/ 24288     0%\nInfo: \t       TRELLIS_COMB:  30000/ 24288   123%\n"
    with pytest.raises(TooLarge, match="the design takes 30,000 TRELLIS_COMB, and the device has 24,288"):
        place(tmp_path, SHELL, log_of(tmp_path, log), seed=1, clock=50)


def test_a_design_that_fits_gives_the_report(tmp_path):
    (tmp_path / "top.json").write_text("{}")
    assert place(tmp_path, SHELL, log_of(tmp_path, "Info: \t DP16KD:    56/   56   100%\n"), seed=1, clock=50) == REPORT


def test_an_older_report_is_never_taken_for_the_new_one(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    with pytest.raises(FileNotFoundError):
        place(tmp_path, SHELL, ["sh", "-c", "true"], seed=1, clock=50)
