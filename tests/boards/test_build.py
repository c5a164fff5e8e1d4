"""The stages of a build with stand-ins for the tools: seeds, what is kept, and one sentence for everything that goes wrong."""

import json

import pytest

from celosia.boards import build as module
from celosia.boards.build import BuildFailed, build, measure
from celosia.boards.catalog import BOARDS, find
from celosia.boards.flow import Design, TooLarge
from celosia.boards.toolchain import OutOfTime
from celosia.tools.cli import main

BOARD = find("ulx3s_12f", clock=75.0)
CLOCKS = {1: None, 2: 60.0, 3: 90.0, 4: 95.0}


@pytest.fixture
def calls(monkeypatch):
    """What was called, in order; seed 1 never ends, seed 5 does not fit."""
    made = []

    def design_of(board):
        made.append("design")
        return Design("logic", "pins")

    def synthesise(folder, commands, watch):
        made.append("yosys")
        (folder / "top.json").write_text("{}")
        (folder / "cells.json").write_text(json.dumps({"design": {"num_cells_by_type": {}}}))
        return {}

    def place(folder, tool, arguments, *, seed, clock, edit, minutes, watch):
        made.append(seed)
        if seed == 5:
            raise TooLarge("the design takes 2 LUT4, and the device has 1")
        if CLOCKS[seed] is None:
            raise OutOfTime(f"nextpnr was stopped after {minutes:g} minutes")
        watch("Info: Routing..")
        cells = ("TRELLIS_COMB", "TRELLIS_FF", "MULT18X18D", "DP16KD")
        path = {
            "from": "posedge clk",
            "to": "posedge clk",
            "path": [{"type": "logic", "delay": 16.0, "from": {"cell": "a"}, "to": {"cell": "b"}}],
        }
        return {
            "fmax": {"clk": {"achieved": CLOCKS[seed], "constraint": 75.0}},
            "critical_paths": [path],
            "utilization": {cell: {"used": 1600, "available": 24288} for cell in cells},
        }  # fmt: skip

    def pack(folder, board):
        made.append("pack")
        (folder / "top.bit").write_text("bits")
        return folder / "top.bit"

    for function in (design_of, synthesise, place, pack):
        monkeypatch.setattr(module, function.__name__, function)
    return made


def test_the_first_seed_that_closes_is_packed(calls, tmp_path):
    facts = build(BOARD, tmp_path, seeds=[1, 2, 3, 4], minutes=1)
    assert calls == ["design", "yosys", 1, 2, 3, "pack"]
    assert (facts["seed"], facts["clock"], facts["target"], facts["built"]) == (3, 90.0, 75.0, True)
    assert facts["area"]["LUT4"] == {"used": 1600, "available": 24288}
    assert facts["lut4_per_mac"] == 100.0
    assert facts["bitstream"] == str(tmp_path / "top.bit")
    assert set(facts["seconds"]) == {
        "Amaranth",
        "Yosys",
        "placing, seed 2",
        "routing, seed 2",
        "placing, seed 3",
        "routing, seed 3",
        "packing",
    }


def test_a_second_build_does_nothing_unless_it_is_forced(calls, tmp_path):
    first = build(BOARD, tmp_path, seeds=[3])
    calls.clear()
    assert build(BOARD, tmp_path, seeds=[3]) == first | {"built": False}
    assert calls == []
    assert build(BOARD, tmp_path, seeds=[3], force=True)["built"]
    assert calls == ["design", 3, "pack"]


def test_the_netlist_is_kept_for_another_seed(calls, tmp_path):
    build(BOARD, tmp_path, seeds=[3])
    calls.clear()
    build(BOARD, tmp_path, seeds=[4])
    assert calls == ["design", 4, "pack"]


def test_sources_that_make_the_same_logic_need_no_build(calls, tmp_path, monkeypatch):
    build(BOARD, tmp_path, seeds=[3])
    calls.clear()
    monkeypatch.setattr(module, "_sources", lambda: ["another comment"])
    assert not build(BOARD, tmp_path, seeds=[3])["built"]
    assert calls == ["design"]


def test_a_bitstream_that_has_gone_is_built_again(calls, tmp_path):
    build(BOARD, tmp_path, seeds=[3])
    (tmp_path / "top.bit").unlink()
    assert build(BOARD, tmp_path, seeds=[3])["built"]


def test_a_failed_build_leaves_no_summary_of_an_earlier_one(calls, tmp_path):
    build(BOARD, tmp_path, seeds=[3])
    with pytest.raises(BuildFailed):
        build(BOARD, tmp_path, seeds=[2])
    assert not (tmp_path / "summary.json").exists()


