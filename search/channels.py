"""Finds which channels of a network can only be removed together; knows nothing of their worth.

A forward pass leaves autograd's graph behind. Walking it from the images to the logits, every
tensor gets the identities of its channels: layers with weights make new ones, additions unite them,
concatenations string them together. Whatever is not understood holds the channels that reach it:
they stay, and the rest of the network can be pruned all the same.

Source: Fang et al. 2023, DepGraph: Towards Any Structural Pruning (arXiv 2301.12900), for the idea.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

Ids = NDArray[np.int64]
Shape = tuple[int, ...]
Side = Literal["out", "in", "through", "own"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.PReLU)
# Names of autograd's nodes, without their endings.
RESHAPES = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Clone", "Alias"}
REDUCTIONS = {"Mean", "Sum", "Max", "Min", "Amax", "Amin", "Var", "Std", "LinalgVectorNorm", "Norm"}
PARTS = {"Split", "SplitWithSizes", "Slice", "Unbind", "Select", "IndexSelect", "Index"}
# What mixes channels by weights that belong to no known layer, or moves them about.
MIXING = {
    "Convolution", "Mm", "Mv", "Bmm", "Addmm", "Addbmm", "Baddbmm", "Dot", "Linear", "Cumsum",
    "Flip", "Roll", "Gather", "Scatter", "Sort", "Topk", "CopySlices", "AsStrided", "Embedding",
    "NativeBatchNorm", "NativeLayerNorm", "NativeGroupNorm", "ScaledDotProductEfficientAttention",
    "ScaledDotProductFlashAttentionForCpu", "FftR2C", "FftC2C", "FftC2R",
}  # fmt: skip


@dataclass(frozen=True)
class Use:
    """Channels as a layer has them.

    Attributes:
        name: The layer's, or with side ``own`` that of a parameter which belongs to no known layer.
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
    """

    uses: tuple[Use, ...]
    free: tuple[Ids, ...]
    positions: dict[str, int]

    def makers(self, atoms: Ids) -> list[str]:
        """Returns the names of the layers that make these channels."""
        return [u.name for u in self.uses if u.side == "out" and np.isin(u.atoms, atoms).any()]


@dataclass(frozen=True)
class _Flow:
    """The channels of a tensor: identities ``[shape[axis]]``, or a parameter's of unknown axis."""

    axis: int
    ids: Ids
    parameter: nn.Parameter | None = None


@dataclass
class _Call:
    """One call of a layer."""

    layer: nn.Module
    source: Any  # autograd's node that made its input, and which output of it
    inputs: Shape
    outputs: Shape


