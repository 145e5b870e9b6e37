"""A checked configuration becomes the bench that trials work on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from search import data
from search.benchmark.plan import PROTOCOL_VERSION
from search.config.commands import SearchConfig
from search.config.factory import load_factory, source_sha256
from search.config.model import BuiltInModelConfig, ModelConfig
from search.engine.base import Engine
from search.errors import ConfigError
from search.records.bench import Bench
from search.records.data import Dataset
from search.records.files import File
from search.records.network import NetworkSpec
from search.records.steps.step import ArtifactStore
from search.space.parsing import parse_space
from search.space.space import Space

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")


def make_bench(
    config: SearchConfig,
    artifacts: ArtifactStore,
    engine: Engine,
    check: Callable[[NetworkSpec, Dataset | None], None] = lambda spec, dataset: None,
) -> tuple[Bench, Space]:
    """Looks at the device, the data and the user's files; trains and measures nothing.

    Args:
        config: Checked by itself.
        artifacts: Keeps the images; the user's weights are kept by ``keep_weights``.
        engine: Asks the device.
        check: Raises ConfigError when the network, or the user's weights for it, cannot be used;
            called again when the data are there.

    Raises:
        ConfigError: When one of them cannot work; before data are fetched, where that shows.
    """
    weights = config.model.checkpoint
    if weights is not None:
        _read_checkpoint(weights)
    for section in ("model", "data", "sampler", "device"):  # before the data take minutes
        factory = getattr(getattr(config, section), "factory", None)
        if factory is not None:
            load_factory(factory, f"{section}.factory")
    device = engine.describe(config.device)
    space = parse_space(config.space, device.usable_cores, device.runtime_name)
    known = data.outline(config.data)
    if known is not None:
        check(_network_spec(config.model, *known), None)

    def check_shape(image_shape: tuple[int, int, int], classes: int) -> None:
        if known is None:
            check(_network_spec(config.model, image_shape, classes), None)

    dataset = data.describe(config.data, artifacts.images, check_shape)
    spec = _network_spec(config.model, dataset.image_shape, dataset.classes)
    check(spec, dataset)
    bench = Bench(
        spec=spec,
        checkpoint=None if weights is None else _name_weights(*_read_checkpoint(weights)),
        data=dataset,
        device=device,
        thread_counts=space.thread_counts(),
        measuring=config.device,
        train=config.train,
        limits=config.objective,
        machine=f"{device.cpu}, {device.usable_cores} cores{_gpu()}, torch {version('torch')}",
        seed=config.study.seed,
        prunes=space.prunes,
        is_here=config.device.name == "local" and config.engine.name != "ray",
    )
    return bench, space


def keep_weights(config: SearchConfig, bench: Bench, artifacts: ArtifactStore) -> None:
    """Keeps the user's weights, when nothing can be refused any more.

    Raises:
        ConfigError: When they are others than a moment ago.
    """
    name = config.model.checkpoint
    if name is not None and artifacts.put(*_read_checkpoint(name)) != bench.checkpoint:
        raise ConfigError(f"model.checkpoint={name!r}: was changed while it was read; start again")


def _name_weights(content: bytes, suffix: str) -> File:
    return File(hashlib.sha256(content).hexdigest(), suffix, len(content))


def _read_checkpoint(name: str) -> tuple[bytes, str]:
    """Returns the content of the user's weights, and the suffix that says what they are."""
    path = Path(name).expanduser()
    remedy = "give a .safetensors file, or what torch.save(network.state_dict(), 'file.pt') wrote"
    if path.exists() and not path.is_file() and not path.is_dir():  # reading it may never end
        raise ConfigError(f"model.checkpoint={name!r}: is no file; {remedy}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"model.checkpoint={name!r}: cannot be read ({error.strerror}); {remedy}"
        ) from error
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise ConfigError(
            f"model.checkpoint={name!r}: the suffix is {path.suffix or 'missing'}; {remedy}"
        )
    return content, path.suffix


def _network_spec(
    model: ModelConfig, image_shape: tuple[int, int, int], classes: int
) -> NetworkSpec:
    if isinstance(model, BuiltInModelConfig):
        return NetworkSpec(model.name, model.width, None, (), None, image_shape, classes)
    function = load_factory(model.factory, "model.factory")
    return NetworkSpec(
        name=model.name,
        width=None,
        factory=model.factory,
        arguments=tuple(sorted(model.arguments.items())),
        source_sha256=source_sha256(function),
        image_shape=image_shape,
        classes=classes,
    )


def _gpu() -> str:
    """Names the GPUs that torch may use: with and without them, training is another matter."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return f", GPUs {shown or 'none'}" if Path("/dev/nvidiactl").exists() else ""


def settings_of(config: SearchConfig, bench: Bench, space: Space) -> dict[str, Any]:
    """Returns, by dotted key, what a study must keep when it is continued.

    Budgets, sampler, engine and tracking may change; what a point means and how it is scored may
    not.
    """
    kept = {
        "model": {
            **asdict(config.model),
            "checkpoint": _digest(bench.checkpoint),
            "source": bench.spec.source_sha256,
        },
        "data": {
            "name": config.data.name,
            "content": bench.data.fingerprint,
            "mean": bench.data.mean,
            "std": bench.data.std,
        },
        **{f"space.{name}": axis for name, axis in space.describe().items()},
        "objective": asdict(config.objective),
        "device": {
            "name": bench.device.name,
            "cpu": bench.device.cpu,
            # Virtual machines with one name of the processor may differ in these.
            "arch": bench.device.arch,
            "flags": bench.device.flags,
            "runtime": bench.device.runtime,
            "protocol": PROTOCOL_VERSION,
            "batch_size": config.device.batch_size,
            "throughput_batch_size": config.device.throughput_batch_size,
            "spinning": config.device.spinning,
            "memory_limit_bytes": config.device.memory_limit_bytes,
            "budget_s": config.device.budget_s,
        },
        "train": asdict(config.train),
        "study": {"seed": config.study.seed},
    }
    return dict(_flatten(kept, ""))


def _digest(file: File | None) -> str | None:
    return None if file is None else file.sha256


def _flatten(value: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and "." not in key:  # a range of the space stays whole
            flat += _flatten(item, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", list(item) if isinstance(item, tuple) else item))
    return flat
