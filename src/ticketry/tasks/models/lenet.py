"""LeNet-300-100 and LeNet-5 (LeCun et al. 1998), in the forms that the pruning literature uses."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.tasks.models.network import Network, caffe_xavier, glorot_normal


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 rectified units: 266,610 parameters for 28x28x1 inputs and 10 classes.

    Source: Frankle and Carbin 2019, section 2. Starts from Glorot normal weights and zero biases, as there.
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
    """Caffe's LeNet-5: 5x5 convolutions of 20 and 50 channels, 500 units; 431,080 parameters for 28x28x1, 10 classes.

    This is the variant of the pruning literature (Han et al. 2015; "LeNet-5-Caffe" in SNIP, Lee et al. 2019), not the
    60,000 parameters of 1998. As in Caffe's definition nothing but max pooling stands between the convolutions, the
    only rectifier follows the hidden layer, and weights start from Caffe's xavier: U(-a, a), a = sqrt(3 / fan_in).
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, scale: Callable[[int], int]) -> None:
        super().__init__()
        channels, height, width = shape
        first, second, hidden = scale(20), scale(50), scale(500)
        self.conv1 = nn.Conv2d(channels, first, kernel_size=5)
        self.conv2 = nn.Conv2d(first, second, kernel_size=5)
        self.fc1 = nn.Linear(second * _halved_twice(height) * _halved_twice(width), hidden)
        self.fc2 = nn.Linear(hidden, classes)
        caffe_xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        out: Tensor = self.fc2(x)
        return out


def _halved_twice(side: int) -> int:
    """What is left of a side after two rounds of an unpadded 5x5 convolution and 2x2 pooling."""
    return ((side - 4) // 2 - 4) // 2


LENET_300_100 = Network(LeNet300100)
LENET_5 = Network(LeNet5, smallest=16)