@dataclass
class _Book:
    """Identities given out so far, and what is known of them."""

    count: int = 0
    pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    held: list[Ids] = field(default_factory=list)
    uses: dict[tuple[str, Side], tuple[Ids, int]] = field(default_factory=dict)

    def new(self, size: int) -> Ids:
        """Gives out ``size`` identities."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def unite(self, one: Ids, other: Ids) -> None:
        """Notes that channels can only be removed together; both ``[n]``."""
        self.pairs.append((one, other))

    def hold(self, *flows: _Flow | None) -> None:
        """Notes that channels have to stay."""
        self.held.extend(flow.ids for flow in flows if flow is not None)

    def use(self, name: str, side: Side, ids: Ids, axis: int = 0) -> None:
        """Notes that a layer has these channels; at every call of it they are the same."""
        before, _ = self.uses.setdefault((name, side), (ids, axis))
        self.unite(before, ids)


def analyse(module: nn.Module, image_shape: tuple[int, int, int]) -> Channels:
    """Runs ``module`` once, in evaluation mode, and follows its channels.

    Args:
        module: Its parameters must require gradients: the others are not seen.
        image_shape: ``(channels, height, width)`` of its input.
    """
    names = {layer: name for name, layer in module.named_modules()}
    calls: dict[Any, _Call] = {}
    positions: dict[str, int] = {}

    def record(
        layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        given = (*arguments, *named.values())
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            counted = given[0] if isinstance(layer, nn.ConvTranspose2d) else output
            axis = -1 if isinstance(layer, nn.Linear) else 1
            spots = counted[0].numel() // counted.shape[axis]
            positions[names[layer]] = positions.get(names[layer], 0) + spots
        is_new = output.grad_fn is not None and output.grad_fn is not given[0].grad_fn
        # A weight that is computed from others cannot be cut; its operations are followed instead.
        if is_new and isinstance(getattr(layer, "weight", None), nn.Parameter | None):
            source = (given[0].grad_fn, given[0].output_nr)
            calls[output.grad_fn] = _Call(layer, source, tuple(given[0].shape), tuple(output.shape))

    known = [m for m in module.modules() if isinstance(m, (*CONVOLUTIONS, *NORMS, nn.Linear))]
    # In front of the user's own hooks, which may change what comes out.
    hooks = [layer.register_forward_hook(record, prepend=True, with_kwargs=True) for layer in known]
    try:
        with torch.enable_grad():
            logits = module.eval()(torch.zeros(2, *image_shape))
    finally:
        for hook in hooks:
            hook.remove()
    book = _Book()
    walk = _Walk(book, names, calls, {p: n for n, p in module.named_parameters()})
    book.hold(walk.follow(logits))
    return _conclude(book, positions)


def _conclude(book: _Book, positions: dict[str, int]) -> Channels:
    """Unites what belongs together and sorts it by the layers that make it."""
    one, other = (
        np.concatenate([pair[side] for pair in book.pairs] or [np.empty(0, np.int64)])
        for side in (0, 1)
    )
    links = coo_array((np.ones(len(one), np.int8), (one, other)), (book.count, book.count))
    _, atom_of = connected_components(links, directed=False)
    uses = tuple(
        Use(name, side, atom_of[ids].astype(np.int64), axis)
        for (name, side), (ids, axis) in book.uses.items()
    )
    held = {int(atom) for ids in book.held for atom in np.unique(atom_of[ids])}
    makers: dict[int, list[str]] = {}
    for use in uses:
        if use.side == "out":
            for atom in np.unique(use.atoms):
                makers.setdefault(int(atom), []).append(use.name)
    taken = {int(atom) for use in uses if use.side == "in" for atom in np.unique(use.atoms)}
    families: dict[tuple[str, ...], list[int]] = {}
    for atom, names in makers.items():
        families.setdefault(tuple(names), []).append(atom)
    free = [
        np.array(sorted(atoms), np.int64)
        for atoms in families.values()
        # With one atom there is nothing to choose from.
        if len(atoms) > 1 and not held.intersection(atoms) and taken.issuperset(atoms)
    ]
    return Channels(uses, tuple(free), positions)


class _Walk:
    """Follows channels through autograd's graph.

    Args:
        book: Where everything is noted.
        names: Of all layers.
        calls: Of known layers, by the node that made their output.
        parameters: Names of all parameters.
    """

    def __init__(
        self,
        book: _Book,
        names: dict[nn.Module, str],
        calls: dict[Any, _Call],
        parameters: dict[nn.Parameter, str],
    ) -> None:
        self._book = book
        self._names = names
        self._calls = calls
        self._parameters = parameters
        self._flows: dict[tuple[Any, int], _Flow | None] = {}

    def follow(self, logits: Tensor) -> _Flow | None:
        """Walks from the images to ``logits`` and returns these's channels."""
        end = (logits.grad_fn, logits.output_nr)
        stack, done, open_ = [end[0]], set(), set()
        while stack:
            node = stack[-1]
            if node is None or node in done:
                stack.pop()
            elif node in open_:
                self._visit(node)
                done.add(stack.pop())
            else:
                open_.add(node)
                stack.extend(source for source, _ in self._sources(node))
        return self._flows.get(end)

    def _sources(self, node: Any) -> list[tuple[Any, int]]:
        """Returns the nodes, each with a number of its outputs, that a node computes from."""
        call = self._calls.get(node)
        return list(node.next_functions) if call is None else [call.source]

    def _visit(self, node: Any) -> None:
        call = self._calls.get(node)
        flows = [self._flows.get(source) for source in self._sources(node)]
        if call is not None:
            self._flows[node, 0] = self._through_layer(call, flows[0])
        elif hasattr(node, "variable"):
            if node.variable in self._parameters:
                self._flows[node, 0] = _parameter_flow(node.variable)
        else:
            shapes = [_shape(*source) for source in self._sources(node)]
            for number, made in enumerate(node._input_metadata):
                flow = self._through_operation(node, flows, shapes, tuple(made.shape))
                self._flows[node, number] = flow

    # ---- layers

    def _through_layer(self, call: _Call, given: _Flow | None) -> _Flow | None:
        layer, name = call.layer, self._names[call.layer]
        axis = len(call.inputs) - 1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
        if given is not None and (given.axis != axis or given.parameter is not None):
            if isinstance(layer, CONVOLUTIONS) and _keeps(given, call.inputs, call.outputs):
                return given  # slides along the channels, as efficient channel attention does
            self._book.hold(given)
            return None
        if isinstance(layer, NORMS):
            return self._through_norm(layer, name, given)
        if is_depthwise(layer):
            if given is not None:
                self._book.use(name, "through", given.ids)
            return given
        return self._through_weights(layer, name, given, call.outputs)

    def _through_weights(
        self, layer: nn.Module, name: str, given: _Flow | None, outputs: Shape
    ) -> _Flow:
        axis = len(outputs) - 1 if isinstance(layer, nn.Linear) else 1
        known = self._book.uses.get((name, "out"))
        made = _Flow(axis, self._book.new(outputs[axis]) if known is None else known[0])
        self._book.use(name, "out", made.ids)
        groups = getattr(layer, "groups", 1)
        if given is not None:
            self._book.use(name, "in", given.ids)
        if groups > 1:
            # Every group of a grouped convolution loses the channels at the same places.
            if isinstance(layer, nn.Conv2d) and layer.in_channels > groups:
                self._unite_places(made.ids, groups)
                if given is not None:
                    self._unite_places(given.ids, groups)
            else:
                self._book.hold(given, made)
        return made

    def _through_norm(self, layer: nn.Module, name: str, given: _Flow | None) -> _Flow | None:
        if given is None or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
            return given
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
            self._book.hold(given)
        if isinstance(layer, nn.InstanceNorm2d) and layer.track_running_stats:
            self._book.hold(given)  # torch-pruning leaves these statistics as they are
        if isinstance(layer, nn.GroupNorm):
            self._unite_places(given.ids, layer.num_groups)
        self._book.use(name, "through", given.ids)
        return given

    def _unite_places(self, ids: Ids, groups: int) -> None:
        """Unites the first channel of every group, the second of every group, and so on."""
        places = ids.reshape(groups, -1)
        for group in places[1:]:
            self._book.unite(places[0], group)

    # ---- operations

    def _through_operation(
        self, node: Any, flows: Sequence[_Flow | None], shapes: Sequence[Shape | None], made: Shape
    ) -> _Flow | None:
        """Returns the channels of one result; holds those that it does not understand."""
        if all(flow is None or flow.parameter is not None for flow in flows):
            return self._of_parameters(node, flows, shapes, made)
        kind = node.name().rstrip("0123456789").removesuffix("Backward")
        first, shape = flows[0], shapes[0]
        result: _Flow | None = None
        if kind == "Cat":
            return self._concatenated(node, flows, shapes, made)
        if kind in MIXING or kind == "Stack":
            pass
        elif len(flows) != 1 or first is None or shape is None:
            return self._elementwise(flows, shapes, made)
        elif kind in RESHAPES:
            result = _reshaped(first, shape, made)
        elif kind in ("Permute", "Transpose", "T"):
            result = _Flow(_moved(node, kind, len(shape)).index(first.axis), first.ids)
        elif kind in REDUCTIONS or kind in ("Select", "Unbind"):
            lost = _dims(node, len(shape))
            if kind in REDUCTIONS and (not lost or first.axis in lost):
                return None  # of however many channels, it is one number
            if first.axis not in lost:
                kept = len(shape) == len(made)
                before = sum(dim < first.axis for dim in lost)
                result = _Flow(first.axis if kept else first.axis - before, first.ids)
        elif kind == "Expand":
            result = _Flow(first.axis + len(made) - len(shape), first.ids)
        elif kind in PARTS and first.axis in _dims(node, len(shape)):
            result = first if made == shape else None
        elif _keeps(first, shape, made):
            result = first
        if result is None or made[result.axis] != len(result.ids):
            self._book.hold(*flows)
            return None
        return result

    def _of_parameters(
        self, node: Any, flows: Sequence[_Flow | None], shapes: Sequence[Shape | None], made: Shape
    ) -> _Flow | None:
        """Returns the channels of what is computed from parameters alone."""
        flow, shape = flows[0] if len(flows) == 1 else None, shapes[0] if shapes else None
        if flow is None or shape is None:
            return None
        if shape == made:
            return flow
        return _reshaped(flow, shape, made)

    def _concatenated(
        self, node: Any, flows: Sequence[_Flow | None], shapes: Sequence[Shape | None], made: Shape
    ) -> _Flow | None:
        axis = next(flow.axis for flow in flows if flow is not None and flow.parameter is None)
        fits = all(flow is None or (flow.axis == axis and flow.parameter is None) for flow in flows)
        (dim,) = _dims(node, len(made))
        if fits and dim != axis:
            return self._elementwise(flows, [made if shape else None for shape in shapes], made)
        unknown = made[axis] - sum(shape[axis] for shape in shapes if shape is not None)
        if not fits or sum(shape is None for shape in shapes) > 1:
            self._book.hold(*flows)
            return None
        parts = []
        for flow, shape in zip(flows, shapes, strict=True):
            if flow is None:  # constants, or channels that are held already
                flow = _Flow(axis, self._book.new(unknown if shape is None else shape[axis]))
                self._book.hold(flow)
            parts.append(flow.ids)
        return _Flow(axis, np.concatenate(parts))

    def _elementwise(
        self, flows: Sequence[_Flow | None], shapes: Sequence[Shape | None], made: Shape
    ) -> _Flow | None:
        """Unites the channels of tensors that are combined number by number."""
        present = [
            (flow, shape, len(made) - len(shape))  # shorter shapes are aligned at their ends
            for flow, shape in zip(flows, shapes, strict=True)
            if shape is not None
        ]
        full = [
            (flow, flow.axis + shift)
            for flow, shape, shift in present
            if flow is not None and flow.parameter is None and len(flow.ids) > 1
        ]
        axis = full[0][1] if full else -1
        size = len(full[0][0].ids) if full else 0
        fits = all(place == axis and len(flow.ids) == size for flow, place in full)
        if not fits or axis < 0 or axis >= len(made) or made[axis] != size:
            self._book.hold(*flows)
            return None
        for flow, shape, shift in present:
            here = shape[axis - shift] if axis >= shift else 1
            if flow is not None and flow.parameter is not None and here == size:
                name = self._parameters[flow.parameter]
                ids = full[0][0].ids
                place = _axis_of(flow.parameter, size)
                if place is None:
                    self._book.hold(*flows)
                else:
                    self._book.use(name, "own", ids, place)
            elif flow is None and here == size:
                self._book.hold(full[0][0])  # meets what has to stay
            elif flow is not None and len(flow.ids) == 1:
                self._book.hold(flow)  # one channel for all
        for flow, _ in full[1:]:
            self._book.unite(full[0][0].ids, flow.ids)
        return _Flow(axis, full[0][0].ids)


