"""Which channels a network's layers have, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from search.networks.pruning.flows import (
    Flow,
    Ids,
)
from search.networks.pruning.operations import (
    Shape,
)

Side = Literal["out", "in", "through", "own"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
# In one process SyncBatchNorm computes what BatchNorm2d does.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
NORMS = (*BATCH_NORMS, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.PReLU)
KNOWN = (*CONVOLUTIONS, *NORMS, nn.Linear)


@dataclass(frozen=True)
class Use:
    """Channels as a layer has them.

    Attributes:
        name: The layer's, or with side ``own`` that of a parameter or buffer of no known layer.
        side: Whether the layer makes them, takes them in, or lets them through.
        atoms: For every channel on that side of the layer, what can only be removed as a whole.
        axis: Of the parameter, whose channels these are; 0 for layers.
    """

    name: str
    side: Side
    atoms: Ids
    axis: int = 0


@dataclass(frozen=True)
class Channels:
    """Every layer's channels, and which of them may go.

    Attributes:
        uses: In the order of the forward pass, a layer that is called twice once.
        free: Atoms that may be removed, a sorted array for every set of layers that make them.
        positions: How often one image makes a layer use each of its weights, by the layer's name.
        ordered: Atoms whose neighbours a layer looks at, so that their order counts.
        ends: Names of layers and operations that channels were not followed through.
    """

    uses: tuple[Use, ...]
    free: tuple[Ids, ...]
    positions: dict[str, int]
    ordered: frozenset[int]
    ends: tuple[str, ...]

    def makers(self, atoms: Ids) -> list[str]:
        """Returns the names of the layers that make these channels."""
        return [u.name for u in self.uses if u.side == "out" and np.isin(u.atoms, atoms).any()]


@dataclass
class Call:
    """One call of a layer."""

    layer: nn.Module
    source: Any  # autograd's node that made its input, and which output of it
    inputs: Shape
    outputs: Shape


@dataclass
class Book:
    """Identities given out so far, and what is known of them."""

    count: int = 0
    pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    held: list[Ids] = field(default_factory=list)
    ordered: list[Ids] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    uses: dict[tuple[str, Side], tuple[Ids, int]] = field(default_factory=dict)

    def new(self, size: int) -> Ids:
        """Gives out ``size`` identities."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def unite(self, one: Ids, other: Ids) -> None:
        """Notes that channels can only be removed together; both ``[n]``."""
        self.pairs.append((one, other))

    def hold(self, *flows: Flow | None, end: str | None = None) -> None:
        """Notes that channels have to stay, and at what they end."""
        self.held.extend(flow.ids for flow in flows if flow is not None)
        if end is not None:
            self.ends.append(end)

    def use(self, name: str, side: Side, ids: Ids, axis: int = 0) -> None:
        """Notes that a layer has these channels; at every call of it they are the same."""
        before, _ = self.uses.setdefault((name, side), (ids, axis))
        self.unite(before, ids)


def is_depthwise(layer: nn.Module) -> bool:
    """Tells convolutions that compute every channel from the one at the same place."""
    if not isinstance(layer, nn.Conv2d):
        return False
    return layer.groups == layer.in_channels == layer.out_channels > 1


def count_channels(layer: nn.Module) -> tuple[int, int]:
    """Returns how many channels a convolution or dense layer takes, and how many it makes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, CONVOLUTIONS)
    return layer.in_channels, layer.out_channels
