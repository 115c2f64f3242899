"""Random changes of a batch of images, for the whole batch at once. All draws are from one CPU generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4
"""Pixels on each side, before a crop back to the original size (He et al. 2016, section 4.2)."""


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [n, c, h, w] mirrored left to right with probability 1/2. One draw: [n] of {0, 1}."""
    count, channels, height, width = images.shape
    mirrored = torch.randint(0, 2, (count, 1), generator=generator)
    columns = torch.arange(width)
    columns = torch.where(mirrored == 1, width - 1 - columns, columns).to(images.device)
    return images.gather(3, columns[:, None, None, :].expand(count, channels, height, width))


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [n, c, h, w] moved by up to 4 pixels along both axes, zeros moving in.

    One draw: [n, 2] of {0, ..., 8}, the top and the left edge of the crop in the image padded by 4 on all sides.
    """
    count, channels, height, width = images.shape
    corner = torch.randint(0, 2 * PADDING + 1, (count, 2), generator=generator)
    padded = F.pad(images, (PADDING,) * 4)
    stride = width + 2 * PADDING
    # Positions in a padded image laid out flat: one gather of single pixels is cheaper than one for each axis.
    window = (torch.arange(height)[:, None] * stride + torch.arange(width)).view(1, -1)
    positions = (corner[:, :1] * stride + corner[:, 1:] + window).to(images.device)
    flat = padded.view(count, channels, -1).gather(2, positions[:, None, :].expand(count, channels, -1))
    return flat.view(count, channels, height, width)
