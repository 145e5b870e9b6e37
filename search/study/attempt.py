"""A trial under way and the record of how it ended."""

from __future__ import annotations

import time
from functools import partial

import optuna

from search.engine.base import Engine
from search.engine.driving import RecipeRun
from search.errors import InfeasiblePoint, StageFailed
from search.recipes.referee import Ending, Referee
from search.recipes.trial import trial
from search.records.bench import Lab
from search.records.point import Point
from search.records.trial import FailedTrial, InfeasibleTrial, TrialRecord


class Attempt(RecipeRun[Ending]):
    """A trial under way; whatever goes wrong inside it becomes its outcome.

    Args:
        point: To be tried.
        lab: Where.
        engine: Does its steps.
        referee: Judges it.
        asked: The trial that Optuna asked for; None where a known student is deployed otherwise.
        student_of: Number of the trial that trained that student.
        is_original: Whether it is the uncompressed network's.
    """

    def __init__(
        self,
        point: Point,
        lab: Lab,
        engine: Engine,
        referee: Referee,
        asked: optuna.Trial | None = None,
        student_of: int | None = None,
        is_original: bool = False,
    ) -> None:
        self.point, self.asked, self.student_of = point, asked, student_of
        self.is_original = is_original
        self._begun_s = time.monotonic()
        title = f"trial {student_of}'s student" if asked is None else f"trial {asked.number}"
        super().__init__(trial(point, lab, referee), engine, title=title)

    def record(self, number: int) -> TrialRecord:
        """Returns what is written down of the ended trial."""
        try:
            ending: Ending = self.result()
        except InfeasiblePoint as error:
            ending = partial(InfeasibleTrial, point=self.point, reason=str(error))
        except StageFailed as error:
            ending = partial(FailedTrial, point=self.point, reason=str(error))
        return ending(
            number=number,
            is_original=self.is_original,
            student_of=self.student_of,
            stage_s=self.usage.stage_s,
            reused_steps=self.usage.reused_steps,
            wall_s=time.monotonic() - self._begun_s,
            finished_at=time.time(),
            worker_rss_bytes=self.usage.worker_rss_bytes,
        )
