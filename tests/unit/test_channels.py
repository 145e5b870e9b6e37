"""Which channels are followed through what users write, and which have to stay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from search.networks import networks
from search.networks.custom import build_custom
from search.networks.optimization import make_optimizer
from search.networks.pruning import groups
from search.networks.pruning import prune as pruning
from search.records.network import NetworkSpec
from tests.zoo import CLASSES, WIDTH, ChannelsLast, Zoo, conv

SHAPE = (1, 28, 28)
ORDER = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))


class Doing(nn.Module):
    """A function of the user's in the middle of a network."""

    def __init__(self, do: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.do = do

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, H, W]`` to the same shape."""
        return self.do(x)


def around(middle: nn.Module) -> nn.Module:
    """The network whose channels of ``body.0`` and of nothing else pass ``middle``."""
    torch.manual_seed(0)
    return Zoo(nn.Sequential(conv(), middle, conv())).eval()


def widths(module: nn.Module, ratio: float = 0.5) -> dict[str, tuple[int, ...]]:
    smaller, _ = pruning.prune(module, SHAPE, ratio, 8)
    with torch.no_grad():
        assert smaller(torch.rand(2, *SHAPE)).shape == (2, CLASSES)
    layers = [n for n, m in smaller.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return {n: tuple(groups._weight(smaller, n).shape[:2]) for n in layers}


def unseen(module: nn.Module, ratio: float) -> nn.Module:
    """The whole network, when nobody looks at the channels that pruning removes."""
    seen = pruning.look(module, SHAPE)
    removed = np.concatenate(groups.removed_at(seen.groups, ratio, 8))
    masked = copy.deepcopy(module)
    for use in seen.channels.uses:
        if use.side == "in":
            weight = masked.get_parameter(f"{use.name}.weight").data
            weight[:, torch.from_numpy(np.isin(use.atoms, removed))] = 0
    return masked


def assert_same(module: nn.Module) -> None:
    """Pruned, a network computes what it does when nobody looks at the channels that went."""
    smaller, _ = pruning.prune(module, SHAPE, 0.5, 8)
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        wanted = unseen(module, 0.5).double()(images.double())
        torch.testing.assert_close(smaller.double()(images.double()), wanted)


class Reversing(Function):
    """A function of the user's that moves channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].flip(1)


class Swish(Function):
    """A function of the user's that does not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        slope: Tensor = s * (1 + x * (1 - s))
        return gradients[0] * slope


def last(do: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Does something to images whose channels are their last axis."""
    return lambda x: do(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1]).roll(1)


def sums(size: int, like: Tensor) -> Tensor:
    return torch.ones(size, size, dtype=like.dtype).tril()


def attend(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return (torch.softmax(flat @ flat.mT, -1) @ flat).view_as(x)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "ChannelShuffle": nn.ChannelShuffle(4),
    "shuffled by hand": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "index": lambda x: x[:, places(x)],
    "constant index": lambda x: x[:, ORDER],
    "index_select": lambda x: x.index_select(1, places(x)),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "roll over all axes": lambda x: x.roll(49),
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "take_along_dim": lambda x: x.take_along_dim(x.argsort(1), 1),
    "sort": lambda x: x.sort(1).values,
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "cummax": lambda x: x.cummax(1).values,
    "softmax": lambda x: x.softmax(1),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    "index_add": lambda x: torch.zeros_like(x).index_add(1, places(x), x),
    "pixel_shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2).transpose(2, 3), 2),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    "einsum": lambda x: torch.einsum("nchw,cd->ndhw", x, sums(x.shape[1], x)),
    "matmul": last(lambda x: x @ sums(x.shape[3], x)),
    "attention": attend,
    "layer_norm": last(lambda x: F.layer_norm(x, (x.shape[-1],))),
    "group_norm": lambda x: F.group_norm(x, 4),
    "local_response_norm": lambda x: F.local_response_norm(x, 3, alpha=10.0),
    "pooled over channels": last(lambda x: F.max_pool2d(x, (1, 3), 1, (0, 1))),
    "pooled in three axes": lambda x: F.max_pool3d(x, 3, 1, 1),
    "interpolated over channels": last(lambda x: F.interpolate(x, x.shape[2:], mode="bilinear")),
    "moved by padding": lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)),
    "replicated": last(lambda x: F.pad(x, (1, 1, 0, 0), "replicate")[..., :-2]),
    "maxout": lambda x: x.unflatten(1, (-1, 2)).amax(2).repeat_interleave(2, 1),
    "a user's function": Reversing.apply,
    "counted": lambda x: x * torch.arange(x.shape[1]).view(1, -1, 1, 1),
    "written in place": lambda x: _exchange(x.clone()),
}  # fmt: skip


