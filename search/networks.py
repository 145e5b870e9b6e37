"""Network records become torch modules and back; knows nothing of what stages do with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch_pruning
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

import models
from search.errors import ConfigError
from search.factory import load_factory
from search.records import Network, NetworkSpec, Shapes
from search.steps import Shelf


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
            module = models.build(spec.name, spec.image_shape, spec.classes, width=spec.width or 1)
        except ValueError as error:
            raise ConfigError(f"model={spec.name}: {error}") from error
        return module
    module = load_factory(spec.factory, "model.factory")(**dict(spec.arguments))
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model.factory={spec.factory} returned {type(module).__name__}; "
            "it must return a torch.nn.Module"
        )
    _check_fits(module, spec)
    return module


def _check_fits(module: nn.Module, spec: NetworkSpec) -> None:
    """Runs a custom network once: it must take the data's images and give its classes."""
    channels, height, width = spec.image_shape
    try:
        with torch.no_grad():
            logits = module.eval()(torch.zeros(2, channels, height, width))
    except Exception as error:
        raise ConfigError(
            f"model.factory={spec.factory} does not take the data's images "
            f"[n, {channels}, {height}, {width}]: {str(error).splitlines()[0]}"
        ) from error
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, spec.classes):
        raise ConfigError(
            f"model.factory={spec.factory} gives {list(shape)} for 2 images; "
            f"the data has {spec.classes} classes, so [2, {spec.classes}] is needed"
        )


def with_shapes(spec: NetworkSpec, shapes: Shapes) -> nn.Module:
    """Builds a network whose tensors have ``shapes``; their values are arbitrary."""
    module = build(spec)
    resize(module, {name: torch.zeros(shape) for name, shape in shapes})
    return module


def load(network: Network, shelf: Shelf) -> nn.Module:
    """Loads a network in float32, on the CPU, in evaluation mode."""
    module = build(network.spec)
    state = load_file(shelf.path(network.weights))
    resize(module, state)
    module.load_state_dict(state)
    return module.eval()


def save(module: nn.Module, spec: NetworkSpec, shelf: Shelf) -> Network:
    """Keeps a network's weights and counts what it computes."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    # Counted on a module of its own: the count runs a forward pass, and hooks must not stay.
    counted = build(spec)
    resize(counted, state)
    macs, parameters = torch_pruning.utils.count_ops_and_params(
        counted, torch.zeros(1, *spec.image_shape)
    )
    return Network(
        spec=spec,
        shapes=tuple((name, tuple(value.shape)) for name, value in state.items()),
        weights=shelf.put(to_safetensors(state), ".safetensors"),
        macs=int(macs),
        parameters=int(parameters),
    )


def resize(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives every layer the shapes of ``state``, in place; the new values are arbitrary.

    Pruning changes nothing but shapes, so a state dict is enough to rebuild a pruned network.
    """
    for name, layer in module.named_modules():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(layer, kind, None)
            wanted = state.get(f"{name}.{kind}" if name else kind)
            if tensor is None or wanted is None or tensor.shape == wanted.shape:
                continue
            fresh = torch.zeros(wanted.shape, dtype=tensor.dtype)
            setattr(layer, kind, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
        _describe_again(layer)


def _describe_again(layer: nn.Module) -> None:
    """Makes a layer's attributes agree with its weights' shapes."""
    if isinstance(layer, nn.Conv2d):
        if layer.groups == layer.in_channels and layer.groups > 1:
            # A depthwise layer has one group per channel, however many are left of them.
            layer.groups = layer.groups * layer.weight.shape[0] // layer.out_channels
        layer.out_channels = layer.weight.shape[0]
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
        layer.num_features = layer.weight.shape[0]
