"""A table that grows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Rows:
    """A table ``[n, *shape]`` that grows row by row, and is read without copying it.

    Args:
        shape: Of a row.
        dtype: Of its cells.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike = np.float64) -> None:
        self._kept = np.empty((64, *shape), dtype)
        self._count = 0

    @property
    def array(self) -> NDArray[Any]:
        """All rows so far; what is written into it stays."""
        return self._kept[: self._count]

    def add(self, row: Any) -> None:
        """Adds a row."""
        if self._count == len(self._kept):
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
        self._kept[self._count] = row
        self._count += 1