def _exchange(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    x[:, :half] = x[:, half : 2 * half].clone()
    return x


@pytest.mark.parametrize("name", MIXING)
def test_channels_that_are_moved_or_mixed_stay(name: str) -> None:
    module = around(Doing(MIXING[name]))
    left = widths(module)
    assert left["body.0"] == (WIDTH, left["stem"][0])
    assert left["stem"][0] < WIDTH > left["body.2"][0]
    assert_same(module)


ACTIVATIONS = (
    "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu",
    "logsigmoid", "mish", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus",
    "softshrink", "softsign", "tanh", "tanhshrink",
)  # fmt: skip
ALIKE: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(F, name) for name in ACTIVATIONS},
    "relu_": lambda x: x.relu_(),
    "in another type": lambda x: x.double().exp().to(x.dtype),
    "arithmetic": lambda x: (1 - 2 * x).abs().add(1e-3).sqrt().clamp(0, 3) / 2 + x**2,
    "two of one": lambda x: torch.where(x > 0, torch.maximum(x, -x), x.lerp(x.abs(), 0.3)),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
    "one axis at a time": lambda x: F.max_pool1d(x.flatten(2), 3).unflatten(2, (4, -1)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "padded": lambda x: F.pad(F.pad(x, (1, 1, 0, 1)), (1, 0, 2, 1), "reflect"),
    "softmax over pixels": lambda x: x * x.flatten(2).softmax(-1).view_as(x),
    "a slice of pixels": lambda x: x[:, :, 1:, ::2],
    "turned": lambda x: x.flip(3).transpose(2, 3),
    "repeated pixels": lambda x: x.repeat(1, 1, 2, 1),
    "a user's function": Swish.apply,
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_channels_that_are_treated_alike_may_go(name: str) -> None:
    module = around(Doing(ALIKE[name]))
    left = widths(module)
    assert left["body.0"][0] == left["body.2"][1] < WIDTH
    assert_same(module)


@pytest.mark.parametrize(
    "do",
    [
        lambda x: x / x.std(),
        lambda x: x / torch.linalg.vector_norm(x),
        lambda x: x / x.norm(),
        lambda x: x - x.max(),
        lambda x: x / x.var((1, 2, 3), keepdim=True),
        lambda x: x * x.mean(1, keepdim=True).sigmoid(),
    ],
    ids=["std", "vector_norm", "norm", "max", "var", "gate"],
)
def test_numbers_over_all_channels_hold_none(do: Callable[[Tensor], Tensor]) -> None:
    assert widths(around(Doing(do)))["body.0"][0] < WIDTH


class Neighbours(nn.Module):
    """A gate for every channel, from the means of three (arXiv 1910.03151)."""

    def __init__(self) -> None:
        super().__init__()
        self.slide = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        means = x.mean((2, 3)).unsqueeze(1)
        gates: Tensor = self.slide(means).sigmoid().transpose(1, 2).unsqueeze(-1)
        return x * gates


def test_channels_that_look_at_their_neighbours_may_go() -> None:
    assert widths(around(Neighbours()))["body.0"][0] < WIDTH


def test_a_network_that_throws_dice_is_pruned() -> None:
    assert widths(around(Doing(lambda x: F.dropout(x, 0.5))))["body.0"][0] < WIDTH


# ---- layers with something unusual


class CoordConv(nn.Conv2d):
    """A convolution that is told where its pixels are (arXiv 1807.03247)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs + 2, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, inputs, H, W]`` to ``[N, outputs, H, W]``."""
        n, _, height, width = x.shape
        rows = torch.linspace(-1, 1, height, dtype=x.dtype).view(1, 1, -1, 1)
        columns = torch.linspace(-1, 1, width, dtype=x.dtype).view(1, 1, 1, -1)
        maps = [axis.expand(n, 1, height, width) for axis in (rows, columns)]
        return super().forward(torch.cat([x, *maps], 1))


class Biased(nn.Linear):
    """A dense layer with one more input, always 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, in_features - 1]`` to ``[N, out_features]``."""
        return super().forward(F.pad(x, (0, 1), value=1.0))


class Both(nn.Conv2d):
    """A convolution that gives its inputs too."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to ``[N, C + out_channels, H, W]``."""
        return torch.cat([x, super().forward(x)], 1)


def test_a_convolution_with_channels_of_its_own() -> None:
    module = around(CoordConv(WIDTH, WIDTH))
    left = widths(module)
    assert left["body.0"][0] == WIDTH
    assert left["body.1"] == (left["body.2"][1], WIDTH + 2)
    assert left["body.1"][0] < WIDTH
    assert_same(module)


def test_a_dense_layer_with_an_input_of_its_own() -> None:
    module = around(nn.Identity())
    module.head = Biased(WIDTH + 1, CLASSES)
    left = widths(module)
    assert left["body.2"][0] == WIDTH > left["body.0"][0]
    assert left["head"] == (CLASSES, WIDTH + 1)


def test_a_layer_that_makes_more_channels_than_it_says() -> None:
    torch.manual_seed(0)
    module = Zoo(nn.Sequential(conv(), Both(WIDTH, 8, 3, padding=1)), WIDTH + 8).eval()
    left = widths(module)
    assert left["body.0"][0] == WIDTH > left["stem"][0]
    assert left["body.1"] == (8, WIDTH)


class Frozen(nn.Module):
    """Batch normalisation that never learns, as detectors have it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(features))
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape, with the arithmetic of torchvision."""
        weight, bias, mean, variance = (
            self.get_buffer(name).reshape(1, -1, 1, 1)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (variance + 1e-5).rsqrt() * self.get_buffer("scale")
        return x * scale + (bias - mean * scale)


def frozen() -> nn.Module:
    return around(Frozen(WIDTH))


def test_buffers_are_cut_with_the_channels() -> None:
    module = frozen()
    smaller, _ = pruning.prune(module, SHAPE, 0.5, 8)
    bias = smaller.get_parameter("body.0.bias")
    assert len(smaller.get_buffer("body.1.running_var")) == len(bias) < WIDTH
    assert not smaller.get_buffer("body.1.bias").requires_grad
    assert_same(module)
    spec = NetworkSpec("custom", None, f"{__name__}:frozen", (), None, SHAPE, CLASSES)
    rebuilt = networks.build(spec)
    networks.resize(rebuilt, smaller.state_dict())
    rebuilt.load_state_dict(smaller.state_dict())
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), smaller(images))


