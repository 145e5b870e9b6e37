"""Network records become torch modules and back; knows nothing of what stages do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from search import home
from search.errors import ConfigError, SearchError, one_line
from search.factory import load_factory
from search.records import Network, NetworkSpec, Shapes
from search.steps import Shelf

models = home.own_models()


class Preprocessed(nn.Module):
    """A network with its normalisation inside: raw pixels in 0..1 to logits.

    Args:
        network: Takes normalised images ``[n, channels, height, width]``.
        mean: Per-channel mean, ``[channels]``.
        std: Per-channel standard deviation, ``[channels]``.
    """

    pixel_mean: Tensor
    pixel_variance: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("pixel_mean", torch.tensor(mean))
        self.register_buffer("pixel_variance", torch.tensor(std).square())

    def forward(self, images: Tensor) -> Tensor:
        """Gives logits ``[n, classes]`` for pixels in 0..1."""
        # A batch normalisation, because it exports as one operator where (x - mean) / std is two.
        normal = F.batch_norm(images, self.pixel_mean, self.pixel_variance, eps=0.0)
        logits: Tensor = self.network(normal)
        return logits


def build(spec: NetworkSpec) -> nn.Module:
    """Builds the unpruned network with fresh weights from torch's random state.

    Raises:
        ConfigError: When the factory, the width or the image shape does not work.
    """
    if spec.factory is None:
        try:
            module: nn.Module = models.build(
                spec.name, spec.image_shape, spec.classes, width=spec.width or 1
            )
        except ValueError as error:
            raise ConfigError(f"model={spec.name}: {error}") from error
        return module
    origin = f"model.factory={spec.factory!r}"
    module = _call(load_factory(spec.factory, "model.factory"), dict(spec.arguments), origin)
    _check_fits(module, spec, origin)
    # Whatever its author froze it for: here every weight recovers from what pruning takes away.
    return module.requires_grad_(True)


def _call(factory: Callable[..., Any], arguments: dict[str, Any], origin: str) -> nn.Module:
    """Calls the user's function."""
    try:
        module = factory(**arguments)
    except SearchError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{origin}: called with model.arguments={arguments} it raised {one_line(error)}; "
            "correct the function or model.arguments"
        ) from error
    if isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(
            f"{origin}: returned {type(module).__name__}, whose layers cannot be pruned; return "
            "the torch.nn.Module that it was compiled from"
        )
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{origin}: returned {type(module).__name__}; return a torch.nn.Module")
    return module


def _check_fits(module: nn.Module, spec: NetworkSpec, origin: str) -> None:
    """Runs a custom network once: it must take the data's images and give its classes."""
    try:
        with torch.no_grad():
            logits = module.eval()(torch.zeros(2, *spec.image_shape))
    except (Exception, SystemExit) as error:
        shape = ", ".join(map(str, spec.image_shape))
        raise ConfigError(
            f"{origin}: given the data's images [n, {shape}] the network raised "
            f"{one_line(error)}; build it for them, or choose other data"
        ) from error
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"{origin}: the network gives {type(logits).__name__}; return a tensor of logits"
        )
    if logits.shape != (2, spec.classes):
        raise ConfigError(
            f"{origin}: the network gives {list(logits.shape)} for 2 images; the data has "
            f"{spec.classes} classes, so [2, {spec.classes}] is needed"
        )


def with_shapes(spec: NetworkSpec, shapes: Shapes) -> nn.Module:
    """Builds a network whose tensors have ``shapes``; their values are arbitrary."""
    module = build(spec)
    resize(module, {name: torch.zeros(shape) for name, shape in shapes})
    return module


def load(network: Network, shelf: Shelf) -> nn.Module:
    """Loads a network in float32, on the CPU, in evaluation mode."""
    state = load_file(shelf.path(network.weights))
    module = _build_to_fill(network.spec, state)
    module.load_state_dict(state)
    return module.eval()


def save(module: nn.Module, spec: NetworkSpec, shelf: Shelf) -> Network:
    """Keeps a network's weights and counts what it computes."""
    state = {
        # Cloned, because tied weights share memory and could not be saved.
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }
    # Counted on a module of its own: the count runs a forward pass, and hooks must not stay.
    counted = _build_to_fill(spec, state)
    return Network(
        spec=spec,
        shapes=tuple((name, tuple(value.shape)) for name, value in state.items()),
        weights=shelf.put(to_safetensors(state), ".safetensors"),
        macs=count_macs(counted, spec.image_shape),
        parameters=sum(parameter.numel() for parameter in counted.parameters()),
    )


def _build_to_fill(spec: NetworkSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """Builds a network of ``state``'s shapes; torch's random state stays as it is."""
    with torch.random.fork_rng():
        module = build(spec)
    resize(module, state)
    return module


def count_macs(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Counts the multiply-accumulates of convolutions and dense layers for one image.

    Args:
        module: Gets hooks that stay.
        image_shape: ``(channels, height, width)`` of its input.
    """
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Every output value sums over one row of weights; a transposed one spreads every input.
        values = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        counts.append(values.numel() * layer.get_parameter("weight")[0].numel())

    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(torch.zeros(1, *image_shape))
    return sum(counts)


def resize(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives every layer the shapes of ``state``, in place; the new values are arbitrary.

    Pruning changes nothing but shapes, so a state dict is enough to rebuild a pruned network.
    """
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        for kind, tensor in own:
            wanted = state.get(prefix + kind)
            if wanted is None or tensor.shape == wanted.shape:
                continue
            fresh = torch.zeros(wanted.shape, dtype=tensor.dtype)
            setattr(layer, kind, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
        _describe_again(layer)


def _describe_again(layer: nn.Module) -> None:
    """Makes a layer's attributes agree with its weights' shapes."""
    match layer:
        case nn.Conv2d():
            if layer.groups == layer.in_channels and layer.groups > 1:
                # A depthwise layer has one group per channel, however many are left of them.
                layer.groups = layer.groups * layer.weight.shape[0] // layer.out_channels
            layer.out_channels = layer.weight.shape[0]
            layer.in_channels = layer.weight.shape[1] * layer.groups
        case nn.Linear():
            layer.out_features, layer.in_features = layer.weight.shape
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.InstanceNorm2d():
            for tensor in (*layer.parameters(), *layer.buffers()):
                layer.num_features = len(tensor) if tensor.ndim else layer.num_features
        case nn.PReLU() if layer.num_parameters > 1:
            layer.num_parameters = len(layer.weight)
        case nn.GroupNorm() if layer.weight is not None:
            layer.num_channels = len(layer.weight)
        case nn.LayerNorm() if layer.weight is not None:
            layer.normalized_shape = tuple(layer.weight.shape)
