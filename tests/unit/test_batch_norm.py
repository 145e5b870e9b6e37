"""Batch normalisation of few channels against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from search.batch_norm import NarrowBatchNorm2d, widen_narrow


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
    "shape", [(8, 4, 6, 6), (128, 8, 7, 7), (3, 12, 4, 5), (16, 24, 1, 1), (3, 5, 3, 3)]
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


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(16),
        nn.BatchNorm2d(64),
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.BatchNorm2d(8, momentum=None),
    ],
)
def test_other_layers_stay_torchs(layer: nn.BatchNorm2d) -> None:
    widen_narrow(layer)
    assert type(layer) is nn.BatchNorm2d


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
