"""The training loop that teaching, fine-tuning and timing share."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from search.data import Split, batch_of
from search.data.splits import Subset
from search.devices.stillness import give_way, working
from search.errors import ConfigError, SearchError, one_line
from search.networks.batch_norm import NarrowBatchNorm2d, torch_is_slow, widen_narrow
from search.networks.crowding import adapting
from search.networks.strided import (
    SkippingConv2d,
    is_spoiled_by_channels_last,
    skip_first,
)
from search.process import activity
from search.records.placement import Layout, Precision

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R")
EVALUATION_BATCH = 1000  # at most
GPU_SHARE = 0.25  # of a GPU's free memory, which images may fill
_COPIED_BYTES = 1 << 26
# What no layer of this project is to blame for.
_BLAMELESS = (SearchError, OSError, MemoryError)


def trying_own_layers(place: Callable[[bool], M], use: Callable[[M], R]) -> R:
    """Uses a network with layers of this project, and once more without where that fails.

    A network may insist on the classes of its layers, in whatever words.

    Args:
        place: Returns the network, afresh; told whether its layers may be replaced.
        use: Does something with it.

    Raises:
        Exception: As ``use`` raised it, where no layer was replaced, or as it did again.
    """
    module = place(True)
    try:
        return use(module)
    except _BLAMELESS:
        raise
    except Exception as error:
        own = (NarrowBatchNorm2d, SkippingConv2d)
        if not any(isinstance(layer, own) for layer in module.modules()):
            raise
        log.warning("%s; trying again with the network's own layers alone", one_line(error))
    module = place(False)
    return use(module)


@dataclass(frozen=True)
class Placement:
    """Where, in which arithmetic and in which memory layout a network is trained."""

    device: torch.device
    precision: Precision
    layout: Layout

    def autocast(self) -> torch.autocast:
        """Returns a fresh autocast context, inert in float32."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )

    def place(
        self, module: nn.Module, image_shape: tuple[int, int, int], own_layers: bool = True
    ) -> nn.Module:
        """Moves ``module`` to the device, and has it and the images it is given in the layout.

        Code that views a convolution's output as a vector needs it contiguous, and gets it so.

        Args:
            module: Changed in place, and returned.
            image_shape: ``(channels, height, width)`` of its input.
            own_layers: Whether layers may be replaced by others of this project.
        """
        module.to(self.device)
        # Without the replacement of ``skip_first`` the layout alone keeps memory whole: contiguous
        # images never reach the kernel at fault.
        is_forbidden = (
            not own_layers and self.device.type == "cpu" and is_spoiled_by_channels_last(module)
        )
        if self.layout == "channels_last" and not is_forbidden:
            # torch's stubs forget memory_format for modules
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self._takes_channels_last(module, image_shape):
                module.register_forward_pre_hook(lambda _, given: tuple(map(_channels_last, given)))
                if self.device.type == "cpu":
                    skip_first(module)  # they corrupt memory in this layout
                    if own_layers and torch_is_slow():
                        widen_narrow(module)  # slow in it alone
                return module
        for value in (*module.parameters(), *module.buffers()):
            value.data = _contiguous(value.data)
        module.register_forward_pre_hook(lambda _, given: tuple(map(_contiguous, given)))
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


def _channels_last(images: Tensor) -> Tensor:
    return images.to(memory_format=torch.channels_last)


def _contiguous(value: Tensor) -> Tensor:
    """Returns ``value`` contiguous, also where a single channel leaves its layout open."""
    return value.contiguous().view(-1).view(value.shape)


def _fits(size_bytes: int, device: torch.device) -> bool:
    """Whether data of that size may lie on the device for good; on the CPU they do already."""
    if device.type != "cuda":
        return False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return size_bytes <= GPU_SHARE * free_bytes