def is_depthwise(layer: nn.Module) -> bool:
    """Tells convolutions that compute every channel from the one at the same place."""
    if not isinstance(layer, nn.Conv2d):
        return False
    return layer.groups == layer.in_channels == layer.out_channels > 1


def _shape(node: Any, number: int) -> Shape | None:
    """Returns the shape of what a node made; None where it needs no gradient."""
    if node is None:
        return None
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    return tuple(node._input_metadata[number].shape)


def _parameter_flow(parameter: nn.Parameter) -> _Flow:
    """Returns a flow whose channels are known once the parameter meets others."""
    return _Flow(-1, np.empty(0, np.int64), parameter)


def _axis_of(parameter: nn.Parameter, size: int) -> int | None:
    """Returns the only axis of a parameter that is ``size`` long, and longer than one."""
    places = [axis for axis, length in enumerate(parameter.shape) if length > 1]
    return places[0] if len(places) == 1 and parameter.shape[places[0]] == size else None


def _dims(node: Any, ndim: int) -> tuple[int, ...]:
    """Returns the axes that an operation works along; none where it works on all."""
    saved = getattr(node, "_saved_dim", ())
    dims = saved if isinstance(saved, tuple) else (saved,)
    # Negative ones are saved as what their bits are without a sign.
    return tuple((dim if dim < 2**63 else dim - 2**64) % ndim for dim in dims)


def _moved(node: Any, kind: str, ndim: int) -> list[int]:
    """Returns for every axis of the result the axis that it was."""
    order = list(range(ndim))
    if kind == "Permute":
        return [(dim if dim < 2**63 else dim - 2**64) % ndim for dim in node._saved_dims]
    one, other = 0, 1
    if kind == "Transpose":
        saved = (node._saved_dim0, node._saved_dim1)
        one, other = ((dim if dim < 2**63 else dim - 2**64) % ndim for dim in saved)
    order[one], order[other] = order[other], order[one]
    return order


def _keeps(flow: _Flow, given: Shape, made: Shape) -> bool:
    """Tells results whose channels are where they were: of activations, pooling, scaling."""
    axis = flow.axis
    return len(given) == len(made) and given[: axis + 1] == made[: axis + 1]


def _reshaped(flow: _Flow, given: Shape, made: Shape) -> _Flow | None:
    """Follows channels through a reshape that keeps their axis, or merges it with later ones."""
    if flow.parameter is not None:
        return (
            flow if sorted(d for d in given if d > 1) == sorted(d for d in made if d > 1) else None
        )
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
            return _Flow(axis, np.repeat(flow.ids, merged))
    return None
