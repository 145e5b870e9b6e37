"""Data sets and their splits; knows nothing of networks."""
