"""Channels of one tensor, and where they are in what is computed from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from search.networks.pruning.operations import (
    ELEMENTWISE,
    MOVES,
    REDUCTIONS,
    RESHAPES,
    Shape,
    dims,
    keeps,
    kind_of,
    order_after,
)

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Flow:
    """The channels of a tensor: identities ``[shape[axis]]``.

    Of what is computed from parameters alone they are not known yet, only which parameters.
    """

    axis: int
    ids: Ids
    parameters: tuple[Tensor, ...] = ()


def of_parameters(*parameters: Tensor) -> Flow:
    """Returns a flow whose channels are known once the parameters meet others."""
    return Flow(-1, np.empty(0, np.int64), parameters)


def axis_of(parameter: Tensor, size: int) -> int | None:
    """Returns the only axis of a parameter that is ``size`` long, and longer than one."""
    places = [axis for axis, length in enumerate(parameter.shape) if length > 1]
    return places[0] if len(places) == 1 and parameter.shape[places[0]] == size else None


def computed(
    kind: str, flows: Sequence[Flow | None], shapes: Sequence[Shape | None], made: Shape
) -> Flow | None:
    """Returns the parameters of which a result has one number for each of theirs, in order."""
    if kind not in ELEMENTWISE | RESHAPES | MOVES | {"Expand"}:
        return None
    length = [size for size in made if size > 1]
    parameters: list[Tensor] = []
    for flow, shape in zip(flows, shapes, strict=True):
        if shape is None:
            continue  # a constant
        if flow is None or [size for size in shape if size > 1] not in ([], length):
            return None
        parameters.extend(flow.parameters)
    return of_parameters(*parameters) if parameters and len(length) <= 1 else None


def followed(node: Any, flow: Flow, given: Shape, made: Shape) -> Flow | None:
    """Returns the channels of what is computed from one tensor alone; None if they are unknown."""
    kind, ndim = kind_of(node), len(given)
    if kind in RESHAPES:
        return _reshaped(flow, given, made)
    if kind in MOVES:
        return Flow(order_after(node, ndim).index(flow.axis), flow.ids)
    if kind == "Expand":
        return Flow(flow.axis + len(made) - ndim, flow.ids)
    if kind in REDUCTIONS or kind in ("Select", "Unbind"):
        lost = dims(node, ndim)
        before = 0 if ndim == len(made) else sum(dim < flow.axis for dim in lost)
        return None if flow.axis in lost else Flow(flow.axis - before, flow.ids)
    return flow if keeps(node, flow.axis, given, made) else None


def _reshaped(flow: Flow, given: Shape, made: Shape) -> Flow | None:
    """Follows channels through a reshape that keeps their axis, or merges it with later ones."""
    before, channels = math.prod(given[: flow.axis]), given[flow.axis]
    after = math.prod(given[flow.axis + 1 :])
    for axis, size in enumerate(made):
        merged = size // channels
        if (
            math.prod(made[:axis]) == before
            and size == merged * channels
            and size > 0
            and math.prod(made[axis + 1 :]) * merged == after
        ):
            return Flow(axis, np.repeat(flow.ids, merged))
    return None
