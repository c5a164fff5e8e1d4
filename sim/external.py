"""What the simulated external memory of an engine with a memory port is like."""

from dataclasses import dataclass, fields

__all__ = ["MemoryTiming"]


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """Timing of the simulated external memory. Results do not depend on it.

    Parameters
    ----------
    latency : int
        Cycles from a request to read to its first beat, if nothing else is on its way, and from a burst's last written beat to its answer. 1…1,000.
    bytes : int
        Bytes per cycle and direction; 0: those of the port. A divisor of the port's.
    gap : int
        Cycles between bursts. 0…1,000.
    stalls : int
        Seed of random pauses on all channels; 0: none.

    Raises
    ------
    ValueError
        If a number is outside its range.
    """

    latency: int = 40
    bytes: int = 0
    gap: int = 0
    stalls: int = 0

    def __post_init__(self):
        for name, low, high in (("latency", 1, 1000), ("bytes", 0, 64), ("gap", 0, 1000), ("stalls", 0, (1 << 32) - 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} of the simulated memory must be between {low} and {high}, not {getattr(self, name)}")

    @classmethod
    def parse(cls, text):
        """Return the timing that ``text`` gives, ``"latency=40,bytes=16,gap=0,stalls=7"``, any of them.

        Raises
        ------
        ValueError
            If it says anything else; the message names what.
        """
        known = [field.name for field in fields(cls)]
        values = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in known or not value.isdecimal():
                raise ValueError(f"the simulated memory is described by {', '.join(f'{name}=NUMBER' for name in known)}, not by {part!r}")
            values[name] = int(value)
        return cls(**values)

    def beat_cycles(self, memory_bytes):
        """Return the cycles between beats of a port of ``memory_bytes``; raise :exc:`ValueError` if ``bytes`` is no divisor."""
        if self.bytes and (self.bytes > memory_bytes or memory_bytes % self.bytes):
            raise ValueError(f"bytes of the simulated memory must be a divisor of the port's {memory_bytes}, not {self.bytes}")
        return memory_bytes // self.bytes if self.bytes else 1
