"""Finds a network's weights in a user's checkpoint, without running code that the file may hold."""

from __future__ import annotations

import argparse
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from search.errors import ConfigError, printable

# Keys that lead to the weights at most: {"checkpoint": {"model": {...}}} has two.
DEEPEST = 4
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
# Of these one set of weights may be kept in two, the one rounded to the other.
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NOT_ALLOWED = re.compile(r"Unsupported global: GLOBAL ([\w.]+)")
SAVE = "torch.save(network.state_dict(), 'file.pt')"

State = dict[str, Tensor]


def load_checkpoint(network: nn.Module, path: Path, origin: str) -> str:
    """Loads a user's weights in place, without running any code the file may hold.

    The weights may lie in dictionaries beside an optimizer, their names may all begin with a
    prefix such as ``module.``, and they may have another floating-point type: what fits the
    network exactly is taken, if there is only one such set. Where none fits, the network may be
    what wraps another one, and the weights those of the one inside.

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
    states = list(_states(loaded))
    if not states:
        raise ConfigError(
            f"{origin}: holds no state dict, but {_outline(loaded)}; save one with {SAVE}"
        )
    sets: list[_Weights] = []
    fitting: list[_Weights] = []
    for wrapper in ("", *_wrappers(wanted)):
        added = [one for keys, state in states for one in _unwrap(keys, state, wanted, wrapper)]
        sets += added
        fitting = [one for one in added if _mismatch(one.state, wanted) is None]
        if fitting:
            break
    else:
        nearest = max(sets, key=lambda one: len(one.state.keys() & wanted.keys()))
        where = f" in {nearest.where}" if nearest.where else ""
        reason = _mismatch(nearest.state, wanted)
        raise ConfigError(f"{origin}: belongs to another network: {reason}{where}")
    found = max(fitting, key=_size_bytes)  # the finest
    other = next((one for one in fitting if not _are_equal(one.state, found.state)), None)
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


def _states(value: object) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yields every dictionary's tensors once, with the keys that lead to it, the fewest first."""
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], object]] = [((), value)]
    for _ in range(DEEPEST + 1):
        below: list[tuple[tuple[str, ...], object]] = []
        for keys, inner in level:
            if not isinstance(inner, Mapping) or id(inner) in seen:
                continue
            seen.add(id(inner))
            named = {key: held for key, held in inner.items() if isinstance(key, str)}
            tensors = {key: held for key, held in named.items() if isinstance(held, Tensor)}
            if tensors:
                yield keys, tensors
            below += [((*keys, key), held) for key, held in named.items()]
        level = below


def _outline(value: object) -> str:
    """Says in a few words what is no state dict."""
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    keys = ", ".join(repr(key) for key in list(value)[:3])
    what = f"a dictionary of {printable(keys, 100)}" if keys else "an empty dictionary"
    return f"{what} without tensors in {DEEPEST} levels below" if keys else what


def _wrappers(wanted: State) -> list[str]:
    """Lists the prefixes that all names of a network have, the shortest first; never a layer's."""
    paths = [name.split(".")[:-2] for name in wanted]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    common = [parts[0] for parts in same]
    return [".".join([*common[: number + 1], ""]) for number in range(len(common))]


def _unwrap(keys: tuple[str, ...], state: State, wanted: State, wrapper: str) -> Iterator[_Weights]:
    """Yields a state dict as each prefix of its names leaves it that may hold the network.

    Args:
        keys: That lead to it.
        state: As it is in the file.
        wanted: The network's.
        wrapper: Prefix of all the network's names, which those in the file lack.
    """
    if not any(COMPILED in name.removeprefix(wrapper) for name in wanted):
        state = {name.replace(COMPILED, ""): value for name, value in state.items()}
    anchor = next((name for name in wanted if not name.endswith(COUNTER)), "")
    anchor = anchor.removeprefix(wrapper)
    ends = [n.removesuffix(anchor) for n in state if n == anchor or n.endswith(f".{anchor}")]
    for prefix in ends or [""]:
        named = printable(".".join(filter(None, [*keys, f"{prefix}*" if prefix else ""])))
        inside = {
            wrapper + n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)
        }
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


def _size_bytes(weights: _Weights) -> int:
    return sum(value.numel() * value.element_size() for value in weights.state.values())


def _are_equal(one: State, finer: State) -> bool:
    """Tells whether a set holds the values of another, or these rounded to its own types.

    Both fit the same network; counters decide nothing.
    """
    return all(
        value is finer[name] or _bytes_of(value) == _bytes_of(_rounded(finer[name], value))
        for name, value in one.items()
        if not name.endswith(COUNTER)
    )


def _rounded(value: Tensor, other: Tensor) -> Tensor:
    """Returns a tensor in the type of another, if both are of ``FLOATS``."""
    kinds_known = value.dtype in FLOATS and other.dtype in FLOATS
    return value.detach().to(other.dtype) if kinds_known and _is_plain(value) else value


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
