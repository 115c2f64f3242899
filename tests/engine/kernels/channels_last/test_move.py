"""Values in and out of tensors of any strides: the right numbers, and nothing beside them."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.channels_last.block import Block, targets
from ticketry.errors import EngineError
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, load, store

LAYOUTS = {
    # name: strides of a tensor [images, channels, height, width] that takes `steps` elements in all
    "contiguous": lambda c, h, w: (c * h * w, h * w, w, 1),
    "channels last": lambda c, h, w: (h * w * c, 1, w * c, c),
    "spread": lambda c, h, w: (2 * c * h * w + 3, 2, 2 * w * c, 2 * c),
    "columns outside": lambda c, h, w: (c * h * w, h, 1, c * h),
    "rows padded": lambda c, h, w: (c * h * (w + 5) + 1, h * (w + 5), w + 5, 1),
}


@dataclass(frozen=True)
class Case:
    """A tensor of some strides, and the value that it is read into."""

    where: str
    images: int
    run: int
    threads: int
    channels: int
    height: int
    width: int
    halo: int
    layout: str
    seed: int

    @property
    def strides(self) -> tuple[int, ...]:
        return LAYOUTS[self.layout](self.channels, self.height, self.width)

    @property
    def last(self) -> int:
        """Images of the last block."""
        return self.run - (-(-self.run // self.images) - 1) * self.images

    def tensor(self, *, at_end: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return _tensor(self.run, self.channels, self.height, self.width, self.strides, at_end=at_end)

    def filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory and a tensor of numbers in it."""
        source, inside = self.tensor(at_end=self.seed % 2 == 0)
        rng = np.random.default_rng(self.seed)
        inside[:] = torch.from_numpy(rng.standard_normal(inside.shape).astype(np.float32))
        return source, inside


def cases(most: int) -> st.SearchStrategy[Case]:
    """Of so many channels at most."""
    return st.builds(
        Case,
        where=st.sampled_from(targets()),
        images=st.integers(1, 4),
        run=st.integers(1, 9),
        threads=st.sampled_from([1, 2, 3]),
        channels=st.integers(1, most),
        height=st.integers(1, 5),
        width=st.integers(1, 35),
        halo=st.integers(0, 2),
        layout=st.sampled_from(list(LAYOUTS)),
        seed=st.integers(0, 99),
    )


@given(cases(most=40))
def test_in_and_out(case: Case) -> None:
    """A tensor is read into a value, which is written to another tensor."""
    source, inside = case.filled()
    result, written = case.tensor(at_end=case.seed % 2 == 1)
    block = Block(case.images)
    value = block.place(
        ChannelsLastGeometry.build(case.height, case.width, case.channels + 19, case.halo), 3, case.channels
    )
    ops = load(0, case.strides, value) + store(1, case.strides, value)
    before = source.clone()
    outside = [inside, written]
    [held] = block.run(ops, [value], case.where, threads=case.threads, external=outside, images=case.run)
    assert torch.equal(source.view(torch.int32), before.view(torch.int32))
    expected = inside[case.run - case.last :].numpy()
    assert np.array_equal(held[: case.last], expected)
    assert torch.equal(written, inside)
    written[:] = torch.nan
    assert torch.isnan(result).all(), "numbers beside the tensor were written"


@given(cases(most=5))
def test_into_channels_that_lie_apart(case: Case) -> None:
    _, inside = case.filled()
    block = Block(case.images)
    value = block.place(ChannelsLastGeometry.build_channel_planes(case.height, case.width, case.channels, case.halo))
    ops = load(0, case.strides, value)
    [held] = block.run(ops, [value], case.where, threads=case.threads, external=[inside], images=case.run)
    assert np.array_equal(held[: case.last], inside[case.run - case.last :].numpy())
    with pytest.raises(EngineError, match="only be read by convolutions"):
        store(1, case.strides, value)


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
