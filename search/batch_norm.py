"""Batch normalisation that is fast for few channels; knows nothing of the networks it is part of.

torch's kernels for channels-last tensors work along the channels, 16 at a time, and fall back to
one number at a time for the rest: backward through 8 channels takes four times as long as through
16. Pruned networks are narrow, and half of their training went into this. Here several pixels are
taken for one with as many times the channels, which in channels-last memory is the same tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LANES = 16  # channels that torch's kernels take at a time
FOLD = 4  # pixels taken for one; more brought nothing
FEWEST = 4  # channels for which it pays

aten = torch.ops.aten


def widen_narrow(module: nn.Module) -> None:
    """Makes every BatchNorm2d of ``module`` with an awkward number of channels fast, in place.

    Names, parameters and results stay as they are.
    """
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d and _is_awkward(layer):
            # The layer stays the same object: a network may hold it in more than one place.
            layer.__class__ = NarrowBatchNorm2d


def _is_awkward(layer: nn.BatchNorm2d) -> bool:
    is_usual = layer.affine and layer.track_running_stats and layer.momentum is not None
    return is_usual and layer.num_features >= FEWEST and layer.num_features % LANES > 0


class NarrowBatchNorm2d(nn.BatchNorm2d):
    """Computes what ``nn.BatchNorm2d`` computes for images ``[n, c, h, w]`` on the CPU."""

    momentum: float
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Normalises; in training mode by the batch's statistics, which it also keeps."""
        pixels = images.numel() // self.num_features
        if not self.training or pixels % FOLD or pixels == FOLD:
            return super().forward(images)
        normalised: Tensor
        # torch's stubs leave apply without types
        normalised, mean, variance = _Normalise.apply(  # type: ignore[no-untyped-call]
            images, self.weight, self.bias, self.eps
        )
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (pixels / (pixels - 1)), self.momentum)
        return normalised


class _Normalise(torch.autograd.Function):
    """Normalises images by the mean and the biased variance of each channel.

    Source: Ioffe & Szegedy 2015, Batch Normalization (arXiv 1502.03167).
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns normalised images ``[n, c, h, w]``, and mean and variance ``[c]``."""
        channels = len(weight)
        wide = _fold(images)
        # The statistics come in the type of these two; the images' may be bfloat16.
        zeros, ones = weight.new_zeros(FOLD * channels), weight.new_ones(FOLD * channels)
        means, variances = aten.batch_norm_update_stats(wide, zeros, ones, 0.0)
        means, variances = means.view(FOLD, channels), variances.view(FOLD, channels)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        normalised, _, _ = aten.native_batch_norm(
            wide, _tile(weight), _tile(bias), _tile(mean), _tile(variance), False, 0.0, eps
        )
        ctx.save_for_backward(images, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return _unfold(normalised, images.shape), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Returns the gradients of images, weight and bias."""
        images, weight, mean, variance = ctx.saved_tensors
        channels, pixels = len(weight), images.numel() // len(weight)
        wide = _fold(images)
        # With the statistics held fixed, torch's kernel leaves out only the gradient through them.
        direct, by_weight, by_bias = aten.native_batch_norm_backward(
            _fold(gradients[0]),
            wide,
            _tile(weight),
            _tile(mean),
            _tile(variance),
            None,
            None,
            False,
            ctx.eps,
            [True, True, True],
        )
        by_weight = by_weight.view(FOLD, channels).sum(0)
        by_bias = by_bias.view(FOLD, channels).sum(0)
        inverse_deviation = (variance + ctx.eps).rsqrt()
        slope = -weight * inverse_deviation.square() * by_weight / pixels
        offset = -weight * inverse_deviation * by_bias / pixels - slope * mean
        slopes, offsets = (_tile(v).to(images).view(1, -1, 1, 1) for v in (slope, offset))
        through_statistics = torch.addcmul(offsets, wide, slopes)
        return _unfold(direct.add_(through_statistics), images.shape), by_weight, by_bias, None


def _fold(images: Tensor) -> Tensor:
    """Views ``[n, c, h, w]`` as ``[1, FOLD * c, n * h * w / FOLD, 1]``, channels last in memory."""
    channels = images.shape[1]
    rows = images.permute(0, 2, 3, 1).reshape(1, -1, 1, FOLD * channels)
    return rows.permute(0, 3, 1, 2)


def _unfold(wide: Tensor, shape: torch.Size) -> Tensor:
    """Views what ``_fold`` made as images of ``shape`` again."""
    n, channels, height, width = shape
    return wide.permute(0, 2, 3, 1).reshape(n, height, width, channels).permute(0, 3, 1, 2)


def _tile(values: Tensor) -> Tensor:
    """Repeats ``[c]`` for every pixel that is folded into one, ``[FOLD * c]``."""
    return values.repeat(FOLD)
