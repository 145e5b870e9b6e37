"""Takes channels out of a network's layers, or puts them into another order."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from search.networks.pruning import ties
from search.networks.pruning.channels import BATCH_NORMS, Channels, Use
from search.networks.pruning.flows import Ids


def without(module: nn.Module, found: Channels, removed: Ids) -> nn.Module:
    """Returns a copy of the network without ``removed`` atoms."""
    smaller = copy.deepcopy(module)
    layers = dict(smaller.named_modules())
    for use in found.uses:
        gone: list[int] = np.flatnonzero(np.isin(use.atoms, removed)).tolist()
        if not gone:
            continue
        if use.side == "own":
            left = np.flatnonzero(~np.isin(use.atoms, removed))
            _take(*_owner(layers, use), use.axis, left)
        else:
            _shrink(layers[use.name], use, gone)
    ties.keep(smaller, module)
    return smaller


def reordered(module: nn.Module, found: Channels, groups: Sequence[Ids]) -> nn.Module:
    """Returns a copy of the network with the atoms of every group in another order."""
    other = copy.deepcopy(module)
    layers = dict(other.named_modules())
    order = np.arange(1 + max((int(use.atoms.max()) for use in found.uses), default=0))
    random = np.random.default_rng(0)
    for atoms in groups:
        order[atoms] = random.permutation(atoms)
    for use in found.uses:
        # The first place of an atom gets what was at the first place of another, and so on.
        places = np.empty_like(use.atoms)
        places[order[use.atoms].argsort(kind="stable")] = use.atoms.argsort(kind="stable")
        for owner, name, axis in _tensors(layers, use):
            # A grouped convolution's weights have the inputs of one group.
            _take(owner, name, axis, places[: getattr(owner, name).shape[axis]])
    ties.keep(other, module)
    return other


def _tensors(layers: dict[str, nn.Module], use: Use) -> Iterator[tuple[nn.Module, str, int]]:
    """Lists where a network has a number, or more, for each channel of a use: on which axis."""
    if use.side == "own":
        yield *_owner(layers, use), use.axis
        return
    layer = layers[use.name]
    if use.side == "through":
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        for name, tensor in own:
            if tensor.ndim and len(tensor) == len(use.atoms):
                yield layer, name, 0
        return
    outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    yield layer, "weight", outputs if use.side == "out" else 1 - outputs
    if use.side == "out" and getattr(layer, "bias", None) is not None:
        yield layer, "bias", 0


def _owner(layers: dict[str, nn.Module], use: Use) -> tuple[nn.Module, str]:
    """Returns what holds a parameter or buffer of no known layer, and its name there."""
    owner, _, name = use.name.rpartition(".")
    return layers[owner], name


def _take(owner: nn.Module, name: str, axis: int, places: Ids) -> None:
    """Leaves the entries at ``places`` of a parameter or buffer, in that order, in place."""
    tensor: Tensor = getattr(owner, name)
    taken = tensor.detach().index_select(axis, torch.from_numpy(places))
    setattr(owner, name, nn.Parameter(taken) if isinstance(tensor, nn.Parameter) else taken)


def _shrink(layer: nn.Module, use: Use, gone: list[int]) -> None:
    """Removes channels of a layer, in place."""
    match layer, use.side:
        case nn.Linear(), "out":
            torch_pruning.prune_linear_out_channels(layer, gone)
        case nn.Linear(), "in":
            torch_pruning.prune_linear_in_channels(layer, gone)
        case _, "out":
            torch_pruning.prune_conv_out_channels(layer, gone)
        case _, "in":
            torch_pruning.prune_conv_in_channels(layer, gone)
        case nn.Conv2d(), _:
            torch_pruning.prune_depthwise_conv_out_channels(layer, gone)
        case nn.InstanceNorm2d(), _:
            torch_pruning.prune_instancenorm_out_channels(layer, gone)
        case norm, _ if isinstance(norm, BATCH_NORMS):
            torch_pruning.prune_batchnorm_out_channels(layer, gone)
        case nn.GroupNorm(), _:
            torch_pruning.prune_groupnorm_out_channels(layer, gone)
        case nn.PReLU(), _:
            torch_pruning.prune_prelu_out_channels(layer, gone)
        case nn.LayerNorm(), _:
            _shrink_layer_norm(layer, gone)


def _shrink_layer_norm(layer: nn.LayerNorm, gone: list[int]) -> None:
    """Removes channels in place; torch-pruning's own function may change the others' order."""
    left = np.setdiff1d(np.arange(layer.normalized_shape[0]), gone)
    layer.normalized_shape = (len(left),)
    for name, _ in list(layer.named_parameters()):
        _take(layer, name, 0, left)
