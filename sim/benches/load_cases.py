"""Random ``UNFOLD`` and ``FILL`` instructions that are legal for a configuration, for tests and benches."""

from celosia.rtl.isa import Instruction, Opcode

__all__ = ["random_fill", "random_load", "random_unfold"]


def random_unfold(rng, config):
    """Draw an instruction that reads the lower half of the activation memory and writes words of its own in the upper half.

    Up to about 2,500 steps; rows of any length at any alignment, padding on all sides, strides from zero, up to three channels.
    """

    def upto(limit):
        return int(rng.integers(1, limit + 1))

    half = config.act_depth // 2
    kernel_x = upto(min(config.rows, 9 if rng.random() < 0.8 else 32))
    most = min(config.rows // kernel_x, config.unfold_streams)
    streams = most if rng.random() < 0.5 else upto(most)
    channels, kernel_y = upto(3), upto(4)
    groups = -(-channels * kernel_y // streams) + int(rng.random() < 0.1)
    tile_rows, tile_cols = upto(4), upto(19)
    height, width = upto(11), upto(44)
    row_step = width + int(rng.integers(0, 9))
    channel_step = height * row_step + int(rng.integers(0, 20))
    y0, x0 = int(rng.integers(-4, height)), int(rng.integers(-5, width + 2))
    base = int(rng.integers(0, half * config.rows - channels * channel_step))
    group_step = tile_cols + int(rng.integers(0, 3))
    dest_row_step = groups * group_step + int(rng.integers(0, 3))
    dest = half + int(rng.integers(0, half - tile_rows * dest_row_step))
    return Instruction(
        Opcode.UNFOLD, start=(base + y0 * row_step + x0) % (1 << 20), dest=dest, channels=channels, kernel_y=kernel_y,
        kernel_x=kernel_x, streams=streams, groups=groups, tile_rows=tile_rows, tile_cols=tile_cols, y0=y0, x0=x0,
        stride_y=int(rng.integers(0, 4)), stride_x=int(rng.integers(0, 4)), in_height=height, in_width=width,
        channel_step=channel_step, source_row_step=row_step, dest_row_step=dest_row_step, dest_group_step=group_step,
        pad=int(rng.integers(0, 256)), signal_execute=int(rng.integers(0, 2)), signal_store=int(rng.integers(0, 2)),
    )  # fmt: skip


def random_fill(rng, config):
    """Draw an instruction that fills up to five weight tiles from words anywhere."""

    def upto(limit):
        return int(rng.integers(1, limit + 1))

    tiles = upto(min(5, config.weight_tiles))
    rows = config.rows if rng.random() < 0.5 else upto(config.rows)
    row_step, tile_step = int(rng.integers(0, 5)), int(rng.integers(0, min(4 * config.rows, config.act_depth // 8)))
    reach = (tiles - 1) * tile_step + (rows - 1) * row_step
    return Instruction(
        Opcode.FILL, weights=int(rng.integers(0, config.weight_tiles - tiles + 1)), tiles=tiles, rows=rows,
        source=int(rng.integers(0, config.act_depth - reach)), row_step=row_step, tile_step=tile_step,
        slot=int(rng.integers(0, config.slots)), signal_execute=int(rng.integers(0, 2)), signal_store=int(rng.integers(0, 2)),
    )  # fmt: skip


def random_load(rng, config):
    """Draw one of the load unit's instructions."""
    return random_fill(rng, config) if rng.random() < 0.4 else random_unfold(rng, config)
