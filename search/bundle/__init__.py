"""A picked point becomes a folder that works by itself."""

from search.bundle.contents import compose
from search.bundle.facts import Facts
from search.bundle.writing import write

__all__ = ["Facts", "compose", "write"]
