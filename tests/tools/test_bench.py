"""Generated networks: published shapes, values that use their range, compute-only bounds, and `celosia bench`."""

import json
from pathlib import Path

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.tools.bench import levers
from celosia.tools.bench.bounds import bound, model_bound
from celosia.tools.bench.convs import CAUSES, SHAPES, lost_cycles
from celosia.tools.bench.measure import SWEEP, measure
from celosia.tools.bench.networks import NETWORKS, conv, gemm, network
from celosia.tools.check import Reference
from celosia.tools.cli import main
from celosia.tools.compiler import ir
from celosia.tools.compiler.frontend import lower
from celosia.tools.compiler.options import CompilerOptions

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
MAC256 = PRESETS["mac256"]
MACS = {
    "resnet8": 12_501_632, "dscnn": 2_656_768, "vww": 7_489_664, "autoencoder": 264_192,
    "resnet50": 3_857_973_248, "mobilenetv1": 568_740_352, "mobilenetv2": 300_774_272,
}  # fmt: skip
TINY = {
    "resnet8": "mlperf_ic_resnet8_int8", "dscnn": "mlperf_kws_dscnn_int8",
    "vww": "mlperf_vww_mobilenetv1_int8", "autoencoder": "mlperf_ad_autoencoder_int8",
}  # fmt: skip


def graphs(model):
    return [segment for segment in lower(model, MAC256).segments if isinstance(segment, ir.Graph)]


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_published(name):
    assert network(name).macs == MACS[name]


@pytest.mark.parametrize("name", ["resnet8", "dscnn", "vww", "autoencoder", "mobilenetv2"])
def test_values_use_their_range(name):
    net = network(name)
    model = net.model()
    tensors = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    outputs = {value.name for value in model.graph.output}
    reference = Reference(model.SerializeToString(), keep=[tensor for tensor in tensors if tensor not in outputs])
    values = reference.run({key: array[:, None] for key, array in net.feed(2).items()}, 2)
    for tensor in tensors:
        integers = values[tensor].astype(int)
        assert 8 < integers.std() < 64, tensor
        assert (integers == 127).mean() < 0.03, tensor
        assert (integers[0] != integers[1]).mean() > 0.2, tensor


def test_generation_is_reproducible():
    assert network("resnet8").model() == network("resnet8").model()
    assert all(np.array_equal(a, b) for a, b in zip(gemm(2, 3, 4).feed().values(), gemm(2, 3, 4).feed().values()))


@pytest.mark.skipif(not MODELS.exists(), reason="the MLPerf Tiny models are not part of the project")
@pytest.mark.parametrize("name", TINY)
def test_layers_are_those_of_the_official_models(name):
    def shapes(model):
        return [
            (
                type(node).__name__, node.weight.shape if isinstance(node, ir.Weighted) else node.kernel,
                node.stride, node.pads, getattr(node, "group", 1), node.combine is not None,
            )
            for graph in graphs(model) for node in graph.nodes
        ]  # fmt: skip

    assert sorted(shapes(network(name).model().SerializeToString())) == sorted(shapes(MODELS / f"{TINY[name]}.onnx"))


@pytest.mark.parametrize(
    "name, plain, loading", [("resnet8", 49_156, 49_216), ("dscnn", 11_504, 11_564), ("vww", 36_664, 39_760)]
)
def test_bounds_of_the_tiny_networks(name, plain, loading):
    model = network(name).model().SerializeToString()
    assert model_bound(model, MAC256) == plain
    assert model_bound(model, MAC256, weight_rows=1) == loading
    known = {"resnet8": 49_300, "dscnn": 11_600, "vww": 39_700}[name]  # of an array that loads a row of weights per cycle
    assert loading == pytest.approx(known, rel=0.004)


@pytest.mark.parametrize(
    "builder, cycles",
    [
        (conv(3, 32, 16, 3, 1), 2 * 1024),  # 27 taps in two passes
        (conv(3, 16, 16, 6, 2), 9 * 64),  # two rows of six taps a pass
        (conv(16, 8, 24, 3, 2), 9 * 2 * 16),
        (conv(32, 8, 32, 3, 1, depthwise=True), 2 * 64),
        (conv(32, 8, 32, 5, 1, depthwise=True), 2 * 2 * 64),  # 25 taps in two passes
        (gemm(40, 100, 20), 7 * 2 * 40),
    ],
)
def test_bound_counts_passes(builder, cycles):
    assert model_bound(builder.model().SerializeToString(), MAC256) == cycles


def test_bound_of_a_grouped_convolution_counts_the_blocks_that_have_weights():
    (graph,) = graphs(conv(64, 4, 64, 1, 1).model().SerializeToString())
    (node,) = graph.nodes
    grouped = ir.Conv(
        **{name: getattr(node, name) for name in ("name", "operator", "sources", "input", "output", "scale", "zero_point", "bias")},
        weight=node.weight[:, :16], group=4,
    )  # fmt: skip
    assert bound(node, graph, MAC256) == 4 * 4 * 16
    assert bound(grouped, graph, MAC256) == 4 * 16


def test_measurement_on_a_small_engine():
    row, report = measure(conv(4, 8, 8, 3, 1), "test")
    assert row.differences == 0 and row.elements == 512
    assert row.cycles == report.cycles and row.ratio == row.bound / row.cycles
    assert (row.bound, row.macs) == (9 * 2 * 64, 9 * 32 * 64)


