"""Turns a step into a plan: what of it must lie on the device, and how sessions are opened."""

from __future__ import annotations

from pathlib import Path

from search.benchmark.plan import Plan, Side
from search.devices.agent.options import SPINNING
from search.devices.device import Device
from search.records.deployable import Deployable
from search.records.steps.measuring import Measure
from search.records.steps.step import ArtifactStore

# A smaller budget is for trying things out: figures are poor, and spending it twice mends little.
LEAST_RETRIED_S = 0.5


def make_plan(step: Measure, artifacts: ArtifactStore, inputs: Path, device: Device) -> Plan:
    """Brings both models and the inputs to the device.

    Args:
        step: The comparison.
        artifacts: Where the models lie.
        inputs: A float32 ``.npy`` file ``[k, C, H, W]``.
        device: Where to compare.
    """
    return Plan(
        candidate=_side(step, step.deployable, step.threads, artifacts, device),
        reference=_side(step, step.reference, step.reference_threads, artifacts, device),
        inputs=device.deliver(inputs),
        batch_size=step.batch_size,
        throughput_batch_size=step.throughput_batch_size,
        memory_limit_bytes=step.memory_limit_bytes,
        launches=step.launches,
        retry=step.budget_s >= LEAST_RETRIED_S,
        budget_s=step.budget_s,
        timeout_s=step.connection.timeout_s,
        seed=step.seed,
    )


def _side(
    step: Measure, deployable: Deployable, threads: int, artifacts: ArtifactStore, device: Device
) -> Side:
    return Side(
        model=device.deliver(artifacts.path(deployable.model)),
        threads=threads,
        session_entries=session_entries(deployable, step.spinning),
    )


def session_entries(deployable: Deployable, spinning: bool) -> tuple[tuple[str, str], ...]:
    """Returns what a session of the model is configured with, beside what all are.

    Args:
        deployable: The model.
        spinning: Whether waiting threads keep their processor busy.
    """
    return (*deployable.options, *(((SPINNING, "1"),) if spinning else ()))
