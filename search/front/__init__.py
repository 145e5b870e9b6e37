"""Pareto mathematics, fronts and who stands on them."""
