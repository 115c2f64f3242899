"""VGG-16 in its CIFAR form: Simonyan and Zisserman's 2015 convolutions with batch norm, and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.tasks.models import initialise

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen padded 3x3 convolutions with batch norm, a pooling after each stage, a linear classifier.

    14,724,042 parameters for 32x32x3 inputs and 10 classes. The form of open_lth and of most pruning papers, but
    for the convolutions' biases: batch norm subtracts them again, so they are left out. The last pooling is the mean
    over whatever is left of the image (2x2 of 32x32). Starts from Kaiming normal weights (fan in), zero biases and
    batch norm scales of 1.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = shape[0]
        for stage, widths in enumerate(_STAGES):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for filters in widths:
                layers += [
                    nn.Conv2d(channels, filters, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(filters),
                    nn.ReLU(),
                ]
                channels = filters
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)
        initialise.kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        out: Tensor = self.fc(x)
        return out
