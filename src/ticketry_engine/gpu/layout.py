"""The memory layouts of activations between sparse layers, as strides of ordinary tensors.

    inner    [N, C, H, W] stored as [C, H, W, P]; [tokens, C] stored as [C, P]        batch innermost
    outer    [N, C, H, W] stored as channels_last; [tokens, C] contiguous             as torch's layers prefer

P is N, or the number of tokens, rounded up to 8, so that every run of images starts at a multiple of 16 bytes in a
16-bit type. The content of the padding is arbitrary.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

EIGHT = 8


def round_up(count: int) -> int:
    """Return `count` rounded up to a multiple of 8, a whole vector."""
    return -(-count // EIGHT) * EIGHT


def inner_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an inner tensor [N, C, H, W] or [tokens, C]."""
    run = round_up(shape[0])
    if len(shape) == 2:
        return 1, run
    _, _, height, width = shape
    return 1, height * width * run, width * run, run


def inner_empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised inner tensor with the dtype and device of `like`."""
    shape = tuple(shape)
    return like.new_empty(prod(shape[1:]) * round_up(shape[0])).as_strided(shape, inner_strides(shape))


def outer_empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised channels_last or contiguous tensor with the dtype and device of `like`."""
    if len(shape) == 4:
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return like.new_empty(shape)


def is_inner(x: Tensor) -> bool:
    """Return whether x can be read as an inner tensor: its strides match, and its storage includes the padding."""
    if x.dim() not in (2, 4) or x.storage_offset() % EIGHT:
        return False
    steps = zip(x.shape, x.stride(), inner_strides(x.shape), strict=True)
    if not all(size < 2 or step == wanted for size, step, wanted in steps):
        return False
    end = x.storage_offset() + prod(x.shape[1:]) * round_up(x.shape[0])
    return end * x.element_size() <= x.untyped_storage().nbytes()
