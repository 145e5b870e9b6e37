"""The training loop that teaching, fine-tuning and timing share; knows nothing of their aims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from search.batch_norm import torch_is_slow, widen_narrow
from search.benchmark.stillness import give_way, working
from search.data import Split
from search.errors import ConfigError
from search.steps import Precision
from search.strided import skip_first

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Placement:
    """Where and in which arithmetic a network is trained."""

    device: torch.device
    precision: Precision

    def autocast(self) -> torch.autocast:
        """Returns a fresh autocast context, inert in float32."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )

    def place(
        self, module: nn.Module, image_shape: tuple[int, int, int], own_layers: bool = True
    ) -> nn.Module:
        """Moves ``module`` to the device, channels-last: the layout that trains fastest.

        Code that views a convolution's output as a vector needs it contiguous, and gets it so.

        Args:
            module: Changed in place, and returned.
            image_shape: ``(channels, height, width)`` of its input.
            own_layers: Whether layers may be replaced by faster ones of this project.
        """
        module.to(self.device)
        # torch's stubs forget memory_format for modules
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not self._takes_channels_last(module, image_shape):
            for value in (*module.parameters(), *module.buffers()):
                value.data = _contiguous(value.data)
            module.register_forward_pre_hook(lambda _, given: tuple(map(_contiguous, given)))
        elif self.device.type == "cpu":
            skip_first(module)  # they corrupt memory in this layout
            if own_layers and torch_is_slow():
                widen_narrow(module)  # slow in it alone
        return module

    def _takes_channels_last(self, module: nn.Module, image_shape: tuple[int, int, int]) -> bool:
        images = torch.zeros(2, *image_shape, device=self.device)
        was_training = module.training
        try:
            with torch.no_grad():
                module.eval()(images.to(memory_format=torch.channels_last))
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            return False
        finally:
            module.train(was_training)
        return True


def _contiguous(value: Tensor) -> Tensor:
    """Returns ``value`` contiguous, also where a single channel leaves its layout open."""
    return value.contiguous().view(-1).view(value.shape)


class Feed:
    """Batches of a split: from a tensor on the device, or streamed when the split is lazy.

    Args:
        split: Images in uint8 and their labels.
        device: Where the batches are wanted; an in-memory split is moved there whole.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split = split
        self._device = device
        self._labels = torch.from_numpy(split.labels).to(device)
        self._images: Tensor | None = None
        if isinstance(split.images, np.ndarray):
            self._images = torch.from_numpy(split.images).to(device)

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields images in 0..1 ``[b, c, h, w]``, labels ``[b]`` and their indices ``[b]``.

        Between two batches it waits while somebody measures on this machine. The claim of
        ``stillness.working`` is its caller's: here it would outlive an error in the caller's loop.

        Args:
            order: Indices of the images wanted, ``[n]``, on the CPU.
            batch_size: Images of every batch but perhaps the last.
        """
        chunks = order.split(batch_size)
        if self._images is None:
            pixels: Iterator[Tensor | ConfigError] = iter(
                DataLoader(
                    _Chunks(self._split, [chunk.numpy() for chunk in chunks]),
                    batch_size=None,
                    num_workers=2,
                )
            )
        else:
            images = self._images
            pixels = (images[chunk.to(self._device)] for chunk in chunks)
        try:
            for chunk, raw in zip(chunks, pixels, strict=True):
                if isinstance(raw, ConfigError):
                    raise raw
                give_way()
                index = chunk.to(self._device)
                scaled = raw.to(self._device).float().div_(255)
                yield scaled.to(memory_format=torch.channels_last), self._labels[index], index
        finally:
            del pixels  # ends the workers now: left to an error's traceback they end with a hang


class _Chunks(TorchDataset[Tensor | ConfigError]):
    """Reads whole batches in the loader's workers.

    Errors are handed over as values: the loader would put a whole traceback into their text.
    """

    def __init__(self, split: Split, chunks: list[NDArray[np.int64]]) -> None:
        self._split = split
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: int) -> Tensor | ConfigError:
        try:
            return torch.from_numpy(self._split.read(self._chunks[index]))
        except ConfigError as error:
            return error


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in one pass; a split smaller than a batch makes one batch."""
    return max(1, images // batch_size)


def training_batches(
    feed: Feed, first_step: int, last_step: int, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the batches of steps ``first_step`` to ``last_step - 1`` of one long training.

    The order depends on the seed and the epoch alone, so a training that is cut into rungs sees
    the batches that an uncut one sees.
    """
    size = min(batch_size, len(feed))
    per_epoch = steps_per_epoch(len(feed), batch_size)
    step = first_step
    while step < last_step:
        epoch, offset = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(feed), generator=generator)
        count = min(per_epoch - offset, last_step - step)
        yield from feed.batches(order[offset * size : (offset + count) * size], size)
        step += count


def reseed(seed: int, step: int) -> None:
    """Seeds torch for one optimizer step.

    So dropout draws the same numbers whether a training is cut into rungs or not, and whether its
    images are streamed, which draws numbers too, or not.
    """
    number = seed * 1_000_003 + step
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes 0.1 ms to look around
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


@working()
def predict(module: nn.Module, feed: Feed, placement: Placement) -> tuple[Tensor, Tensor]:
    """Returns logits ``[n, classes]`` float32 and labels ``[n]``, both on the CPU, in order."""
    module.eval()
    logits, labels = [], []
    with torch.inference_mode(), placement.autocast():
        for images, truth, _ in feed.batches(torch.arange(len(feed)), EVALUATION_BATCH):
            logits.append(module(images).float().cpu())
            labels.append(truth.cpu())
    return torch.cat(logits), torch.cat(labels)


def accuracy(module: nn.Module, feed: Feed, placement: Placement) -> float:
    """Returns the share of images whose largest logit is the label's, 0..1."""
    logits, labels = predict(module, feed, placement)
    return (logits.argmax(1) == labels).double().mean().item()
