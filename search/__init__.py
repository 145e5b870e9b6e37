"""Searches compressions of a CNN for the Pareto front of accuracy against latency."""
