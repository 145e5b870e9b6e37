"""A recipe yields steps and receives their results."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from search.records.steps.step import Step

T = TypeVar("T")
Recipe = Generator[Step[Any], Any, T]
