"""Network records become torch modules and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from search.errors import ConfigError, one_line
from search.networks.custom import build_custom
from search.process import home, registry
from search.records.network import Edit, Network, NetworkSpec, Shapes
from search.records.steps.step import ArtifactStore

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
        normal = F.batch_norm(images, self.pixel_mean, self.pixel_variance, eps=1e-12)
        logits: Tensor = self.network(normal)
        return logits


def build(spec: NetworkSpec, edits: Sequence[Edit] = ()) -> nn.Module:
    """Builds the unpruned network, with fresh weights from torch's random state.

    Args:
        spec: What to build.
        edits: What to change then, in order.

    A user's factory is called once per process: it may load pretrained weights for minutes. Its
    weights are those of the first call.

    Raises:
        ConfigError: When the factory, the width or the image shape does not work.
    """
    module = _build_own(spec) if spec.factory is None else _copy_custom(spec)
    for edit in edits:
        module = registry.load(edit.apply)(module, dict(edit.values))
    return module


def _build_own(spec: NetworkSpec) -> nn.Module:
    try:
        module: nn.Module = models.build(
            spec.name, spec.image_shape, spec.classes, width=spec.width or 1
        )
    except ValueError as error:
        raise ConfigError(f"model={spec.name}: {error}") from error
    return module


# A copy of what the factory returned, by its spec as text; one at most, because it may be large.
_kept: dict[str, nn.Module] = {}


def _copy_custom(spec: NetworkSpec) -> nn.Module:
    """Returns a network of the user's that nobody else holds."""
    key = repr(spec)  # arguments may be lists
    module = None if key in _kept else build_custom(spec)
    try:
        if module is not None:
            _kept.clear()
            # Hooks that are closures go on storing what copies compute in the original, which
            # then cannot be copied any more.
            _kept[key] = copy.deepcopy(module)
        return copy.deepcopy(_kept[key])
    except Exception as error:  # whatever its attributes raise
        raise ConfigError(
            f"model.factory={spec.factory!r}: the network cannot be copied ({one_line(error)}), "
            "which pruning needs; keep locks, open files, tensors that are not detached and the "
            "like out of its modules"
        ) from error


def with_shapes(spec: NetworkSpec, edits: Sequence[Edit], shapes: Shapes) -> nn.Module:
    """Builds a network whose tensors have ``shapes``; their values are arbitrary."""
    module = build(spec, edits)
    resize(module, {name: torch.zeros(shape) for name, shape in shapes})
    return module


def load(network: Network, artifacts: ArtifactStore) -> nn.Module:
    """Loads a network in float32, on the CPU, in evaluation mode."""
    state = load_file(artifacts.path(network.weights))
    with torch.random.fork_rng(devices=[]):
        module = build(network.spec, network.edits)
    resize(module, state)
    module.load_state_dict(state)
    return module.eval()


def save(
    module: nn.Module, spec: NetworkSpec, artifacts: ArtifactStore, edits: Sequence[Edit] = ()
) -> Network:
    """Keeps a network's weights and counts what it computes; the network stays as it is.

    Args:
        module: The network.
        spec: From which it was built.
        artifacts: Where its weights go.
        edits: That were made since.
    """
    state: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in module.state_dict().items():
        kept = value.detach().cpu().contiguous()
        # Tied weights share memory and could not be saved.
        state[name] = kept.clone() if kept.untyped_storage().data_ptr() in memory else kept
        memory.add(kept.untyped_storage().data_ptr())
    weights = artifacts.put(to_safetensors(state), ".safetensors")
    return Network(
        spec=spec,
        shapes=tuple((name, tuple(value.shape)) for name, value in state.items()),
        weights=weights,
        macs=count_macs(module, spec.image_shape),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        edits=tuple(edits),
    )


def count_macs(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Counts the multiply-accumulates of convolutions and dense layers for one image.

    Args:
        module: Runs once, in evaluation mode; its layers' modes and hooks stay as they are.
        image_shape: ``(channels, height, width)`` of its input.
    """
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        # Every output value sums over one row of weights; a transposed one spreads every input.
        values = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        several = values if isinstance(values, tuple | list) else (values,)  # octave convolutions
        size = sum(value.numel() for value in several if isinstance(value, Tensor))
        weight: Any = layer.weight  # a parameter, or computed from some
        counts.append(size * weight[0].numel())

    hooks = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    modes = [(layer, layer.training) for layer in module.modules()]
    device = next((parameter.device for parameter in module.parameters()), None)
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *image_shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes:
            layer.training = training
    return sum(counts)


def resize(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives every layer the shapes of ``state``, in place; the new values are arbitrary.

    Pruning changes nothing but shapes, so a state dict is enough to rebuild a pruned network.
    Layers that share a parameter go on sharing it.
    """
    resized: dict[tuple[Tensor, torch.Size], Tensor] = {}
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        for kind, tensor in own:
            wanted = state.get(prefix + kind)
            if wanted is None or tensor.shape == wanted.shape:
                continue
            key = (tensor, wanted.shape)
            if key not in resized:
                fresh = torch.zeros(wanted.shape, dtype=tensor.dtype)
                resized[key] = nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh
            setattr(layer, kind, resized[key])
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
        case nn.Conv1d():
            layer.out_channels = layer.weight.shape[0]
            layer.in_channels = layer.weight.shape[1] * layer.groups
        case nn.ConvTranspose2d():
            layer.in_channels = layer.weight.shape[0]
            layer.out_channels = layer.weight.shape[1] * layer.groups
        case nn.Linear():
            layer.out_features, layer.in_features = layer.weight.shape
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.SyncBatchNorm() | nn.InstanceNorm2d():
            for tensor in (*layer.parameters(), *layer.buffers()):
                layer.num_features = len(tensor) if tensor.ndim else layer.num_features
        case nn.PReLU() if layer.num_parameters > 1:
            layer.num_parameters = len(layer.weight)
        case nn.GroupNorm() if layer.weight is not None:
            layer.num_channels = len(layer.weight)
        case nn.LayerNorm() if layer.weight is not None:
            layer.normalized_shape = tuple(layer.weight.shape)
