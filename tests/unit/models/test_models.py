"""The networks' shapes, sizes and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import NETWORKS, build

ImageShape = tuple[int, int, int]
IMAGE_SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 25, 31), (2, 4, 5)]


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("image_shape", IMAGE_SHAPES)
@pytest.mark.parametrize(("classes", "width", "batch"), [(10, 16, 2), (3, 1, 1), (2, 24, 5)])
def test_gives_a_logit_for_each_class(
    name: str, image_shape: ImageShape, classes: int, width: int, batch: int
) -> None:
    network = build(name, image_shape, classes, width).eval()
    logits = network(torch.randn(batch, *image_shape))
    assert logits.shape == (batch, classes)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("shape", "classes", "w"), [((1, 28, 28), 10, 32), ((3, 9, 6), 7, 5), ((2, 2, 2), 2, 1)]
)
def test_size_of_cnn(shape: ImageShape, classes: int, w: int) -> None:
    channels, rows, columns = shape
    conv = 9 * channels * w + w
    hidden = w * (rows // 2) * (columns // 2) * 2 * w + 2 * w
    assert size(build("cnn", shape, classes, w)) == conv + hidden + 2 * w * classes + classes


@pytest.mark.parametrize(
    ("channels", "classes", "w"), [(1, 10, 16), (3, 10, 16), (3, 2, 64), (2, 5, 1)]
)
def test_size_of_resnet8(channels: int, classes: int, w: int) -> None:
    # 3x3: first layer, then w-w-w, w-2w-2w, 2w-4w-4w; 1x1: w-2w and 2w-4w.
    square = 9 * (channels * w + (1 + 1 + 2 + 4 + 8 + 16) * w * w)
    pointwise = (2 + 8) * w * w
    norms = 2 * ((1 + 2) + (2 + 1) * 2 + (2 + 1) * 4) * w
    head = 4 * w * classes + classes
    assert size(build("resnet8", (channels, 32, 32), classes, w)) == (
        square + pointwise + norms + head
    )


def test_resnet8_is_the_size_of_the_benchmark_network() -> None:
    # The reference counts 78 666: 336 biases and 480 running statistics more, and no shortcut
    # BatchNorms (96 scales, 96 offsets).
    assert size(build("resnet8", (3, 32, 32), 10, 16)) == 78_042 == 78_666 - 336 - 480 + 192


@pytest.mark.parametrize(("channels", "classes", "w"), [(1, 10, 64), (3, 12, 16), (2, 2, 1)])
def test_size_of_ds_cnn(channels: int, classes: int, w: int) -> None:
    first = 9 * channels * w + 2 * w
    block = 9 * w + 2 * w + w * w + 2 * w
    assert size(build("ds_cnn", (channels, 28, 28), classes, w)) == (
        first + 4 * block + w * classes + classes
    )


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(23, 40, (23, 40)), (24, 24, (12, 12)), (49, 25, (25, 13)), (8, 8, (8, 8))],
)
def test_ds_cnn_halves_only_large_images(
    rows: int, columns: int, expected: tuple[int, int]
) -> None:
    network = build("ds_cnn", (1, rows, columns), 2, 4)
    sizes: list[tuple[int, ...]] = []
    blocks = network.get_submodule("blocks")
    blocks.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[2:]))
    network.eval()(torch.zeros(1, 1, rows, columns))
    assert [tuple(found) for found in sizes] == [expected]


def test_refuses_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^unknown network 'lenet'; .* cnn, resnet8, ds_cnn$"):
        build("lenet", (1, 28, 28), 10, 16)


@pytest.mark.parametrize(
    ("name", "image_shape", "needed"),
    [("cnn", (1, 1, 28), "2x2"), ("resnet8", (1, 28, 3), "4x4"), ("ds_cnn", (1, 2, 2), "3x3")],
)
def test_refuses_images_that_are_too_small(name: str, image_shape: ImageShape, needed: str) -> None:
    got = f"{image_shape[1]}x{image_shape[2]}"
    with pytest.raises(ValueError, match=f"^{name} needs images of at least {needed}.*{got}$"):
        build(name, image_shape, 10, 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_smallest_images_work(name: str) -> None:
    side = {"cnn": 2, "resnet8": 4, "ds_cnn": 3}[name]
    network = build(name, (1, side, side), 2, 4).eval()
    assert network(torch.zeros(1, 1, side, side)).shape == (1, 2)
