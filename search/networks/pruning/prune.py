"""Removes channels of a network, and sees that the rest still computes the same."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from search.errors import InfeasiblePoint, one_line
from search.networks.pruning import cutting
from search.networks.pruning.channels import CONVOLUTIONS, Channels
from search.networks.pruning.groups import Group, Prunable, count_macs, find_groups, removed_at
from search.networks.pruning.walk import analyse

log = logging.getLogger(__name__)

# How far logits may be from others that differ by rounding alone: of how far those of two images
# are apart, and of their size.
ALIKE, ROUNDING = 1e-3, 1e-9
MOST_ENDS = 3  # that are named where nothing can be pruned


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
    removed = removed_at(prunable.groups, ratio, round_to)
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
        count_macs(prunable, np.concatenate(removed_at(prunable.groups, ratio, round_to)))
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
    found = analyse(copy.deepcopy(whole), image_shape)
    prunable = Prunable(whole, found, find_groups(whole, found))
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
    layers = (m for m in module.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear)))
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
