"""Each cycle of a run has one cause; the page is one file that a browser shows, in the dark and on a phone; the trace is what viewers read."""

import dataclasses
import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from random_graphs import build, random_recipe

from celosia.rtl.config import PRESETS
from celosia.sim.external import MemoryTiming
from celosia.tools.cli import main
from celosia.tools.demo import MODEL
from celosia.tools.errors import DoesNotFit
from celosia.tools.profile.causes import CAUSES, UNEXPLAINED, profile_program
from celosia.tools.profile.trace import trace
from celosia.tools.session import InferenceSession

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
UNEXPLAINED_LIMIT = 0.02
SMALL = dataclasses.replace(PRESETS["test_port"], name="small", act_depth=256, weight_tiles=40, param_depth=64)


def profiles(model, config, memory=None):
    session = InferenceSession(model, config, workers=1, memory=memory)
    feed = {name: np.zeros([max(size, 1) for size in shape], dtype) for name, dtype, shape in session.model.inputs}
    session.run(None, feed)
    return [profile_program(program, session.config, events, cycles) for program, events, cycles in session.report.traces]


def check(profile):
    """Hold a profile to what must be true of all of them."""
    assert profile.causes.total() == profile.cycles == sum(layer.cycles for layer in profile.layers)
    assert set(profile.causes) <= {*CAUSES, UNEXPLAINED} and min(profile.causes.values()) > 0
    assert profile.causes[UNEXPLAINED] < UNEXPLAINED_LIMIT * profile.cycles, profile.causes
    macs = sum(layer.macs for layer in profile.program.layers)
    assert profile.causes["multiply"] * profile.config.macs >= macs


@pytest.mark.parametrize("engine", ["test", "mac64", "mac256"])
def test_every_cycle_of_the_digits_is_explained(engine):
    (profile,) = profiles(MODEL, PRESETS[engine])
    check(profile)
    assert profile.causes["multiply"] > profile.cycles // 3
    assert all(layer.memory_bytes for layer in profile.layers[:-1]) and not any(layer.external_bytes for layer in profile.layers)


@pytest.mark.parametrize("memory", [MemoryTiming(), MemoryTiming(latency=200, stalls=5)], ids=str)
def test_random_networks_are_explained_streamed_or_not(memory, tmp_path):
    streamed = 0
    for seed in range(12):
        onnx.save(build(random_recipe(seed))[0], tmp_path / "net.onnx")
        for config in (SMALL, PRESETS["test"]):
            try:
                found = profiles(tmp_path / "net.onnx", config, memory if config.memory_bytes else None)
            except DoesNotFit:
                continue
            for profile in found:
                check(profile)
                outside = sum(layer.external_bytes for layer in profile.layers)
                assert bool(outside) == bool(profile.program.memory_bytes)
                streamed += bool(outside)
    assert streamed >= 2


def test_a_trace_has_every_instruction_once_and_in_its_unit():
    (profile,) = profiles(MODEL, PRESETS["mac256"])
    events = [event for event in trace([profile], "digits")["traceEvents"] if event["ph"] == "X"]
    assert sorted(event["args"]["instruction"] for event in events) == list(range(len(profile.program.instructions) - 1))
    assert {event["cat"] for event in events} == {"load", "execute", "store"}
    assert max(event["ts"] + event["dur"] for event in events) <= profile.cycles
    for unit in ("load", "execute", "store"):
        spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["cat"] == unit)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of one profile."""
    folder = tmp_path_factory.mktemp("profile")
    names = {kind: folder / f"digits.{kind}" for kind in ("html", "trace", "json")}
    assert main(["profile", str(MODEL), *(part for kind, path in names.items() for part in (f"--{kind}", str(path)))]) == 0
    return names


def test_the_command_writes_json_that_adds_up(written):
    facts = json.loads(written["json"].read_text())
    (segment,) = facts["segments"]
    assert sum(segment["causes"].values()) == segment["cycles"] == sum(layer["cycles"] for layer in segment["layers"])
    assert segment["unexplained"] < UNEXPLAINED_LIMIT
    assert json.loads(written["trace"].read_text())["traceEvents"]


def test_the_page_fetches_nothing_and_runs_nothing(written):
    text = written["html"].read_text()
    without_names = text.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in without_names and "<script" not in text and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width, dark", [(1200, False), (412, True)], ids=["desktop", "phone in the dark"])
def test_a_browser_shows_the_page(written, tmp_path, width, dark):
    # The page measures nothing itself: a frame around it does, as wide as the screen, and writes down what it finds.
    frame = tmp_path / "frame.html"
    page = re.sub(r"</body>", """<script>
      const wide = document.documentElement.scrollWidth <= innerWidth, shown = [...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 80);
      document.title = ['fits', wide, 'drawn', shown, 'rows', document.querySelectorAll('tr').length, 'paper', getComputedStyle(document.body).backgroundColor].join(' ');
    </script></body>""", written["html"].read_text())  # fmt: skip
    frame.write_text(page)
    flags = [*FLAGS, f"--user-data-dir={tmp_path / 'user'}", f"--window-size={max(width, 500)},1500"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    dump = subprocess.run([BROWSER, *flags, "--dump-dom", frame.as_uri()], capture_output=True, encoding="utf-8", timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dump)[1]
    layers = sum(layer["cycles"] > 0 or layer["macs"] > 0 for layer in json.loads(written["json"].read_text())["segments"][0]["layers"])
    assert f"fits true drawn true rows {layers + 1}" in title, title
    assert title.endswith("rgb(23, 24, 27)" if dark else "rgb(255, 255, 255)"), title
    picture = tmp_path / "page.png"
    flags[-2 if dark else -1] = f"--window-size={max(width, 500)},2600"
    subprocess.run([BROWSER, *flags, f"--screenshot={picture}", written["html"].as_uri()], capture_output=True, timeout=120, check=True)
    assert picture.stat().st_size > 30_000  # not an empty page


@pytest.mark.parametrize("arguments, problem", [
    (["--on", "golden"], "profile needs what only a simulator sees, and on 'golden' there is none of it; use --on verilator or --predict"),
    (["--html", "nowhere/page.html"], "there is no folder nowhere"),
    (["--html", "same.x", "--trace", "same.x"], "--trace must be another file than --html same.x"),
])  # fmt: skip
def test_a_wrong_command_says_what_is_wrong(arguments, problem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", str(MODEL), *arguments]) == 1
    assert problem in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())


def test_a_prediction_needs_no_simulator(capsys):
    assert main(["profile", str(MODEL), "--predict"]) == 0
    out = capsys.readouterr().out
    assert "predicted by the cycle model" in out and "unexplained" in out
