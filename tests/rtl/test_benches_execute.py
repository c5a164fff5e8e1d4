"""The cocotb benches of the execute side, on every simulator there is."""

import pytest

from celosia.rtl.multiplier import Multiplier
from celosia.sim.benches.runner import SIMULATORS, BenchFailed, run


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("width_a, width_b", [(8, 8), (18, 17)])
def test_multiplier(simulator, width_a, width_b):
    run(Multiplier(width_a=width_a, width_b=width_b, form="portable"), "multiplier", simulator=simulator, width_a=width_a, width_b=width_b)


def test_failing_bench_is_reported():
    with pytest.raises(BenchFailed, match="1 of 1 tests failed"):
        run(Multiplier(width_a=8, width_b=8, form="portable"), "multiplier", width_a=12)
