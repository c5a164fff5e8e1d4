"""The engine compiled with Verilator."""
