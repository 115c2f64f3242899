"""Weights of which two in four are kept, for the semi-structured tensors of torch."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS, _COLUMNS = 32, 64
"""torch's semi-structured tensors of 16-bit types have multiples of these."""


def is_two_four(weight: Tensor) -> bool:
    """Whether each four neighbouring columns of a linear layer's weight [O, I] keep two at most."""
    if weight.dim() != 2 or weight.shape[0] % _ROWS or weight.shape[1] % _COLUMNS:
        return False
    return bool(((weight != 0).reshape(len(weight), -1, 4).sum(2) <= 2).all())


def can_run(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device has such products for this type."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
