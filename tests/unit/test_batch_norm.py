"""Batch normalisation of few channels against torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from search.networks import batch_norm
from search.networks.batch_norm import NarrowBatchNorm2d, widen_narrow


@pytest.fixture(autouse=True)
def _small_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets layers of our own compute what is too little to pay."""
    monkeypatch.setattr(batch_norm, "SMALLEST", 0)


def narrow(channels: int) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """Returns torch's layer and the same one made fast."""
    torch.manual_seed(channels)
    plain = nn.BatchNorm2d(channels, momentum=0.3)
    nn.init.uniform_(plain.weight, 0.5, 2)
    nn.init.normal_(plain.bias)
    fast = copy.deepcopy(plain)
    widen_narrow(fast)
    assert type(fast) is NarrowBatchNorm2d
    return plain, fast


def images(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    pixels = torch.randn(shape) * 3 + torch.arange(shape[1]).view(1, -1, 1, 1)
    return pixels.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (8, 4, 6, 6),
        (128, 8, 7, 7),
        (3, 12, 4, 5),
        (16, 24, 1, 1),
        (3, 5, 3, 3),
        (1, 8, 2, 2),
        (1, 8, 2, 4),
        (8, 8, 1, 1),
        (1, 12, 1, 3),
        (2, 9, 1, 1),
    ],
)
def test_results_and_gradients_are_torchs(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    plain, fast = narrow(shape[1])
    batch = images(shape, dtype)
    weighting = torch.randn_like(batch)  # of mean zero: no difference of large sums
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    found = []
    for layer in (plain, fast):
        pixels = batch.clone().requires_grad_()
        output = layer(pixels)
        output.backward(weighting)
        assert output.dtype == dtype
        found.append((output, pixels.grad, layer.weight.grad, layer.bias.grad))
    for wanted, got in zip(*found, strict=True):
        scale = wanted.float().abs().max()
        assert (wanted.float() - got.float()).abs().max() <= tolerance * scale
    for name, wanted in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], wanted, rtol=1e-4, atol=1e-4)


def test_gradients_by_finite_differences() -> None:
    _, fast = narrow(4)
    pixels = torch.randn(2, 4, 2, 2, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last
    )
    fast.double()
    assert torch.autograd.gradcheck(fast, pixels.requires_grad_(), eps=1e-5, atol=1e-3)


def test_evaluation_uses_the_statistics_that_training_kept() -> None:
    plain, fast = narrow(8)
    for _ in range(3):
        batch = images((4, 8, 5, 4))
        plain(batch)
        fast(batch)
    torch.testing.assert_close(fast.eval()(batch), plain.eval()(batch))


