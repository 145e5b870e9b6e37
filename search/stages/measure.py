"""Stage ``measure``: times a deployable model on the device beside a reference.

It knows which files and inputs a comparison needs; it does not know how time is measured.
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

import numpy as np

from search.benchmark.agent import SPINNING
from search.benchmark.device import Device, hold, open_device
from search.benchmark.protocol import Plan, Side, compare
from search.data import load
from search.errors import DeviceLost
from search.records import Dataset, Deployable, Measurement
from search.steps import Measure, Shelf

log = logging.getLogger(__name__)

SAMPLES = 8
RECONNECT_AFTER_S = (1.0, 5.0, 20.0)


def run(step: Measure, shelf: Shelf) -> Measurement:
    """Measures ``step.deployable`` against ``step.reference``, which may be the same.

    Raises:
        StageFailed: If a model does not load or crashes, or the device's time-out runs out.
        DeviceLost: If the connection to the device breaks again and again.
    """
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, read_samples(step.data))
        for pause_s in RECONNECT_AFTER_S:
            try:
                return _measure(step, shelf, inputs)
            except DeviceLost as error:
                log.warning("%s; measuring again in %g s", error, pause_s)
                time.sleep(pause_s)
        return _measure(step, shelf, inputs)


def read_samples(data: Dataset) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Reads real images ``[8, C, H, W]`` in 0..1: zeros would make some kernels faster."""
    images = load(data).validation.read(np.arange(min(SAMPLES, data.sizes[1])))
    return np.asarray(images, dtype=np.float32) / np.float32(255)


def _measure(step: Measure, shelf: Shelf, inputs: Path) -> Measurement:
    timeout_s = step.connection.timeout_s
    with open_device(step.connection, timeout_s) as device:
        plan = Plan(
            candidate=_side(step, step.deployable, step.threads, shelf, device),
            reference=_side(step, step.reference, step.reference_threads, shelf, device),
            inputs=device.deliver(inputs),
            batch_size=step.batch_size,
            throughput_batch_size=step.throughput_batch_size,
            memory_limit_bytes=step.memory_limit_bytes,
            launches=step.launches,
            retry=True,
            budget_s=step.budget_s,
            timeout_s=timeout_s,
            seed=step.seed,
        )
        hold(device, timeout_s)
        return compare(device, plan)


def _side(
    step: Measure, deployable: Deployable, threads: int, shelf: Shelf, device: Device
) -> Side:
    spinning = ((SPINNING, "1"),) if step.spinning else ()
    return Side(
        model=device.deliver(shelf.path(deployable.model)),
        threads=threads,
        session_entries=(*deployable.session_entries, *spinning),
    )
