"""A picked point becomes a folder that works by itself; knows neither studies' files nor MLflow."""

from search.bundle.contents import Facts, compose
from search.bundle.writing import write

__all__ = ["Facts", "compose", "write"]