def contract(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    use: Callable[[nn.Module, Tensor], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Trains a network a few steps with torch's layers and with ours, and compares everything."""
    torch.manual_seed(0)
    plain = network.to(dtype).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    fast = copy.deepcopy(plain)
    widen_narrow(fast)
    assert any(isinstance(layer, NarrowBatchNorm2d) for layer in fast.modules())
    batch = images(shape, dtype)
    found = []
    for module in (plain, fast):
        torch.manual_seed(1)
        learning = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD([*learning, torch.zeros(1, requires_grad=True)], 0.05)
        losses = []
        for _ in range(3):
            pixels = batch.clone().requires_grad_()
            optimizer.zero_grad()
            loss = (module(pixels).float() if use is None else use(module, pixels)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        found.append({**module.state_dict(), "losses": torch.stack(losses), "grad": pixels.grad})
    for name, wanted in found[0].items():
        assert (wanted is None) == (found[1][name] is None), name
        if wanted is not None:
            torch.testing.assert_close(found[1][name], wanted, rtol=2e-3, atol=2e-4, msg=name)


def stack(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 12, 3, padding=1), *layers, nn.Conv2d(12, 8, 1))


SHAPE = (4, 4, 6, 6)


@pytest.mark.parametrize("make", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU])
def test_activations_in_place_before_and_after(make: Callable[..., nn.Module]) -> None:
    contract(stack(make(inplace=True), nn.BatchNorm2d(12), make(inplace=True)), SHAPE)


class AddedInPlace(nn.Module):
    """A residual sum that is written into the normalised images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        y += x
        y.mul_(2.0)
        return y


def test_sums_in_place() -> None:
    contract(stack(AddedInPlace()), SHAPE)


def test_a_layer_that_is_used_twice() -> None:
    norm = nn.BatchNorm2d(12)
    contract(stack(norm, nn.ReLU(inplace=True), norm), SHAPE)


@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")])
def test_frozen_parameters(frozen: tuple[str, ...]) -> None:
    norm = nn.BatchNorm2d(12)
    for name in frozen:
        norm.get_parameter(name).requires_grad_(False)
    contract(stack(norm, nn.ReLU()), SHAPE)


def test_everything_frozen() -> None:
    contract(stack(nn.BatchNorm2d(12)).requires_grad_(False), SHAPE)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks(reentrant: bool) -> None:
    def use(module: nn.Module, pixels: Tensor) -> Tensor:
        assert isinstance(module, nn.Sequential)
        y: Tensor = module[0](pixels)
        y = checkpoint(module[1:3], y, use_reentrant=reentrant)
        last: Tensor = module[3](y)
        return last

    contract(stack(nn.BatchNorm2d(12), nn.ReLU(inplace=True)), SHAPE, use)


@pytest.mark.parametrize("after", [nn.Identity(), nn.SiLU(inplace=True)])
def test_gradient_penalties(after: nn.Module) -> None:
    def use(module: nn.Module, pixels: Tensor) -> Tensor:
        outputs: Tensor = module(pixels)
        slopes: Tensor
        (slopes,) = torch.autograd.grad(outputs.square().sum(), pixels, create_graph=True)
        return outputs.mean() + slopes.square()

    contract(stack(nn.SiLU(), nn.BatchNorm2d(12), after), SHAPE, use)


def test_second_derivatives_by_finite_differences() -> None:
    _, fast = narrow(4)
    fast.double()
    pixels = torch.randn(2, 4, 2, 2, dtype=torch.float64)
    pixels = pixels.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = fast.weight, fast.bias

    def compute(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        given = {"weight": w, "bias": b}
        result: Tensor = torch.func.functional_call(fast, given, (x,))
        return result

    assert torch.autograd.gradgradcheck(compute, (pixels, weight, bias), atol=1e-3)


def test_evaluation_inside_training() -> None:
    def use(module: nn.Module, pixels: Tensor) -> Tensor:
        assert isinstance(module, nn.Sequential)
        with torch.no_grad():
            before: Tensor = module.eval()(pixels)
        module.train()
        during: Tensor = module(pixels)
        module[1].eval()
        frozen: Tensor = module(pixels)
        module.train()
        return during + frozen + before

    contract(stack(nn.BatchNorm2d(12), nn.ReLU()), SHAPE, use)


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": None},
        {"momentum": 0.0},
        {"momentum": 1.0},
        {"eps": 0.1},
        {"affine": False},
        {"track_running_stats": False},
    ],
    ids=str,
)
def test_settings(settings: dict[str, float | bool | None]) -> None:
    contract(stack(nn.BatchNorm2d(12, **settings), nn.ReLU(inplace=True)), SHAPE)  # type: ignore[arg-type]


def test_settings_that_change_between_calls() -> None:
    plain, fast = narrow(8)
    for layer in (plain, fast):
        layer(images((4, 8, 4, 4)))
    batches = [images((4, 8, 4, 4)) for _ in range(3)]
    for layer in (plain, fast):  # statistics estimated anew
        layer.momentum = None
        layer.reset_running_stats()
        with torch.no_grad():
            for batch in batches:
                layer(batch)
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(fast.running_mean, mean, rtol=1e-4, atol=1e-4)
    for name, wanted in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], wanted, rtol=1e-4, atol=1e-4)


def test_hooks_see_what_they_see_of_torchs_layer() -> None:
    seen: list[tuple[str, Tensor]] = []

    def keep(name: str, values: Any) -> None:
        seen.append((name, values[0]))

    plain, fast = narrow(8)
    batch = images((4, 8, 4, 4))
    for layer in (plain, fast):
        layer.register_forward_pre_hook(lambda _, given: (given[0] + 1,))
        layer.register_forward_hook(lambda _, given, made: seen.append(("made", made.detach())))
        layer.register_full_backward_hook(lambda _, made, given: keep("given", made))
        layer.weight.register_hook(lambda slope: seen.append(("slope", slope)))
        (layer(batch.clone().requires_grad_()) * torch.arange(4.0)).sum().backward()
    assert len(seen) == 6
    for (name, wanted), (same, got) in zip(seen[:3], seen[3:], strict=True):
        assert name == same
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_double_precision() -> None:
    contract(stack(nn.BatchNorm2d(12), nn.ReLU(inplace=True)), SHAPE, dtype=torch.float64)


def test_bfloat16_autocast() -> None:
    def use(module: nn.Module, pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = module(pixels)
        return logits.float()

    plain = stack(nn.BatchNorm2d(12), nn.ReLU(inplace=True)).train()
    fast = copy.deepcopy(plain)
    widen_narrow(fast)
    batch = images(SHAPE)
    wanted, got = (use(module, batch) for module in (plain, fast))
    assert (wanted - got).abs().max() <= 2e-2 * wanted.abs().max()
    for logits in (wanted, got):
        logits.square().sum().backward()
    ours, theirs = ([p.grad for p in module.parameters()] for module in (fast, plain))
    # A bias before a batch normalisation has no gradient but rounding.
    least = 0.02 * max(float(gradient.norm()) for gradient in theirs if gradient is not None)
    for one, other in zip(ours, theirs, strict=True):
        assert one is not None
        assert other is not None
        assert (one - other).norm() <= 5e-2 * other.norm().clamp_min(least)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (1, 8, 1, 1), (2, 7, 2, 2), (2, 8, 4)])
def test_what_torch_refuses_or_returns_for_strange_images(shape: tuple[int, ...]) -> None:
    plain, fast = narrow(8)
    outcomes = []
    for layer in (plain, fast):
        try:
            outcomes.append(tuple(layer(torch.zeros(shape)).shape))
        except (ValueError, RuntimeError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


def test_other_layouts_keep_theirs() -> None:
    plain, fast = narrow(8)
    batch = torch.randn(4, 8, 6, 6)
    assert fast(batch).stride() == plain(batch).stride()
    torch.testing.assert_close(fast(batch), plain(batch))


class Subclass(nn.BatchNorm2d):
    """A layer that computes something else."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 2


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(8)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(16), nn.BatchNorm2d(64), nn.BatchNorm2d(3), Subclass(8), parametrized()],
)
def test_other_layers_stay(layer: nn.BatchNorm2d) -> None:
    before = type(layer)
    widen_narrow(layer)
    assert type(layer) is before


def test_small_batches_go_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "SMALLEST", 10_000)
    plain, fast = narrow(8)
    batch = images((4, 8, 4, 4))
    assert torch.equal(fast(batch), plain(batch))


def test_names_and_aliases_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(8)
            self.same = [self.norm]

    module = Twice()
    names = list(module.state_dict())
    widen_narrow(module)
    assert list(module.state_dict()) == names
    assert module.same[0] is module.norm
    assert type(module.norm) is NarrowBatchNorm2d
