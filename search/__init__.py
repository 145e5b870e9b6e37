"""Searches compressions of a CNN for the Pareto front of accuracy against latency."""

__version__ = "0.1.0"
