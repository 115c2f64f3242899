"""Conv-2, Conv-4 and Conv-6 (Frankle and Carbin 2019, Figure 2): small relatives of VGG for CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from ticketry.tasks.models.network import Network, glorot_normal


class Conv(nn.Module):
    """For each width two padded 3x3 convolutions and a 2x2 max pooling; then two hidden layers of 256 units.

    The paper's widths 64, 128, 256 make, for 32x32x3 inputs and 10 classes, 4,301,642 parameters with the first of
    them (Conv-2), 2,425,930 with the first two (Conv-4) and 2,262,602 with all three (Conv-6). Conv-6's is not the
    "1.7M" of the paper's table, though its convolutions have the paper's 1.1 million weights; those of Conv-2 and
    Conv-4 agree. No batch norm. Starts from Glorot normal weights and zero biases, as in the paper.
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
"""A narrow relative for small experiments; its last number is the first layer's width."""
CONV_6 = Network(partial(Conv, widths=(64, 128, 256)), smallest=8)
