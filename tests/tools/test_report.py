"""Cycles are divided among layers without loss, and the timeline is a picture of them."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from celosia.tools.program import Layer, Program
from celosia.tools.report import Event, LayerReport, Report, attribute, table
from celosia.tools.timeline import timeline


def layer(name, first, last, macs=0):
    return Layer(name=name, operator="Conv", sources=(name,), output=name, macs=macs, instructions=(first, last))


LAYERS = (layer("first", 0, 2, 640), layer("second <&>", 2, 4, 1280))
EVENTS = [
    Event("load", 0, 2, 10),
    Event("execute", 0, 8, 20),
    Event("store", 1, 18, 30),
    Event("execute", 2, 25, 40),
    Event("store", 3, 38, 47),
]


def program():
    empty = np.zeros(0)
    return Program(
        name="p", digest=0, config="{}", instructions=empty, weights=empty, params=empty, tables=empty,
        inputs=(), outputs=(), layers=LAYERS,
    )  # fmt: skip


def test_every_cycle_is_counted_once():
    shares, unexplained = attribute(EVENTS, LAYERS, 50)
    # 0-2 nobody, 2-20 first, 20-25 its store, 25-40 the second's execute, 40-47 its store, 47-50 nobody.
    assert shares == [23, 22]
    assert unexplained == 5


def test_the_array_goes_before_the_store_unit():
    events = [Event("store", 1, 0, 10), Event("execute", 2, 4, 6)]
    assert attribute(events, LAYERS, 10) == ([8, 2], 0)


def test_events_beyond_the_run_are_cut():
    assert attribute([Event("execute", 0, 0, 99)], LAYERS, 10) == ([10, 0], 0)


@pytest.mark.parametrize("seed", range(5))
def test_shares_add_up_whatever_the_events(seed):
    rng = np.random.default_rng(seed)
    events = []
    for unit in ("load", "execute", "store"):
        start = 0
        for index in range(4):
            start += int(rng.integers(0, 20))
            end = start + int(rng.integers(1, 30))
            events.append(Event(unit, index, start, end))
            start = end
    shares, unexplained = attribute(events, LAYERS, 100)
    assert sum(shares) + unexplained == 100


def report():
    result = Report(model="net.onnx", engine="test", backend="verilator", inferences=3, peak=16)
    result.add_program(program(), 50, EVENTS)
    result.layers.append(LayerReport(name="end", operator="Softmax", where="host", cycles=None, macs=0, utilization=None))
    return result


def test_report_adds_up_and_has_the_documented_keys():
    facts = report().to_dict()
    for key in ("cycles", "macs", "utilization", "elements", "differences", "ties", "layers", "engine", "model", "version"):
        assert key in facts
    assert facts["cycles"] == 50
    assert facts["macs"] == 1920
    assert facts["utilization"] == 1920 / (50 * 16)
    assert sum(row["cycles"] for row in facts["layers"] if row["where"] == "engine") + facts["unexplained_cycles"] == 50
    assert facts["layers"][0] == {
        "name": "first", "operator": "Conv", "where": "engine", "cycles": 23, "macs": 640, "utilization": 640 / (23 * 16),
    }  # fmt: skip
    assert facts["layers"][2]["where"] == "host" and facts["layers"][2]["cycles"] is None


def test_golden_report_has_no_cycles():
    result = Report(model="net.onnx", engine="test", backend="golden", inferences=1, peak=16)
    result.add_program(program(), None, [])
    assert result.cycles is None and result.utilization is None
    assert [row.cycles for row in result.layers] == [None, None]


def test_table_has_a_row_for_each_layer_and_the_total():
    # first, second, host node, idle cycles, total
    assert table(report()).row_count == 5


def test_timeline_is_a_self_contained_picture():
    text = timeline(program(), EVENTS, 50, title="net <on> test")
    root = ElementTree.fromstring(text)
    tooltips = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(tooltips) == len(EVENTS)
    assert "second <&>: instruction 2, cycles 25 to 40" in tooltips
    assert "prefers-color-scheme:dark" in text
    assert text.count("http") == 1  # the namespace: nothing is loaded from anywhere


def test_long_timeline_is_cut_into_strips_that_lose_nothing():
    events = [Event("execute", 0, start, start + 700) for start in range(0, 49_000, 1000)]
    text = timeline(program(), events, 50_000, title="long")
    drawn = {node.text for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}title")}
    assert len(drawn) == len(events)
