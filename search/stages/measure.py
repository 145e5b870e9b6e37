"""Stage ``measure``: times a deployable model on the device beside a reference."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from search.benchmark.plans import make_plan
from search.benchmark.protocol import compare
from search.data import read_samples
from search.devices.device import Device
from search.devices.reaching import on_device
from search.records.measurement import Measurement
from search.records.steps.measuring import Measure
from search.records.steps.step import ArtifactStore


def run(step: Measure, artifacts: ArtifactStore) -> Measurement:
    """Measures ``step.deployable`` against ``step.reference``, which may be the same.

    Raises:
        StageFailed: If a model does not load or crashes, or the device's time-out runs out.
        DeviceLost: If the connection to the device breaks again and again.
    """
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, read_samples(step.data, artifacts.images))

        def measure(device: Device) -> Measurement:
            return compare(device, make_plan(step, artifacts, inputs, device))

        models = (step.deployable.model, step.reference.model)
        return on_device(step.connection, measure, sum(model.size_bytes for model in models))
