"""VGG in its CIFAR form: Simonyan and Zisserman's 2015 convolutions with batch norm, and one linear layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.tasks.models.network import Network, kaiming_normal

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""In each of the five stages, by depth: configurations A, B, D and E of the paper's Table 1."""


class VGG(nn.Module):
    """`depth` - 3 padded 3x3 convolutions with batch norm, a pooling after each stage, a linear classifier.

    For 32x32x3 inputs and 10 classes VGG-11 has 9,228,362 parameters, VGG-13 9,413,066, VGG-16 14,724,042 and VGG-19
    20,035,018: the "20.0M" of Frankle and Carbin 2019, Figure 2. The form of open_lth and of most pruning papers, but
    for the convolutions' biases: batch norm subtracts them again, so they are left out. The last pooling is the mean
    over whatever is left of the image (2x2 of 32x32). Starts from Kaiming normal weights (fan in), zero biases and
    batch norm scales of 1. The name's depth counts the paper's three linear layers, of which one is left here.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, depth: int, scale: Callable[[int], int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = shape[0]
        for stage, (filters, convolutions) in enumerate(zip(map(scale, _WIDTHS), _CONVOLUTIONS[depth], strict=True)):
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


VGG_11, VGG_13, VGG_16, VGG_19 = (Network(partial(VGG, depth=depth), smallest=16) for depth in _CONVOLUTIONS)
