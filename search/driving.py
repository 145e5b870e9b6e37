"""Runs a recipe's steps on an engine; knows neither the steps nor where they run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from search.engine.base import Engine
from search.errors import StageFailed
from search.trial import Recipe

T = TypeVar("T")


@dataclass
class Effort:
    """What driving a recipe took; a step that is asked for again counts once.

    Attributes:
        stage_s: Seconds by stage, as first computed.
        reused_steps: Steps that were not computed for this recipe.
        keys: Of the steps counted.
    """

    stage_s: dict[str, float] = field(default_factory=dict)
    reused_steps: int = 0
    keys: set[str] = field(default_factory=set)

    def add(self, key: str, kind: str, seconds: float, reused: bool) -> None:
        """Counts a finished step."""
        if key not in self.keys:
            self.keys.add(key)
            self.stage_s[kind] = self.stage_s.get(kind, 0.0) + seconds
            self.reused_steps += reused


def drive(recipe: Recipe[T], engine: Engine, effort: Effort) -> T:
    """Runs a recipe's steps to its end, adding what they took to ``effort``.

    A stage that fails is raised inside the recipe, which may know another way.

    Raises:
        SearchError: As a step raised it.
    """
    answer: Any = None
    failure: StageFailed | None = None
    while True:
        try:
            step = recipe.send(answer) if failure is None else recipe.throw(failure)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
        try:
            done = engine.run(step)
        except StageFailed as error:
            answer, failure = None, error
            continue
        answer, failure = done.result, None
        effort.add(step.key, step.kind, done.seconds, done.reused)