def test_networks_that_do_not_fit_are_listed_with_the_reason(capsys, tmp_path):
    assert main(["bench", "gemm-16x16x16", "gemm-999x16x999", "--engine", "test", "--json", str(tmp_path / "b.json")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "gemm-999x16x999: does not fit: the activation memory is" in printed
    assert "0 of 256 output elements differ" in printed
    small, large = json.loads((tmp_path / "b.json").read_text())["networks"]
    assert small["cycles"] > small["bound"] == 256 and small["differences"] == 0
    assert large["cycles"] is None and "does not fit" in large["reason"]


def test_a_difference_makes_the_command_fail(monkeypatch, capsys):
    from celosia.tools.bench import measure as module

    run = module.InferenceSession.run
    monkeypatch.setattr(module.InferenceSession, "run", lambda *args: [run(*args)[0] ^ np.int8(1)])
    assert main(["bench", "gemm-2x4x4", "--engine", "test", "--on", "golden"]) == 1
    assert "8 of 8 output elements differ" in capsys.readouterr().out


def test_unknown_network_and_saved_files(capsys, tmp_path):
    assert main(["bench", "resnet9"]) == 1
    assert "network must be one of resnet8" in capsys.readouterr().err
    assert main(["bench", "gemm-2x4x4", "--save", str(tmp_path / "new")]) == 0
    capsys.readouterr()
    model, feed = (str(tmp_path / "new" / f"gemm-2x4x4.{suffix}") for suffix in ("onnx", "npz"))
    assert main(["run", model, "--input", feed, "--engine", "test", "--on", "golden", "--check"]) == 0


def test_shapes_span_what_is_promised():
    channels, sizes, outputs, kernels, strides = (set(column) for column in zip(*SHAPES))
    assert len(SHAPES) == len(set(SHAPES)) == 60
    assert kernels == set(range(1, 8)) and strides == {1, 2, 3}
    for column, most in ((channels, 512), (sizes, 112), (outputs, 512)):
        assert min(column) == 1 and 0.8 * most < max(column) <= most


@pytest.mark.parametrize(
    "shape, name",
    [
        ((8, 1, 16, 3, 1), "weights"),  # one pixel for each tile
        ((3, 12, 1, 2, 3), "input"),
        ((4, 1, 4, 1, 1), "overhead"),
    ],
)
def test_lost_cycles_are_named(shape, name):
    row, report = measure(conv(*shape), "test", options=CompilerOptions(blocked_inputs=True))
    lost = lost_cycles(report.traces[0], row.bound, PRESETS["test"])
    assert lost.keys() == CAUSES.keys()
    assert max(lost, key=lambda key: lost[key]) == name
    assert row.bound + sum(lost.values()) == row.cycles
    assert row.differences == 0


def test_blocked_inputs_give_the_same_results():
    row, _ = measure(conv(6, 5, 7, 3, 2), "test", "golden", options=CompilerOptions(blocked_inputs=True))
    assert row.differences == 0 and row.elements == 63
    assert row.bound == 9 * 2 * 2 * 9


def test_bench_holds_what_it_promises(tmp_path, capsys):
    assert main(["bench", "resnet8", "dscnn", "vww", "autoencoder", "gemm-256x256x256", "--json", str(tmp_path / "b.json")]) == 0
    capsys.readouterr()
    for row in json.loads((tmp_path / "b.json").read_text())["networks"]:
        assert row["cycles"] <= row["must"] and row["differences"] == 0 and row["elements"]


@pytest.mark.slow
def test_sweep_of_convolutions(tmp_path, capsys):
    assert main(["bench", "--convs", "--json", str(tmp_path / "b.json")]) == 0
    assert "median ratio of 60 convolutions" in capsys.readouterr().out
    rows = json.loads((tmp_path / "b.json").read_text())["convolutions"]
    assert np.median([row["ratio"] for row in rows]) >= 0.85
    assert all(row["cause"] for row in rows if row["ratio"] < 0.5)
    assert all(row["differences"] == 0 and row["elements"] for row in rows)


@pytest.mark.slow
def test_whole_bench(tmp_path, capsys):
    assert main(["bench", "--json", str(tmp_path / "b.json")]) == 0
    capsys.readouterr()
    rows = json.loads((tmp_path / "b.json").read_text())["networks"]
    assert [row["name"] for row in rows] == [*NETWORKS, *SWEEP]
    assert all(row["reason"] if row["cycles"] is None else row["differences"] == 0 for row in rows)


def test_levers_only_take_from_an_engine():
    found = list(levers.variants(MAC256))
    assert len(found) == len(levers.LEVERS)
    for _, builder, knobs, config in found:
        assert builder.name in NETWORKS and knobs in config.name and config.digest != MAC256.digest
    assert not any("lanes" in knobs for _, _, knobs, _ in levers.variants(PRESETS["test"]))


def test_levers_print_a_line_each(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(levers, "LEVERS", (("lanes", "gemm-4x16x16", {"lanes": 1}),))
    assert main(["bench", "--levers", "--engine", "test", "--on", "golden", "--json", str(tmp_path / "levers.json")]) == 0
    assert "lanes = 1" in capsys.readouterr().out
    (line,) = json.loads((tmp_path / "levers.json").read_text())["levers"]
    assert (line["network"], line["knobs"], line["more"]) == ("gemm-4x16x16", "lanes = 1", None)


def test_a_board_has_milliseconds(capsys, tmp_path):
    assert main(["bench", "gemm-4x16x16", "--engine", "ulx3s_12f", "--json", str(tmp_path / "bench.json")]) == 0
    assert "GMAC/s at the 50 MHz of the board ulx3s_12f" in capsys.readouterr().out
    facts = json.loads((tmp_path / "bench.json").read_text())
    (row,) = facts["networks"]
    assert row["milliseconds"] == pytest.approx(row["cycles"] / 50_000) and facts["clock_mhz"] == 50
