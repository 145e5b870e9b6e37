"""Runs recipes' steps on an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from search.engine.base import Done, Engine
from search.errors import InfeasiblePoint, StageFailed
from search.records.steps.recipe import Recipe
from search.records.steps.step import Step

T = TypeVar("T")
C = TypeVar("C", bound="RecipeRun[Any]")


@dataclass
class ResourceUsage:
    """What driving a recipe took; a step that is asked for again counts once.

    Attributes:
        stage_s: Seconds by stage, as first computed.
        reused_steps: Steps that were not computed for this recipe.
        worker_rss_bytes: Most memory that a worker held; None where all was done in this process.
        keys: Of the steps counted.
    """

    stage_s: dict[str, float] = field(default_factory=dict)
    reused_steps: int = 0
    worker_rss_bytes: int | None = None
    keys: set[str] = field(default_factory=set)

    def add(self, step: Step[Any], done: Done) -> None:
        """Counts a finished step."""
        if step.key not in self.keys:
            self.keys.add(step.key)
            self.stage_s[step.kind] = self.stage_s.get(step.kind, 0.0) + done.seconds
            self.reused_steps += done.reused
        if done.peak_rss_bytes is not None:
            self.worker_rss_bytes = max(done.peak_rss_bytes, self.worker_rss_bytes or 0)


class RecipeRun(Generic[T]):
    """A recipe under way.

    A stage that fails or finds a point infeasible is raised inside the recipe, which may know
    another way.

    Args:
        recipe: Not begun.
        engine: Does its steps.
        usage: Where what it takes is added; its own by default.
        title: What its steps are done for, such as ``trial 7``.

    Attributes:
        usage: What it took so far.
        pending: The answer that it waits for; None at its end.
    """

    def __init__(
        self, recipe: Recipe[T], engine: Engine, usage: ResourceUsage | None = None, title: str = ""
    ) -> None:
        self.usage = usage or ResourceUsage()
        self.pending: Future[Done] | None = None
        self._recipe = recipe
        self._engine = engine
        self._title = title
        self._step: Step[Any] | None = None
        self._results: list[T] = []
        self._failure: StageFailed | InfeasiblePoint | None = None
        self._go_on(lambda: next(recipe))

    def advance(self) -> None:
        """Waits for the pending answer, and goes on to the next step or the end.

        Raises:
            SearchError: As a step raised it, unless it is the recipe's own failure; OSError too.
        """
        assert self.pending is not None, "it has ended"
        assert self._step is not None
        try:
            done = self.pending.result()
        except (StageFailed, InfeasiblePoint) as error:
            failure = error  # Python forgets ``error`` at the end of the clause
            self._go_on(lambda: self._recipe.throw(failure))
        else:
            self.usage.add(self._step, done)
            self._go_on(lambda: self._recipe.send(done.result))

    def result(self) -> T:
        """Returns what the recipe returned.

        Raises:
            StageFailed: When it did not get over a failure.
            InfeasiblePoint: When its point cannot be realised.
        """
        if self._failure is not None:
            raise self._failure
        return self._results[0]

    def _go_on(self, resume: Callable[[], Step[Any]]) -> None:
        try:
            self._step = resume()
        except StopIteration as stop:
            self._results, self.pending = [stop.value], None
        except (StageFailed, InfeasiblePoint) as error:
            self._failure, self.pending = error, None
        else:
            self.pending = self._engine.submit(self._step, self._title)


def drive(
    recipe: Recipe[T], engine: Engine, usage: ResourceUsage | None = None, title: str = ""
) -> T:
    """Runs a recipe's steps to its end, adding what they took to ``usage``.

    Args:
        recipe: Not begun.
        engine: Does its steps.
        usage: Where what it takes is added.
        title: What the steps are done for.

    Raises:
        SearchError: As a step raised it; OSError too.
    """
    run = RecipeRun(recipe, engine, usage, title)
    while run.pending is not None:
        run.advance()
    return run.result()


def drive_together(begin: Callable[[], C | None], slots: int) -> Iterator[C]:
    """Drives several recipes side by side, and yields each at its end.

    Args:
        begin: Begins another recipe, whenever there is room for one; None when there is none now.
        slots: Recipes that may be under way at a time.

    Raises:
        SearchError: As a step raised it; OSError too.
    """
    under_way: list[C] = []
    while True:
        while len(under_way) < slots and (run := begin()) is not None:
            under_way.append(run)
        if not under_way:
            return
        pending = [run.pending for run in under_way if run.pending is not None]
        if len(pending) == len(under_way):
            wait(pending, return_when=FIRST_COMPLETED)
        for run in list(under_way):
            if run.pending is not None and run.pending.done():
                run.advance()
            if run.pending is None:
                under_way.remove(run)
                yield run


def drive_all(
    recipes: Sequence[Recipe[T]], engine: Engine, titles: Sequence[str]
) -> list[RecipeRun[T]]:
    """Drives recipes side by side to their ends, and returns them in their order.

    Args:
        recipes: Not begun.
        engine: Does their steps.
        titles: What the steps of each are done for.

    Raises:
        SearchError: As a step raised it; OSError too.
    """
    runs: list[RecipeRun[T]] = []

    def begin() -> RecipeRun[T] | None:
        if len(runs) == len(recipes):
            return None
        runs.append(RecipeRun(recipes[len(runs)], engine, title=titles[len(runs)]))
        return runs[-1]

    for _ in drive_together(begin, engine.slots):
        pass
    return runs
