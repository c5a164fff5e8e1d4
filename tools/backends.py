"""What runs an engine program: the golden executor, or the RTL in a simulator behind the host driver."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from threading import Event

import numpy as np

from celosia.sim.executor import Executor
from celosia.sim.icarus import IcarusError
from celosia.sim.transport import NoExternalMemory, TransportError
from celosia.sim.verilator.build import BuildError
from celosia.tools.compiler.sinks import statistics
from celosia.tools.driver import Driver, create_transport
from celosia.tools.errors import EngineError
from celosia.tools.places import is_place
from celosia.tools.report import Event as UnitEvent

__all__ = ["create_backend", "prepare_backend"]

GOLDEN_BATCH = 16
PATIENCE = 100
"""A run is given up after a million cycles and this many times those that the array is busy."""
SHARED = 2_000_000
"""Multiply-accumulates times inferences from which a second simulator is worth its start."""


def create_backend(kind, config, program, *, workers=None, memory=None):
    """Return a backend with ``program`` loaded; ``workers`` simulators share the inferences, ``memory`` is the timing of external memory."""
    if kind == "golden":
        return Golden(config, program)
    return Simulated(kind, config, program, workers, memory)


def prepare_backend(kind, config, on_build, *, memory=None):
    """Build the simulator if it has not been built yet; ``on_build`` is called before that, it takes a minute."""
    if kind != "golden":
        with _transport(kind, config, memory, on_build):
            pass


@contextmanager
def _transport(kind, config, memory=None, on_build=lambda: None):
    """Yield a transport; the problems of simulators become :exc:`EngineError`."""
    try:
        timing = {"memory": memory} if config.memory_bytes else {}
        with create_transport(kind, config, **timing, on_build=on_build) as transport:
            yield transport
    except (BuildError, IcarusError, NoExternalMemory, TransportError) as error:
        raise EngineError(str(error)) from error


class Golden:
    """:class:`celosia.sim.executor.Executor`, some inferences at a time."""

    def __init__(self, config, program):
        self.executor = Executor(config, program)

    def run(self, feed, progress):
        """Run every inference.

        Parameters
        ----------
        feed : dict of name to array
            ``[inferences, *port shape]``.
        progress : callable
            Called with the number of inferences just finished.

        Returns
        -------
        outputs : dict of name to array, as ``feed``
        cycles : int or None
            Of one inference; None where time does not exist.
        events : list of Event
            What the units did in the first inference.
        """
        count = len(next(iter(feed.values())))
        parts = []
        for start in range(0, count, GOLDEN_BATCH):
            part = {name: array[start : start + GOLDEN_BATCH] for name, array in feed.items()}
            parts.append(self.executor.run(part))
            progress(min(GOLDEN_BATCH, count - start))
        return _join(parts), None, []


class Simulated:
    """The RTL behind :class:`celosia.tools.driver.Driver`: in simulators, which share the inferences, or on a board."""

    def __init__(self, kind, config, program, workers, memory):
        self.kind, self.config, self.program, self.workers, self.memory = kind, config, program, workers, memory
        self.limit = 1_000_000 + PATIENCE * statistics(program, config)[0].execute_cycles

    def run(self, feed, progress):
        """Run every inference; see :meth:`Golden.run`."""
        count = len(next(iter(feed.values())))
        macs = sum(layer.macs for layer in self.program.layers)
        workers = 1 if is_place(self.kind) else self.workers or (2 if count > 1 and macs * count > SHARED else 1)
        bounds = [count * n // workers for n in range(workers + 1)]
        spans = [(start, end) for start, end in pairwise(bounds) if start < end]
        stop = Event()
        with ThreadPoolExecutor(max_workers=len(spans)) as pool:
            try:
                parts = list(pool.map(lambda span: self._run_span(feed, *span, progress, stop), spans))
            except BaseException:  # an interrupt too: the other simulators end after the inference they are at
                stop.set()
                raise
        outputs = _join([{name: np.stack(arrays) for name, arrays in part[0].items()} for part in parts])
        return outputs, max(part[1] for part in parts), parts[0][2]

    def _run_span(self, feed, start, end, progress, stop):
        outputs, cycles, events = {}, 0, []
        with _transport(self.kind, self.config, self.memory) as transport:
            driver = Driver(transport, self.config)
            driver.load(self.program)
            for n in range(start, end):
                if stop.is_set():
                    break
                result, stats = driver.run({name: array[n] for name, array in feed.items()}, record=n == 0, limit=self.limit)
                for name, array in result.items():
                    outputs.setdefault(name, []).append(array)
                cycles = max(cycles, stats.cycles)
                if n == 0:
                    events = [UnitEvent(*event, int(row["stall"]), int(row["wait"])) for event, row in zip(stats.events, stats.trace)]
                progress(1)
        return outputs, cycles, events


def _join(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
