"""Images of the weight, parameter and table memories, filled entry by entry; equal entries are stored once."""

import numpy as np

from celosia.tools.errors import DoesNotFit

__all__ = ["ParamImage", "TableImage", "WeightImage"]


class _Image:
    """Entries of one dtype and shape, appended in blocks and shared by content."""

    def __init__(self):
        self._blocks = []
        self._known = {}
        self.entries = 0

    def _add(self, block):
        key = block.tobytes(), len(block)
        if key not in self._known:
            self._known[key] = self.entries
            self._blocks.append(block)
            self.entries += len(block)
        return self._known[key]


class WeightImage(_Image):
    """Weight tiles; :meth:`image` is what :class:`celosia.tools.program.Program` calls ``weights``."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self._seen = {}
        self._reserved = 0

    def add(self, tiles):
        """Store int8 ``[n, rows, cols]`` and return the number of the first tile."""
        if id(tiles) not in self._seen:
            self._seen[id(tiles)] = tiles, self._add(tiles)  # keeps the array alive, so that its id stays its own
        return self._seen[id(tiles)][1]

    def reserve(self, buffers):
        """Return the first tile of each buffer (name → tiles) behind the constants; where they do not all fit, they share one place."""
        first, places = self.entries, {}
        apart = self.entries + sum(buffers.values()) <= self.config.weight_tiles
        for name, tiles in buffers.items():
            places[name] = first
            self._reserved = max(self._reserved, first + tiles - self.entries)
            first += tiles if apart else 0
        return places

    def image(self):
        """Return int8 ``[tiles, load_cycles, weight_rows, cols]``.

        Raises
        ------
        DoesNotFit
            If there are more tiles than the memory holds.
        """
        config = self.config
        size = config.rows * config.cols
        if self.entries + self._reserved > config.weight_tiles:
            raise DoesNotFit("weight", (self.entries + self._reserved) * size, config.weight_bytes)
        tiles = np.concatenate(self._blocks) if self._blocks else np.zeros((0, config.rows, config.cols), np.int8)
        tiles = tiles.reshape(-1, config.weight_rows, config.load_cycles, config.cols)
        return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3))


class ParamImage(_Image):
    """Channel and addition parameters in entries of ``lanes`` × 64 bits."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def add_channels(self, params):
        """Store ``[3, channels]`` (bias, mantissa, shift; ``channels`` a multiple of ``cols``) and return the first entry."""
        bias, mantissa, shift = params
        words = np.stack([bias & 0xFFFFFFFF, mantissa | shift << 24], axis=-1).astype(np.uint32)
        return self._add(words.reshape(-1, 2 * self.config.lanes))

    def add_addition(self, k_result, k_operand, k_zero):
        """Store the fields of an :class:`celosia.rtl.isa.AddParams` and return its entry."""
        value = k_result & (1 << 28) - 1 | (k_operand & (1 << 28) - 1) << 28 | (k_zero & (1 << 40) - 1) << 56
        words = np.frombuffer(value.to_bytes(16, "little"), np.uint32)
        width = 2 * self.config.lanes
        return self._add(np.pad(words, (0, max(0, width - 4))).reshape(-1, width))

    def image(self):
        """Return uint32 ``[entries, 2 * lanes]``.

        Raises
        ------
        DoesNotFit
            If there are more entries than the memory holds.
        """
        config = self.config
        if self.entries > config.param_depth:
            raise DoesNotFit("parameter", self.entries * config.lanes * 8, config.param_depth * config.lanes * 8)
        return np.concatenate(self._blocks) if self._blocks else np.zeros((0, 2 * config.lanes), np.uint32)


class TableImage(_Image):
    """256-byte tables."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def add(self, table):
        """Store int8 ``[256]`` and return the table's number."""
        return self._add(np.ascontiguousarray(table, np.int8).view(np.uint8).reshape(1, 256))

    def image(self):
        """Return uint8 ``[n, 256]``.

        Raises
        ------
        DoesNotFit
            If there are more tables than the engine has.
        """
        if self.entries > self.config.tables:
            raise DoesNotFit("table", self.entries * 256, self.config.tables * 256)
        return np.concatenate(self._blocks) if self._blocks else np.zeros((0, 256), np.uint8)
