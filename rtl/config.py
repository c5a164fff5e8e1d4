"""The engine's configuration: what the machine is.

One frozen object parametrises hardware, golden model, compiler and driver. How a network is compiled for a machine is a
separate object (:class:`celosia.tools.compiler.options.CompilerOptions`).
"""

import dataclasses
import hashlib
import json
from pathlib import Path

__all__ = ["PRESETS", "BadConfig", "EngineConfig"]


class BadConfig(ValueError):
    """An engine configuration that cannot be built; the message says which knob and why."""


def _is_power_of_two(value):
    return value > 0 and value & (value - 1) == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Every knob of the engine.

    Parameters
    ----------
    name : str
        A label for reports. Not part of the digest.
    rows : int
        Rows of the array: input channels (or taps) per pass, and bytes per activation word. A power of two, 4…64.
    cols : int
        Columns of the array: output channels per pass. A power of two, at most ``rows``.
    weight_rows : int
        Weight rows loaded into the array per cycle; the weight memory has this many banks, each ``cols`` bytes wide. A
        weight tile takes ``rows / weight_rows`` cycles to load. A power of two, at most ``rows / 2``.
    lanes : int
        Elements requantised per cycle. A power of two, at most ``cols``.
    lane_cycles : int
        Cycles that a lane takes for an element: 1, or 4 for a store unit of about half the size without vendor multipliers, which needs
        ``lanes`` = 1, ``combine`` = 0 and at least 4 columns.
    act_depth : int
        Words of ``rows`` bytes in the activation memory. A multiple of ``act_banks``, at most 65,536.
    act_banks : int
        Banks of the activation memory, interleaved by the low address bits. 1, 2 or 4.
    act_ports : int
        Ports of each bank. 2: a read and a write in every cycle. 1: one of them, for single-port RAM; the execute unit pauses for every
        access of another unit. 1 needs ``act_banks`` = 1, ``depthwise_rows`` = 0 and ``lanes``
        at most ``cols / 2``.
    weight_tiles : int
        Weight tiles of ``rows × cols`` bytes in the weight memory. At most 65,536.
    acc_depth : int
        Entries of ``cols`` 32-bit sums in each of the two accumulator banks. At most 1,024.
    param_depth : int
        Entries of ``lanes`` 64-bit channel parameters. At most 16,384.
    tables : int
        256-byte activation tables. 1…16, a power of two.
    program_depth : int
        256-bit instructions in the program memory. At most 65,536.
    queue_depth : int
        Instructions waiting in front of each unit. 2…16.
    fetch_bits : int
        Bits of the program memory read per cycle: fetching an instruction takes 256 / ``fetch_bits`` cycles and some more. 32, 64, 128 or 256.
    unfold_streams : int
        Input rows the load unit unfolds at the same time; a word of kernel taps holds at most this many rows of taps.
        1…``rows``. With 1, and ``fill`` = 0, it takes about three cycles for a byte, and half the area.
    combine : int
        1 lets ``STORE`` combine its results with an operand: residual additions, products, the smaller or larger of two tensors; 0
        leaves that out.
    fill : int
        1 lets the load unit fill weight tiles with activations (``FILL``), for products of two activations; 0 leaves that out.
    depthwise_rows : int
        Image rows that a depthwise convolution reads per cycle; ``rows / depthwise_rows`` kernel columns of each take one pass. At most 3 and
        at most ``act_banks``; 0 leaves the depthwise mode out.
    constant_ports : int
        Ports of the memories of program, weights and parameters. 2: each has its own memory of a read and a write port. 1: all three lie in
        one single-port RAM of 32-bit words, behind each other, each rounded up to a power of two; that needs ``cols`` = 4, ``weight_rows`` = 1,
        ``lane_cycles`` = 4, ``fetch_bits`` = 32 and ``fill`` = 0.
    maximum : int
        1 lets ``EXECUTE`` keep the larger of sums: maximum pooling, maxima along axes; 0 leaves that out.
    pipelining : int
        0 leaves out the registers that only a clock above about 30 MHz needs, and has one ``EXECUTE`` in work at a time: an execute unit of half
        the size, a smaller host port. It needs ``lane_cycles`` = 4 and ``depthwise_rows`` = 0.
    counters : int
        1: the units' busy, wait and stall cycles are counted. 0 leaves these counters out: their registers read as zero.
    debug : int
        1: the host sees the queues and tokens, and can read program, weights, parameters and tables back. 0 leaves that out: the registers
        read as zero, and such a read answers ``err``.
    memory_bytes : int
        Bytes per cycle of the memory port, by which the engine fetches programs, weights, parameters and features from an external memory and stores
        features to it (``TRANSFER``); 0: none. A power of two, 4…64, at most ``rows``, ``weight_rows * cols``, ``8 * lanes`` and ``fetch_bits / 8``. It needs
        ``act_ports`` = 2, ``constant_ports`` = 2, ``pipelining`` = 1, ``lane_cycles`` = 1 and a power of two of ``program_depth``.

    Raises
    ------
    BadConfig
        If a knob is out of its range.
    """

    name: str = "custom"
    rows: int
    cols: int
    weight_rows: int
    lanes: int
    lane_cycles: int = 1
    act_depth: int
    act_banks: int
    weight_tiles: int
    acc_depth: int
    param_depth: int
    tables: int
    program_depth: int
    queue_depth: int = 4
    fetch_bits: int = 32
    unfold_streams: int
    combine: int = 1
    fill: int = 1
    depthwise_rows: int = 0
    act_ports: int = 2
    constant_ports: int = 2
    maximum: int = 1
    pipelining: int = 1
    counters: int = 1
    debug: int = 1
    memory_bytes: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "name":
                if not isinstance(value, str):
                    raise BadConfig(f"name must be a string, not {value!r}")
            elif not isinstance(value, int) or isinstance(value, bool):
                raise BadConfig(f"{field.name} must be an integer, not {value!r}")
        for knob in ("rows", "cols", "weight_rows", "lanes", "tables"):
            if not _is_power_of_two(getattr(self, knob)):
                raise BadConfig(f"{knob} must be a power of two, not {getattr(self, knob)}")
        for knob, low, high in (
            ("rows", 4, 64),
            ("cols", 1, self.rows),
            ("weight_rows", 1, self.rows // 2),
            ("lanes", 1, self.cols),
            ("act_depth", 16, 1 << 16),
            ("weight_tiles", 2, 1 << 16),
            ("acc_depth", 8, 1 << 10),
            ("param_depth", 2 * self.cols // self.lanes, 1 << 14),
            ("tables", 1, 16),
            ("program_depth", 16, 1 << 16),
            ("queue_depth", 2, 16),
            ("unfold_streams", 1, self.rows),
            ("combine", 0, 1),
            ("fill", 0, 1),
            ("act_ports", 1, 2),
            ("constant_ports", 1, 2),
            ("maximum", 0, 1),
            ("pipelining", 0, 1),
            ("counters", 0, 1),
            ("debug", 0, 1),
        ):
            if not low <= getattr(self, knob) <= high:
                raise BadConfig(f"{knob} must be between {low} and {high}, not {getattr(self, knob)}")
        if self.lane_cycles not in (1, 4):
            raise BadConfig(f"lane_cycles must be 1 or 4, not {self.lane_cycles}")
        if self.lane_cycles == 4 and (self.lanes > 1 or self.combine or self.cols < 4):
            raise BadConfig(
                "lane_cycles of 4 needs lanes of 1, combine of 0 and at least 4 cols, "
                f"not {self.lanes}, {self.combine} and {self.cols}"
            )
        if not 0 <= self.depthwise_rows <= min(3, self.act_banks):
            raise BadConfig(
                f"depthwise_rows must be between 0 and {min(3, self.act_banks)}, the smaller of 3 and act_banks, "
                f"not {self.depthwise_rows}"
            )
        if self.fetch_bits not in (32, 64, 128, 256):
            raise BadConfig(f"fetch_bits must be 32, 64, 128 or 256, not {self.fetch_bits}")
        if self.act_banks not in (1, 2, 4):
            raise BadConfig(f"act_banks must be 1, 2 or 4, not {self.act_banks}")
        if self.act_ports == 1 and (self.act_banks != 1 or self.depthwise_rows or 2 * self.lanes > self.cols):
            raise BadConfig(
                f"act_ports = 1 needs act_banks = 1, depthwise_rows = 0 and lanes at most cols / 2, not {self.act_banks}, "
                f"{self.depthwise_rows} and {self.lanes} with cols = {self.cols}"
            )
        needs = {"cols": 4, "weight_rows": 1, "lane_cycles": 4, "fetch_bits": 32, "fill": 0}
        if self.constant_ports == 1 and any(getattr(self, knob) != value for knob, value in needs.items()):
            wanted = [f"{knob} = {value}" for knob, value in needs.items()]
            found = [str(getattr(self, knob)) for knob in needs]
            raise BadConfig(
                f"constant_ports = 1 needs {', '.join(wanted[:-1])} and {wanted[-1]}, not {', '.join(found[:-1])} and {found[-1]}"
            )
        if not self.pipelining and (self.lane_cycles != 4 or self.depthwise_rows):
            raise BadConfig(
                f"pipelining = 0 needs lane_cycles = 4 and depthwise_rows = 0, not {self.lane_cycles} and {self.depthwise_rows}"
            )
        if self.memory_bytes:
            self._check_port()
        if self.act_depth % self.act_banks:
            raise BadConfig(f"act_depth must be a multiple of act_banks ({self.act_banks}), not {self.act_depth}")

    def _check_port(self):
        limit = min(64, self.rows, self.weight_rows * self.cols, 8 * self.lanes, self.fetch_bits // 8)
        if not _is_power_of_two(self.memory_bytes) or not 4 <= self.memory_bytes <= limit:
            raise BadConfig(
                f"memory_bytes must be 0 or a power of two between 4 and {limit}, the smallest of 64, rows, weight_rows * cols, 8 * lanes and "
                f"fetch_bits / 8, not {self.memory_bytes}"
            )
        needs = {"act_ports": 2, "constant_ports": 2, "pipelining": 1, "lane_cycles": 1}
        for knob, value in needs.items():
            if getattr(self, knob) != value:
                raise BadConfig(f"memory_bytes = {self.memory_bytes} needs {knob} = {value}, not {getattr(self, knob)}")
        if not _is_power_of_two(self.program_depth):
            raise BadConfig(f"memory_bytes = {self.memory_bytes} needs a power of two of program_depth, not {self.program_depth}")

    # Derived values ---------------------------------------------------------------------------------------------------

    @property
    def macs(self):
        """Multiply-accumulates per cycle."""
        return self.rows * self.cols

    @property
    def serial_load(self):
        """Whether the load unit is the small one, which takes some cycles for a byte."""
        return self.unfold_streams == 1 and not self.fill

    @property
    def load_cycles(self):
        """Cycles to load one weight tile; also weight-memory entries per tile."""
        return self.rows // self.weight_rows

    @property
    def weight_depth(self):
        """Entries of ``weight_rows × cols`` bytes in the weight memory."""
        return self.weight_tiles * self.load_cycles

    @property
    def beats(self):
        """Cycles to requantise one accumulator entry; also parameter entries per column tile."""
        return self.cols // self.lanes

    @property
    def slots(self):
        """Column tiles that share one activation word."""
        return self.rows // self.cols

    @property
    def depthwise_taps(self):
        """Taps of one image row that a depthwise pass takes."""
        return self.rows // self.depthwise_rows if self.depthwise_rows else 0

    @property
    def act_bytes(self):
        return self.act_depth * self.rows

    @property
    def weight_bytes(self):
        return self.weight_tiles * self.rows * self.cols

    @property
    def digest(self):
        """32-bit fingerprint of everything a program depends on; a CSR of the engine and a field of each program."""
        from celosia.rtl.isa import ISA_VERSION

        facts = {"isa": ISA_VERSION} | {k: v for k, v in dataclasses.asdict(self).items() if k != "name"}
        return int.from_bytes(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()[:4], "little")

    # Presets and files ------------------------------------------------------------------------------------------------

    def to_json(self):
        """Return the configuration as JSON text; :meth:`from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text, *, source="configuration"):
        """Parse JSON text.

        Raises
        ------
        BadConfig
            If the text is not a JSON object of exactly the known knobs; the message names ``source``.
        """
        try:
            facts = json.loads(text)
        except ValueError as error:
            raise BadConfig(f"{source} must be JSON: {error}") from None
        if not isinstance(facts, dict):
            raise BadConfig(f"{source} must be a JSON object, not {type(facts).__name__}")
        known = {field.name: field for field in dataclasses.fields(cls)}
        for knob in facts:
            if knob not in known:
                raise BadConfig(f"{source}: {knob!r} is not a knob of the engine (known: {', '.join(known)})")
        for knob, field in known.items():
            if knob not in facts and field.default is dataclasses.MISSING:
                raise BadConfig(f"{source}: {knob} is missing")
        return cls(**facts)

    @classmethod
    def load(cls, name):
        """Return the preset ``name``, or read the JSON file of that path.

        Raises
        ------
        BadConfig
            If it is neither.
        """
        if name in PRESETS:
            return PRESETS[name]
        path = Path(name)
        if path.suffix == ".json":
            try:
                return cls.from_json(path.read_text(), source=str(path))
            except OSError as error:
                raise BadConfig(f"cannot read engine configuration {name}: {error.strerror}") from None
        raise BadConfig(f"engine must be one of {', '.join(PRESETS)}, a board or a .json file, not {name!r}")


def _with_port(config, **knobs):
    return dataclasses.replace(config, name=f"{config.name}_port", **knobs)


PRESETS = {
    config.name: config
    for config in (
        EngineConfig(
            name="test", rows=4, cols=4, weight_rows=1, lanes=2, act_depth=4096, act_banks=2, weight_tiles=2048,
            acc_depth=64, param_depth=512, tables=8, program_depth=1024, unfold_streams=4, depthwise_rows=2,
        ),
        EngineConfig(
            name="mac64", rows=8, cols=8, weight_rows=2, lanes=4, act_depth=8192, act_banks=2, weight_tiles=2048,
            acc_depth=256, param_depth=512, tables=8, program_depth=1024, unfold_streams=4, depthwise_rows=2,
        ),
        EngineConfig(
            name="mac256", rows=16, cols=16, weight_rows=4, lanes=16, act_depth=8192, act_banks=4, weight_tiles=1088,
            acc_depth=512, param_depth=512, tables=8, program_depth=2048, fetch_bits=128, unfold_streams=8,
            depthwise_rows=3,
        ),
    )
}  # fmt: skip
PRESETS |= {
    config.name: config
    for config in (_with_port(PRESETS["test"], memory_bytes=4), _with_port(PRESETS["mac256"], memory_bytes=16, queue_depth=8))
}
