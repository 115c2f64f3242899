"""Values in and out of tensors of any strides: the right numbers, and nothing beside them."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.cpu.pixels.block import Block, targets
from ticketry.engine.cpu.pixels import Geometry, load, store
from ticketry.errors import EngineError

LAYOUTS = {
    # name: strides of a tensor [images, channels, height, width] that takes `steps` elements in all
    "contiguous": lambda c, h, w: (c * h * w, h * w, w, 1),
    "channels last": lambda c, h, w: (h * w * c, 1, w * c, c),
    "spread": lambda c, h, w: (2 * c * h * w + 3, 2, 2 * w * c, 2 * c),
    "columns outside": lambda c, h, w: (c * h * w, h, 1, c * h),
    "rows padded": lambda c, h, w: (c * h * (w + 5) + 1, h * (w + 5), w + 5, 1),
}


@given(
    where=st.sampled_from(targets()),
    images=st.integers(1, 4),
    run=st.integers(1, 9),
    threads=st.sampled_from([1, 2, 3]),
    channels=st.integers(1, 40),
    height=st.integers(1, 5),
    width=st.integers(1, 35),
    halo=st.integers(0, 2),
    layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 99),
)
def test_in_and_out(
    where: str,
    images: int,
    run: int,
    threads: int,
    channels: int,
    height: int,
    width: int,
    halo: int,
    layout: str,
    seed: int,
) -> None:
    """A tensor is read into a value, which is written to another tensor."""
    rng = np.random.default_rng(seed)
    strides = LAYOUTS[layout](channels, height, width)
    source, inside = _tensor(run, channels, height, width, strides, at_end=seed % 2 == 0)
    inside[:] = torch.from_numpy(rng.standard_normal(inside.shape).astype(np.float32))
    result, written = _tensor(run, channels, height, width, strides, at_end=seed % 2 == 1)
    block = Block(images)
    value = block.place(Geometry.of(height, width, channels + 19, halo), 3, channels)
    ops = load(0, strides, value) + store(1, strides, value)
    before = source.clone()
    last = run - (-(-run // images) - 1) * images
    [held] = block.run(ops, [value], where, threads=threads, external=[inside, written], images=run)
    assert torch.equal(source.view(torch.int32), before.view(torch.int32))
    expected = inside[run - last :].numpy()
    assert np.array_equal(held[:last], expected)
    assert torch.equal(written, inside)
    written[:] = torch.nan
    assert torch.isnan(result).all(), "numbers beside the tensor were written"


@given(
    where=st.sampled_from(targets()),
    images=st.integers(1, 4),
    run=st.integers(1, 9),
    threads=st.sampled_from([1, 2]),
    channels=st.integers(1, 5),
    height=st.integers(1, 5),
    width=st.integers(1, 35),
    halo=st.integers(0, 2),
    layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 99),
)
def test_into_channels_that_lie_apart(
    where: str,
    images: int,
    run: int,
    threads: int,
    channels: int,
    height: int,
    width: int,
    halo: int,
    layout: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    strides = LAYOUTS[layout](channels, height, width)
    _, inside = _tensor(run, channels, height, width, strides, at_end=seed % 2 == 0)
    inside[:] = torch.from_numpy(rng.standard_normal(inside.shape).astype(np.float32))
    block = Block(images)
    value = block.place(Geometry.planar(height, width, channels, halo))
    last = run - (-(-run // images) - 1) * images
    [held] = block.run(load(0, strides, value), [value], where, threads=threads, external=[inside], images=run)
    assert np.array_equal(held[:last], inside[run - last :].numpy())
    with pytest.raises(EngineError, match="read by convolutions alone"):
        store(1, strides, value)


def _tensor(
    images: int, channels: int, height: int, width: int, strides: tuple[int, ...], *, at_end: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory full of NaN, and a tensor of these strides in it: at its start or end, where pages fault when touched."""
    shape = (images, channels, height, width)
    size = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    buffer = fenced(size)
    buffer[:] = torch.nan
    return buffer, torch.as_strided(buffer, shape, strides, len(buffer) - size if at_end else 0)


def fenced(size: int) -> torch.Tensor:
    """At least so many float32 between two pages that nobody may touch."""
    page = mmap.PAGESIZE
    middle = -(-4 * size // page) * page
    memory = mmap.mmap(-1, middle + 2 * page)
    bytes_ = np.frombuffer(memory, dtype=np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for fence in (0, page + middle):
        assert libc.mprotect(ctypes.c_void_p(bytes_.ctypes.data + fence), ctypes.c_size_t(page), 0) == 0
    return torch.from_numpy(bytes_[page : page + middle].view(np.float32))
