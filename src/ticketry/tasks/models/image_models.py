"""Networks for images and tables: perceptrons, LeNet, Conv, VGG and ResNet, in the forms of the pruning literature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.errors import UsageError


@dataclass(frozen=True)
class Network:
    """An entry of the network registry: the constructor of a named network, and what the constructor accepts."""

    make: Callable[..., nn.Module]
    """Constructor of (shape, classes, scale=…); the function `scale` maps each hidden width to the width to use."""
    smallest: int = 1
    """Smallest height and width of images, in pixels; smaller images have no pixel left after all poolings."""
    scales: bool = True
    """Whether `make` takes `scale`, so that the network can be built at any width."""

    @classmethod
    def from_entry(cls, name: str, found: object) -> Network:
        """Return a registry entry as a `Network`; the entry `found` may also be a function of shape and classes."""
        if isinstance(found, Network):
            return found
        try:
            parameters = inspect.signature(found).parameters if callable(found) else {}
        except ValueError:  # functions written in C have no signature
            parameters = {}
        if not callable(found) or not {"shape", "classes"} <= set(parameters):
            raise UsageError(f"{found!r} is no class or function of shape and classes that gives a network")
        return cls(found, scales="scale" in parameters)


def glorot_normal(model: nn.Module) -> None:
    """Draw weights from N(0, 2 / (fan_in + fan_out)) and set biases to 0, as Frankle and Carbin 2019 do."""
    _initialise(model, nn.init.xavier_normal_)


def kaiming_normal(model: nn.Module) -> None:
    """Draw weights from N(0, 2 / fan_in), as open_lth does by default (He et al. 2015), and set biases to 0."""
    _initialise(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))


def caffe_xavier(model: nn.Module) -> None:
    """Draw weights from U(-a, a), a = sqrt(3 / fan_in), Caffe's "xavier" initialisation, and set biases to 0."""
    _initialise(model, lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="linear"))


def _initialise(model: nn.Module, draw: Callable[[Tensor], object]) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class MLP(nn.Module):
    """A perceptron: linear layers with ReLU between them, which map flattened inputs [n, ...] to logits [n, classes].

    Weights and biases have PyTorch's default initialisation.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, scale: Callable[[int], int], hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        channels, height, width = shape
        units = [channels * height * width, *map(scale, hidden), classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(units))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        *inner, last = self.layers
        for layer in inner:
            x = F.relu(layer(x))
        out: Tensor = last(x)
        return out


class LeNet300100(nn.Module):
    """A perceptron with two hidden layers, of 300 and 100 units: 266,610 parameters for MNIST.

    Architecture and initialisation (Glorot normal weights, zero biases) are those of Frankle and Carbin 2019.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, scale: Callable[[int], int]) -> None:
        super().__init__()
        channels, height, width = shape
        first, second = scale(300), scale(100)
        self.fc1 = nn.Linear(channels * height * width, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, classes)
        glorot_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        out: Tensor = self.fc3(x)
        return out


