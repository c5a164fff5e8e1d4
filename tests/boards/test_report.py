"""docs/fpga.md is what the records say, and the area of a small preset is still what its record says."""

import json
from pathlib import Path

import pytest

from celosia.boards import report
from celosia.boards.catalog import BOARDS
from celosia.boards.results import FOLDER, recorded

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fpga.md"


def test_the_page_is_what_the_records_say():
    assert PAGE.read_text() == report.page(), "run `make fpga-report`"


def test_every_record_is_of_a_board_or_of_the_preset_that_is_looked_after():
    assert {file.stem for file in FOLDER.glob("*.json")} <= {*BOARDS, report.AREA_PRESET}


def test_a_small_preset_takes_what_its_record_says():
    area, record = report.area_of(report.AREA_PRESET), recorded(report.AREA_PRESET)
    for name, cells in record.items():
        assert area[name] == pytest.approx(cells, rel=0.05), (
            f"{name}: if this is meant, run `python -m celosia.boards.report --area` and commit the record"
        )


def facts(seed, clock):
    path = {"from": "a", "to": "b", "ns": 12.0, "logic_ns": 4.0}
    area = {name: {"used": 3000, "available": 24288} for name in ("LUT4", "FF", "DSP", "RAM")}
    return {
        "board": "ulx3s_12f", "device": "LFE5U-12F-6BG381", "engine": "ulx3s_12f", "digest": "0", "design": "1", "macs": 16, "target": 75.0,
        "area": area, "lut4_per_mac": 187.5, "clocks": {}, "clock": clock, "critical_path": path, "seed": seed,
    }  # fmt: skip


def test_a_record_is_the_fastest_seed_and_the_clocks_of_all(monkeypatch, tmp_path):
    record = report.record_of([facts(1, 70.0), facts(2, 90.0), facts(3, 80.0)])
    assert record["seed"] == 2 and record["seeds"] == {"1": 70.0, "2": 90.0, "3": 80.0}
    (tmp_path / "ulx3s_12f.json").write_text(json.dumps(record))
    monkeypatch.setattr("celosia.boards.results.FOLDER", tmp_path)
    page = report.page()
    assert (
        "| `ulx3s_12f` | LFE5U-12F-6BG381 | 4 × 4 | 3,000 of 24,288 | 3,000 of 24,288 | 3,000 of 24,288 | 3,000 of 24,288 | 75 MHz | "
        "70.0 / 80.0 / 90.0 MHz (3 seeds) | 187.5 | 2.40 |" in page
    )
    assert "| `ulx3s_12f` | `a` | `b` | 12 ns | 4 ns |" in page
    assert "--measure ulx3s_12f --seed 1 2 3`" in page
    assert "| `icebreaker` | iCE40UP5K-SG48 | 4 × 4 |  |  |  |  | 18 MHz | not measured |  |  |" in page
