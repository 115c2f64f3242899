"""Sizes and strides: what lies how."""

from __future__ import annotations

from torch import Tensor


def windows(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool = False) -> int:
    """Number of places of a window along an axis, as torch counts them."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    places = (room + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (places - 1) * stride >= size + padding:
        places -= 1  # the last window has to start inside of the input or its left padding
    return places


def is_inner(x: Tensor) -> bool:
    """Whether x [N, C, H, W] lies as [C, H, W, N], or x [..., C] as [C, ...], without gaps."""
    return (x.permute(1, 2, 3, 0) if x.dim() == 4 else x.movedim(-1, 0)).is_contiguous()
