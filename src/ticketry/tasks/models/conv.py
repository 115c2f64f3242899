"""Conv-4 (Frankle and Carbin 2019, Figure 2): a small relative of VGG for CIFAR-10."""

from __future__ import annotations

from torch import Tensor, nn

from ticketry.tasks.models import initialise


class Conv4(nn.Module):
    """For each of two widths two padded 3x3 convolutions and a 2x2 max pooling; then two hidden layers of 256 units.

    The paper's widths (64, 128) make 2,425,930 parameters for 32x32x3 inputs and 10 classes. No batch norm. Starts
    from Glorot normal weights and zero biases, as in the paper.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, widths: tuple[int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for filters in widths:
            layers += [nn.Conv2d(channels, filters, kernel_size=3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(filters, filters, kernel_size=3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            channels, height, width = filters, height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, classes),
        )
        initialise.glorot_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out
