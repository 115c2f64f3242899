"""Strides of inner tensors."""

from __future__ import annotations

import pytest
import torch

from ticketry_engine.gpu.tables import inner_empty, is_inner, outer_empty
from ticketry_engine.ir.native_shapes import windows


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (8, 3, 4, 5), (11, 2, 1, 1), (5, 7), (16, 1), (3, 1, 1, 1)])
def test_inner_tensors_are_known_as_such(shape):
    made = inner_empty(shape, torch.empty(0))
    assert made.shape == shape
    assert made.stride(0) == 1
    assert made.stride(1) % 8 == 0
    assert is_inner(made)


def test_whole_vectors_lie_without_gaps():
    lying = torch.arange(2 * 3 * 4 * 8.0).reshape(2, 3, 4, 8)
    assert is_inner(lying.permute(3, 0, 1, 2))


@pytest.mark.parametrize(
    "other",
    [
        torch.empty(8, 3, 4, 5),
        torch.empty(8, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.empty(3, 4, 5, 9).permute(3, 0, 1, 2),  # 9 images without padding
        torch.empty(1, 1, 1, 1),  # strides would do, but there is no padding to read
        torch.empty(3, 4, 5, 16).permute(3, 0, 1, 2)[:8],
        torch.empty(3, 4, 5, 16).permute(3, 0, 1, 2)[1:],
        torch.empty(6, 4),
        torch.empty(2, 3, 8).permute(2, 0, 1),
    ],
)
def test_others_are_not(other):
    assert not is_inner(other)


def test_outer_tensors_are_what_torch_likes():
    assert outer_empty((2, 3, 4, 5), torch.empty(0)).is_contiguous(memory_format=torch.channels_last)
    assert outer_empty((4, 5), torch.empty(0)).is_contiguous()


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), [
    (7, 3, 2, 1, 1), (8, 3, 2, 1, 1), (9, 2, 3, 0, 1), (10, 3, 4, 1, 2), (5, 5, 1, 2, 1), (6, 1, 4, 0, 1),
])  # fmt: skip
def test_windows_are_torch_s(size, kernel, stride, padding, dilation, ceil):
    x = torch.zeros(1, 1, size, size)
    wanted = torch.max_pool2d(x, kernel, stride, padding, dilation, ceil).shape[2]
    assert windows(size, kernel, stride, padding, dilation, ceil=ceil) == wanted
