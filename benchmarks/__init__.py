"""Measurements with what they are compared to, side by side; run as ``python -m benchmarks.<name>``."""
