"""What an engine was built without, told in the same words wherever it is found out."""

from celosia.tools.compiler import ir

__all__ = ["ADVICE", "built_without"]

ADVICE = "Use an engine with {} = 1, or let ONNX Runtime compute it between engine segments, exactly."
"""The suggestion, for the knob."""


def built_without(node, config):
    """Return ``(knob, reason)`` if ``node`` needs what an engine of ``config`` leaves out, else None; the reason begins in lower case."""
    needs = {
        "combine": (getattr(node, "combine", None), "it combines two tensors element by element"),
        "fill": (isinstance(node, ir.Product), "it multiplies two activations"),
        "maximum": (isinstance(node, ir.Pool) and node.takes_maximum, "it takes a maximum over pixels"),
    }
    for knob, (needed, what) in needs.items():
        if needed and not getattr(config, knob):
            return knob, f"{what}, which this engine was built without ({knob} = 0)"
    return None
