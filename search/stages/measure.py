"""Stage ``measure``: times a deployable model on the device beside a reference.

It knows which files and inputs a comparison needs; it does not know how time is measured.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from search.benchmark.device import LocalDevice
from search.benchmark.protocol import Plan, Side, compare
from search.data import load
from search.records import Dataset, Deployable, Measurement
from search.steps import Measure, Shelf

SAMPLES = 8


def run(step: Measure, shelf: Shelf) -> Measurement:
    """Measures ``step.deployable`` against ``step.reference``, which may be the same.

    Raises:
        StageFailed: If a model does not load or crashes, or ``step.timeout_s`` runs out.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, read_samples(step.data))
        # Seconds that reading the images took count for the time-out, not for the budget.
        prepared = time.monotonic()
        with LocalDevice(step.timeout_s - (prepared - begin)) as device:
            started = time.monotonic()
            plan = Plan(
                candidate=_side(step.deployable, step.threads, shelf),
                reference=_side(step.reference, step.reference_threads, shelf),
                inputs=str(inputs),
                batch_size=step.batch_size,
                budget_s=step.budget_s - (started - prepared),
                timeout_s=step.timeout_s - (started - begin),
                seed=step.seed,
            )
            return compare(device, plan)


def read_samples(data: Dataset) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Reads real images ``[8, C, H, W]`` in 0..1: zeros would make some kernels faster."""
    images = load(data).validation.read(np.arange(min(SAMPLES, data.sizes[1])))
    return np.asarray(images, dtype=np.float32) / np.float32(255)


def _side(deployable: Deployable, threads: int, shelf: Shelf) -> Side:
    model = shelf.path(deployable.model).absolute()
    return Side(str(model), threads, deployable.session_entries)
