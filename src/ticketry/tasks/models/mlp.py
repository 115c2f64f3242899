"""Multi-layer perceptrons of any widths, by name: mlp-50 has a hidden layer of 50 units, mlp-120-84 two.

mlp-50 is the network of Hernández-Lobato & Adams ("Probabilistic Backpropagation", 2015) on small tables, mlp-120-84
that of deep Q-learning in CleanRL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

_NAME = re.compile(r"mlp((?:-[1-9][0-9]{0,5})+)")


class MLP(nn.Module):
    """Linear layers with rectifiers between them; inputs [n, ...] are flattened, outputs are [n, classes].

    Weights and biases start from torch's own U(-1/sqrt(inputs), 1/sqrt(inputs)).
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


def hidden_widths(base: str) -> tuple[int, ...] | None:
    """The widths that a name such as mlp-50-50 tells, or None if it is no name of this kind."""
    found = _NAME.fullmatch(base)
    return tuple(int(width) for width in found[1].split("-")[1:]) if found else None
