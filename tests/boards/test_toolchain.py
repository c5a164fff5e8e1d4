"""Tools in processes of their own: logs, limits, and one sentence for everything that goes wrong."""

import time

import pytest

from celosia.boards.board import YOSYS
from celosia.boards.toolchain import OutOfTime, Tool, ToolFailed, ToolMissing, run

SHELL = Tool("subprocess", "call", "shell")
"""Runs its arguments."""


def shell(tmp_path, script, **options):
    return run(SHELL, ["sh", "-c", script], tmp_path / "log", **options)


def test_a_tool_is_stopped_at_its_limit(tmp_path):
    start = time.monotonic()
    with pytest.raises(OutOfTime, match=r"shell was stopped after 0\.01 minutes; its log is .*log"):
        shell(tmp_path, "exec sleep 30", minutes=0.01)
    assert time.monotonic() - start < 15


def test_every_line_is_seen_while_the_tool_runs_and_kept(tmp_path):
    lines = []
    shell(tmp_path, "echo one; echo two >&2; printf three", watch=lines.append)
    assert lines == ["one", "two"]
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree"


def test_what_a_watcher_raises_stops_the_tool(tmp_path):
    def refuse(line):
        raise ValueError(line)

    start = time.monotonic()
    with pytest.raises(ValueError, match="one"):
        shell(tmp_path, "echo one; exec sleep 30", watch=refuse)
    assert time.monotonic() - start < 15


def test_a_failure_names_the_last_error_of_the_log(tmp_path):
    with pytest.raises(ToolFailed, match=r"^shell failed with exit code 3: no such cell; its log is .*log$"):
        shell(tmp_path, "echo 'ERROR: no such cell'; echo '0 warnings, 0 errors'; exit 3")


def test_a_missing_tool_says_how_to_install_it():
    with pytest.raises(ToolMissing, match=r"^celosia-nothing is missing: pip install 'celosia\[synth\]'$"):
        _ = Tool("celosia_nothing.at_all", "run", "celosia-nothing").version


def test_files_lie_beside_the_log_even_in_the_temporary_folder(tmp_path):
    (tmp_path / "one.v").write_text("module one(input a, output b); assign b = a; endmodule\n")
    run(
        YOSYS,
        ["-q", "-l", "yosys.log", "-p", "read_verilog one.v; write_json one.json"],
        tmp_path / "yosys.log",
        writes_log=True,
    )
    assert '"one"' in (tmp_path / "one.json").read_text()
