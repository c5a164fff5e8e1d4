"""A compiled engine, loaded into this process."""

import ctypes

import numpy as np

from celosia.sim.events import EVENT

__all__ = ["BoardModel", "Model"]


class Model:
    """One instance of a library that :func:`celosia.sim.verilator.build.build` made; instances are independent.

    Parameters
    ----------
    library : path-like
    memory_port : bool
        Whether the engine has one.
    """

    def __init__(self, library, *, memory_port=False):
        self._library = ctypes.CDLL(str(library))
        octets = np.ctypeslib.ndpointer(np.uint8, ndim=1, flags="C_CONTIGUOUS")
        copy = (ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64, octets, ctypes.c_size_t)
        port = (
            ("memory", None, ctypes.c_void_p, ctypes.c_uint64, *[ctypes.c_uint32] * 4), ("memory_write", *copy), ("memory_read", *copy),
        )  # fmt: skip
        words = np.ctypeslib.ndpointer(np.uint32, ndim=1, flags="C_CONTIGUOUS")
        handle = ctypes.c_void_p
        for name, result, *arguments in (
            ("create", handle),
            ("destroy", None, handle),
            ("write", ctypes.c_size_t, handle, ctypes.c_uint32, words, ctypes.c_size_t),
            ("read", ctypes.c_size_t, handle, ctypes.c_uint32, words, ctypes.c_size_t),
            ("run", ctypes.c_uint64, handle, ctypes.c_uint64),
            ("cycles", ctypes.c_uint64, handle),
            ("interrupt", ctypes.c_int, handle),
            ("record", None, handle, ctypes.c_int),
            ("events", ctypes.c_size_t, handle, np.ctypeslib.ndpointer(EVENT, ndim=1, flags="C_CONTIGUOUS"), ctypes.c_size_t),
            *(port if memory_port else ()),
        ):
            function = getattr(self._library, f"celosia_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, f"_{name}", function)
        self._handle = self._create()

    def __del__(self):
        if getattr(self, "_handle", None):
            self._destroy(self._handle)
            self._handle = None

    def write(self, address, words):
        """Write uint32 ``words`` from byte ``address`` on; return how many were acknowledged."""
        words = np.ascontiguousarray(words, np.uint32)
        return self._write(self._handle, address, words, len(words))

    def read(self, address, count):
        """Return ``(words, acknowledged)`` from byte ``address`` on."""
        words = np.zeros(count, np.uint32)
        return words, self._read(self._handle, address, words, count)

    def create_memory(self, size, *, latency, beat_cycles, gap, seed):
        """Make external memory ``size`` bytes of zeros; see :class:`celosia.sim.external.MemoryTiming`."""
        self._memory(self._handle, size, latency, beat_cycles, gap, seed)

    def write_memory(self, address, data):
        """Write uint8 ``data`` to external memory; return how many bytes are there."""
        data = np.ascontiguousarray(data, np.uint8)
        return self._memory_write(self._handle, address, data, len(data))

    def read_memory(self, address, count):
        """Return ``(uint8 data, bytes that are there)`` of external memory."""
        data = np.zeros(count, np.uint8)
        return data, self._memory_read(self._handle, address, data, count)

    def run(self, limit):
        """Clock until the interrupt line is high, at most ``limit`` cycles; return the cycles clocked."""
        return self._run(self._handle, limit)

    @property
    def cycles(self):
        """Cycles clocked since the engine was made, bus accesses included."""
        return self._cycles(self._handle)

    @property
    def interrupt(self):
        """Whether the interrupt line is high."""
        return bool(self._interrupt(self._handle))

    def record(self, on):
        """Record events in the runs that follow, or no longer."""
        self._record(self._handle, on)

    def events(self):
        """Return the events of the last recorded run, an array of :data:`~celosia.sim.events.EVENT` in the order of their ends."""
        events = np.zeros(self._events(self._handle, np.zeros(0, EVENT), 0), EVENT)
        self._events(self._handle, events, len(events))
        return events


class BoardModel:
    """A compiled board: an engine behind a link, as bytes.

    Parameters
    ----------
    library : path-like
        Of :func:`celosia.sim.verilator.build.build` with a link.
    """

    def __init__(self, library):
        loaded = ctypes.CDLL(str(library))
        handle, text = ctypes.c_void_p, ctypes.c_char_p
        for name, result, *arguments in (
            ("create", handle),
            ("destroy", None, handle),
            ("exchange", ctypes.c_size_t, handle, text, ctypes.c_size_t),
            ("receive", None, handle, text),
            ("run", ctypes.c_uint64, handle, ctypes.c_uint64),
            ("cycles", ctypes.c_uint64, handle),
        ):
            function = getattr(loaded, f"celosia_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, f"_{name}", function)
        self._handle = self._create()

    def __del__(self):
        if getattr(self, "_handle", None):
            self._destroy(self._handle)
            self._handle = None

    def exchange(self, data):
        """Send bytes to the board, clock it until it has answered, and return what it sent."""
        received = ctypes.create_string_buffer(self._exchange(self._handle, data, len(data)) + 1)
        self._receive(self._handle, received)
        return received.raw[:-1]

    def run(self, limit):
        """Clock with nothing on the line while a program runs, at most ``limit`` cycles; return the cycles clocked."""
        return self._run(self._handle, limit)

    @property
    def cycles(self):
        """Cycles clocked since the board was made."""
        return self._cycles(self._handle)
