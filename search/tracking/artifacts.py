"""The files that a study's run has: its front as JSON, as pictures and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search.front.front import GrowingFront
from search.records.closing import Closing, Finalist
from search.records.measurement import Canary
from search.records.trial import TrialRecord
from search.report import describe_result, front_page, front_png, halved

Importances = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Shown:
    """What the files show.

    Attributes:
        study: Its name.
        storage: Overrides by which commands find where it is kept, after a space.
        device: What its device is called.
        objectives: Names of what the front trades.
        records: Finished trials.
        front: Of them.
        closing: The latest closing round; None if none was held.
        canaries: What the device was found to be like so far.
        explanations: HTML that says what the finalists' time goes into.
        runs: MLflow's run of every trial, by trial number.
    """

    study: str
    storage: str
    device: str
    objectives: tuple[str, ...]
    records: Sequence[TrialRecord]
    front: GrowingFront
    closing: Closing | None
    canaries: tuple[Canary, ...]
    explanations: str
    runs: Mapping[int, str]

    @property
    def finalists(self) -> Sequence[Finalist]:
        """Points of the closing round; none if none was held."""
        return () if self.closing is None else self.closing.finalists

    @property
    def remarks(self) -> str:
        """What must be known about it all."""
        said = describe_result(
            self.records, self.front.members, self.objectives, self.closing, self.canaries
        )
        return " ".join(said)


def write_summary(shown: Shown, folder: Path) -> None:
    """Writes ``front.json``."""
    first = shown.front.original
    searched = [_summarise(record, shown) for record in shown.front.members]
    finalists = [_summarise(finalist, shown) for finalist in shown.finalists]
    summary = {
        "study": shown.study,
        "objectives": list(shown.objectives),
        "hypervolume": shown.front.hypervolume,
        "original": None if first is None else _summarise(first, shown),
        "front": [f for f in finalists if f["stands"]] if finalists else searched,
        "searched_front": searched,
        "finalists": finalists,
    }
    (folder / "front.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def draw(shown: Shown, importances: Importances, folder: Path) -> None:
    """Writes ``front.png``, ``front-small.png`` and ``front.html``."""
    numbers = [record.number for record in shown.front.members]
    picture = front_png(shown.study, shown.records, numbers, shown.finalists)
    (folder / "front.png").write_bytes(picture)
    (folder / "front-small.png").write_bytes(halved(picture))
    page = front_page(
        shown.study,
        shown.records,
        numbers,
        shown.remarks,
        shown.finalists,
        shown.device,
        shown.objectives,
        importances,
        shown.explanations,
        shown.storage,
    )
    (folder / "front.html").write_text(page, encoding="utf-8")


def _summarise(one: TrialRecord | Finalist, shown: Shown) -> dict[str, Any]:
    everything, figures = asdict(one), {}
    if one.figures is not None:
        figures = {**everything["figures"], "measuring": one.figures.quality}
        del figures["quality"], figures["structure"]
    named = {"figures": figures, "point": one.point.values, "run_id": shown.runs[one.number]}
    return everything | named
