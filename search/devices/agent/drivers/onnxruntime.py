"""Runs models in onnxruntime, on the processor."""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from ..messages import Message, Refused

KERNEL_EVENT = "_kernel_time"  # ends the names of such events in onnxruntime's profile


def version() -> str:
    """Returns the runtime's version."""
    return str(onnxruntime.__version__)


class Model:
    """A model that is ready to run.

    Args:
        path: Of its ONNX file.
        options: Of its session, as ``session_options`` has them.
        profile: Where its own profile is written, without the ending; None for no profile.

    Attributes:
        run: Runs what ``feed`` returned.
    """

    def __init__(self, path: str, options: Message, profile: str | None = None) -> None:
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options["intra_op_num_threads"]
        session_options.inter_op_num_threads = options["inter_op_num_threads"]
        session_options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session_options.log_severity_level = 3
        for key, value in options["session_entries"].items():
            session_options.add_session_config_entry(key, value)
        if profile is not None:
            session_options.enable_profiling = True
            session_options.profile_file_prefix = profile
        self._session = onnxruntime.InferenceSession(
            path, session_options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name
        self.run = functools.partial(self._session.run, None)

    def feed(self, batch: Any) -> dict[str, Any]:
        """Returns what a run takes for a batch of images ``[n, C, H, W]``."""
        return {self._name: batch}

    def predict(self, batch: Any) -> Any:
        """Returns the logits ``[n, classes]`` of a batch of images ``[n, C, H, W]``."""
        return self.run(self.feed(batch))[0]

    def end_profile(self) -> str:
        """Returns the path of the profile, which is whole now."""
        return str(self._session.end_profiling())


def profile(path: str, options: Message, batches: Iterable[Any]) -> list[Message]:
    """Runs batches in a session of its own that writes down what it does; returns its events.

    Raises:
        Refused: Where there is no room to write it down.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Model(path, options, str(Path(folder) / "profile"))
        for batch in batches:
            model.run(model.feed(batch))
        written = Path(model.end_profile()).read_text(encoding="utf-8")
    try:
        events: list[Message] = json.loads(written)
    except ValueError as error:
        reason = f"its profile was cut off: make room in {tempfile.gettempdir()} there"
        raise Refused("NoSpace", reason) from error
    return events


def count_kernels(events: Iterable[Message]) -> dict[str, int]:
    """Counts operator types among a profile's kernel events."""
    kernels = (event["args"]["op_name"] for event in kernel_events(events))
    return dict(sorted(Counter(kernels).items()))


def typical_kernels(events: Iterable[Message], runs: int) -> list[Message]:
    """Gathers the kernel events of ``runs`` runs, in the order of execution.

    Returns:
        For every kernel what onnxruntime says of it, and the microseconds of one run. A kernel of
        a loop's body may be executed several times in a run.
    """
    found: dict[str, list[Message]] = {}
    for event in kernel_events(events):
        found.setdefault(event["name"], []).append(event)
    return [
        {
            "name": name.removesuffix(KERNEL_EVENT),
            "operator": same[0]["args"]["op_name"],
            "provider": same[0]["args"]["provider"],
            "microseconds": middle_mean([e["dur"] for e in same]) * len(same) / runs,
            "inputs": same[0]["args"].get("input_type_shape", []),
            "outputs": same[0]["args"].get("output_type_shape", []),
        }
        for name, same in found.items()
    ]


def kernel_events(events: Iterable[Message]) -> Iterator[Message]:
    """Yields the events of a profile that stand for executed kernels."""
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL_EVENT):
            yield event


def middle_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: as deaf to outliers as the median, finer for whole numbers."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])
