"""Random ``UNFOLD`` and ``FILL`` instructions that are legal for a configuration, for tests and benches."""

from celosia.rtl.isa import Instruction, Opcode

__all__ = ["random_fill", "random_load", "random_unfold"]


def random_unfold(rng, config):
    """Draw an instruction that reads the lower half of the activation memory and writes words of its own in the upper half.

    Up to about 2,500 steps; rows of any length at any alignment, padding on all sides, columns beyond the last word, strides from one
    (rows: from zero), up to three channels.
    """

    def upto(limit):
        return int(rng.integers(1, limit + 1))

    half = config.act_depth // 2
    most = min(config.rows, config.unfold_streams)
    streams = most if rng.random() < 0.5 else upto(most)
    channels, kernel_y = upto(3), upto(4)
    groups = -(-channels * kernel_y // streams) + int(rng.random() < 0.1)
    last_streams = streams if rng.random() < 0.3 else upto(streams)
    tile_rows, tile_cols, stride_y, stride_x = upto(4), upto(19), int(rng.integers(0, 4)), upto(3)
    height, inside, left = upto(11), upto(44), int(rng.integers(0, 6)) if rng.random() < 0.5 else 0
    row_step = inside + int(rng.integers(0, 9))
    plane = height * row_step + int(rng.integers(0, 20))
    y0 = int(rng.integers(-4, height))
    base = int(rng.integers(0, half * config.rows - channels * plane))
    slots = groups * streams
    visited = (slots - 1) // kernel_y * plane + (slots - 1) % kernel_y * row_step
    words = tile_rows * groups * tile_cols
    return Instruction(
        Opcode.UNFOLD, start=(base + y0 * row_step) % (1 << 20), dest=half + int(rng.integers(0, half - words)), kernel_y=kernel_y,
        streams=streams, groups=groups, last_streams=last_streams if channels * kernel_y + streams > slots else 1, tile_rows=tile_rows,
        tile_cols=tile_cols, y0=y0, left=left, inside=inside, stride_y=stride_y, stride_x=stride_x,
        in_height=height if groups * streams <= (channels + 1) * kernel_y else 0, row_step=row_step,
        channel_step=(plane - (kernel_y - 1) * row_step) % (1 << 20), tile_step=(stride_y * row_step - visited) % (1 << 20),
        pad=int(rng.integers(0, 256)), signal_execute=int(rng.integers(0, 2)), signal_store=int(rng.integers(0, 2)),
    )  # fmt: skip


def random_fill(rng, config):
    """Draw an instruction that fills up to five weight tiles from words anywhere."""

    def upto(limit):
        return int(rng.integers(1, limit + 1))

    tiles = upto(min(5, config.weight_tiles))
    rows = config.rows if rng.random() < 0.5 else upto(config.rows)
    row_step = int(rng.integers(0, 5))
    reach = ((tiles - 1) * config.rows + rows - 1) * row_step
    if reach >= config.act_depth:
        row_step = reach = 0
    return Instruction(
        Opcode.FILL, weights=int(rng.integers(0, config.weight_tiles - tiles + 1)), tiles=tiles, rows=rows,
        source=int(rng.integers(0, config.act_depth - reach)) * config.rows, row_step=row_step * config.rows,
        slot=int(rng.integers(0, config.slots)), signal_execute=int(rng.integers(0, 2)), signal_store=int(rng.integers(0, 2)),
    )  # fmt: skip


def random_load(rng, config):
    """Draw one of the load unit's instructions."""
    return random_fill(rng, config) if config.fill and rng.random() < 0.4 else random_unfold(rng, config)
