"""Stage ``confirm``: times finalists in one session."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from search.benchmark.plans import make_plan
from search.benchmark.session import compare_together
from search.data import read_samples
from search.devices.device import Device
from search.devices.reaching import on_device
from search.process import activity
from search.records.measurement import Session
from search.records.steps.measuring import Confirm
from search.records.steps.step import ArtifactStore


def run(step: Confirm, artifacts: ArtifactStore) -> Session:
    """Does the step; it takes about the comparisons' budgets together, slow models longer.

    Raises:
        StageFailed: If a model does not load or crashes, or the device's time-out runs out.
        DeviceLost: If the connection to the device breaks again and again.
    """
    first = step.comparisons[0]
    with tempfile.TemporaryDirectory(prefix="confirm-") as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, read_samples(first.data, artifacts.images))

        def confirm(device: Device) -> Session:
            plans = [make_plan(one, artifacts, inputs, device) for one in step.comparisons]
            tell = partial(activity.tell, "launch")
            return compare_together(device, plans, step.launches, on_launch=tell)

        models = {one.deployable.model for one in step.comparisons} | {first.reference.model}
        return on_device(first.connection, confirm, sum(model.size_bytes for model in models))
