"""Random ``STORE`` programs with their golden results, for the store unit's tests on every simulator."""

from types import SimpleNamespace

import numpy as np

from celosia.rtl.config import EngineConfig
from celosia.rtl.isa import AddParams, ChannelParams, Combine, Instruction, Opcode, encode, pack
from celosia.sim.executor import Executor
from celosia.sim.numerics import channel_params

__all__ = ["CONFIGS", "SERIAL", "StoreCase", "small_config"]


def small_config(*, rows, cols, lanes, **knobs):
    """Return a configuration whose memories a bench can compare byte by byte; no size is a power of two."""
    facts = {"weight_rows": 1, "act_depth": 250, "act_banks": 1, "weight_tiles": 2, "acc_depth": 60, "param_depth": 100, "tables": 2,
             "program_depth": 16, "unfold_streams": 1}  # fmt: skip
    facts |= knobs
    kind = "serial" if facts.get("lane_cycles", 1) > 1 else "store"
    return EngineConfig(name=f"{kind}{rows}x{cols}l{lanes}", rows=rows, cols=cols, lanes=lanes, **facts)


CONFIGS = {
    config.name: config
    for config in (
        small_config(rows=4, cols=4, lanes=1),
        small_config(rows=4, cols=4, lanes=2),
        small_config(rows=4, cols=4, lanes=4, act_depth=256, acc_depth=64, tables=1),
        small_config(rows=8, cols=4, lanes=2),
        small_config(rows=8, cols=2, lanes=1),
        small_config(rows=8, cols=4, lanes=1, combine=0),
    )
}

SERIAL = {
    config.name: config
    for config in (
        small_config(rows=4, cols=4, lanes=1, combine=0, lane_cycles=4),
        small_config(rows=16, cols=8, lanes=1, combine=0, lane_cycles=4, act_depth=256, acc_depth=64, tables=1),
    )
}
"""Configurations of the serial store unit."""


