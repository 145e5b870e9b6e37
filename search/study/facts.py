"""Facts about where and with what a study is searched, by name."""

from __future__ import annotations

from importlib.metadata import version

from search.records.bench import Bench

PACKAGES = ("torch", "torch-pruning", "onnx", "onnxruntime", "optuna", "mlflow")


def facts_of(bench: Bench) -> dict[str, str]:
    """Returns facts about a study's device, data and packages."""
    device = bench.device
    return {
        "device": device.name,
        "device.cpu": device.cpu,
        "device.cores": str(device.usable_cores),
        "device.flags": " ".join(device.flags),
        "device.int8_format": device.int8_format,
        "device.round_to": str(device.round_to),
        "device.runtime": device.runtime,
        "data.fingerprint": bench.data.fingerprint,
        **{f"version.{package}": version(package) for package in PACKAGES},
    }
