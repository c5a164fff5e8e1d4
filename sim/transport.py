"""How a driver reaches an engine: bursts of words, and waiting for the interrupt.

The driver is written against :class:`Transport` alone; a simulator or a board is behind it.
"""

from abc import ABC, abstractmethod

import numpy as np

from celosia.sim.external import MemoryTiming

__all__ = ["NoExternalMemory", "Transport", "TransportError", "VerilatorTransport"]


class TransportError(RuntimeError):
    """The engine answered ``err``, or not at all."""

    def __init__(self, verb, address):
        super().__init__(f"the engine refused to {verb} address {address:#08x}")
        self.address = address


class NoExternalMemory(RuntimeError):
    """There is no external memory that the host reaches."""

    def __init__(self):
        super().__init__(
            "the program needs external memory, and here is none that the host reaches; simulate with Verilator (--on verilator) or compute with the golden "
            "executor (--on golden)"
        )


class Transport(ABC):
    """Access to one engine; a context manager that gives up what it holds.

    Addresses are bytes of the host's map (:mod:`celosia.rtl.csr`) and multiples of four.
    """

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @abstractmethod
    def write(self, address, words):
        """Write an array of uint32 to consecutive words.

        Raises
        ------
        TransportError
            Naming the first address that was refused.
        """

    @abstractmethod
    def read(self, address, count):
        """Return ``count`` consecutive words as an array of uint32; raise as :meth:`write`."""

    @abstractmethod
    def wait(self, limit):
        """Let the engine run until its interrupt line is high, at most ``limit`` cycles; return whether it is."""

    @abstractmethod
    def record(self, on):
        """Record what the units do in the runs that follow, or no longer; :meth:`events` returns it."""

    @abstractmethod
    def events(self):
        """Return the last recorded run as an array of :data:`celosia.sim.events.EVENT`, empty where nothing can be recorded."""

    @abstractmethod
    def close(self):
        """Give up the engine."""

    def create_memory(self, size):
        """Make ``size`` bytes of external memory behind the engine's memory port, zeros.

        Raises
        ------
        NoExternalMemory
            If there is none that the host reaches.
        """
        raise NoExternalMemory

    def write_memory(self, address, data):
        """Write an array of uint8 to external memory; raises :exc:`TransportError` beyond its end."""
        raise NoExternalMemory

    def read_memory(self, address, count):
        """Return ``count`` bytes of external memory as an array of uint8; raises as :meth:`write_memory`."""
        raise NoExternalMemory

    def write32(self, address, value):
        """Write one word."""
        self.write(address, np.array([value], np.uint32))

    def read32(self, address):
        """Return one word as an int."""
        return int(self.read(address, 1)[0])


class VerilatorTransport(Transport):
    """An engine compiled with Verilator, in this process; waiting releases the interpreter for other threads.

    Parameters
    ----------
    config : EngineConfig
    memory : MemoryTiming, optional
        Of the external memory, where the engine has a port.
    text, cache, on_build
        See :func:`celosia.sim.verilator.build.build`.
    """

    def __init__(self, config, *, memory=None, text=None, cache=None, on_build=lambda: None):
        from celosia.sim.verilator.build import build
        from celosia.sim.verilator.model import Model

        self._timing, self._memory_bytes = memory or MemoryTiming(), config.memory_bytes
        self.model = Model(build(config, text=text, cache=cache, on_build=on_build), memory_port=bool(config.memory_bytes))

    def create_memory(self, size):
        timing = self._timing
        self.model.create_memory(
            size, latency=timing.latency, beat_cycles=timing.beat_cycles(self._memory_bytes), gap=timing.gap, seed=timing.stalls
        )

    def write_memory(self, address, data):
        done = self.model.write_memory(address, data)
        if done < len(data):
            raise TransportError("write", address + done)

    def read_memory(self, address, count):
        data, done = self.model.read_memory(address, count)
        if done < count:
            raise TransportError("read", address + done)
        return data

    def write(self, address, words):
        done = self.model.write(address, words)
        if done < len(words):
            raise TransportError("write", address + 4 * done)

    def read(self, address, count):
        words, done = self.model.read(address, count)
        if done < count:
            raise TransportError("read", address + 4 * done)
        return words

    def wait(self, limit):
        self.model.run(limit)
        return self.model.interrupt

    def record(self, on):
        self.model.record(on)

    def events(self):
        return self.model.events()

    def close(self):
        self.model = None
