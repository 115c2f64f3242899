"""Pooling against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from engine.kernels.channels_last.block import Block, close, targets
from ticketry.errors import EngineError
from ticketry_engine.kernels import channels_last
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry
from ticketry_engine.kernels.window import Window

wheres, shapes = st.sampled_from(targets()), st.tuples(*[st.integers(1, most) for most in (4, 80, 12, 12)])
threads_ = st.sampled_from([1, 2, 3])


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pair(high: int, low: int = 1) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@given(
    kind=st.sampled_from(["max", "mean", "mean without padding"]),
    where=wheres,
    shape=shapes,
    kernel=_pair(4),
    stride=_pair(3),
    padding=_pair(2, 0),
    dilation=_pair(2),
    ceil=st.booleans(),
    halo=st.integers(0, 2),
    threads=threads_,
    seed=st.integers(0, 99),
)
def test_windows(
    kind: str,
    where: str,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil: bool,
    halo: int,
    threads: int,
    seed: int,
) -> None:
    padding = (min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2))
    if kind != "max":
        dilation = (1, 1)
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    assume(shape[2] >= reach[0] and shape[3] >= reach[1])
    data = _random(shape, seed)
    functional, common = torch.nn.functional, {"stride": stride, "padding": padding, "ceil_mode": ceil}
    if kind == "max":
        expected = functional.max_pool2d(data, kernel, dilation=dilation, **common)
    else:
        expected = functional.avg_pool2d(data.double(), kernel, **common, count_include_pad=kind == "mean")
    block = Block(shape[0])
    x = block.place(ChannelsLastGeometry.build(*shape[2:], shape[1] + 5, halo), 2, shape[1])
    y = block.place(ChannelsLastGeometry.build(*expected.shape[2:], shape[1], 1))
    block.put(x, data.numpy())
    window = Window(kernel, stride, padding, dilation)
    ops = (
        channels_last.max_pool(x, y, window) if kind == "max" else channels_last.avg_pool(x, y, window, kind == "mean")
    )
    [result] = block.run(ops, [y], where, threads=threads)
    assert close(result, expected)


@given(where=wheres, shape=shapes, threads=threads_, seed=st.integers(0, 99))
@example(where="host", shape=(1, 1, 4, 8), threads=1, seed=66)
def test_the_mean_of_all_pixels(where: str, shape: tuple[int, ...], threads: int, seed: int) -> None:
    data = _random(shape, seed)
    block = Block(shape[0])
    x = block.place(ChannelsLastGeometry.build(*shape[2:], shape[1], 1))
    z = block.place(ChannelsLastGeometry.build(1, 1, shape[1]))
    block.put(x, data.numpy())
    [whole] = block.run(channels_last.global_mean(x, z), [z], where, threads=threads)
    exact = data.double()
    # What is summed may cancel: rounding is of the sums' terms, not of what is left.
    rounding = 1e-6 * float(exact.abs().mean(dim=(2, 3)).max())
    assert float(np.abs(whole - exact.mean(dim=(2, 3), keepdim=True).numpy()).max()) <= rounding


def test_the_largest_of_numbers_that_are_none_is_none() -> None:
    data = torch.zeros(1, 1, 2, 4)
    data[0, 0, 0, 1] = torch.nan
    data[0, 0, 1, 2] = -torch.inf
    block = Block(1)
    x, y = block.place(ChannelsLastGeometry.build(2, 4, 1)), block.place(ChannelsLastGeometry.build(1, 2, 1))
    block.put(x, data.numpy())
    [result] = block.run(channels_last.max_pool(x, y, Window((2, 2), (2, 2))), [y], "host")
    assert np.array_equal(result, torch.nn.functional.max_pool2d(data, 2).numpy(), equal_nan=True)


def test_a_window_behind_the_input_is_refused() -> None:
    block = Block(1)
    x, y = block.place(ChannelsLastGeometry.build(4, 4, 8)), block.place(ChannelsLastGeometry.build(3, 2, 8))
    with pytest.raises(EngineError, match="after the last of 4"):
        channels_last.max_pool(x, y, Window((2, 2), (2, 2)))
