"""Wide residual networks (Zagoruyko and Komodakis 2016) for CIFAR."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.tasks.models import initialise


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
        initialise.kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv(x))))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        out: Tensor = self.fc(x)
        return out
