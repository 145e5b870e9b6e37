"""Removes whole channels from a network; knows nothing of how it is trained afterwards."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from search import networks
from search.errors import InfeasiblePoint, one_line
from search.steps import Prune, Pruned, Shelf

log = logging.getLogger(__name__)

# How much a channel's price counts beside its importance. Importances are within a third of 1, so
# that the tenth root of the price moves costly layers forward and does not decide alone.
COST_EXPONENT = 0.1


def run(step: Prune, shelf: Shelf) -> Pruned:
    """Does the step."""
    module = networks.load(step.network, shelf)
    smaller, removed = prune(module, step.network.spec.image_shape, step.ratio, step.round_to)
    network = step.network
    if removed > 0:
        network = networks.save(smaller, step.network.spec, shelf)
    return Pruned(network=network, channels_removed=removed)


def prune(
    module: nn.Module, image_shape: tuple[int, int, int], ratio: float, round_to: int
) -> tuple[nn.Module, float]:
    """Removes the least important share of a network's channels.

    Coupled layers (residual sums, depthwise convolutions) lose the same channels. All channels
    are ranked together by the L2 norm of their weights relative to their group's mean, so a
    layer whose channels matter equally keeps more than one that has useless ones; of channels
    that matter equally, those that cost the most multiply-accumulates go first. No group loses
    more than half of what ``1 - ratio`` would leave it, and what it keeps is rounded to a width
    that the processor computes well. The network's outputs are never touched.

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
    smaller = copy.deepcopy(module)
    if ratio == 0:
        return smaller, 0.0
    for parameter in smaller.parameters():
        parameter.requires_grad_(True)  # frozen parameters hide layers from the tracing
    example = torch.zeros(2, *image_shape)
    with torch.no_grad():
        outputs = smaller.eval()(example).shape
    graph = torch_pruning.DependencyGraph().build_dependency(
        smaller, example_inputs=example, verbose=False
    )
    groups = _prunable_groups(graph, smaller)
    if not groups:
        raise InfeasiblePoint("no layer's channels can be removed; set space.prune_ratio=0")
    prices = _prices(groups, _count_uses(smaller, example))
    scores = [
        _importance(group) / price**COST_EXPONENT
        for group, price in zip(groups, prices, strict=True)
    ]
    kept = widths_to_keep(scores, ratio, round_to)
    total = sum(len(score) for score in scores)
    for group, score, width in zip(groups, scores, kept, strict=True):
        if width < len(score):
            least = score.argsort(stable=True)[: len(score) - width].sort().values.tolist()
            root = group[0].dep
            graph.get_pruning_group(root.target.module, root.handler, least).prune()
    removed = 1 - sum(kept) / total
    _check_computes(smaller, example, outputs, removed)
    return smaller, removed


def _check_computes(
    smaller: nn.Module, example: Tensor, wanted: torch.Size, removed: float
) -> None:
    try:
        with torch.no_grad():
            shape = smaller(example).shape
    except Exception as error:
        raise _fixed_widths(removed, one_line(error)) from error
    if shape != wanted:
        raise _fixed_widths(removed, f"its outputs become {list(shape)}, not {list(wanted)}")


def _fixed_widths(removed: float, reason: str) -> InfeasiblePoint:
    return InfeasiblePoint(
        f"the network cannot compute without {removed:.0%} of its channels ({reason}); its code "
        "must not fix channel counts"
    )


def _prunable_groups(graph: torch_pruning.DependencyGraph, module: nn.Module) -> list[Any]:
    """Returns the sets of coupled channels that are neither outputs nor grouped."""
    return [
        group
        for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])
        if any(
            graph.is_in_channel_pruning_fn(dep.handler) and _has_weights(dep) for dep, _ in group
        )
        and not any(_is_grouped(dep.target.module) for dep, _ in group)
        and not any(_is_output(graph, dep) for dep, _ in group)
    ]


