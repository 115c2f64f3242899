"""Copies of elements against numpy, over pixels and over planes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import arenas
from engine.kernels.channels_last.block import Array, Block, targets
from ticketry_engine.kernels import channels_last, planar
from ticketry_engine.kernels.copies import copies

KINDS = ("rows", "exchanged", "anyhow", "padded", "of two")


def moves(kind: str, channels: int, positions: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Of each element of [channels, positions] its source (-1: zero) and its element there, of two such values."""
    element = np.arange(channels * positions).reshape(channels, positions)
    of = np.zeros_like(element)
    if kind == "rows":
        element = np.roll(element, int(rng.integers(positions)), axis=1)
    elif kind == "exchanged":
        element = element.reshape(positions, channels).T
    elif kind == "anyhow":
        element = rng.permutation(channels * positions).reshape(channels, positions)
    elif kind == "padded":
        of[:, : positions // 2] = -1
        of[0, -1] = -1
    else:
        of = np.broadcast_to(rng.integers(-1, 2, positions), of.shape).copy()
    return of, element


def moved(data: list[Array], of: Array, element: Array) -> Array:
    """The same by numpy, of [images, channels * positions] each."""
    found = np.zeros((len(data[0]), *of.shape), np.float32)
    for number, values in enumerate(data):
        found[:, of == number] = values[:, element[of == number]]
    return found


@given(
    where=st.sampled_from(targets()),
    kind=st.sampled_from(KINDS),
    images=st.integers(1, 3),
    channels=st.integers(1, 37),
    size=st.tuples(st.integers(1, 4), st.integers(1, 7)),
    halo=st.integers(0, 1),
    threads=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_over_pixels(where, kind, images, channels, size, halo, threads, seed) -> None:
    rng = np.random.default_rng(seed)
    of, element = moves(kind, channels, size[0] * size[1], rng)
    block = Block(images)
    data = [rng.standard_normal((images, channels, *size)).astype(np.float32) for _ in range(2)]
    sources = [
        block.place(channels_last.ChannelsLastGeometry.build(*size, channels, halo * number)) for number in range(2)
    ]
    y = block.place(channels_last.ChannelsLastGeometry.build(*size, channels, halo))
    for value, numbers in zip(sources, data, strict=True):
        block.put(value, numbers)
    [found] = block.run(channels_last.gather(sources, y, (of, element)), [y], where, threads=threads)
    wanted = moved([numbers.reshape(images, -1) for numbers in data], of, element)
    assert np.array_equal(np.asarray(found).reshape(wanted.shape), wanted)


@pytest.mark.parametrize("name", arenas.targets())
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 9),
    images=st.sampled_from([1, 2, 4, 16]),
    channels=st.integers(1, 17),
    size=st.tuples(st.integers(1, 4), st.integers(1, 7)),
    halo=st.integers(0, 1),
    seed=st.integers(0, 9),
)
def test_over_planes(name, kind, batch, images, channels, size, halo, seed) -> None:
    rng = np.random.default_rng(seed)
    of, element = moves(kind, channels, size[0] * size[1], rng)
    data = [torch.from_numpy(rng.standard_normal((batch, channels, *size)).astype(np.float32)) for _ in range(2)]
    found = torch.empty(batch, channels, *size)
    arena = arenas.Arena(name)
    *sources, y = (arena.planes(planar.Geometry.of(*size, room, images), channels) for room in (0, halo, halo))
    ops = [op for number, one in enumerate(data) for op in planar.load(number, one.stride(), sources[number])]
    ops += [*planar.gather(sources, y, (of, element)), *planar.store(2, found.stride(), y)]
    arena.run(ops, batch, [*data, found])
    wanted = moved([one.reshape(batch, -1).numpy() for one in data], of, element)
    assert np.array_equal(found.numpy().reshape(wanted.shape), wanted)


def test_whole_rows_are_runs_and_exchanged_axes_single_elements() -> None:
    of, element = moves("rows", 48, 6, np.random.default_rng(1))
    goals = np.arange(48) * 4 + np.arange(6)[:, None] * 256
    [(_, plan)] = copies(goals, goals.reshape(-1)[(element % 6 * 48 + element // 6).T], of.T, 4)
    assert (len(plan.starts), len(plan.runs), plan.length) == (6, 1, 48)
    rows = np.arange(6)[:, None] * 4 + np.arange(48) * 64
    [(_, plan)] = copies(goals, rows, of.T, 4)
    assert (len(plan.starts), len(plan.runs), plan.length) == (6, 48, 1)
