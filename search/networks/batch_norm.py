"""Batch normalisation that is fast for few channels.

torch's kernels for channels-last tensors work along the channels, 16 at a time, and fall back to
one number at a time for the rest: backward through 8 channels takes four times as long as through
16 where these are AVX-512's. Pruned networks are narrow, and half of their training went into this.
Here several pixels are taken for one with as many times the channels, which in channels-last memory
is the same tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LANES = 16  # channels that torch's kernels take at a time
FOLD = 4  # pixels taken for one; more brought nothing
FEWEST = 4  # channels for which it pays
SMALLEST = 2**18  # numbers in a batch; with fewer, the calls themselves take longer than torch

aten = torch.ops.aten


def torch_is_slow() -> bool:
    """Tells processors on which torch's kernels need this; with AVX2 they are as fast or faster."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def widen_narrow(module: nn.Module) -> None:
    """Makes every BatchNorm2d of ``module`` with an awkward number of channels fast, in place.

    Names, parameters, hooks and results stay as they are. Subclasses, parametrized layers among
    them, stay torch's: they may compute something else.
    """
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d and _is_awkward(layer):
            # The layer stays the same object: a network may hold it in more than one place.
            layer.__class__ = NarrowBatchNorm2d


def _is_awkward(layer: nn.BatchNorm2d) -> bool:
    return layer.num_features >= FEWEST and layer.num_features % LANES > 0


class NarrowBatchNorm2d(nn.BatchNorm2d):
    """Computes what ``nn.BatchNorm2d`` computes, fast for channels-last images in training."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalises images ``[n, c, h, w]``; whatever is not usual goes torch's own way."""
        if not (self.training and self._is_usual() and self._folds(images)):
            return super().forward(images)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # torch's stubs leave apply without types
        normalised: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            images,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.momentum,
            self.eps,
        )
        return normalised

    def _is_usual(self) -> bool:
        """Asked at every call: a layer's settings may change while a network is trained."""
        tensors = (self.weight, self.bias, self.running_mean, self.running_var)
        is_whole = self.track_running_stats and all(tensor is not None for tensor in tensors)
        return is_whole and self.momentum is not None

    def _folds(self, images: Tensor) -> bool:
        """Tells images that can be folded, and whose result torch lays out like the fold."""
        if images.ndim != 4 or images.shape[1] != self.num_features:
            return False  # torch's layer says what is wrong
        pixels = images.numel() // self.num_features
        is_known = images.dtype in (torch.float32, torch.float64, torch.bfloat16)
        return (
            images.numel() >= SMALLEST
            and pixels > FOLD
            and pixels % FOLD == 0
            and images.is_contiguous(memory_format=torch.channels_last)
            and is_known
            and self.weight.dtype == torch.promote_types(images.dtype, torch.float32)
        )


class _Normalise(torch.autograd.Function):
    """Normalises images by the mean and the biased variance of each channel.

    Source: Ioffe & Szegedy 2015, Batch Normalization (arXiv 1502.03167).
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Returns normalised images ``[n, c, h, w]`` and moves the running statistics ``[c]``."""
        channels, pixels = len(weight), images.numel() // len(weight)
        wide = _fold(images)
        # The statistics come in the type of these two; the images' may be bfloat16.
        zeros, ones = weight.new_zeros(FOLD * channels), weight.new_ones(FOLD * channels)
        means, variances = aten.batch_norm_update_stats(wide, zeros, ones, 0.0)
        means, variances = means.view(FOLD, channels), variances.view(FOLD, channels)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        # Written into a tensor of its own: a view could not be modified in place afterwards.
        normalised = torch.empty_like(images)
        unused = weight.new_empty(0)
        aten.native_batch_norm.out(
            wide,
            _tile(weight),
            _tile(bias),
            _tile(mean),
            _tile(variance),
            False,
            0.0,
            eps,
            out=_fold(normalised),
            save_mean=unused,
            save_invstd=unused.clone(),
        )
        # Here, as in torch's kernel: a checkpointed block that is computed again ends with saving.
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((variance * (pixels / (pixels - 1))).to(running_var), momentum)
        ctx.save_for_backward(images, weight, mean, variance)
        ctx.eps = eps
        return normalised

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of images, weight and bias."""
        images, weight, mean, variance = ctx.saved_tensors
        inverse_deviation = (variance + ctx.eps).rsqrt()
        if torch.is_grad_enabled():  # somebody will differentiate the gradients: torch knows how
            found = aten.native_batch_norm_backward(
                gradients[0],
                images,
                weight,
                None,
                None,
                mean,
                inverse_deviation,
                True,
                ctx.eps,
                [True, True, True],
            )
            return (*found, None, None, None, None)
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
        slope = -weight * inverse_deviation.square() * by_weight / pixels
        offset = -weight * inverse_deviation * by_bias / pixels - slope * mean
        slopes, offsets = (_tile(v).to(images).view(1, -1, 1, 1) for v in (slope, offset))
        through_statistics = torch.addcmul(offsets, wide, slopes)
        by_images = _unfold(direct.add_(through_statistics), images.shape)
        return (by_images, by_weight, by_bias, None, None, None, None)


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