def _is_output(graph: torch_pruning.DependencyGraph, dependency: Any) -> bool:
    """Tells whether these channels are the network's outputs: nothing computes on from them."""
    consumed = _has_weights(dependency) and graph.is_in_channel_pruning_fn(dependency.handler)
    return not dependency.target.outputs and not consumed


def _has_weights(dependency: Any) -> bool:
    module = dependency.target.module
    return isinstance(module, nn.Conv2d | nn.Linear) and not _is_depthwise(module)


def _is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    return module.groups == module.in_channels == module.out_channels > 1


def _is_grouped(module: nn.Module) -> bool:
    """Tells a grouped convolution that is not depthwise: its groups must stay as they are."""
    return isinstance(module, nn.Conv2d) and module.groups > 1 and not _is_depthwise(module)


def _importance(group: Any) -> Tensor:
    """Scores every channel of a group, ``[channels]``, with mean 1."""
    score: Tensor = torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer=None)(group)
    score = score.detach().double()
    return score / score.mean().clamp_min(1e-12)


def _count_uses(module: nn.Module, example: Tensor) -> dict[nn.Module, int]:
    """Counts for every layer how often one image makes it use each of its weights."""
    uses: dict[nn.Module, int] = {}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values_of_one_channel = output[0].numel() // len(layer.get_parameter("weight"))
        uses[layer] = uses.get(layer, 0) + values_of_one_channel

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return uses


def _prices(groups: Sequence[Any], uses: Mapping[nn.Module, int]) -> list[float]:
    """Returns what a channel of each group costs, relative to the mean of groups of its kind.

    Dense layers are a kind of their own: their time goes into reading weights, not computing.
    """
    macs = [_macs(group, uses) for group in groups]
    is_dense = [isinstance(group[0].dep.target.module, nn.Linear) for group in groups]
    mean = {
        kind: sum(m for m, k in zip(macs, is_dense, strict=True) if k == kind) / count
        for kind, count in Counter(is_dense).items()
    }
    return [m / mean[kind] for m, kind in zip(macs, is_dense, strict=True)]


def _macs(group: Any, uses: Mapping[nn.Module, int]) -> float:
    """Returns how many multiply-accumulates one channel of a group takes part in."""
    layers = [dependency.target.module for dependency, _ in group]
    macs: int = sum(layer.weight.numel() * uses[layer] for layer in layers if layer in uses)
    return macs / len(group[0].idxs)


def widths_to_keep(scores: Sequence[Tensor], ratio: float, round_to: int) -> list[int]:
    """Chooses how many channels each group keeps; never more at a higher ratio.

    Args:
        scores: Importance of every channel, one ``[channels]`` tensor a group.
        ratio: Share of all channels to remove, 0..0.9.
        round_to: Channels that the processor computes together.

    Returns:
        Channels kept, one number a group, each at least 1.
    """
    pooled = torch.cat(list(scores))
    remove = round(ratio * len(pooled))
    removed = torch.zeros(len(pooled), dtype=torch.bool)
    removed[pooled.argsort(stable=True)[:remove]] = True
    kept = []
    for lost, score in zip(removed.split([len(s) for s in scores]), scores, strict=True):
        full = len(score)
        wanted = max(full - int(lost.sum()), (1 - ratio) * full / 2)
        # The nearest width; of two equally near the wider, which is the more accurate.
        kept.append(min(widths_of(full, round_to), key=lambda w: (abs(w - wanted), -w)))
    return kept


def widths_of(full: int, round_to: int) -> list[int]:
    """Lists the widths a layer of ``full`` channels may be pruned to, rising.

    Multiples of ``round_to`` fill the processor's vector registers. Narrow layers have none of
    them to choose from, so powers of two continue the list downwards.
    """
    below = [2**power for power in range(round_to.bit_length()) if 2**power < round_to]
    widths = [width for width in (*below, *range(round_to, full, round_to)) if width < full]
    return [*widths, full]
