"""Channels that go together, in the order in which they may be spared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search.networks.pruning.channels import BATCH_NORMS, Channels, Use
from search.networks.pruning.flows import Ids

# How much a channel's price counts beside its importance. Importances are within a third of 1, so
# that the tenth root of the price moves costly layers forward and does not decide alone.
COST_EXPONENT = 0.1


@dataclass(frozen=True)
class Group:
    """Channels of the same layers, which compete with all other groups' for their places.

    Attributes:
        atoms: What can only be removed as a whole, ``[n]``.
        scores: Worth of every atom, mean 1, ``[n]``.
        price: Multiply-accumulates that a channel takes part in, relative to other groups.
        size: Channels of an atom: one, or one of every group of a grouped convolution.
    """

    atoms: Ids
    scores: Tensor
    price: float
    size: int


@dataclass(frozen=True)
class Prunable:
    """A network, what of it can be removed, and what that is worth.

    Attributes:
        module: Left as it is.
        channels: Which of its channels belong together.
        groups: What can be removed.
    """

    module: nn.Module
    channels: Channels
    groups: tuple[Group, ...]


def find_groups(module: nn.Module, found: Channels) -> tuple[Group, ...]:
    """Scores and prices what may be removed."""
    scores, macs, is_dense, sizes = [], [], [], []
    for atoms, uses in zip(found.free, _uses_of(found), strict=True):
        makers = [use for use in uses if use.side == "out"]
        scores.append(_importance(module, uses, atoms))
        macs.append(_macs(module, found, uses, atoms))
        is_dense.append(isinstance(module.get_submodule(makers[0].name), nn.Linear))
        sizes.append(max(int(np.isin(use.atoms, atoms).sum()) for use in makers) // len(atoms))
    # Dense layers are a kind of their own: their time goes into reading weights, not computing.
    mean = {
        kind: sum(m for m, k in zip(macs, is_dense, strict=True) if k == kind) / count
        for kind, count in Counter(is_dense).items()
    }
    return tuple(
        Group(atoms, score, cost / mean[kind], max(1, size))
        for atoms, score, cost, kind, size in zip(
            found.free, scores, macs, is_dense, sizes, strict=True
        )
    )


def _uses_of(found: Channels) -> list[list[Use]]:
    """Returns the uses of every set of free atoms."""
    most = max((int(use.atoms.max()) for use in found.uses if len(use.atoms)), default=0)
    owner = np.full(most + 1, -1)
    for number, atoms in enumerate(found.free):
        owner[atoms] = number
    uses: list[list[Use]] = [[] for _ in found.free]
    for use in found.uses:
        for number in np.unique(owner[use.atoms]):
            if number >= 0:
                uses[number].append(use)
    return uses


def _importance(module: nn.Module, uses: Sequence[Use], atoms: Ids) -> Tensor:
    """Scores every atom by the mean squared norm of its weights over layers, with mean 1."""
    score = torch.zeros(len(atoms), dtype=torch.float64)
    layers = 0
    for use in uses:
        norms = _squared_norms(module, use)
        if norms is None:
            continue
        layers += 1
        here = np.isin(use.atoms, atoms)
        places = torch.from_numpy(np.searchsorted(atoms, use.atoms[here]))
        score.index_add_(0, places, norms[torch.from_numpy(here)].double())
    score /= max(1, layers)
    return score / score.mean().clamp_min(1e-12)


def _squared_norms(module: nn.Module, use: Use) -> Tensor | None:
    """Returns the squared norm of every channel's weights, ``[channels]``, where they count."""
    if use.side == "own":
        return None
    layer = module.get_submodule(use.name)
    if use.side == "through":
        if not isinstance(layer, (*BATCH_NORMS, nn.LayerNorm)):
            return None
        scale = dict(layer.named_parameters()).get("weight")
        return None if scale is None else scale.detach().square()
    weight = _weight(module, use.name)
    outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    axis = outputs if use.side == "out" else 1 - outputs
    norms: Tensor = weight.movedim(axis, 0).flatten(1).square().sum(1)
    return norms.repeat(len(use.atoms) // len(norms))  # a grouped convolution's, for every group


def _weight(module: nn.Module, name: str) -> Tensor:
    """Returns a layer's weight: a parameter, or what is computed from some."""
    weight: Any = module.get_submodule(name).weight
    values: Tensor = weight.detach()
    return values


def _macs(module: nn.Module, found: Channels, uses: Sequence[Use], atoms: Ids) -> float:
    """Returns how many multiply-accumulates one atom of a group takes part in."""
    macs = 0.0
    for use in uses:
        if use.name in found.positions:
            weight = _weight(module, use.name)
            share = float(np.isin(use.atoms, atoms).mean())
            macs += found.positions[use.name] * weight.numel() * share
    return macs / len(atoms)


def removed_at(groups: Sequence[Group], ratio: float, round_to: int) -> list[Ids]:
    """Chooses the atoms of every group to remove."""
    scores = [group.scores / group.price**COST_EXPONENT for group in groups]
    kept = widths_to_keep(scores, ratio, round_to, [group.size for group in groups])
    return [
        group.atoms[score.argsort(stable=True)[: len(score) - width].sort().values.numpy()]
        for group, score, width in zip(groups, scores, kept, strict=True)
    ]


def widths_to_keep(
    scores: Sequence[Tensor], ratio: float, round_to: int, sizes: Sequence[int] | None = None
) -> list[int]:
    """Chooses how many atoms each group keeps; never more at a higher ratio.

    Args:
        scores: Importance of every atom, one ``[atoms]`` tensor a group.
        ratio: Share of all channels to remove, 0..0.9.
        round_to: Channels that the processor computes together.
        sizes: Channels of an atom, one number a group; one where they are not given.

    Returns:
        Atoms kept, one number a group, each at least 1.
    """
    sizes = sizes or [1] * len(scores)
    weights = torch.cat([torch.full((len(s),), n) for s, n in zip(scores, sizes, strict=True)])
    order = torch.cat(list(scores)).argsort(stable=True)
    # The least important atoms that together have no more channels than are to go.
    gone = weights[order].cumsum(0) <= round(ratio * int(weights.sum()))
    removed = torch.zeros(len(order), dtype=torch.bool)
    removed[order[gone]] = True
    kept = []
    parts = removed.split([len(s) for s in scores])
    for lost, score, size in zip(parts, scores, sizes, strict=True):
        full = len(score)
        wanted = max(full - int(lost.sum()), (1 - ratio) * full / 2)
        widths = {max(1, round(width / size)) for width in widths_of(full * size, round_to)}
        if size > 1:
            widths.discard(1)  # a grouped convolution would become a depthwise one
        # The nearest width; of two equally near the wider, which is the more accurate.
        kept.append(min(widths, key=lambda w: (abs(w - wanted), -w)))
    return kept


def widths_of(full: int, round_to: int) -> list[int]:
    """Lists the widths a layer of ``full`` channels may be pruned to, rising.

    Multiples of ``round_to`` fill the processor's vector registers. Narrow layers have none of
    them to choose from, so powers of two continue the list downwards.
    """
    below = [2**power for power in range(round_to.bit_length()) if 2**power < round_to]
    widths = [width for width in (*below, *range(round_to, full, round_to)) if width < full]
    return [*widths, full]


def count_macs(prunable: Prunable, removed: Ids) -> int:
    """Counts the multiply-accumulates for one image that are left without ``removed`` atoms."""
    macs = {
        name: positions * _weight(prunable.module, name).numel()
        for name, positions in prunable.channels.positions.items()
    }
    for use in prunable.channels.uses:
        if use.name in macs:
            kept = int(np.isin(use.atoms, removed, invert=True).sum())
            macs[use.name] = macs[use.name] * kept // len(use.atoms)
    return sum(macs.values())
