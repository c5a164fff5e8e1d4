"""The cocotb benches of the memories and the load unit, on every simulator there is."""

import dataclasses

import pytest

from celosia.rtl.config import PRESETS
from celosia.rtl.load import Load
from celosia.rtl.memory import ActivationMemory
from celosia.rtl.serial_load import SerialLoad
from celosia.sim.benches.runner import SIMULATORS, run


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("banks", [2, 4])
def test_activation_memory(simulator, rate, banks):
    config = dataclasses.replace(PRESETS["mac64"], act_depth=64, act_banks=banks)
    run(ActivationMemory(config=config), "memory", simulator=simulator, config=config.to_json(), rate=rate)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("idle", [0.0, 0.9])
@pytest.mark.parametrize("refuse_reads", [0.0, 0.6])
@pytest.mark.parametrize("refuse_writes", [0.0, 0.6])
def test_load(simulator, idle, refuse_reads, refuse_writes):
    config = PRESETS["mac64"]
    run(Load(config=config), "load", simulator=simulator, config=config.to_json(), idle=idle, refuse_reads=refuse_reads,
        refuse_writes=refuse_writes)  # fmt: skip


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("idle, refuse_reads, refuse_writes", [(0.0, 0.0, 0.0), (0.9, 0.6, 0.6)])
def test_serial_load(simulator, idle, refuse_reads, refuse_writes):
    config = dataclasses.replace(PRESETS["test"], unfold_streams=1, fill=0)
    run(SerialLoad(config=config), "load", simulator=simulator, config=config.to_json(), idle=idle, refuse_reads=refuse_reads,
        refuse_writes=refuse_writes, count=12)  # fmt: skip
