"""Sweeps of configurations: the space, results that are kept, the front, local processes and a Dask cluster."""

import json
import random

import pytest

from celosia.rtl.config import PRESETS
from celosia.tools.bench.networks import network
from celosia.tools.cli import main
from celosia.tools.errors import BadConfig, BadFile
from celosia.tools.estimate import estimate_model
from celosia.tools.explore.space import DEFAULT, read_space
from celosia.tools.explore.sweep import evaluate, front, read_results, sweep
from celosia.tools.session import open_model

SPACE = """
base = "test"
models = ["gemm-4x16x16", "gemm-1x16x32"]
[knobs]
lanes = [1, 2, 4, 3]
acc_depth = [32, 64]
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.toml").write_text(SPACE)
    return tmp_path / "space.toml"


def test_a_space_has_every_combination_that_is_a_configuration(space):
    found = read_space(space)
    assert found.refused == 2 and len(found.configs) == 6 and found.models == ("gemm-4x16x16", "gemm-1x16x32")
    assert {(config.lanes, config.acc_depth) for config in found.configs} == {(lanes, depth) for lanes in (1, 2, 4) for depth in (32, 64)}
    assert read_space(space, ["dscnn"]).models == ("dscnn",)
    assert len(read_space().configs) == 48 and read_space().models == tuple(DEFAULT["models"])


@pytest.mark.parametrize("text, problem", [
    ("base = 3.5.1", "must be TOML"),
    ("bass = 'test'", "'bass' is not known; a space has the keys base, models, knobs"),
    ("[knobs]\nrow = [4]", "'row' is not a knob of the engine"),
    ("[knobs]\nrows = 4", "knob rows must be a list of integers, not 4"),
    ("[knobs]\nrows = [3]", "none of its 1 combinations is a configuration"),
    ("models = ['resnet9']", "network must be one of resnet8"),
    ("models = ['missing.onnx']", "missing.onnx: no such file"),
])  # fmt: skip
def test_a_space_that_makes_no_sense_is_refused(text, problem, tmp_path):
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises((BadConfig, BadFile), match=problem):
        read_space(tmp_path / "space.toml")


def test_cycles_are_those_of_the_estimate():
    row = evaluate(PRESETS["test"], ["gemm-4x16x16"])
    data = network("gemm-4x16x16").model().SerializeToString()
    assert row["cycles"]["gemm-4x16x16"] == estimate_model(open_model(data, PRESETS["test"]), PRESETS["test"]).cycles == round(row["mean"])
    assert (row["macs"], row["problem"]) == (16, "")
    too_large = evaluate(PRESETS["test"], ["resnet50"])
    assert too_large["mean"] is None and "too small" in too_large["problem"]


def test_a_sweep_goes_on_where_it_stopped(space, tmp_path):
    found, results = read_space(space), tmp_path / "results.jsonl"
    everything = sweep(found, results, workers=1)
    lines = results.read_text().splitlines()
    assert len(lines) == len(everything) == 6
    results.write_text("\n".join(lines[:2]) + "\n" + lines[2][:50])  # interrupted in a line
    told = []
    again = sweep(found, results, workers=1, done=told.append)
    assert sorted(row["key"] for row in again) == sorted(row["key"] for row in everything) and len(told) == 6
    kept = results.read_text().splitlines()
    assert kept[:2] == lines[:2] and len(kept) == 6
    assert {key: row["cycles"] for key, row in read_results(results).items()} == {row["key"]: row["cycles"] for row in everything}
    assert sweep(found, results, workers=1) and results.read_text().splitlines() == kept


def test_a_file_of_something_else_is_not_written_to(tmp_path):
    (tmp_path / "notes.txt").write_text("milk\nbread\n")
    with pytest.raises(BadFile, match="line 1 is no result of `celosia explore`"):
        read_results(tmp_path / "notes.txt")


def test_nothing_beats_the_front_and_it_beats_the_rest():
    rng = random.Random(4)
    rows = [{"mean": rng.randrange(1, 40), "macs": rng.randrange(1, 40)} for _ in range(200)] + [{"mean": None, "macs": 1}]
    best = front(rows, "macs")
    for row in rows[:-1]:
        better = [one for one in best if one["mean"] <= row["mean"] and one["macs"] <= row["macs"]]
        assert better and (row not in best or better == [row])


def test_a_dask_cluster_finds_the_same(space, tmp_path):
    distributed = pytest.importorskip("distributed")
    found = read_space(space)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        remote = sweep(found, tmp_path / "remote.jsonl", scheduler=cluster.scheduler_address)
    local = sweep(found, tmp_path / "local.jsonl", workers=1)
    assert sorted(map(json.dumps, remote)) == sorted(map(json.dumps, local))


def test_the_command_prints_the_front_and_writes_what_is_asked_for(space, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["explore", "--space", "space.toml", "--workers", "1", "--svg", "front.svg", "--json", "front.json"]) == 0
    out = capsys.readouterr().out
    assert "Pareto front" in out and "6 configurations" in out and "2 combinations are none" in out
    facts = json.loads((tmp_path / "front.json").read_text())
    assert set(facts["front"]) <= {row["name"] for row in facts["results"]} and len(facts["results"]) == 6
    assert (tmp_path / "front.svg").read_text().count("<circle") == 6


@pytest.mark.parametrize("arguments, problem", [
    (["--cost", "lut4"], "--cost lut4 needs --area"),
    (["--space", "nowhere.toml"], "nowhere.toml"),
    (["--space", "space.toml", "--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
])  # fmt: skip
def test_a_wrong_command_says_what_is_wrong(arguments, problem, space, tmp_path, capsys, monkeypatch):
    if "--scheduler" in arguments:
        pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    assert main(["explore", *arguments]) == 1
    assert problem in capsys.readouterr().err
