"""Finds which channels of a network can only be removed together.

A forward pass leaves autograd's graph behind. Walking it from the images to the logits, every
tensor gets the identities of its channels: layers with weights make new ones, additions unite them,
concatenations string them together. Whatever is not understood holds the channels that reach it:
they stay, and the rest of the network can be pruned all the same.

Source: Fang et al. 2023, DepGraph: Towards Any Structural Pruning (arXiv 2301.12900), for the idea.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from search.networks.pruning import ties
from search.networks.pruning.channels import (
    CONVOLUTIONS,
    KNOWN,
    NORMS,
    Book,
    Call,
    Channels,
    Use,
    count_channels,
    is_depthwise,
)
from search.networks.pruning.flows import (
    Flow,
    Ids,
    axis_of,
    computed,
    followed,
    of_parameters,
)
from search.networks.pruning.operations import (
    ELEMENTWISE,
    REDUCTIONS,
    Shape,
    dims,
    kind_of,
    shape_of,
)


def analyse(module: nn.Module, image_shape: tuple[int, int, int]) -> Channels:
    """Runs ``module`` in evaluation mode, and follows its channels.

    Args:
        module: A copy that is not needed again: what it keeps of the run cannot be copied.
        image_shape: ``(channels, height, width)`` of its input.
    """
    parameters: dict[Tensor, str] = {
        parameter: name
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point()
    }
    for parameter in parameters:
        parameter.requires_grad_(True)  # frozen parameters hide layers from the tracing
    buffers = _buffers_of_unknown_layers(module)
    for buffer in buffers:
        buffer.requires_grad_(True)
    try:
        logits, calls, positions = _run(module, image_shape)
    except RuntimeError:  # not every operation allows for it
        for buffer in buffers:
            buffer.requires_grad_(False)
        logits, calls, positions = _run(module, image_shape)
    book = Book()
    names = {layer: name for name, layer in module.named_modules()}
    walk = _Walk(book, names, calls, {**parameters, **buffers})
    book.hold(walk.follow(logits))
    ties.unite(module, book)
    return _conclude(book, positions)


def _buffers_of_unknown_layers(module: nn.Module) -> dict[Tensor, str]:
    """Returns the names of buffers that may have a number for every channel."""
    kept = module.state_dict().keys()
    return {
        buffer: f"{name}.{own}".removeprefix(".")
        for name, layer in module.named_modules()
        if not isinstance(layer, KNOWN) and not type(layer).__module__.startswith("torch.")
        for own, buffer in layer.named_buffers(recurse=False)
        if buffer.is_floating_point() and f"{name}.{own}".removeprefix(".") in kept
    }


def _run(
    module: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[Tensor, dict[Any, Call], dict[str, int]]:
    """Returns a network's logits, the calls of known layers, and ``Channels.positions``."""
    names = {layer: name for name, layer in module.named_modules()}
    calls: dict[Any, Call] = {}
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
            calls[output.grad_fn] = Call(layer, source, tuple(given[0].shape), tuple(output.shape))

    # In front of the user's own hooks, which may change what comes out.
    hooks = [
        layer.register_forward_hook(record, prepend=True, with_kwargs=True)
        for layer in module.modules()
        if isinstance(layer, KNOWN)
    ]
    try:
        with torch.enable_grad():
            logits: Tensor = module.eval()(torch.zeros(2, *image_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return logits, calls, positions


def _conclude(book: Book, positions: dict[str, int]) -> Channels:
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
    ordered = {int(atom) for ids in book.ordered for atom in np.unique(atom_of[ids])}
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
    ends = tuple(dict.fromkeys(book.ends))
    return Channels(uses, tuple(free), positions, frozenset(ordered), ends)


class _Walk:
    """Follows channels through autograd's graph.

    Args:
        book: Where everything is noted.
        names: Of all layers.
        calls: Of known layers, by the node that made their output.
        parameters: Names of all parameters, and of buffers that are followed like them.
    """

    def __init__(
        self,
        book: Book,
        names: dict[nn.Module, str],
        calls: dict[Any, Call],
        parameters: dict[Tensor, str],
    ) -> None:
        self._book = book
        self._names = names
        self._calls = calls
        self._parameters = parameters
        self._flows: dict[tuple[Any, int], Flow | None] = {}

    def follow(self, logits: Tensor) -> Flow | None:
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
                self._flows[node, 0] = of_parameters(node.variable)
        else:
            shapes = [shape_of(*source) for source in self._sources(node)]
            for number, made in enumerate(node._input_metadata):
                flow = self._through_operation(node, flows, shapes, tuple(made.shape))
                self._flows[node, number] = flow

    # ---- layers

    def _through_layer(self, call: Call, given: Flow | None) -> Flow | None:
        layer, name = call.layer, self._names[call.layer]
        axis = len(call.inputs) - 1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
        if given is not None and (given.axis != axis or given.parameters):
            before = slice(given.axis + 1)
            if isinstance(layer, CONVOLUTIONS) and call.inputs[before] == call.outputs[before]:
                # Slides along the channels, as efficient channel attention does.
                self._book.ordered.append(given.ids)
                return given
            self._book.hold(given)
            return None
        if not isinstance(layer, NORMS) and not is_depthwise(layer):
            return self._through_weights(layer, name, given, call.outputs)
        if given is not None and len(given.ids) != call.outputs[axis]:
            self._book.hold(given)  # the layer adds channels of its own
            return None
        if isinstance(layer, NORMS):
            return self._through_norm(layer, name, given)
        if given is not None:
            self._book.use(name, "through", given.ids)
        return given

    def _through_weights(
        self, layer: nn.Module, name: str, given: Flow | None, outputs: Shape
    ) -> Flow | None:
        axis = len(outputs) - 1 if isinstance(layer, nn.Linear) else 1
        takes, makes = count_channels(layer)
        if given is not None and len(given.ids) != takes:  # the layer adds channels of its own
            self._book.hold(given)
            given = None
        if outputs[axis] != makes:
            self._book.hold(given)
            return None
        known = self._book.uses.get((name, "out"))
        made = Flow(axis, self._book.new(outputs[axis]) if known is None else known[0])
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

    def _through_norm(self, layer: nn.Module, name: str, given: Flow | None) -> Flow | None:
        if given is None or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
            return given
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
            self._book.hold(given)
        if isinstance(layer, nn.InstanceNorm2d) and layer.track_running_stats:
            # torch-pruning leaves these statistics as they are.
            self._book.hold(given, end="InstanceNorm2d with running statistics")
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
        self, node: Any, flows: Sequence[Flow | None], shapes: Sequence[Shape | None], made: Shape
    ) -> Flow | None:
        """Returns the channels of one result; holds those that it does not understand."""
        if all(flow is None or flow.parameters for flow in flows):
            return computed(kind_of(node), flows, shapes, made)
        kind = kind_of(node)
        if kind == "Cat":
            return self._concatenated(node, flows, shapes, made)
        if kind in ELEMENTWISE and len(flows) > 1:
            return self._elementwise(flows, shapes, made)
        first, shape = flows[0], shapes[0]
        result: Flow | None = None
        if len(flows) == 1 and first is not None and shape is not None:
            if kind in REDUCTIONS and (not (lost := dims(node, len(shape))) or first.axis in lost):
                return None  # of however many channels, it is one number
            result = followed(node, first, shape, made)
        if result is None or made[result.axis] != len(result.ids):
            self._book.hold(*flows, end=kind)
            return None
        return result

    def _concatenated(
        self, node: Any, flows: Sequence[Flow | None], shapes: Sequence[Shape | None], made: Shape
    ) -> Flow | None:
        axis = next(flow.axis for flow in flows if flow is not None and not flow.parameters)
        fits = all(flow is None or (flow.axis == axis and not flow.parameters) for flow in flows)
        (dim,) = dims(node, len(made))
        if fits and dim != axis:
            return self._elementwise(flows, [made if shape else None for shape in shapes], made)
        unknown = made[axis] - sum(shape[axis] for shape in shapes if shape is not None)
        if not fits or sum(shape is None for shape in shapes) > 1:
            self._book.hold(*flows)
            return None
        parts = []
        for flow, shape in zip(flows, shapes, strict=True):
            if flow is None:  # constants, or channels that are held already
                flow = Flow(axis, self._book.new(unknown if shape is None else shape[axis]))
                self._book.hold(flow)
            parts.append(flow.ids)
        return Flow(axis, np.concatenate(parts))

    def _elementwise(
        self, flows: Sequence[Flow | None], shapes: Sequence[Shape | None], made: Shape
    ) -> Flow | None:
        """Unites the channels of tensors that are combined number by number."""
        present = [
            (flow, shape, len(made) - len(shape))  # shorter shapes are aligned at their ends
            for flow, shape in zip(flows, shapes, strict=True)
            if shape is not None
        ]
        full = [
            (flow, flow.axis + shift)
            for flow, shape, shift in present
            if flow is not None and not flow.parameters and len(flow.ids) > 1
        ]
        axis = full[0][1] if full else -1
        size = len(full[0][0].ids) if full else 0
        fits = all(place == axis and len(flow.ids) == size for flow, place in full)
        if not fits or axis < 0 or axis >= len(made) or made[axis] != size:
            self._book.hold(*flows)
            return None
        for flow, shape, shift in present:
            here = shape[axis - shift] if axis >= shift else 1
            if flow is not None and flow.parameters and here == size:
                self._own(flow, full[0][0])
            elif flow is None and here == size:
                self._book.hold(full[0][0])  # meets what has to stay
            elif flow is not None and len(flow.ids) == 1:
                self._book.hold(flow)  # one channel for all
        for flow, _ in full[1:]:
            self._book.unite(full[0][0].ids, flow.ids)
        return Flow(axis, full[0][0].ids)

    def _own(self, flow: Flow, channels: Flow) -> None:
        """Notes parameters that have a number for every channel of a tensor that they meet."""
        for parameter in flow.parameters:
            place = axis_of(parameter, len(channels.ids))
            if place is not None:
                self._book.use(self._parameters[parameter], "own", channels.ids, place)
            elif parameter.numel() > 1:
                self._book.hold(channels)
