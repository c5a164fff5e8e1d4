"""The configuration object: presets, file round trip, and one sentence for each bad knob."""

import dataclasses
import json

import pytest

from celosia.rtl.config import PRESETS, BadConfig, EngineConfig


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_json_round_trip_keeps_the_configuration_and_its_digest(preset, tmp_path):
    path = tmp_path / "engine.json"
    path.write_text(preset.to_json())
    assert EngineConfig.load(str(path)) == preset
    assert EngineConfig.load(str(path)).digest == preset.digest


def test_digest_depends_on_every_knob_but_the_name():
    preset = PRESETS["test"]
    assert dataclasses.replace(preset, name="other").digest == preset.digest
    assert dataclasses.replace(preset, memory_bytes=4).digest != preset.digest
    for field in dataclasses.fields(preset):
        if field.name in ("name", "lanes", "lane_cycles", "cols", "act_banks", "act_ports", "constant_ports", "pipelining", "memory_bytes"):
            continue
        value = getattr(preset, field.name)
        try:
            other = dataclasses.replace(preset, **{field.name: value // 2})
        except BadConfig:
            other = dataclasses.replace(preset, **{field.name: value * 2})
        assert other.digest != preset.digest, field.name


@pytest.mark.parametrize(
    "knobs, sentence",
    [
        ({"memory_bytes": 8}, "memory_bytes must be 0 or a power of two between 4 and 4, the smallest of 64, rows, weight_rows \\* cols, 8 \\* lanes and "
                              "fetch_bits / 8, not 8"),
        ({"memory_bytes": 4, "act_ports": 1, "act_banks": 1, "depthwise_rows": 0}, "memory_bytes = 4 needs act_ports = 2, not 1"),
        ({"memory_bytes": 4, "program_depth": 1000}, "memory_bytes = 4 needs a power of two of program_depth, not 1000"),
        ({"act_ports": 3}, "act_ports must be between 1 and 2, not 3"),
        ({"act_ports": 1}, "act_ports = 1 needs act_banks = 1, depthwise_rows = 0 and lanes at most cols / 2, not 2, 2 and 2 with cols = 4"),
        ({"constant_ports": 0}, "constant_ports must be between 1 and 2, not 0"),
        ({"constant_ports": 1}, "constant_ports = 1 needs cols = 4, weight_rows = 1, lane_cycles = 4, fetch_bits = 32 and fill = 0, "
                                "not 4, 1, 1, 32 and 1"),
        ({"counters": 2}, "counters must be between 0 and 1, not 2"),
        ({"maximum": 2}, "maximum must be between 0 and 1, not 2"),
        ({"pipelining": 0}, "pipelining = 0 needs lane_cycles = 4 and depthwise_rows = 0, not 1 and 2"),
        ({"debug": -1}, "debug must be between 0 and 1, not -1"),
        ({"rows": 6}, "rows must be a power of two, not 6"),
        ({"rows": 2}, "rows must be between 4 and 64, not 2"),
        ({"cols": 8}, "cols must be between 1 and 4, not 8"),
        ({"weight_rows": 4}, "weight_rows must be between 1 and 2, not 4"),
        ({"lanes": 8}, "lanes must be between 1 and 4, not 8"),
        ({"act_banks": 3}, "act_banks must be 1, 2 or 4, not 3"),
        ({"act_depth": 4095}, r"act_depth must be a multiple of act_banks \(2\), not 4095"),
        ({"acc_depth": 2048}, "acc_depth must be between 8 and 1024, not 2048"),
        ({"tables": 0}, "tables must be a power of two, not 0"),
        ({"combine": 2}, "combine must be between 0 and 1, not 2"),
        ({"fill": 2}, "fill must be between 0 and 1, not 2"),
        ({"lane_cycles": 2}, "lane_cycles must be 1 or 4, not 2"),
        ({"lane_cycles": 4, "lanes": 1}, "lane_cycles of 4 needs lanes of 1, combine of 0 and at least 4 cols, not 1, 1 and 4"),
        ({"rows": 4.0}, "rows must be an integer, not 4.0"),
        ({"fetch_bits": 48}, "fetch_bits must be 32, 64, 128 or 256, not 48"),
        ({"queue_depth": True}, "queue_depth must be an integer, not True"),
    ],
)
def test_bad_knob_is_named(knobs, sentence):
    with pytest.raises(BadConfig, match=sentence):
        dataclasses.replace(PRESETS["test"], **knobs)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "engine.json"
    facts = json.loads(PRESETS["test"].to_json())
    for text, sentence in [
        ("{", "must be JSON"),
        ("[]", "must be a JSON object, not list"),
        (json.dumps(facts | {"row": 4}), "'row' is not a knob of the engine"),
        (json.dumps({"rows": 4}), "cols is missing"),
    ]:
        path.write_text(text)
        with pytest.raises(BadConfig, match=sentence):
            EngineConfig.load(str(path))
    with pytest.raises(BadConfig, match="engine must be one of test, mac64, mac256"):
        EngineConfig.load("huge")
    with pytest.raises(BadConfig, match="No such file"):
        EngineConfig.load(str(tmp_path / "missing.json"))
