"""Stage ``measure``: times a deployable model on the device beside a reference.

It knows which files and inputs a comparison needs; it does not know how time is measured.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from search.benchmark.agent import SPINNING
from search.benchmark.device import Device, on_device
from search.benchmark.protocol import Plan, Side, compare
from search.data import load
from search.records import Dataset, Deployable, Measurement
from search.steps import Measure, Shelf

SAMPLES = 8
# The device frees itself after so many time-outs: uploading may take another one.
HOLDS = 2


def run(step: Measure, shelf: Shelf) -> Measurement:
    """Measures ``step.deployable`` against ``step.reference``, which may be the same.

    Raises:
        StageFailed: If a model does not load or crashes, or the device's time-out runs out.
        DeviceLost: If the connection to the device breaks again and again.
    """
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, read_samples(step.data))

        def measure(device: Device) -> Measurement:
            return compare(device, _plan(step, shelf, inputs, device))

        # Files that the device lacks are sent while it is held, and their time is not the model's.
        return on_device(step.connection, measure, HOLDS * step.connection.timeout_s)


def read_samples(data: Dataset) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Reads real images ``[8, C, H, W]`` in 0..1: zeros would make some kernels faster."""
    images = load(data).validation.read(np.arange(min(SAMPLES, data.sizes[1])))
    return np.asarray(images, dtype=np.float32) / np.float32(255)


def _plan(step: Measure, shelf: Shelf, inputs: Path, device: Device) -> Plan:
    return Plan(
        candidate=_side(step, step.deployable, step.threads, shelf, device),
        reference=_side(step, step.reference, step.reference_threads, shelf, device),
        inputs=device.deliver(inputs),
        batch_size=step.batch_size,
        throughput_batch_size=step.throughput_batch_size,
        memory_limit_bytes=step.memory_limit_bytes,
        launches=step.launches,
        retry=True,
        budget_s=step.budget_s,
        timeout_s=step.connection.timeout_s,
        seed=step.seed,
    )


def _side(
    step: Measure, deployable: Deployable, threads: int, shelf: Shelf, device: Device
) -> Side:
    spinning = ((SPINNING, "1"),) if step.spinning else ()
    return Side(
        model=device.deliver(shelf.path(deployable.model)),
        threads=threads,
        session_entries=(*deployable.session_entries, *spinning),
    )