class StoreCase:
    """A machine with random memories, random instructions, and the activation memory they leave behind.

    Parameters
    ----------
    config : EngineConfig
    rng : numpy Generator
    count : int
        Instructions. Some are single pixels, some overlap earlier ones' results: in an operand or a destination.

    Members
    -------
    acc : int32 ``[2, acc_depth, cols]``
    params : list of int, ``64 * lanes`` bits each
    tables : uint8 ``[tables, 256]``
    act : int8 ``[act_depth, rows]``, before
    expected : int8, the same after
    instructions : list of :class:`~celosia.rtl.isa.Instruction`
    """

    def __init__(self, config, rng, count=0):
        self.config, self.rng = config, rng
        self.tables = rng.integers(0, 256, (config.tables, 256)).astype(np.uint8)
        self.act = rng.integers(-128, 128, (config.act_depth, config.rows)).astype(np.int8)
        # Sums of all magnitudes, with scales that bring most of them into range.
        size = (2, config.acc_depth, config.cols)
        self.acc = (rng.integers(-(1 << 31), 1 << 31, size) >> rng.integers(10, 28, size)).astype(np.int32)
        self.words = self._params()
        self.instructions = [self.random_instruction() for _ in range(count)]
        machine = self.machine()
        for number, instruction in enumerate(self.instructions):
            machine.run_store(number, instruction)
        self.expected = machine.act[0]

    @property
    def params(self):
        return [int.from_bytes(row.tobytes(), "little") for row in self.words]

    @property
    def encoded(self):
        return [encode(instruction) for instruction in self.instructions]

    def machine(self):
        """Return a golden executor with these memories."""
        config = self.config
        program = SimpleNamespace(
            name="store", digest=config.digest, instructions=[], params=self.words, tables=self.tables,
            weights=np.zeros((1, config.load_cycles, config.weight_rows, config.cols), np.int8),
            memory=np.zeros(0, np.uint8), memory_bytes=0,
        )  # fmt: skip
        machine = Executor(config, program)
        machine.act[0], machine.acc[0] = self.act, self.acc
        return machine

    def _params(self):
        """Channel parameters everywhere, constants of additions in the last entries."""
        config, rng = self.config, self.rng
        mantissa, shift = channel_params(np.exp2(rng.uniform(-14, -4, (config.param_depth, config.lanes))).astype(np.float32))
        bias = rng.integers(-2000, 2000, mantissa.shape)
        entries = [
            [pack(ChannelParams, bias=b, mantissa=k, shift=s) for b, k, s in zip(*row)] for row in zip(bias, mantissa, shift)
        ]
        raw = b"".join(value.to_bytes(8, "little") for row in entries for value in row)
        words = np.frombuffer(raw, np.uint32).reshape(config.param_depth, 2 * config.lanes).copy()
        self.combine_params = list(range(config.param_depth - 20, config.param_depth - 1, max(1, 2 // config.lanes)))
        for entry in self.combine_params:
            constants = pack(
                AddParams,
                k_result=rng.integers(-(1 << 24), 1 << 24), k_operand=rng.integers(-(1 << 24), 1 << 24),
                k_zero=rng.integers(-(1 << 29), 1 << 29),
            )  # fmt: skip
            words[entry : entry + max(1, 2 // config.lanes)].flat[:4] = np.frombuffer(constants.to_bytes(16, "little"), np.uint32)
        return words

    def random_instruction(self, **fields):
        """Return an instruction within all ranges; ``fields`` override."""
        config, rng = self.config, self.rng
        single = rng.random() < 0.4
        blocks, rows, cols = (1, 1, 1) if single else (int(rng.integers(1, high)) for high in (4, 4, 6))
        col_step = int(rng.integers(1, 4))
        row_step = int(rng.integers(0, 9)) + col_step * cols
        block_step = int(rng.integers(0, 5)) + row_step * rows
        reach = (blocks - 1) * block_step + (rows - 1) * row_step + (cols - 1) * col_step
        advance = bool(rng.integers(2))
        low, high = np.sort(rng.integers(-128, 128, 2)) if rng.random() < 0.3 else (-128, 127)
        combine_low, combine_high = np.sort(rng.integers(-128, 128, 2)) if rng.random() < 0.3 else (-128, 127)
        dest = int(rng.choice([rng.integers(0, config.act_depth - reach), 0, config.act_depth - 1 - reach]))
        # The operand lies in place or clear of the destination: golden reads all of it first.
        still, *steps = 0, row_step, block_step
        apart = [word for word in range(config.act_depth - reach) if abs(word - dest) > reach] + [dest]
        if rng.random() < 0.5:
            still_too, *steps_too = (int(rng.integers(0, high)) for high in (2, 4, 4))
            span = (blocks - 1) * steps_too[1] + (rows - 1) * steps_too[0] + (0 if still_too else (cols - 1) * col_step)
            clear = [word for word in range(config.act_depth - span) if word + span < dest or word > dest + reach]
            if clear:
                still, steps, apart = still_too, steps_too, clear
        entries = (blocks if advance else 1) * config.beats
        values = dict(
            signal_load=int(rng.integers(2)), signal_execute=int(rng.integers(2)),
            dest=dest, operand=int(rng.choice(apart)), row_step=row_step, block_step=block_step, col_step=col_step,
            slot=int(rng.integers(config.slots)), tile_rows=rows, tile_cols=cols, blocks=blocks,
            acc=int(rng.integers(0, config.acc_depth - blocks * rows * cols + 1)), bank=int(rng.integers(2)),
            params=int(rng.integers(0, config.param_depth - 20 - entries)), advance=advance,
            zero_point=int(rng.integers(-128, 128)), low=low, high=high,
            use_table=int(rng.integers(2)), table=int(rng.integers(config.tables)),
            combine=int(rng.choice(list(Combine))) if config.combine else Combine.NONE, combine_params=int(rng.choice(self.combine_params)),
            combine_low=combine_low, combine_high=combine_high, raw=int(rng.integers(1, 5)) if rng.random() < 0.3 else 0,
            operand_row_step=steps[0], operand_block_step=steps[1], operand_still=still,
        )  # fmt: skip
        return Instruction(Opcode.STORE, **(values | fields))
