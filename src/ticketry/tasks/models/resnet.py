"""Residual networks in their CIFAR form (He et al. 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.tasks.models import initialise


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch norm, around which the input is carried and added."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, filters, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of (depth - 2) / 6 blocks with `width`, 2 `width` and 4 `width` filters, a linear layer.

    Where a stage halves the image the shortcut is a 1x1 convolution with batch norm: option B of He et al., and
    that of open_lth, not option A (padding with zeros; 269,722 parameters). ResNet-20 for 32x32x3 inputs and 10
    classes has 272,474 parameters; together with the running means and variances of batch norm 274,042, which is
    the "274K" of Frankle et al. 2019 (1903.01611, Figure 2). Starts from Kaiming normal weights (fan in), zero
    biases and batch norm scales of 1; open_lth draws the scales from U(0, 1) by default.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, depth: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], width, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks = []
        inputs = width
        for stage in range(3):
            for index in range((depth - 2) // 6):
                filters = width * 2**stage
                blocks.append(Block(inputs, filters, stride=2 if stage > 0 and index == 0 else 1))
                inputs = filters
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)
        initialise.kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        out: Tensor = self.fc(x)
        return out
