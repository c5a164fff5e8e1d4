"""The commands of the command line, one module each: ``run(options)`` returns the exit code."""

__all__ = ["AT_THE_ENDS"]

AT_THE_ENDS = ("QuantizeLinear", "DequantizeLinear", "Softmax")
"""Operators that belong on the host where a graph begins or ends."""
