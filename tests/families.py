"""Published architectures, small and with random weights.

Most come from the package pytorchcv, which needs nothing but torch for them; what it lacks is here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Family:
    """How an architecture is built.

    Attributes:
        title: As the docs call it.
        module: Of pytorchcv, or of this file where it is empty.
        maker: A class or a function of that module.
        arguments: What it is given beside the size of the images and the classes.
        side: Pixels of the images' height and width.
        is_small: Whether it is quick enough for the gate.
    """

    title: str
    module: str
    maker: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    side: int = 32
    is_small: bool = True


def large(title: str, module: str, maker: str, side: int = 64, **arguments: Any) -> Family:
    """Returns a family as it is published, but for the size of the images."""
    return Family(title, module, maker, arguments, side, is_small=False)


def small(title: str, module: str, maker: str, side: int = 32, **arguments: Any) -> Family:
    """Returns a family of few and narrow layers."""
    return Family(title, module, maker, arguments, side)


STAGES = [[16, 16], [24]]
FAMILIES = {
    # ---- small: for the gate
    "resnet": small("ResNet", "resnet_cifar", "CIFARResNet", channels=STAGES, init_block_channels=16, bottleneck=False),
    "preresnet": small("ResNet, pre-activation", "preresnet_cifar", "CIFARPreResNet", channels=STAGES, init_block_channels=16, bottleneck=False),
    "seresnet": small("SE-ResNet", "seresnet_cifar", "CIFARSEResNet", channels=[[32], [48]], init_block_channels=32, bottleneck=False),
    "cbam": small("ResNet with CBAM", "cbamresnet", "CbamResNet", channels=[[32], [48]], init_block_channels=32, bottleneck=False, side=64),
    "resnext": small("ResNeXt", "resnext_cifar", "CIFARResNeXt", channels=[[64], [96]], init_block_channels=16, cardinality=8, bottleneck_width=16),
    "regnet": small("RegNetY", "regnet", "RegNet", channels=[[24], [56, 56]], init_block_channels=16, groups=[3, 7], use_se=True, side=64),
    "mobilenet": small("MobileNet", "mobilenet", "MobileNet", channels=[[16], [24], [40, 40]], first_stage_stride=False),
    "mobilenetv2": small("MobileNetV2", "mobilenetv2", "MobileNetV2", channels=[[16], [24, 24], [40, 40]], init_block_channels=16, final_block_channels=64, remove_exp_conv=False, side=64),
    "mobilenetv3": small("MobileNetV3", "mobilenetv3", "MobileNetV3", channels=[[16], [24, 24]], exp_channels=[[16], [72, 88]], init_block_channels=16, final_block_channels=96, classifier_mid_channels=64, kernels3=[[1], [1, 0]], use_relu=[[1], [1, 0]], use_se=[[1], [0, 1]], first_stride=True, final_use_se=False, side=64),
    "efficientnet": small("EfficientNet", "efficientnet", "EfficientNet", channels=[[16], [24, 24], [40]], init_block_channels=32, final_block_channels=96, kernel_sizes=[[3], [3, 3], [5]], strides_per_stage=[1, 2, 2], expansion_factors=[[1], [6, 6], [6]], side=64),
    "shufflenet": small("ShuffleNet", "shufflenet", "ShuffleNet", channels=[[48, 48]], init_block_channels=24, groups=3, side=64),
    "shufflenetv2": small("ShuffleNetV2", "shufflenetv2", "ShuffleNetV2", channels=[[48, 48], [96, 96]], init_block_channels=24, final_block_channels=64, use_se=False, use_residual=False, side=64),
    "ghostnet": small("GhostNet", "ghostnet", "GhostNet", channels=[[16], [24, 24]], init_block_channels=16, final_block_channels=96, classifier_mid_channels=64, kernels3=[[1], [1, 0]], exp_factors=[[1], [3, 3]], use_se=[[0], [0, 1]], first_stride=False, side=64),
    "mixnet": small("MixNet", "mixnet", "MixNet", channels=[[16], [24, 24]], init_block_channels=16, final_block_channels=64, exp_kernel_counts=[[1], [2, 2]], conv1_kernel_counts=[[1], [1, 2]], conv2_kernel_counts=[[1], [2, 2]], exp_factors=[[1], [6, 3]], se_factors=[[0], [0, 2]], side=64),
    "densenet": small("DenseNet", "densenet", "DenseNet", channels=[[32, 48, 64], [48, 64]], init_block_channels=16, side=64),
    "inception": small("Inception", "", "Inception"),
    "dla": small("DLA", "", "Aggregation"),
    "hrnet": small("HRNet", "", "Resolutions"),
    "vgg": small("VGG", "", "Vgg"),
    "squeezenet": small("SqueezeNet", "squeezenet", "SqueezeNet", channels=[[32, 32], [48]], residuals=None, init_block_kernel_size=3, init_block_channels=16, side=64),
    "unet": small("U-Net with a classifier", "", "Unet"),
    # ---- large: as published, for the docs
    "ResNet-18": large("ResNet-18", "resnet", "resnet18"),
    "ResNet-50": large("ResNet-50", "resnet", "resnet50"),
    "PreResNet-18": large("PreResNet-18", "preresnet", "preresnet18"),
    "WRN-16-10": large("WRN-16-10", "wrn_cifar", "wrn16_10_cifar10", side=32),
    "SE-ResNet-18": large("SE-ResNet-18", "seresnet", "seresnet18"),
    "SENet-16": large("SENet-16", "senet", "senet16"),
    "CBAM-ResNet-18": large("CBAM-ResNet-18", "cbamresnet", "cbam_resnet18"),
    "BAM-ResNet-18": large("BAM-ResNet-18", "bamresnet", "bam_resnet18"),
    "ResNeXt-14": large("ResNeXt-14 (16x4d)", "resnext", "resnext14_16x4d"),
    "SE-ResNeXt-50": large("SE-ResNeXt-50", "seresnext", "seresnext50_32x4d"),
    "RegNetX-200MF": large("RegNetX-200MF", "regnet", "regnetx002"),
    "RegNetY-200MF": large("RegNetY-200MF", "regnet", "regnety002"),
    "MobileNet x0.25": large("MobileNet x0.25", "mobilenet", "mobilenet_wd4"),
    "MobileNetV2 x0.5": large("MobileNetV2 x0.5", "mobilenetv2", "mobilenetv2_wd2"),
    "MobileNetV3 small": large("MobileNetV3 small", "mobilenetv3", "mobilenetv3_small_w1"),
    "MobileNetV3 large": large("MobileNetV3 large", "mobilenetv3", "mobilenetv3_large_w1"),
    "MNASNet small": large("MNASNet small", "mnasnet", "mnasnet_small"),
    "ProxylessNAS CPU": large("ProxylessNAS CPU", "proxylessnas", "proxylessnas_cpu"),
    "FBNet-Cb": large("FBNet-Cb", "fbnet", "fbnet_cb"),
    "IGCV3 x0.25": large("IGCV3 x0.25", "igcv3", "igcv3_wd4"),
    "EfficientNet-B0": large("EfficientNet-B0", "efficientnet", "efficientnet_b0", side=224),
    "ShuffleNet g=1": large("ShuffleNet x0.25, g=1", "shufflenet", "shufflenet_g1_wd4"),
    "ShuffleNet g=3": large("ShuffleNet x0.25, g=3", "shufflenet", "shufflenet_g3_wd4"),
    "ShuffleNetV2 x0.5": large("ShuffleNetV2 x0.5", "shufflenetv2", "shufflenetv2_wd2"),
    "MENet": large("MENet-108-8x1", "menet", "menet108_8x1_g3"),
    "GhostNet": large("GhostNet", "ghostnet", "ghostnet"),
    "MixNet-S": large("MixNet-S", "mixnet", "mixnet_s"),
    "DenseNet-121": large("DenseNet-121", "densenet", "densenet121"),
    "PeleeNet": large("PeleeNet", "peleenet", "peleenet"),
    "CondenseNet-74": large("CondenseNet-74", "condensenet", "condensenet74_c4_g4"),
    "BN-Inception": large("BN-Inception", "bninception", "bninception"),
    "InceptionV3": large("InceptionV3", "inceptionv3", "inceptionv3", side=128),
    "InceptionV4": large("InceptionV4", "inceptionv4", "inceptionv4", side=128),
    "Xception": large("Xception", "xception", "xception", side=299),
    "NASNet-A": large("NASNet-A mobile", "nasnet", "nasnet_4a1056", side=224),
    "DARTS": large("DARTS", "darts", "darts"),
    "DLA-46-C": large("DLA-46-C", "dla", "dla46c"),
    "DLA-X-46-C": large("DLA-X-46-C", "dla", "dla46xc"),
    "HRNet-W18 small": large("HRNet-W18 small", "hrnet", "hrnet_w18_small_v1"),
    "VoVNet-27 slim": large("VoVNet-27 slim", "vovnet", "vovnet27s"),
    "HarDNet-39DS": large("HarDNet-39DS", "hardnet", "hardnet39ds"),
    "SelecSLS-42": large("SelecSLS-42", "selecsls", "selecsls42"),
    "VGG-11": large("VGG-11", "vgg", "vgg11", side=224),
    "VGG-11 BN": large("VGG-11 with batch norm", "vgg", "bn_vgg11", side=224),
    "AlexNet": large("AlexNet", "alexnet", "alexnet", side=224),
    "SqueezeNet 1.1": large("SqueezeNet 1.1", "squeezenet", "squeezenet_v1_1", side=224),
    "SqueezeNext-23": large("SqueezeNext-23", "squeezenext", "sqnxt23_w1"),
    "DarkNet tiny": large("DarkNet tiny", "darknet", "darknet_tiny"),
    "NIN": large("NIN", "nin_cifar", "nin_cifar10", side=32),
    "PyramidNet-110": large("PyramidNet-110 (a48)", "pyramidnet_cifar", "pyramidnet110_a48_cifar10", side=32),
    "DPN-68": large("DPN-68", "dpn", "dpn68", side=224),
    "SKNet-50": large("SKNet-50", "sknet", "sknet50"),
    "ResNeSt-14": large("ResNeSt-14", "resnesta", "resnestabc14"),
    "ResNet-D-50b": large("ResNet-D-50b", "resnetd", "resnetd50b"),
    "DiracNetV2-18": large("DiracNetV2-18", "diracnetv2", "diracnet18v2"),
    "IBN-ResNet-50": large("IBN-ResNet-50", "ibnresnet", "ibn_resnet50"),
    "AirNet-50": large("AirNet-50", "airnet", "airnet50_1x64d_r16"),
    "BagNet-9": large("BagNet-9", "bagnet", "bagnet9"),
    "DRN-C-26": large("DRN-C-26", "drn", "drnc26"),
    "ResAttNet-56": large("ResAttNet-56", "resattnet", "resattnet56"),
    "FishNet-99": large("FishNet-99", "fishnet", "fishnet99"),
    "ESPNetv2 x0.5": large("ESPNetv2 x0.5", "espnetv2", "espnetv2_wd2"),
    "DiCENet x0.2": large("DiCENet x0.2", "dicenet", "dicenet_wd5", side=224),
    "TResNet-M": large("TResNet-M", "tresnet", "tresnet_m"),
    "FractalNet": large("FractalNet", "fractalnet_cifar", "fractalnet_cifar10", side=32),
    "RiR": large("RiR", "rir_cifar", "rir_cifar10", side=32),
    "RevNet-38": large("RevNet-38", "revnet", "revnet38"),
}  # fmt: skip


def build(family: str) -> nn.Module:
    """Builds an architecture by its name in ``FAMILIES``, for images ``[n, 3, side, side]``."""
    chosen = FAMILIES[family]
    if not chosen.module:
        module: nn.Module = globals()[chosen.maker](**chosen.arguments)
        return module
    maker = getattr(importlib.import_module(f"pytorchcv.models.{chosen.module}"), chosen.maker)
    sizes = {"in_size": (chosen.side, chosen.side), "num_classes": CLASSES}
    if chosen.maker == "nasnet_4a1056":  # passes a size of its own
        del sizes["in_size"]
    return for_any_size(maker(**{**sizes, **chosen.arguments}))


def for_any_size(module: nn.Module) -> nn.Module:
    """Returns a network of pytorchcv, made for 224 pixels, that takes images of fewer too."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.AvgPool2d) and name.endswith("final_pool"):
            owner, _, own = name.rpartition(".")
            setattr(module.get_submodule(owner), own, nn.AdaptiveAvgPool2d(1))
    return module


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution as most networks have it."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Vgg(nn.Sequential):
    """Convolutions one after another, and dense layers on all pixels (arXiv 1409.1556)."""

    def __init__(self) -> None:
        super().__init__(
            block(3, 16), nn.MaxPool2d(2), block(16, 24), block(24, 24), nn.MaxPool2d(4),
            nn.Flatten(), nn.Linear(24 * 16, 40), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(40, CLASSES),
        )  # fmt: skip


