"""A trial under way and the record of how it ended; knows nothing of where records are kept."""

from __future__ import annotations

import time

import optuna

from search.driving import Course
from search.engine.base import Engine
from search.errors import InfeasiblePoint, StageFailed
from search.records import Figures, Point, TrialRecord
from search.trial import Ending, Lab, Referee, trial


class Attempt(Course[Ending]):
    """A trial under way; whatever goes wrong inside it becomes its outcome.

    Args:
        point: To be tried.
        lab: Where.
        engine: Does its steps.
        referee: Judges it.
        asked: The trial that Optuna asked for; None where a known student is deployed otherwise.
        student_of: Number of the trial that trained that student.
    """

    def __init__(
        self,
        point: Point,
        lab: Lab,
        engine: Engine,
        referee: Referee,
        asked: optuna.Trial | None = None,
        student_of: int | None = None,
    ) -> None:
        self.point, self.asked, self.student_of = point, asked, student_of
        self._begun_s = time.monotonic()
        title = f"trial {student_of}'s student" if asked is None else f"trial {asked.number}"
        super().__init__(trial(point, lab, referee), engine, title=title)

    def record(self, number: int) -> TrialRecord:
        """Returns what is written down of the ended trial."""
        try:
            ending = self.result()
        except InfeasiblePoint as error:
            ending = Ending(self.point, "infeasible", str(error), Figures(), {}, None)
        except StageFailed as error:
            ending = Ending(self.point, "failed", str(error), Figures(), {}, None)
        return TrialRecord(
            number=number,
            point=ending.point,
            outcome=ending.outcome,
            reason=ending.reason,
            figures=ending.figures,
            violations=ending.violations,
            deployable=ending.deployable,
            student_of=self.student_of,
            stage_s=self.effort.stage_s,
            reused_steps=self.effort.reused_steps,
            wall_s=time.monotonic() - self._begun_s,
            finished_at=time.time(),
            layers=ending.layers,
            worker_rss_bytes=self.effort.worker_rss_bytes,
        )
