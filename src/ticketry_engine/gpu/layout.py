"""The layout of activations between sparse layers, as strides of ordinary tensors.

*Inner*: [N, C, H, W] that lies as [C, H, W, P], [tokens, C] that lies as [C, P]; P is N, or the number of tokens,
rounded up to 8, so that every run starts at a multiple of 16 bytes in a 16-bit type. What lies in the padding is
arbitrary. *Outer*: channels_last, or contiguous for [tokens, C]: what torch's own layers like best.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

EIGHT = 8


def padded(count: int) -> int:
    """`count` rounded up to whole vectors."""
    return -(-count // EIGHT) * EIGHT


def inner_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of an inner tensor [N, C, H, W] or [tokens, C]."""
    run = padded(shape[0])
    if len(shape) == 2:
        return 1, run
    _, _, height, width = shape
    return 1, height * width * run, width * run, run


def inner_empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised inner tensor of the type and on the device of `like`."""
    shape = tuple(shape)
    return like.new_empty(prod(shape[1:]) * padded(shape[0])).as_strided(shape, inner_strides(shape))


def outer_empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised channels_last or contiguous tensor of the type and on the device of `like`."""
    if len(shape) == 4:
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return like.new_empty(shape)


def is_inner(x: Tensor) -> bool:
    """Whether x can be read as an inner tensor: it has the strides, and its storage holds the padding too."""
    if x.dim() not in (2, 4) or x.storage_offset() % EIGHT:
        return False
    steps = zip(x.shape, x.stride(), inner_strides(x.shape), strict=True)
    if not all(size < 2 or step == wanted for size, step, wanted in steps):
        return False
    end = x.storage_offset() + prod(x.shape[1:]) * padded(x.shape[0])
    return end * x.element_size() <= x.untyped_storage().nbytes()
