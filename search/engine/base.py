"""What every engine promises; knows nothing of where steps run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from search.steps import Step


@dataclass(frozen=True)
class Done:
    """A step's result, the seconds it cost when computed, and whether the store knew it."""

    result: Any
    seconds: float
    reused: bool


class Engine(Protocol):
    """Answers steps, from memory or by doing them."""

    def run(self, step: Step[Any]) -> Done:
        """Returns what ``step`` answers.

        Raises:
            SearchError: As the stage raised it.
        """
