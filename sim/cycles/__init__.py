"""The cycle model: what a program takes on an engine, without running it.

::

    instructions ─► sequencer: fetch, queues, tokens ─► units: cycles of each instruction ─► events, cycles
                                     ▲                              │ done: tokens
                                     └──────────────────────────────┘

Instruction by instruction, in closed form: :mod:`~celosia.sim.cycles.sequencer` follows :mod:`celosia.rtl.fetch` and :mod:`celosia.rtl.gate`,
:mod:`~celosia.sim.cycles.units` the units. Data play no part, as they play none in the hardware.
"""

from typing import NamedTuple

import numpy as np

from celosia.rtl.gate import UNIT_NAMES
from celosia.rtl.isa import Unit
from celosia.sim.cycles import conflicts
from celosia.sim.cycles.sequencer import Sequencer
from celosia.sim.cycles.units import unit_models
from celosia.sim.events import EVENT

__all__ = ["Prediction", "predict"]

ROUNDS = 3
"""What units lose at memories follows from when they work, and the other way round: this often."""


class Prediction(NamedTuple):
    """What :func:`predict` found.

    Parameters
    ----------
    cycles : int
        From the doorbell to done, as the register ``CYCLES`` counts them.
    events : array of :data:`celosia.sim.events.EVENT`
        In the order of their ends, as a simulation records them; ``stall`` is zero.
    work : int array ``[instructions]``
        Cycles that an instruction takes in its unit if the unit never waits.
    weights : int array ``[instructions]``
        How many of them the array does nothing but take weights.
    """

    cycles: int
    events: np.ndarray
    work: np.ndarray
    weights: np.ndarray

    def timeline(self):
        """Return the events as :attr:`celosia.tools.driver.RunStats.events` has them."""
        return [(Unit(unit).name.lower(), *place) for unit, *place, _, _ in self.events.tolist()]

    def share(self, instructions, numbers):
        """Return the work of the instructions ``numbers`` by the name of the unit."""
        found = dict.fromkeys((*UNIT_NAMES, "transfer"), 0)
        for number in numbers:
            found[instructions[number].unit.name.lower()] += int(self.work[number])
        return found


def predict(instructions, config):
    """Predict a run.

    Parameters
    ----------
    instructions : list of Instruction
        Of a program that the engine runs without an error, up to its ``END``; see :func:`celosia.sim.executor.instructions_of`.
    config : EngineConfig

    Returns
    -------
    Prediction

    Raises
    ------
    EngineError
        If it does not come to an end.
    """
    lost = {}
    for number in range(ROUNDS):
        models = unit_models(config)
        sequencer = Sequencer(instructions, config, models, lost)
        cycles = sequencer.run()
        before = lost
        if number < ROUNDS - 1:
            lost = conflicts.lost_cycles(instructions, config, sequencer.runs, models)
        if lost == before:
            break
    work, weights = np.zeros((2, len(instructions)), np.int64)
    for number, run in sequencer.runs.items():
        work[number], weights[number] = run.work, run.weights
    return Prediction(cycles, np.array(sorted(sequencer.events, key=lambda event: event[3]), EVENT), work, weights)
