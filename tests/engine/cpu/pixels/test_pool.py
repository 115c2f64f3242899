"""Pooling against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.cpu.pixels.block import Block, close, targets
from ticketry.engine.cpu import pixels
from ticketry.engine.cpu.pixels import Geometry
from ticketry.engine.cpu.target import target
from ticketry.errors import EngineError

wheres, shapes = st.sampled_from(targets()), st.tuples(*[st.integers(1, most) for most in (4, 80, 12, 12)])
threads_ = st.sampled_from([1, 2, 3])


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pair(high: int, low: int = 1) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=50)
@given(
    kind=st.sampled_from(["max", "mean", "mean without padding", "divisor"]),
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
        options = {"count_include_pad": kind == "mean", "divisor_override": 3 if kind == "divisor" else None}
        expected = functional.avg_pool2d(data.double(), kernel, **common, **options)
    block = Block(shape[0])
    x = block.place(Geometry.of(*shape[2:], shape[1] + 5, halo), 2, shape[1])
    y = block.place(Geometry.of(*expected.shape[2:], shape[1], 1))
    block.put(x, data.numpy())
    here = target(where)
    if kind == "max":
        ops = pixels.max_pool(x, y, kernel, stride=stride, padding=padding, dilation=dilation, target=here)
    else:
        ops = pixels.avg_pool(
            x,
            y,
            kernel,
            stride=stride,
            padding=padding,
            count_include_pad=kind == "mean",
            divisor=3 if kind == "divisor" else None,
            target=here,
        )
    [result] = block.run(ops, [y], where, threads=threads)
    assert close(result, expected)


@settings(max_examples=50)
@given(where=wheres, shape=shapes, size=st.integers(1, 7), threads=threads_, seed=st.integers(0, 99))
def test_adaptive_means(where: str, shape: tuple[int, ...], size: int, threads: int, seed: int) -> None:
    data = _random(shape, seed)
    block = Block(shape[0])
    x = block.place(Geometry.of(*shape[2:], shape[1], 1))
    y = block.place(Geometry.of(size, size + 1, shape[1]))
    z = block.place(Geometry.of(1, 1, shape[1]))
    block.put(x, data.numpy())
    here = target(where)
    ops = pixels.adaptive_avg_pool(x, y, target=here) + pixels.global_mean(x, z, target=here)
    adaptive, whole = block.run(ops, [y, z], where, threads=threads)
    assert close(adaptive, torch.nn.functional.adaptive_avg_pool2d(data.double(), (size, size + 1)))
    assert close(whole, data.double().mean(dim=(2, 3), keepdim=True))


def test_the_largest_of_numbers_that_are_none_is_none() -> None:
    data = torch.zeros(1, 1, 2, 4)
    data[0, 0, 0, 1] = torch.nan
    data[0, 0, 1, 2] = -torch.inf
    block = Block(1)
    x, y = block.place(Geometry.of(2, 4, 1)), block.place(Geometry.of(1, 2, 1))
    block.put(x, data.numpy())
    [result] = block.run(pixels.max_pool(x, y, 2, target=target()), [y], "host")
    assert np.array_equal(result, torch.nn.functional.max_pool2d(data, 2).numpy(), equal_nan=True)


def test_a_window_behind_the_input_is_refused() -> None:
    block = Block(1)
    x, y = block.place(Geometry.of(4, 4, 8)), block.place(Geometry.of(3, 2, 8))
    with pytest.raises(EngineError, match="behind the last of 4"):
        pixels.max_pool(x, y, 2, target=target())
