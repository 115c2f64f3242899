"""Residual networks: He et al.'s (2016), and those of Zagoruyko and Komodakis (2016) with wide layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.tasks.models.network import Network, kaiming_normal


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch norm, around which the input is carried and added."""

    expansion: ClassVar[int] = 1
    """Channels of the output for each of `filters`, in a network of width 1."""

    def __init__(self, inputs: int, filters: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last with four times the filters (He et al. 2016, Figure 5, right).

    The 3x3 convolution has the stride, as in torchvision; in the paper it is the first one.
    """

    expansion: ClassVar[int] = 4
    """Channels of the output for each of `filters`, in a network of width 1."""

    def __init__(self, inputs: int, filters: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = nn.Conv2d(filters, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Nothing, or where the shape changes a 1x1 convolution with batch norm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A stem, stages of `repeats` blocks with `width`, 2 `width`, 4 `width`, ... filters, a linear layer.

    The stem is one 3x3 convolution; with `imagenet` it is 7x7 with stride 2, and a 3x3 max pooling with stride 2.
    Each stage but the first halves the image. Where the shape changes, the shortcut is a 1x1 convolution with batch
    norm: option B of He et al., and that of open_lth, not option A (padding with zeros; 269,722 parameters in
    ResNet-20). Starts from Kaiming normal weights (fan in), zero biases and batch norm scales of 1; open_lth draws
    the scales from U(0, 1) by default.

    Parameters for 32x32x3 inputs and 10 classes:

    - width 16: ResNet-20 (repeats 3, 3, 3) 272,474; ResNet-32 (5, 5, 5) 466,906; ResNet-56 (9, 9, 9) 855,770;
    - width 64: ResNet-18 (2, 2, 2, 2) 11,173,962; with `Bottleneck` ResNet-50 (3, 4, 6, 3) 23,520,842.

    With `imagenet`, for 1000 classes: ResNet-18 11,689,512 and ResNet-50 25,557,032, which are torchvision's counts.
    ResNet-20 has 274,042 together with the running means and variances of batch norm, which is the "274K" of
    Frankle et al. 2019 (1903.01611, Figure 2).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        repeats: tuple[int, ...],
        width: int,
        scale: Callable[[int], int],
        block: type[Block] | type[Bottleneck] = Block,
        imagenet: bool = False,
    ) -> None:
        super().__init__()
        size, stride = (7, 2) if imagenet else (3, 1)
        self.imagenet = imagenet
        inputs = scale(width)
        self.conv = nn.Conv2d(shape[0], inputs, kernel_size=size, stride=stride, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(inputs)
        blocks = []
        for stage, count in enumerate(repeats):
            filters, outputs = scale(width * 2**stage), scale(width * 2**stage * block.expansion)
            for index in range(count):
                blocks.append(block(inputs, filters, outputs, stride=2 if stage > 0 and index == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        if self.imagenet:
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        x = F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)
        out: Tensor = self.fc(x)
        return out


class PreactivationBlock(nn.Module):
    """Batch norm and rectifier before each of two 3x3 convolutions; their output is added to the input.

    Where the shape changes, the shortcut is a 1x1 convolution, without batch norm, of the rectified input.
    """

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, filters, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, kernel_size=3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Conv2d(inputs, filters, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        carried = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + carried


class WideResNet(nn.Module):
    """WRN-`depth`-`factor`: a stem, three stages of (depth - 4) / 6 blocks with 16, 32, 64 times `factor` filters.

    The paper's WRN-n-k without dropout. For 32x32x3 inputs and 10 classes WRN-28-10 has 36,479,194 parameters,
    WRN-16-8 10,961,370 and WRN-40-2 2,243,546: the paper's 36.5M, 11.0M and 2.2M. Starts from Kaiming normal weights
    (fan in), zero biases and batch norm scales of 1.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, depth: int, factor: int, scale: Callable[[int], int]
    ) -> None:
        super().__init__()
        inputs = scale(16)
        self.conv = nn.Conv2d(shape[0], inputs, kernel_size=3, padding=1, bias=False)
        blocks = []
        for stage in range(3):
            filters = scale(16 * factor * 2**stage)
            for index in range((depth - 4) // 6):
                blocks.append(PreactivationBlock(inputs, filters, stride=2 if stage > 0 and index == 0 else 1))
                inputs = filters
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv(x))))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        out: Tensor = self.fc(x)
        return out


_RESNET_18 = partial(ResNet, repeats=(2, 2, 2, 2), width=64)
_RESNET_50 = partial(ResNet, repeats=(3, 4, 6, 3), width=64, block=Bottleneck)

RESNET_20 = Network(partial(ResNet, repeats=(3, 3, 3), width=16), smallest=4)
RESNET_20_8 = Network(partial(ResNet, repeats=(3, 3, 3), width=8), smallest=4)
"""A narrow relative for small experiments; its last number is the first layer's width."""
RESNET_32 = Network(partial(ResNet, repeats=(5, 5, 5), width=16), smallest=4)
RESNET_56 = Network(partial(ResNet, repeats=(9, 9, 9), width=16), smallest=4)
RESNET_18, RESNET_50 = Network(_RESNET_18, smallest=8), Network(_RESNET_50, smallest=8)
"""For images of CIFAR's size."""
RESNET_18_IMAGENET = Network(partial(_RESNET_18, imagenet=True), smallest=32)
RESNET_50_IMAGENET = Network(partial(_RESNET_50, imagenet=True), smallest=32)
"""For images of ImageNet's size, 224x224."""
WRN_16_8 = Network(partial(WideResNet, depth=16, factor=8), smallest=4)
WRN_28_10 = Network(partial(WideResNet, depth=28, factor=10), smallest=4)
WRN_40_2 = Network(partial(WideResNet, depth=40, factor=2), smallest=4)