class Counting(nn.Module):
    """Writes into a buffer in every forward pass, which no leaf that learns allows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        self.get_buffer("calls").add_(1)
        return x


def test_buffers_that_are_written_into_do_not_matter() -> None:
    assert widths(around(Counting()))["body.0"][0] < WIDTH


class Hoarding(nn.Module):
    """Keeps what it computed."""

    features: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        self.features = 2 * x
        return self.features


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("kind", ["attribute", "weight_norm", "spectral_norm"])
def test_networks_that_keep_what_they_computed_are_pruned(kind: str) -> None:
    middles: dict[str, Callable[[], nn.Module]] = {
        "attribute": Hoarding,
        "weight_norm": lambda: nn.utils.weight_norm(conv()),
        "spectral_norm": lambda: nn.utils.spectral_norm(conv()),
    }
    module = around(middles[kind]())
    with torch.no_grad():  # as every network is tried before
        module(torch.rand(2, *SHAPE))
    assert widths(module)["stem"][0] < WIDTH


class Positions(nn.Module):
    """Adds what a table says of every pixel, which is found by whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.arange(49), requires_grad=False)
        self.table = nn.Embedding(49, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, 7, 7]`` to the same shape."""
        offsets: Tensor = self.table(self.places)
        return x + offsets.T.view(1, -1, 7, 7)


def positions() -> nn.Module:
    return around(Positions())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_whole_numbers_are_parameters_that_do_not_learn(optimizer: str) -> None:
    spec = NetworkSpec("custom", None, f"{__name__}:positions", (), None, SHAPE, CLASSES)
    module = build_custom(spec)
    assert widths(module)["stem"][0] < WIDTH
    steps = make_optimizer(module, optimizer, 0.1, 0.0)
    before = copy.deepcopy(module.state_dict())
    F.cross_entropy(module(torch.rand(4, *SHAPE)), torch.arange(4)).backward()
    steps.step()
    changed = {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == before.keys() - {"body.1.places"}


def test_a_parameter_that_is_shuffled_before_it_meets_channels_holds_them() -> None:
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.rand(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain.flip(0).view(-1, 1, 1)

    module = around(Gain())
    assert widths(module)["body.0"][0] == WIDTH
    assert_same(module)


def test_channels_last_layers_are_followed() -> None:
    left = widths(around(ChannelsLast(nn.Linear(WIDTH, WIDTH))))
    assert left["body.0"][0] < WIDTH
