"""What is known of a picked point."""

from __future__ import annotations

from dataclasses import dataclass

from search.front.candidates import Candidate
from search.records.bench import Lab
from search.records.trial import ScoredTrial


@dataclass(frozen=True)
class Facts:
    """What is known of a picked point.

    Attributes:
        study: Name of its study.
        configuration: Of the study, as YAML.
        lab: What it was compared with, and on what.
        record: Its trial.
        candidate: Its figures, the accuracy on the test split.
        original: The uncompressed network's, the accuracy on the test split.
    """

    study: str
    configuration: str
    lab: Lab
    record: ScoredTrial
    candidate: Candidate
    original: Candidate | None
