"""What is compared, and how much of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from search.benchmark.estimates import RUNS_FOR_PERCENTILE

PROTOCOL_VERSION = 4
# Two sessions that were started once may agree on a wrong ratio for as long as they live: the fresh
# launch is the unit of repetition. The spread of seven holds the median launch with 98 %.
LEAST_LAUNCHES, MOST_LAUNCHES, LAUNCHES_FOR_SPREAD = 2, 7, 6
ROLES = ("candidate", "reference")
LOG_HALF_WIDTH = 0.015
# An attempt that is wider than this was disturbed: one more after a pause, with all its launches.
POOR_LOG_HALF_WIDTH = 0.05
MOST_RUNS = max(RUNS_FOR_PERCENTILE.values())
# Between the seeds of comparisons, and of launches, lie more than one of them uses.
SEEDS_APART = 1000
Reply = Mapping[str, Any]
Ask = Callable[[dict[str, Any]], Reply]
Clock = Callable[[], float]


class Link(Protocol):
    """Something that carries requests to an agent; ``search.devices.agent`` lists them."""

    def ask(self, request: dict[str, Any], timeout_s: float) -> Reply:
        """Returns the agent's answer.

        Raises:
            StageFailed: If the agent refuses, dies or does not answer in ``timeout_s`` seconds.
        """


@dataclass(frozen=True)
class Side:
    """One of the two models: its path on the device, threads and session configuration."""

    model: str
    threads: int
    session_entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plan:
    """One comparison.

    Attributes:
        candidate: The model in question.
        reference: What it is compared with; may be the same model.
        inputs: Path on the device of a float32 ``.npy`` file ``[k, C, H, W]``.
        batch_size: Images of one inference.
        throughput_batch_size: Images of one inference where throughput is measured.
        memory_limit_bytes: What a model may take beyond the runtime's own memory; None = all.
        launches: Pairs of fresh processes at least, from 2; two of a model that takes long.
        retry: Whether a second attempt follows a disturbed one.
        budget_s: Seconds of one attempt, after which no more evidence is sought than an interval
            needs.
        timeout_s: Seconds after which an answer is given up.
        seed: Seed of the order of turns and inputs.
    """

    candidate: Side
    reference: Side
    inputs: str
    batch_size: int
    throughput_batch_size: int
    memory_limit_bytes: int | None
    launches: int
    retry: bool
    budget_s: float
    timeout_s: float
    seed: int
