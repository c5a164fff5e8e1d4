"""What each knob of the engine buys: the network it matters to most, with the knob and without."""

import dataclasses

from celosia.rtl.config import BadConfig
from celosia.tools.bench.networks import network

__all__ = ["LEVERS", "variants"]

LEVERS = (
    ("weight rows loaded per cycle", "autoencoder", {"weight_rows": 2}),
    ("weight rows loaded per cycle", "autoencoder", {"weight_rows": 1}),
    ("requantiser lanes", "dscnn", {"lanes": 8}),
    ("requantiser lanes", "dscnn", {"lanes": 4}),
    ("depthwise mode: taps on rows, channels on columns", "dscnn", {"depthwise_rows": 0}),
    ("taps of the first layer packed onto rows", "resnet8", {"unfold_streams": 1}),
    ("accumulator entries, which bound the tile", "vww", {"acc_depth": 128}),
    ("instructions fetched ahead", "vww", {"queue_depth": 2, "fetch_bits": 32}),
)
"""What the lever is, the network, and the knobs that pull it back."""


def variants(config):
    """Yield ``(lever, network, knobs, config)`` of each of :data:`LEVERS` that takes something from an engine."""
    for lever, name, knobs in LEVERS:
        if all(getattr(config, knob) <= value for knob, value in knobs.items()):
            continue
        try:
            changed = dataclasses.replace(config, name=f"{config.name}, {_said(knobs)}", **knobs)
        except BadConfig:
            continue
        yield lever, network(name), _said(knobs), changed


def _said(knobs):
    return ", ".join(f"{knob} = {value}" for knob, value in knobs.items())
