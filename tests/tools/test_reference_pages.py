"""The reference pages in `docs/` are what the definitions say."""

import re
from pathlib import Path

import pytest

from celosia.tools.reference_pages import PAGES, main

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_up_to_date(name):
    assert (DOCS / name).read_text() == PAGES[name](), "run `make docs`"


def test_isa_page_has_every_field_once():
    text = PAGES["isa.md"]()
    assert "| 47:32 | `weights` | 16 | unsigned |" in text
    assert "| 245 | `max` | 1 | unsigned |" in text
    assert "| 11 | `DEADLOCK` | every unit that has work waits for a token that nobody will send |" in text


def test_pages_are_written_only_where_they_change(tmp_path, capsys):
    main([str(tmp_path)])
    assert capsys.readouterr().out.count("wrote") == len(PAGES)
    main([str(tmp_path)])
    assert capsys.readouterr().out == ""


def test_figures_of_the_readme_are_those_with_a_command():
    rows = re.findall(r"^\| ([^,|]+).*\| ([\d,]+) \| ([\d.]+ %) \|$", (DOCS.parent / "README.md").read_text(), re.M)
    performance = (DOCS / "performance.md").read_text()
    assert len(rows) == 5
    for network, cycles, share in rows[3:]:  # of `celosia bench --engine mac256_port`
        (line,) = [line for line in performance.splitlines() if line.startswith(f"| `{network.strip().lower().replace('-', '')}`")]
        assert f"| {cycles} | {share} |" in line
    for network, cycles, share in rows[:3]:
        (line,) = [line for line in performance.splitlines() if line.startswith("| MLPerf Tiny " + network.strip())]
        assert f"| {cycles} | {share} | `celosia run" in line
