"""How to compile: the choices that do not depend on what the machine is."""

from dataclasses import dataclass

__all__ = ["CompilerOptions"]


@dataclass(frozen=True, kw_only=True)
class CompilerOptions:
    """Every choice of the compiler.

    Parameters
    ----------
    keep : bool or tuple of str
        Intermediate tensors that become outputs of the program: all of them with True, or those named.
    max_pixels : int
        Pixels of a tile unless the layer needs more to hide ``store_latency``. Moderate tiles let the next layer start early.
    min_tiles : int
        Tiles a layer is cut into where that keeps them large enough; the next layer starts when the first ones are stored.
    store_latency : int
        Cycles from the last issue of an EXECUTE to the release of its accumulator bank, without the store's own transfer. Tiles
        are made so long that the array does not wait for it.
    unfold_slots : int
        Tiles of unfolded input that exist at the same time; fewer where memory is short.
    unfold_lead : int
        Tiles that the load unit unfolds ahead of the array. At most three, so that its queue never blocks the others.
    search : bool
        Try some other values of ``max_pixels`` and ``min_tiles``, and keep the program with the fewest predicted cycles.
    blocked_inputs : bool
        Graph inputs of at least as many channels as the array has rows lie as a layer of the engine leaves its result, in words of channels,
        and not as the plain dense tensor: the host packs them. For measuring a layer as it runs within a network.
    verify : bool
        Prove after scheduling that the tokens order all accesses.
    """

    keep: bool | tuple = False
    max_pixels: int = 128
    min_tiles: int = 4
    store_latency: int = 80
    unfold_slots: int = 256
    unfold_lead: int = 3
    search: bool = True
    blocked_inputs: bool = False
    verify: bool = True

    def __post_init__(self):
        for knob, low, high in (
            ("max_pixels", 1, 1024),
            ("min_tiles", 1, 64),
            ("store_latency", 0, 1024),
            ("unfold_slots", 1, 1024),
            ("unfold_lead", 1, 3),
        ):
            if not low <= getattr(self, knob) <= high:
                raise ValueError(f"{knob} must be between {low} and {high}, not {getattr(self, knob)!r}")

    def keeps(self, name):
        """Return whether the intermediate tensor ``name`` shall be an output."""
        return self.keep is True or (self.keep is not False and name in self.keep)