class Feed:
    """Batches of a split: from a tensor on the device, or read one by one.

    Args:
        split: Images in uint8 and their labels.
        device: Where the batches are wanted; a split that a GPU has room for is moved there whole.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split = split
        self._device = device
        self._labels = torch.from_numpy(split.labels).to(device)
        self._images: Tensor | None = None
        if isinstance(split.images, np.ndarray):
            self._images = torch.from_numpy(split.images).to(device)
        elif split.images.is_decoded and _fits(len(split) * math.prod(split.images.shape), device):
            self._images = _move(split, split.images.shape, device)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        channels, height, width = self._split.images.shape[-3:]
        return channels, height, width

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields images in 0..1 ``[b, c, h, w]``, labels ``[b]`` and their indices ``[b]``.

        Between two batches it waits while somebody measures on this machine, and has torch use as
        many threads as others leave cores to. The claim of
        ``stillness.working`` is its caller's: here it would outlive an error in the caller's loop.

        Args:
            order: Indices of the images wanted, ``[n]``, on the CPU.
            batch_size: Images of every batch but perhaps the last.
        """
        chunks = order.split(batch_size)
        pixels: Iterator[Tensor | ConfigError]
        if self._images is not None:
            images = self._images
            pixels = (images[chunk.to(self._device)] for chunk in chunks)
        elif isinstance(self._split.images, Subset) and self._split.images.is_decoded:
            pixels = (torch.from_numpy(self._split.read(chunk.numpy())) for chunk in chunks)
        else:
            reader = _Chunks(self._split, [chunk.numpy() for chunk in chunks])
            # With a generator, or it would draw from torch's random state, which is the caller's.
            own = torch.Generator()
            pixels = iter(DataLoader(reader, batch_size=None, num_workers=2, generator=own))
        try:
            with adapting() as adapt:
                for chunk, raw in zip(chunks, pixels, strict=True):
                    if isinstance(raw, ConfigError):
                        raise raw
                    give_way()
                    adapt()
                    index = chunk.to(self._device)
                    yield raw.to(self._device).float().div_(255), self._labels[index], index
        finally:
            del pixels  # ends the workers now: left to an error's traceback they end with a hang


def _move(split: Split, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Copies a split to the device, a part at a time."""
    images = torch.empty((len(split), *shape), dtype=torch.uint8, device=device)
    for part in torch.arange(len(split)).split(max(1, _COPIED_BYTES // math.prod(shape))):
        images[part[0] : part[-1] + 1] = torch.from_numpy(split.read(part.numpy())).to(device)
    return images


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

    So dropout draws the same numbers whether a training is cut into rungs or not.
    """
    number = seed * 1_000_003 + step
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes 0.1 ms to look around
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def predictions(
    module: nn.Module, feed: Feed, placement: Placement, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields logits ``[b, classes]`` float32 and labels ``[b]``, on the CPU, in the split's order.

    The claim of ``stillness.working`` is its caller's, as that of ``Feed.batches``.

    Args:
        module: Takes pixels in 0..1, gives logits.
        feed: The images.
        placement: Where the module is.
        what: What is done, for those who wait.
    """
    module.eval()
    done, batch_size = 0, batch_of(feed.image_shape, EVALUATION_BATCH)
    for images, labels, _ in feed.batches(torch.arange(len(feed)), batch_size):
        with torch.inference_mode(), placement.autocast():  # not around what the caller does
            logits = module(images).float().cpu()
        done += len(labels)
        activity.tell("image", done, len(feed), what=what)
        yield logits, labels.cpu()


@working()
def accuracy(module: nn.Module, feed: Feed, placement: Placement) -> float:
    """Returns the share of images whose largest logit is the label's, 0..1."""
    right = 0
    for logits, labels in predictions(module, feed, placement, "validating"):
        right += int((logits.argmax(1) == labels).sum())
    return right / len(feed)


def pack_logits(logits: Tensor) -> bytes:
    """Returns logits as they are kept, ``[n, classes]`` float16 in little-endian order.

    Half as long as float32, and exact to a thousandth, which distillation does not notice.
    """
    largest = torch.finfo(torch.float16).max
    return logits.clamp(-largest, largest).numpy().astype("<f2").tobytes()


class KeptLogits:
    """Logits in a file, mapped into memory: those of a million images and a thousand classes.

    Args:
        path: Of the file, which ``pack_logits`` made.
        classes: Number of classes.
        device: Where they are wanted.
    """

    def __init__(self, path: Path, classes: int, device: torch.device) -> None:
        self._rows = np.memmap(path, "<f2", "r").reshape(-1, classes)
        self._device = device
        self._moved: Tensor | None = None
        if _fits(self._rows.nbytes, device):
            self._moved = torch.from_numpy(self._rows.astype(np.float16)).to(device)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Returns the logits at ``index`` ``[b]``, ``[b, classes]`` float32."""
        if self._moved is not None:
            return self._moved[index].float()
        rows = self._rows[index.cpu().numpy()].astype(np.float32)
        return torch.from_numpy(rows).to(self._device)
