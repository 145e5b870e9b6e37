"""Removes whole channels from a network; knows nothing of how it is trained afterwards."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search import channels, cutting
from search.channels import Channels, Use
from search.errors import InfeasiblePoint, one_line
from search.flows import Ids

log = logging.getLogger(__name__)

# How much a channel's price counts beside its importance. Importances are within a third of 1, so
# that the tenth root of the price moves costly layers forward and does not decide alone.
COST_EXPONENT = 0.1
# How far logits may be from others that differ by rounding alone: of how far those of two images
# are apart, and of their size.
ALIKE, ROUNDING = 1e-3, 1e-9
MOST_ENDS = 3  # that are named where nothing can be pruned


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


def prune(
    module: nn.Module, image_shape: tuple[int, int, int], ratio: float, round_to: int
) -> tuple[nn.Module, float]:
    """Removes the least important share of a network's channels.

    Coupled layers (residual sums, depthwise convolutions) lose the same channels. All channels
    are ranked together by the L2 norm of their weights relative to their group's mean, so a
    layer whose channels matter equally keeps more than one that has useless ones; of channels
    that matter equally, those that cost the most multiply-accumulates go first. No group loses
    more than half of what ``1 - ratio`` would leave it, and what it keeps is rounded to a width
    that the processor computes well. The network's outputs are never touched, and layers whose
    channels the network's code counts on stay whole.

    Source: Fang et al. 2023, DepGraph: Towards Any Structural Pruning (arXiv 2301.12900); the
    price of channels after Molchanov et al. 2017, Pruning Convolutional Neural Networks for
    Resource Efficient Inference (arXiv 1611.06440).

    Args:
        module: Left as it is; a smaller copy is returned.
        image_shape: ``(channels, height, width)`` of its input.
        ratio: Share of the prunable channels to remove, 0..0.9.
        round_to: Channels that the processor computes together.

    Returns:
        The smaller network, and the share of prunable channels that it really lost.

    Raises:
        InfeasiblePoint: When the smaller network cannot compute.
    """
    if ratio == 0:
        return copy.deepcopy(module), 0.0
    prunable = look(module, image_shape)
    removed = _removed(prunable.groups, ratio, round_to)
    lost = sum(
        len(atoms) * group.size for atoms, group in zip(removed, prunable.groups, strict=True)
    )
    share = lost / sum(len(group.atoms) * group.size for group in prunable.groups)
    smaller = cutting.without(prunable.module, prunable.channels, np.concatenate(removed))
    reason = _fault(smaller, image_shape, prunable.module)
    if reason is not None:
        raise InfeasiblePoint(
            f"the network cannot compute without {share:.0%} of its channels ({reason}); its code "
            "must not fix channel counts"
        )
    return smaller, share


def macs_at(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    ratios: Sequence[float],
    round_to: int,
) -> list[int]:
    """Counts what pruning by each ratio would leave, without pruning anything.

    Args:
        module: Left as it is.
        image_shape: ``(channels, height, width)`` of its input.
        ratios: Shares of the prunable channels to remove, 0..0.9.
        round_to: Channels that the processor computes together.

    Returns:
        Multiply-accumulates of convolutions and dense layers for one image, one number a ratio.

    Raises:
        InfeasiblePoint: When no channels can be removed.
    """
    prunable = look(module, image_shape)
    return [
        _count_macs(prunable, np.concatenate(_removed(prunable.groups, ratio, round_to)))
        for ratio in ratios
    ]


def look(module: nn.Module, image_shape: tuple[int, int, int]) -> Prunable:
    """Finds what of a network can be removed, and what it is worth.

    Raises:
        InfeasiblePoint: When that is nothing.
    """
    whole = copy.deepcopy(module)
    for parameter in whole.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    found = channels.analyse(copy.deepcopy(whole), image_shape)
    prunable = Prunable(whole, found, _groups(whole, found))
    groups, fault = _harmless(prunable, image_shape)
    if not groups:
        raise InfeasiblePoint(
            f"no layer's channels can be removed ({fault or _hindrance(whole, found)}); set "
            "space.prune_ratio=0"
        )
    return replace(prunable, groups=groups)


def _hindrance(module: nn.Module, found: Channels) -> str:
    """Says why no channels of a network may go."""
    if found.ends:
        return f"they run into what pruning does not follow: {', '.join(found.ends[:MOST_ENDS])}"
    layers = (m for m in module.modules() if isinstance(m, (*channels.CONVOLUTIONS, nn.Linear)))
    if any(not isinstance(layer.weight, nn.Parameter) for layer in layers):
        return "the weights of its layers are computed from others"
    return "none lie between two layers with weights"


def _harmless(
    prunable: Prunable, image_shape: tuple[int, int, int]
) -> tuple[tuple[Group, ...], str | None]:
    """Returns the groups that can lose channels, and why the last other one cannot.

    Code may insist on these in ways unseen.
    """

    def fault(groups: Sequence[Group]) -> str | None:
        half = [group.atoms[: len(group.atoms) // 2] for group in groups]
        smaller = cutting.without(prunable.module, prunable.channels, np.concatenate(half))
        reason = _fault(smaller, image_shape, prunable.module)
        return reason or _disorder(prunable, groups, image_shape)

    groups = prunable.groups
    if not groups or fault(groups) is None:
        return groups, None
    harmless, last = [], None
    for group in groups:
        reason = fault([group])
        if reason is None:
            harmless.append(group)
        else:
            last = reason
            makers = ", ".join(prunable.channels.makers(group.atoms))
            log.info("%s: left whole, the network cannot do without: %s", makers, reason)
    return tuple(harmless), last


def _fault(smaller: nn.Module, image_shape: tuple[int, int, int], whole: nn.Module) -> str | None:
    """Returns why a pruned network does not compute logits as the whole one does, if so."""
    images = torch.zeros(2, *image_shape)
    with torch.no_grad():
        wanted = whole.eval()(images).shape
        try:
            shape = smaller.eval()(images).shape
        except Exception as error:
            return one_line(error)
    return None if shape == wanted else f"its outputs become {list(shape)}, not {list(wanted)}"


def _disorder(
    prunable: Prunable, groups: Sequence[Group], image_shape: tuple[int, int, int]
) -> str | None:
    """Returns what tells that a network's channels are elsewhere than believed, if anything does.

    Channels in another order change nothing, if the weights that make and use them follow. That
    holds for sums and norms over channels too, which fewer channels do change.
    """
    whole, found = prunable.module, prunable.channels
    atoms = [group.atoms for group in groups if not found.ordered.intersection(group.atoms)]
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    try:
        other = cutting.reordered(whole, found, atoms)
        # Double precision is slow, and decides where single precision does not.
        if _are_alike(_answer(other, images), _answer(whole, images)):
            return None
        images = images.double()
        wanted = _answer(whole, images)
        is_random = not torch.equal(_answer(whole, images), wanted)
        if is_random or _are_alike(_answer(other, images), wanted):
            return None
    except Exception as error:
        return one_line(error)
    return "it treats channels by their places"


def _are_alike(found: Tensor, wanted: Tensor) -> bool:
    """Compares logits ``[n, classes]``; those that are no numbers tell nothing."""
    spread = (wanted - wanted.mean(0)).abs().max()
    off = (found - wanted).abs().max()
    return not off > ALIKE * spread + ROUNDING * wanted.abs().max()


def _answer(module: nn.Module, images: Tensor) -> Tensor:
    """Returns a network's logits in evaluation, computed in the precision of the images."""
    with torch.no_grad():
        logits: Tensor = copy.deepcopy(module).to(images.dtype).eval()(images)
    return logits.double()


# ---- what channels are worth


def _groups(module: nn.Module, found: Channels) -> tuple[Group, ...]:
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
        if not isinstance(layer, (*channels.BATCH_NORMS, nn.LayerNorm)):
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


# ---- how many go


def _removed(groups: Sequence[Group], ratio: float, round_to: int) -> list[Ids]:
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


# ---- removing them


def _count_macs(prunable: Prunable, removed: Ids) -> int:
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
