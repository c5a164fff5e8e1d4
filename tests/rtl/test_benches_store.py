"""The store unit's cocotb benches, on Verilator and on Icarus."""

import pytest

from celosia.rtl.requantizer import Requantizer
from celosia.rtl.store import Store
from celosia.sim.benches.runner import SIMULATORS, run
from celosia.sim.benches.store_cases import CONFIGS

SEED = 8


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_requantizer_bench(simulator):
    count = 15_000 if simulator == "verilator" else 4_000
    run(Requantizer(lanes=4, multiplier_form="portable"), "requantizer", simulator=simulator, seed=SEED, lanes=4, count=count)


@pytest.mark.parametrize("name", ["store4x4l1", "store8x4l2"])
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_store_bench(simulator, name):
    config = CONFIGS[name]
    run(Store(config), "store", simulator=simulator, seed=SEED, config=config.to_json())
