"""Data sets and their splits."""

from search.data.loading import batch_of, describe, load, outline, read_samples
from search.data.source import Images, Source
from search.data.splits import Split, Splits

__all__ = [
    "Images",
    "Source",
    "Split",
    "Splits",
    "batch_of",
    "describe",
    "load",
    "outline",
    "read_samples",
]
