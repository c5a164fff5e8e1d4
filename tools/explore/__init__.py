"""Sweeps engine configurations: cycles by the cycle model, area and clock by Yosys and nextpnr if asked for, and the Pareto front of both."""
