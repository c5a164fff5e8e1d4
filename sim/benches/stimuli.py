"""Random instructions that are legal for a configuration, for tests and benches."""

from types import SimpleNamespace

import numpy as np

from celosia.rtl.config import EngineConfig
from celosia.rtl.isa import Instruction, Opcode
from celosia.sim.executor import Executor
from celosia.sim.footprint import execute_reads

__all__ = ["make", "random_execute", "random_machine", "small_engine"]


def small_engine(**shape):
    """Return a configuration with memories so small that random instructions meet in them, and two image rows for depthwise."""
    depths = {"act_depth": 256, "weight_tiles": 64, "acc_depth": 64, "param_depth": 64, "program_depth": 256}
    facts = {"lanes": 2, "act_banks": 2, "tables": 1, "unfold_streams": 4, "depthwise_rows": 2}
    return EngineConfig(**(facts | depths | shape))


def random_machine(config, rng):
    """Return a golden executor with random activations and weights, accumulators at zero, and no program."""
    shape = (config.weight_tiles, config.load_cycles, config.weight_rows, config.cols)
    program = SimpleNamespace(
        digest=config.digest, name="random", instructions=np.zeros((0, 8), np.uint32), tables=np.zeros((0, 256), np.uint8),
        weights=rng.integers(-128, 128, shape).astype(np.int8),
        params=np.zeros((0, 2 * config.lanes), np.uint32),
        memory=np.zeros(0, np.uint8), memory_bytes=0,
    )  # fmt: skip
    executor = Executor(config, program)
    executor.act[:] = rng.integers(-128, 128, executor.act.shape)
    return executor


def make(**fields):
    """Return an EXECUTE with the smallest sizes where nothing is given."""
    small = {"tile_rows": 1, "tile_cols": 1, "kernel_y": 1, "kernel_x": 1, "blocks": 1, "in_height": 4095, "in_width": 4095}
    return Instruction(Opcode.EXECUTE, **(small | fields))


def random_execute(rng, config, *, pixels=24, passes=12, **fixed):
    """Draw an EXECUTE of at most about ``pixels × passes`` cycles, or several times as many if depthwise, that stays inside every
    memory."""

    def upto(limit):
        return int(rng.integers(1, max(1, limit) + 1))

    while True:
        cols = upto(pixels if rng.random() < 0.7 else 3)
        rows = upto(pixels // cols)
        kernel_y = upto(3)
        kernel_x = upto(min(3, passes // kernel_y))
        blocks = upto(passes // (kernel_y * kernel_x))
        per_block = int(rng.random() < 0.3 and rows * cols * blocks <= config.acc_depth)
        entries = rows * cols * (blocks if per_block else 1)
        hold = int(rng.random() < 0.3)
        tiles = 1 if hold else kernel_y * kernel_x * blocks
        fields = {
            "weights": int(rng.integers(0, config.weight_tiles - tiles + 1)),
            "start": int(rng.integers(0, 1 << 16)) if rng.random() < 0.1 else int(rng.integers(0, config.act_depth)),
            "y0": int(rng.integers(-3, 4)),
            "x0": int(rng.integers(-3, 4)),
            "in_height": upto(12),
            "in_width": upto(12),
            "tile_rows": rows, "tile_cols": cols, "kernel_y": kernel_y, "kernel_x": kernel_x, "blocks": blocks,
            "stride_y": int(rng.integers(0, 4)),
            "stride_x": int(rng.integers(0, 4)),
            "dilation_y": int(rng.integers(0, 3)),
            "dilation_x": int(rng.integers(0, 3)),
            "row_step": int(rng.integers(0, 40)),
            "ky_step": int(rng.integers(0, 40)),
            "block_step": int(rng.integers(0, 60)),
            "pad": int(rng.integers(-128, 128)),
            "acc": int(rng.integers(0, config.acc_depth - entries + 1)),
            "bank": int(rng.integers(0, 2)),
            "unsigned": int(rng.integers(0, 2)),
            "hold": hold,
            "per_block": per_block,
            "accumulate": int(rng.random() < 0.4),
            "max": int(rng.random() < 0.3) & config.maximum,
            "signal_load": int(rng.integers(0, 2)),
            "signal_store": int(rng.integers(0, 2)),
        }  # fmt: skip
        if config.depthwise_rows and rng.random() < 0.4:
            fields |= _depthwise(rng, config)
        instruction = Instruction(Opcode.EXECUTE, **(fields | fixed))
        address, inside = execute_reads(instruction, config)
        if not inside.any() or address[inside].max() < config.act_depth:
            return instruction


def _depthwise(rng, config):
    """Draw the fields of the depthwise mode, so that no pixel needs words after the pass."""
    stride, gap = int(rng.integers(1, 5)), int(rng.integers(0, 8))
    tail = max(0, config.depthwise_taps - stride - gap)
    return {
        "depthwise": 1,
        "slot": int(rng.integers(0, min(8, config.slots))),
        "stride_x": stride,
        "gap": gap,
        "tail": int(rng.integers(tail, 8)) if tail < 8 else 7,
        # Multiples lie in different banks: all of 1, 2, 3 with four banks, 1 with two.
        "ky_step": 2 * int(rng.integers(0, 20)) + 1,
    }
