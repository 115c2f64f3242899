"""Rotary embeddings and constants over pixels and planes against the formula in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arenas import Arena
from engine.kernels.channels_last.block import Block, as_stored, close, close_in, kinds, targets
from ticketry.errors import EngineError
from ticketry_engine.kernels import channels_last, planar
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry

_SHAPES = {
    "images": st.sampled_from([1, 2, 4, 16]),
    "heads": st.integers(1, 4),
    "size": st.integers(2, 70),
    "tokens": st.integers(1, 20),
    "threads": st.sampled_from([1, 2, 3]),
    "part": st.floats(0.01, 1.0),
    "seed": st.integers(0, 99),
}


def drawn(images: int, heads: int, size: int, tokens: int, part: float, seed: int) -> tuple[int, list[np.ndarray]]:
    """Half of what is turned, and x, cos and sin of shape [images, channels, 1, tokens]."""
    rng = np.random.default_rng(seed)
    shapes = [(images, heads * size, 1, tokens), (1, size, 1, tokens), (1, size, 1, tokens)]
    return max(1, int(part * size) // 2), [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def turned(half: int, data: list[np.ndarray], size: int) -> torch.Tensor:
    x, cos, sin = (torch.from_numpy(each).double() for each in data)
    head = x.reshape(len(x), -1, size, 1, x.shape[-1])
    partner = torch.cat([head[:, :, half : 2 * half], head[:, :, :half], head[:, :, 2 * half :]], 2)
    return (head * cos[:, None] + partner * sin[:, None]).reshape(x.shape)


@given(kind=st.sampled_from(kinds()), **_SHAPES)
def test_rotary_over_pixels(kind, images, heads, size, tokens, threads, part, seed) -> None:
    where, item = kind
    half, data = drawn(images, heads, size, tokens, part, seed)
    block = Block(images)
    values = [
        block.place(ChannelsLastGeometry.build(1, tokens, count, 0, item))
        for count in (heads * size, size, size, heads * size)
    ]
    for value, numbers in zip(values, data, strict=False):
        block.put(value, np.broadcast_to(numbers, (images, *numbers.shape[1:])))
    [result] = block.run(channels_last.rotary(*values, half), values[3:], where, threads=threads)
    stored = [as_stored(each, item) for each in data]
    assert close_in(item, result, turned(half, stored, size), 1e-5)


@given(name=st.sampled_from(targets()), **_SHAPES)
def test_rotary_over_planes(name, images, heads, size, tokens, threads, part, seed) -> None:
    batch = images + 1
    half, data = drawn(batch, heads, size, tokens, part, seed)
    x, found = torch.from_numpy(data[0]), torch.empty(batch, heads * size, 1, tokens)
    arena = Arena(name, threads)
    counts = (heads * size, size, size, heads * size)
    values = [arena.planes(planar.Geometry.of(1, tokens, 0, images), count) for count in counts]
    angles = zip(values[1:3], data[1:], strict=True)
    ops = [
        *planar.load(0, x.stride(), values[0]),
        *(op for value, numbers in angles for op in planar.constant(numbers[0], value)),
        *planar.rotary(*values, half),
        *planar.store(1, found.stride(), values[3]),
    ]
    arena.run(ops, batch, [x, found])
    assert close(found.numpy(), turned(half, data, size))


@given(
    kind=st.sampled_from(kinds()),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 4), st.integers(1, 9)),
    halo=st.integers(0, 1),
    threads=st.sampled_from([1, 2]),
)
def test_a_constant_of_pixels(kind, shape, halo, threads) -> None:
    where, item = kind
    numbers = np.random.default_rng(0).standard_normal(shape[1:]).astype(np.float32)
    block = Block(shape[0])
    y = block.place(ChannelsLastGeometry.build(*shape[2:], shape[1] + 7, halo, item), 3, shape[1])
    block.put(y, np.zeros(shape, np.float32))
    [result] = block.run(channels_last.constant(numbers, y), [y], where, threads=threads)
    assert np.array_equal(result, np.broadcast_to(as_stored(numbers, item), shape))


@given(
    name=st.sampled_from(targets()),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(1, 40)),
    halo=st.integers(0, 2),
    images=st.sampled_from([1, 2, 4, 16]),
)
def test_a_constant_of_planes(name, shape, halo, images) -> None:
    numbers = np.random.default_rng(0).standard_normal(shape[1:]).astype(np.float32)
    arena = Arena(name)
    y = arena.planes(planar.Geometry.of(*shape[2:], halo, images), shape[1])
    found = torch.empty(shape)
    arena.run([*planar.constant(numbers, y), *planar.store(0, found.stride(), y)], shape[0], [found])
    assert np.array_equal(found.numpy(), np.broadcast_to(numbers, shape))


def test_heads_that_do_not_fit_are_told() -> None:
    block = Block(1)
    x, cos = block.place(ChannelsLastGeometry.build(1, 4, 12)), block.place(ChannelsLastGeometry.build(1, 4, 5))
    with pytest.raises(EngineError, match="12 channels cannot be split into heads of 5"):
        channels_last.rotary(x, cos, cos, x, 2)
