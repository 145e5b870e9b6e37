"""Data sets and their splits; knows nothing of networks."""

from search.data.loading import describe, load, outline, read_samples
from search.data.source import Images, Source
from search.data.splits import Split, Splits

__all__ = ["Images", "Source", "Split", "Splits", "describe", "load", "outline", "read_samples"]
