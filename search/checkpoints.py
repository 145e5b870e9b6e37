"""Finds a network's weights in a user's checkpoint, without running code that the file may hold."""

from __future__ import annotations

import argparse
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from search.errors import ConfigError, printable

# Of a dictionary in a dictionary in the file: {"checkpoint": {"model": {...}}}.
DEEPEST = 2
# What training scripts save beside the weights: their arguments, and the best accuracy so far.
# None of these runs code of the file's when it is unpickled.
HARMLESS = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.float32,
    np.float64,
    np.int64,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    np._core.multiarray.scalar,  # type: ignore[attr-defined]  # how numpy pickles a number
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]
# torch.compile puts it in front of the names of whatever it compiled, anywhere in a network.
COMPILED = "_orig_mod."
# Counts batches seen, which decides nothing in evaluation; some tools drop it.
COUNTER = "num_batches_tracked"
NOT_ALLOWED = re.compile(r"Unsupported global: GLOBAL ([\w.]+)")
SAVE = "torch.save(network.state_dict(), 'file.pt')"

State = dict[str, Tensor]


def load_checkpoint(network: nn.Module, path: Path, origin: str) -> str:
    """Loads a user's weights in place, without running any code the file may hold.

    The weights may lie in dictionaries beside an optimizer, their names may all begin with a
    prefix such as ``module.``, and they may have another floating-point type: what fits the
    network exactly is taken, if there is only one such set.

    Args:
        network: The network that the weights must fit exactly.
        path: ``.safetensors``, or what ``torch.save`` wrote.
        origin: Key and value that the file came from, for messages.

    Returns:
        Where in the file they lay: keys and the prefix of the names; empty for the file itself.

    Raises:
        ConfigError: When the file cannot be read, belongs to another network, or holds several
            sets of weights that fit.
    """
    wanted = network.state_dict()
    loaded = _read(path, origin)
    sets = [one for place, state in _states(loaded) for one in _unwrap(place, state, wanted)]
    if not sets:
        raise ConfigError(f"{origin}: holds no state dict; save one with {SAVE}")
    fitting = [one for one in sets if _mismatch(one.state, wanted) is None]
    if not fitting:
        nearest = max(sets, key=lambda one: len(one.state.keys() & wanted.keys()))
        where = f" in {nearest.where}" if nearest.where else ""
        reason = _mismatch(nearest.state, wanted)
        raise ConfigError(f"{origin}: belongs to another network: {reason}{where}")
    found = fitting[0]
    other = next((one for one in fitting[1:] if not _are_equal(one.state, found.state)), None)
    if other is not None:
        raise ConfigError(
            f"{origin}: two different sets of weights fit, {found.where or 'the file itself'} and "
            f"{other.where or 'the file itself'}; save the one you mean with {SAVE}"
        )
    state = {name: _cast(name, v, wanted[name], origin) for name, v in found.state.items()}
    network.load_state_dict(state, strict=False)
    return found.where


@dataclass(frozen=True)
class _Weights:
    """A set of tensors that may be a network's.

    Attributes:
        where: Keys that lead to it, and the prefix of its names in the file, for messages.
        state: Its tensors by name, without the prefix.
    """

    where: str
    state: State