class Inception(nn.Module):
    """Branches side by side, one of them pooled, as in Inception-v1 (arXiv 1409.4842)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 24, stride=2)
        self.one = block(24, 16, 1)
        self.three = nn.Sequential(block(24, 16, 1), block(16, 24))
        self.five = nn.Sequential(block(24, 8, 1), block(8, 16, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), block(24, 16, 1))
        self.head = nn.Linear(72, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[n, CLASSES]``."""
        x = self.stem(images)
        x = torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Aggregation(nn.Module):
    """A tree whose node joins all levels below it, as in DLA (arXiv 1707.06484)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 24, stride=2)
        self.left, self.right = block(24, 40, stride=2), block(40, 40)
        self.project = nn.Conv2d(24, 40, 1)
        self.node = block(40 + 40 + 24, 56, 1)
        self.head = nn.Conv2d(56, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[n, CLASSES]``."""
        x = self.stem(images)
        bottom = F.max_pool2d(x, 2)
        left = self.left(x) + self.project(bottom)
        right = self.right(left) + left
        y = self.node(torch.cat([left, right, bottom], 1))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(y, 1)).flatten(1)
        return logits


class Resolutions(nn.Module):
    """Two resolutions that exchange what they find, as in HRNet (arXiv 1908.07919)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 24, stride=2)
        self.high, self.low = block(24, 24), block(24, 40, stride=2)
        self.up = nn.Sequential(nn.Conv2d(40, 24, 1, bias=False), nn.BatchNorm2d(24))
        self.down = nn.Sequential(nn.Conv2d(24, 40, 3, 2, 1, bias=False), nn.BatchNorm2d(40))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[n, CLASSES]``."""
        x = self.stem(images)
        high, low = self.high(x), self.low(x)
        up = F.interpolate(self.up(low), scale_factor=2.0, mode="nearest")
        high, low = F.relu(high + up), F.relu(low + self.down(high))
        logits: Tensor = self.head(torch.cat([high.mean((2, 3)), low.mean((2, 3))], 1))
        return logits


class Unet(nn.Module):
    """Down, up again by a transposed convolution, and a skip, as in U-Net (arXiv 1505.04597)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(3, 24), block(24, 40)
        self.up = nn.ConvTranspose2d(40, 24, 2, 2)
        self.last = block(48, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[n, CLASSES]``."""
        skip = self.first(images)
        x = self.up(self.second(F.max_pool2d(skip, 2)))
        x = self.last(torch.cat([skip, x], 1))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
