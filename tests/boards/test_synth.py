"""Seeds, time limits and the demanded clock of `make synth`, with stand-ins for Yosys and nextpnr."""

import json

import pytest

from celosia.boards import synth

CLOCKS = {1: None, 2: 77.6, 3: 82.1, 4: 90.0}


@pytest.fixture
def tried(monkeypatch):
    """Seeds in the order in which they are placed; seed 1 never ends."""
    seeds = []

    def place(config, out, *, device, seed, clock, minutes):
        seeds.append(seed)
        if CLOCKS[seed] is None:
            raise synth.OutOfTime(f"nextpnr was stopped after {minutes:g} minutes")
        return {"engine": config.name, "device": device, "speed": 6, "clock": CLOCKS[seed], "seed": seed}

    monkeypatch.setattr(synth, "synthesise", lambda config, out: 1.0)
    monkeypatch.setattr(synth, "place", place)
    return seeds


def run(tmp_path, *arguments):
    return synth.main(["--preset", "test", "--out", str(tmp_path), "--minutes", "1", *arguments])


def test_the_first_seed_with_the_clock_ends_the_search(tried, tmp_path):
    assert run(tmp_path, "--at-least", "80", "--seed", "1", "2", "3", "4") == 0
    assert tried == [1, 2, 3]
    assert json.loads((tmp_path / "summary.json").read_text())["clock"] == 82.1


def test_a_clock_that_no_seed_reaches_is_an_error_with_the_best_one(tried, tmp_path, capsys):
    assert run(tmp_path, "--at-least", "80", "--seed", "1", "2") == 1
    assert "clock 77.6 MHz is below 80.0 MHz" in capsys.readouterr().err


def test_without_a_demand_every_seed_is_tried(tried, tmp_path):
    assert run(tmp_path, "--seed", "2", "3", "4") == 0
    assert tried == [2, 3, 4]


def test_no_routed_seed_is_one_sentence(tried, tmp_path, capsys):
    assert run(tmp_path, "--seed", "1") == 1
    assert capsys.readouterr().err == "no seed of [1] was routed in 1 minutes\n"


def test_an_unknown_preset_is_one_sentence(tried, tmp_path, capsys):
    assert synth.main(["--preset", "mac65", "--out", str(tmp_path)]) == 1
    assert "mac65" in capsys.readouterr().err