def _states(value: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yields every dictionary's tensors, with the keys that lead to it."""
    if not isinstance(value, Mapping):
        return
    tensors = {n: v for n, v in value.items() if isinstance(n, str) and isinstance(v, Tensor)}
    if tensors:
        yield keys, tensors
    for key, inner in value.items():
        if isinstance(key, str) and len(keys) < DEEPEST:
            yield from _states(inner, (*keys, key))


def _unwrap(keys: tuple[str, ...], state: State, wanted: State) -> Iterator[_Weights]:
    """Yields a state dict as each prefix of its names leaves it that may hold the network."""
    if not any(COMPILED in name for name in wanted):
        state = {name.replace(COMPILED, ""): value for name, value in state.items()}
    anchor = next((name for name in wanted if not name.endswith(COUNTER)), "")
    ends = [n.removesuffix(anchor) for n in state if n == anchor or n.endswith(f".{anchor}")]
    for prefix in ends or [""]:
        named = printable(".".join(filter(None, [*keys, f"{prefix}*" if prefix else ""])))
        inside = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        yield _Weights(f"'{named}'" if named else "", _without_counters(inside, wanted))


def _without_counters(state: State, wanted: State) -> State:
    return {n: v for n, v in state.items() if n in wanted or not n.endswith(COUNTER)}


def _mismatch(state: State, wanted: State) -> str | None:
    """Names the first tensor in which a checkpoint and a network differ; None if they fit."""
    for name, value in wanted.items():
        if name not in state and not name.endswith(COUNTER):
            first = printable(next(iter(state), "nothing"))
            return f"it has no {name} (but {first}); check model and model.width"
        if name in state and state[name].shape != value.shape:
            return (
                f"{name} is {list(state[name].shape)} in it and {list(value.shape)} in the "
                "network; check model, model.width, and the data's images and classes"
            )
    extra = next((name for name in state if name not in wanted), None)
    if extra is not None:
        return f"it has {printable(extra)}, the network has not; check model"
    return None


def _are_equal(one: State, other: State) -> bool:
    """Tells whether two sets that fit the same network hold the same values."""
    return one.keys() == other.keys() and all(
        value is other[name] or _bytes_of(value) == _bytes_of(other[name])
        for name, value in one.items()
    )


def _bytes_of(value: Tensor) -> tuple[torch.dtype, bytes | None]:
    """Returns what can be compared whatever the type is, which ``torch.equal`` cannot."""
    if not _is_plain(value):
        return value.dtype, None
    raw = value.detach().contiguous().reshape(-1).view(torch.uint8)
    return value.dtype, raw.numpy().tobytes()


def _cast(name: str, value: Tensor, wanted: Tensor, origin: str) -> Tensor:
    """Returns a tensor of the file's in the network's type.

    Raises:
        ConfigError: When it holds no numbers that the network could compute with.
    """
    # Whole numbers in the place of weights are quantized ones, whose scales are elsewhere.
    is_kind = value.is_floating_point() or not wanted.is_floating_point()
    if not _is_plain(value) or not is_kind:
        kind = str(value.dtype).removeprefix("torch.")
        raise ConfigError(
            f"{origin}: {name} is no dense tensor of real numbers ({kind}); give such"
        )
    try:
        cast = value.detach().to(wanted.dtype)
    except (RuntimeError, NotImplementedError) as error:  # types of less than a byte
        raise ConfigError(
            f"{origin}: {name} is of type {value.dtype}, which cannot be converted; save the "
            "weights in float32"
        ) from error
    if not torch.isfinite(cast).all():
        raise ConfigError(f"{origin}: {name} holds NaN or infinity; give sound weights")
    return cast


def _is_plain(value: Tensor) -> bool:
    """Tells tensors with values from those of other layouts, and from mere shapes."""
    is_dense = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    return is_dense and not value.is_complex()


def _check_sizes(path: Path) -> None:
    """Refuses an archive whose members unpack to more than the file holds; PyTorch packs none.

    Raises:
        ValueError: If they do.
        BadZipFile: If it is damaged.
    """
    if not zipfile.is_zipfile(path):
        return  # PyTorch's older format
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("unpacks to more than it holds")


def _read(path: Path, origin: str) -> Any:
    """Returns what a file holds.

    Raises:
        ConfigError: When it cannot be read, or only by running what may be code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_sizes(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # torch has something to say about foreign pickles
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # weights_only raises pickle errors of many kinds
        refused = NOT_ALLOWED.search(str(error))
        if refused is not None:
            raise ConfigError(
                f"{origin}: cannot be read as weights: it holds {printable(refused[1])}, which "
                "may be code and is not run; if you trust the file, load it with "
                f"torch.load(..., weights_only=False), and save the weights alone with {SAVE}"
            ) from error
        raise ConfigError(
            f"{origin}: cannot be read as weights ({type(error).__name__}); it is damaged, or "
            f"holds more than tensors: save it with {SAVE}, or as .safetensors"
        ) from error
