"""Images at a lower resolution: the mean over squares of pixels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ticketry.tasks.task import Splits

_AT_ONCE = 4096
"""Images whose pixels are taken to 32 bits together."""


def averaged(images: Tensor, factor: int) -> Tensor:
    """Images uint8 [n, c, h, w] to [n, c, h / factor, w / factor]: means of squares, rounded, halves up.

    Whole numbers throughout, so that the same bytes come out on every machine.
    """
    count, channels, height, width = images.shape
    area = factor * factor
    squares = (count, channels, height // factor, factor, width // factor, factor)
    sums = images.reshape(squares).sum((3, 5), dtype=torch.int32)
    return torch.div(2 * sums + area, 2 * area, rounding_mode="floor").to(torch.uint8)


def shrunk(splits: Splits, factor: int) -> Splits:
    """All splits with `averaged` images."""

    def smaller(inputs: Tensor) -> Tensor:
        return torch.cat([averaged(part, factor) for part in torch.split(inputs, _AT_ONCE)])

    return Splits(**{name: replace(part, inputs=smaller(part.inputs)) for name, part in vars(splits).items()})