def test_a_clock_that_does_not_close_is_one_sentence_with_what_to_try(calls, tmp_path):
    with pytest.raises(BuildFailed) as failed:
        build(BOARD, tmp_path, seeds=[1, 2], minutes=1)
    assert str(failed.value) == (
        "ulx3s_12f: clock clk does not close: it needs 75 MHz and reaches 60 MHz with seeds 1, 2, 15.0 MHz too little; its longest path takes 16 ns, "
        "from a to b; try other seeds (--seed 3 4 5) or a slower clock (--clock 60)"
    )


def test_a_design_that_does_not_fit_is_one_sentence(calls, tmp_path):
    with pytest.raises(
        BuildFailed,
        match=r"^ulx3s_12f: engine 'ulx3s_12f' does not fit the LFE5U-12F-6BG381: the design takes 2 LUT4.*--engine",
    ):
        build(BOARD, tmp_path, seeds=[5])


def test_no_routed_seed_is_one_sentence(calls, tmp_path):
    with pytest.raises(BuildFailed, match=r"^ulx3s_12f: not routed in 2 minutes with seed 1; try"):
        build(BOARD, tmp_path, seeds=[1], minutes=2)


def test_measuring_tries_every_seed_and_packs_none(calls, tmp_path):
    assert [facts["clock"] for facts in measure(BOARD, tmp_path, seeds=[1, 2, 3], minutes=1)] == [60.0, 90.0]
    assert calls == ["design", "yosys", 1, 2, 3]


def test_the_command_prints_area_clock_path_and_bitstream(calls, tmp_path, capsys):
    arguments = ["build", "ulx3s_12f", "--seed", "3", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "facts.json")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Yosys: " in out and "1,600" in out and "24,288" in out
    assert "clock clk: 90 MHz, 75 MHz needed" in out
    assert "longest path: 16 ns (16 ns of it logic) from a to b" in out
    assert f"bitstream: {tmp_path / 'out' / 'top.bit'}" in "".join(out.split("\n")) or "top.bit" in out
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["clock"] == 90.0 and "key" not in facts
    assert main(arguments) == 0
    assert "nothing has changed since the last build" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, sentence", [
    (["build", "arty"], "celosia: the board must be one of ulx3s_85f, "),
    (["build", "ulx3s_12f", "--seed", "2"], "celosia: ulx3s_12f: clock clk does not close: "),
    (["build", "ulx3s_12f", "--clock", "1"], "celosia: ulx3s_12f: no dividers give at most 1 MHz from 25 MHz"),
    (["build", "ulx3s_12f", "--engine", "mac65"], "celosia: engine must be one of "),
    (["build", "ulx3s_12f", "--minutes", "0"], "celosia: --minutes must be more than 0, not 0"),
    (["build", "ulx3s_12f", "--out", "file"], "celosia: --out must name a folder, not the file file"),
    (["flash", "arty"], "celosia: the board must be one of ulx3s_85f, "),
    (["flash", "ulx3s_12f"], "celosia: build/ulx3s_12f/top.bit: not built yet; `celosia build ulx3s_12f` makes it"),
    (["flash", "ulx3s_12f", "none.bit"], "celosia: none.bit: no such file"),
    (["flash", "ulx3s_12f", "file"], "celosia: nothing here can write to ulx3s_12f: install openFPGALoader (https://"),
])  # fmt: skip
def test_what_goes_wrong_is_one_sentence(calls, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(sentence)


@pytest.mark.parametrize("code, last", [
    (0, "top.bit is in the board, until the board is switched off"),
    (2, "celosia: fujprog ended with exit code 2; is the board connected, and may this user open it?"),
])  # fmt: skip
def test_the_first_installed_program_writes_the_bitstream(tmp_path, monkeypatch, capfd, code, last):
    program = tmp_path / "fujprog"
    program.write_text(f"#!/bin/sh\necho writing $1\nexit {code}\n")
    program.chmod(0o755)
    (tmp_path / "top.bit").write_text("bits")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(["flash", "ulx3s_12f", str(tmp_path / "top.bit")]) == (1 if code else 0)
    out, err = capfd.readouterr()
    assert f"writing {tmp_path / 'top.bit'}" in out
    assert (err or out).splitlines()[-1] == last


def test_boards_are_listed_with_what_their_engines_have(tmp_path, capsys):
    assert main(["boards", "--json", str(tmp_path / "boards.json")]) == 0
    listed = json.loads((tmp_path / "boards.json").read_text())
    out = capsys.readouterr().out
    assert set(listed) == set(BOARDS) and all(name in out for name in BOARDS)
    assert listed["icebreaker"]["link"] == "uart" and listed["icebreaker"]["device"] == "iCE40UP5K-SG48"
