"""The store unit's cocotb benches, on Verilator and on Icarus."""

import pytest

from celosia.rtl.requantizer import Requantizer
from celosia.rtl.serial_requantizer import SerialRequantizer
from celosia.rtl.serial_store import SerialStore
from celosia.rtl.store import Store
from celosia.sim.benches.runner import SIMULATORS, run
from celosia.sim.benches.store_cases import CONFIGS, SERIAL

SEED = 8


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_requantizer_bench(simulator):
    count = 15_000 if simulator == "verilator" else 4_000
    run(Requantizer(lanes=4, multiplier_form="portable"), "requantizer", simulator=simulator, seed=SEED, lanes=4, count=count)


@pytest.mark.parametrize("raw", [0, 2])
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_serial_requantizer_bench(simulator, raw):
    count = (10_000 if simulator == "verilator" else 1_000) if raw == 0 else 500
    run(SerialRequantizer(), "serial_requantizer", simulator=simulator, seed=SEED, count=count, raw=raw)


@pytest.mark.parametrize("name", ["store4x4l1", "store8x4l2"])
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_store_bench(simulator, name):
    config = CONFIGS[name]
    run(Store(config), "store", simulator=simulator, seed=SEED, config=config.to_json())


@pytest.mark.parametrize("name", SERIAL)
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_serial_store_bench(simulator, name):
    config = SERIAL[name]
    run(SerialStore(config), "store", simulator=simulator, seed=SEED, config=config.to_json(), count=12)