class LeNet5(nn.Module):
    """Caffe's LeNet-5: 5x5 convolutions of 20 and 50 channels, a hidden layer of 500 units; 431,080 parameters.

    The number of parameters is for 28x28x1 inputs and 10 classes. This is the variant of the pruning literature (Han et
    al. 2015; "LeNet-5-Caffe" in SNIP, Lee et al. 2019), not the network of 1998 with 60,000 parameters. As in Caffe's
    definition, each convolution is followed by max pooling without a ReLU, the hidden layer by a ReLU, and weights are
    drawn by `caffe_xavier`.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, scale: Callable[[int], int]) -> None:
        super().__init__()
        channels, height, width = shape
        first, second, hidden = scale(20), scale(50), scale(500)
        self.conv1 = nn.Conv2d(channels, first, kernel_size=5)
        self.conv2 = nn.Conv2d(first, second, kernel_size=5)
        self.fc1 = nn.Linear(second * _side_after_convolutions(height) * _side_after_convolutions(width), hidden)
        self.fc2 = nn.Linear(hidden, classes)
        caffe_xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        out: Tensor = self.fc2(x)
        return out


def _side_after_convolutions(side: int) -> int:
    """Return an image's height or width after two rounds of an unpadded 5x5 convolution and 2x2 pooling."""
    return ((side - 4) // 2 - 4) // 2


LENET_300_100 = Network(LeNet300100)
LENET_5 = Network(LeNet5, smallest=16)


class Conv(nn.Module):
    """Conv-2, Conv-4 or Conv-6: for each width two 3x3 convolutions and a max pooling, then two hidden layers of 256.

    Conv-2, Conv-4 and Conv-6 of Frankle and Carbin 2019 have the widths (64), (64, 128) and (64, 128, 256). For 32x32x3
    inputs and 10 classes they have 4,301,642, 2,425,930 and 2,262,602 parameters. The first two numbers agree with the
    paper's table. For Conv-6 the table says 1.7M, although its number of weights in convolutions, 1.1M, agrees. There
    is no batch norm. As in the paper, weights are Glorot normal and biases zero.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, widths: tuple[int, ...], scale: Callable[[int], int]
    ) -> None:
        super().__init__()
        channels, height, width = shape
        hidden = scale(256)
        layers: list[nn.Module] = []
        for filters in map(scale, widths):
            layers += [nn.Conv2d(channels, filters, kernel_size=3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(filters, filters, kernel_size=3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            channels, height, width = filters, height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )
        glorot_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


CONV_2 = Network(partial(Conv, widths=(64,)), smallest=2)
CONV_4 = Network(partial(Conv, widths=(64, 128)), smallest=4)
CONV_4_16 = Network(partial(Conv, widths=(16, 32)), smallest=4)
"""A narrower Conv-4 for small experiments; the last number of its name is the first layer's width."""
CONV_6 = Network(partial(Conv, widths=(64, 128, 256)), smallest=8)


_VGG_WIDTHS = (64, 128, 256, 512, 512)
_VGG_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Number of convolutions in each of the five stages, by depth: configurations A, B, D, E of the VGG paper's Table 1."""


class VGG(nn.Module):
    """VGG: `depth` - 3 padded 3x3 convolutions with batch norm, a pooling after each stage, and a linear classifier.

    For 32x32x3 inputs and 10 classes, VGG-11 has 9,228,362 parameters, VGG-13 9,413,066, VGG-16 14,724,042 and VGG-19
    20,035,018 (20.0M in Frankle and Carbin 2019, Figure 2). This is the variant of open_lth and of most pruning papers,
    but without biases in the convolutions, since batch norm would cancel them. The last pooling averages over the
    remaining image (2x2 pixels for 32x32 inputs). Weights are Kaiming normal (fan in), biases zero and batch norm
    scales 1. The depth in the name counts three linear layers, as in the paper; this network has a single one.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, depth: int, scale: Callable[[int], int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = shape[0]
        for stage, (filters, convolutions) in enumerate(
            zip(map(scale, _VGG_WIDTHS), _VGG_CONVOLUTIONS[depth], strict=True)
        ):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(channels, filters, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(filters),
                    nn.ReLU(),
                ]
                channels = filters
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        out: Tensor = self.fc(x)
        return out


VGG_11, VGG_13, VGG_16, VGG_19 = (Network(partial(VGG, depth=depth), smallest=16) for depth in _VGG_CONVOLUTIONS)


class Block(nn.Module):
    """Residual block: the input of the block is added to the output of two 3x3 convolutions with batch norm."""

    expansion: ClassVar[int] = 1
    """Output channels per filter of the first convolution, in a network of width 1."""

    def __init__(self, inputs: int, filters: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _make_shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, the last four times as wide (He et al. 2016, Figure 5, right).

    The stride of the block is in the 3x3 convolution, as in torchvision; in the paper it is in the first convolution.
    """

    expansion: ClassVar[int] = 4
    """Output channels per filter of the first convolution, in a network of width 1."""

    def __init__(self, inputs: int, filters: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = nn.Conv2d(filters, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _make_shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


def _make_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the shortcut of a block: the identity, or a 1x1 convolution with batch norm if the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """ResNet: a convolution, stages of `repeats` blocks with `width`, 2 `width`, … filters, and a linear layer.

    The first convolution is 3x3; with `imagenet` it is 7x7 with stride 2, followed by a 3x3 max pooling with stride 2.
    Each stage except the first halves height and width. Where the shape changes, the shortcut is a 1x1 convolution with
    batch norm: this is option B of He et al., as in open_lth. Option A pads with zeros; with it, ResNet-20 would have
    269,722 parameters. Weights are Kaiming normal (fan in), biases zero and batch norm scales 1; open_lth draws the
    scales from U(0, 1) by default.

    Parameters for 32x32x3 inputs and 10 classes:

    - width 16: ResNet-20 (repeats 3, 3, 3) 272,474; ResNet-32 (5, 5, 5) 466,906; ResNet-56 (9, 9, 9) 855,770;
    - width 64: ResNet-18 (2, 2, 2, 2) 11,173,962; with `Bottleneck` ResNet-50 (3, 4, 6, 3) 23,520,842.

    With `imagenet`, for 1000 classes: ResNet-18 11,689,512 and ResNet-50 25,557,032, as in torchvision. The "274K" of
    Frankle et al. 2019 (1903.01611, Figure 2) for ResNet-20 includes the running means and variances of batch norm.
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
    """Residual block with batch norm and ReLU before each of its two 3x3 convolutions.

    Where the shape changes, the shortcut is a 1x1 convolution, without batch norm, applied after the first ReLU.
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
    """Wide ResNet WRN-`depth`-`factor`: three stages of (depth - 4) / 6 blocks with `factor` times 16, 32, 64 filters.

    These are the networks of Zagoruyko and Komodakis 2016, without dropout. For 32x32x3 inputs and 10 classes,
    WRN-28-10 has 36,479,194 parameters, WRN-16-8 10,961,370 and WRN-40-2 2,243,546, as in the paper (36.5M, 11.0M and
    2.2M). Weights are Kaiming normal (fan in), biases zero and batch norm scales 1.
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
"""A narrower ResNet-20 for small experiments; the last number of its name is the first layer's width."""
RESNET_32 = Network(partial(ResNet, repeats=(5, 5, 5), width=16), smallest=4)
RESNET_56 = Network(partial(ResNet, repeats=(9, 9, 9), width=16), smallest=4)
RESNET_18, RESNET_50 = Network(_RESNET_18, smallest=8), Network(_RESNET_50, smallest=8)
"""ResNet-18 and ResNet-50 for images of CIFAR's size, 32x32."""
RESNET_18_IMAGENET = Network(partial(_RESNET_18, imagenet=True), smallest=32)
RESNET_50_IMAGENET = Network(partial(_RESNET_50, imagenet=True), smallest=32)
"""ResNets for images of ImageNet's size, 224x224."""
WRN_16_8 = Network(partial(WideResNet, depth=16, factor=8), smallest=4)
WRN_28_10 = Network(partial(WideResNet, depth=28, factor=10), smallest=4)
WRN_40_2 = Network(partial(WideResNet, depth=40, factor=2), smallest=4)
