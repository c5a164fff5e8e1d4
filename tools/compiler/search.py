"""The choice among programs: a few other sets of options, and the program that the cycle model says takes the fewest cycles.

What is best differs from network to network: larger tiles load weights less often and overlap less, smaller ones let the next layer start earlier.
"""

from dataclasses import replace

from celosia.sim.cycles import predict
from celosia.tools.errors import DoesNotFit

__all__ = ["CANDIDATES", "fewest_cycles"]

CANDIDATES = ({"max_pixels": 256}, {"min_tiles": 2})
"""Options to try, besides those given."""

SMALLEST = 4000
"""Cycles from which on a program is worth it."""

LARGEST = 4000
"""Instructions up to which it takes a second."""

GAIN = 0.002
"""Part of the cycles that another program must gain: the model is not more exact."""


def fewest_cycles(emission, build, config, options):
    """Return ``emission``, or a better one of those that ``build`` makes of the same graph with other options.

    Parameters
    ----------
    emission : Emission
        Of ``options``.
    build : function of CompilerOptions to Emission
    config : EngineConfig
    options : CompilerOptions
    """
    if len(emission.instructions) > LARGEST:
        return emission
    least = predict(emission.instructions, config).cycles
    if least < SMALLEST:
        return emission
    least *= 1 - GAIN
    for changes in CANDIDATES:
        try:
            candidate = build(replace(options, **changes))
        except DoesNotFit:
            continue
        cycles = predict(candidate.instructions, config).cycles
        if cycles < least:
            least, emission = cycles, candidate
    return emission
