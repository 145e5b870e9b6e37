"""What is shown of a study beside its records; knows neither who shows it nor where."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version

from search.driving import drive
from search.engine.base import Engine
from search.engine.remembered import RememberedSteps
from search.engine.store import Store
from search.errors import DeviceLost, NotRemembered, StageFailed
from search.records import Canary, Closing, DeviceProfile, Finalist, ReadFile, TrialRecord
from search.report.explanation import explain, explanation_html
from search.trial import Bench, Lab, canary, profile

log = logging.getLogger(__name__)
PACKAGES = ("torch", "torch-pruning", "onnx", "onnxruntime", "optuna", "mlflow")


def device_tags(device: DeviceProfile) -> dict[str, str]:
    """Returns facts about the device, by name."""
    return {
        "device": device.name,
        "device.cpu": device.cpu,
        "device.cores": str(device.usable_cores),
        "device.flags": " ".join(device.flags),
        "device.int8_format": device.int8_format,
        "device.round_to": str(device.round_to),
        "device.runtime": device.runtime,
    }


def tags(bench: Bench) -> dict[str, str]:
    """Returns facts about where and with what a study is searched, by name."""
    return {
        **device_tags(bench.device),
        "data.fingerprint": bench.data.fingerprint,
        **{f"version.{package}": version(package) for package in PACKAGES},
    }


def models(records: Sequence[TrialRecord], store: Store) -> dict[int, ReadFile]:
    """Returns the ONNX file of every trial that has one, by trial number."""
    return {
        record.number: partial(store.read, record.deployable.model)
        for record in records
        if record.deployable is not None
    }


def final_models(closing: Closing, store: Store) -> dict[int, ReadFile]:
    """Returns the ONNX file of every finalist, by trial number."""
    return {f.number: partial(store.read, f.deployable.model) for f in closing.finalists}


def explanations(finalists: Sequence[Finalist], lab: Lab, engine: Engine) -> str:
    """Says for the page, as HTML, what the time of each point of the front goes into."""
    told = []
    for finalist in finalists:
        if finalist.deployable == lab.reference or not finalist.stands:
            continue
        recipe = profile(finalist.deployable, finalist.point.threads, lab)
        try:
            found = drive(recipe, engine)
        except NotRemembered:
            continue
        except (StageFailed, DeviceLost) as error:
            log.warning("trial %d could not be profiled: %s", finalist.number, error)
            continue
        macs, round_to = lab.teacher.network.macs, lab.bench.device.round_to
        told.append(explain(finalist.number, finalist.figures, found, macs, round_to))
    return "\n".join(map(explanation_html, told))


def known_canaries(lab: Lab, identity: str, trials: int, store: Store) -> Iterator[Canary]:
    """Yields the canaries that the store remembers of a study.

    Args:
        lab: The study's.
        identity: Of the study.
        trials: Before how many finished ones they were released.
        store: Of this working directory.
    """
    engine = RememberedSteps(store)
    for after_trials in range(trials):
        try:
            yield drive(canary(lab, identity, after_trials), engine)
        except NotRemembered:
            continue
