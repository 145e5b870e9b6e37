"""What a study's file holds, read with Optuna alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial


def journal(folder: Path, study: str) -> list[FrozenTrial]:
    """The trials as Optuna holds them; none when the study was killed before its first line."""
    path = folder / "mlruns" / "studies" / f"{study}.journal"
    storage = JournalStorage(JournalFileBackend(str(path)))
    if study not in optuna.get_all_study_names(storage):
        return []
    return optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)


def record_of(trial: FrozenTrial) -> dict[str, Any]:
    """What the study wrote down of a trial; empty while it is under way."""
    record: dict[str, Any] = json.loads(trial.user_attrs.get("record", "{}"))
    return record


def without_sums(path: Path) -> str:
    """A journal's text as an earlier version wrote it, whose lines say nothing of themselves."""
    return re.sub(r', ?"line": ?\d+, ?"crc32": ?\d+}$', "}", path.read_text(), flags=re.MULTILINE)
