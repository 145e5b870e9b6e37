"""Proves that a model is scored in the arithmetic that it is going to run in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.errors import StageFailed
from search.records.device import DeviceProfile


def check_arithmetic(device: DeviceProfile, processor: Mapping[str, Any], version: str) -> None:
    """Compares where a model is being scored with the device that its score is to hold for.

    Args:
        device: As it was when the study was begun, which names the score.
        processor: Its ``arch`` and ``flags``, as an agent describes them, where the model runs.
        version: Of onnxruntime there.

    Raises:
        StageFailed: If runtime, architecture or instruction sets are others: results may be, too.
    """
    flags = sorted(set(processor["flags"]))
    for what, found, known in (
        ("runtime", f"onnxruntime {version}", device.runtime),
        ("architecture", processor["arch"], device.arch),
        ("instruction sets", " ".join(flags), " ".join(device.flags)),
    ):
        if found != known:
            reason = (
                f"scores are for {device.name}, whose {what} was {known!r}, and is {found!r} now"
            )
            raise StageFailed("evaluate", f"{reason}; change it back, or begin another study")
