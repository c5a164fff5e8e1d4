"""Comparison with a limit that is often a power of two: then the bits above tell, and no carry chain is needed."""

from amaranth.utils import ceil_log2

__all__ = ["at_least"]


def at_least(value, limit):
    """Return whether ``value``, taken as unsigned, is at least ``limit``: a constant, or a narrower value; a short carry chain."""
    if isinstance(limit, int):
        size = ceil_log2(limit)
        return value[size:].any() | (value[:size] >= limit if limit != 1 << size else 0)
    return value[len(limit) :].any() | (value[: len(limit)] >= limit)
