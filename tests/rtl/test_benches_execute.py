"""The cocotb benches of the execute side, on every simulator there is."""

import pytest

from celosia.rtl.array import Array
from celosia.rtl.execute import Execute
from celosia.rtl.multiplier import Multiplier
from celosia.sim.benches.ecp5 import mult18x18d
from celosia.sim.benches.runner import SIMULATORS, BenchFailed, run
from celosia.sim.benches.stimuli import small_engine


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("width_a, width_b", [(8, 8), (18, 17)])
def test_multiplier(simulator, width_a, width_b):
    widths = {"width_a": width_a, "width_b": width_b}
    run(Multiplier(**widths, form="portable"), "multiplier", simulator=simulator, **widths)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_multiplier_made_of_the_ecp5_primitive(simulator):
    widths = {"width_a": 8, "width_b": 18}
    run(Multiplier(**widths, form="ecp5"), "multiplier", simulator=simulator, models=mult18x18d(), **widths)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("gaps", [0.0, 0.5])
@pytest.mark.parametrize("image_rows", [0, 3])
def test_array(simulator, gaps, image_rows):
    shape = {"rows": 8, "cols": 4, "weight_rows": 2, "image_rows": image_rows}
    run(Array(**shape, multiplier="portable"), "array", simulator=simulator, gaps=gaps, **shape)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("idle", [0.0, 0.9])
@pytest.mark.parametrize("reading", [0.0, 0.5, 1.0])
def test_execute(simulator, idle, reading):
    config = small_engine(rows=8, cols=4, weight_rows=2)
    run(Execute(config=config), "execute", simulator=simulator, config=config.to_json(), idle=idle, reading=reading)


def test_failing_bench_is_reported():
    with pytest.raises(BenchFailed, match=r"bench multiplier failed on verilator with seed 1 and (?s:.*)out of range"):
        run(Multiplier(width_a=8, width_b=8, form="portable"), "multiplier", width_a=12)
