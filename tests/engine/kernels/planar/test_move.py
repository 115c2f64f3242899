"""Planes hold exactly what a tensor held, and a tensor what planes held; nothing around either is touched."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from arenas import Arena, guarded, outside, targets
from ticketry_engine.kernels.planar.geometry import Geometry
from ticketry_engine.kernels.planar.move import load, store

_ORDERS = list(permutations(range(4)))
_SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 33]))


@pytest.mark.parametrize("name", targets())
@given(
    batch=st.integers(1, 40),
    channels=_SIZES,
    height=st.integers(1, 5),
    width=_SIZES,
    images=st.sampled_from([1, 2, 4, 8, 16]),
    halo=st.integers(0, 2),
    gap=st.integers(0, 2),
    orders=st.tuples(st.sampled_from(_ORDERS), st.sampled_from(_ORDERS)),
    spread=st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=4, max_size=4),
    late=st.booleans(),
    threads=st.integers(1, 3),
    split=st.sampled_from(["parts", "batch"]),
)
@example(19, 3, 2, 33, 16, 1, 0, ((0, 1, 2, 3), (0, 2, 3, 1)), [1] * 4, True, 1, "batch")
@example(3, 24, 1, 21, 1, 0, 0, ((0, 2, 3, 1), (0, 2, 3, 1)), [1] * 4, True, 2, "parts")
def test_what_goes_in_comes_out(
    name: str,
    batch: int,
    channels: int,
    height: int,
    width: int,
    images: int,
    halo: int,
    gap: int,
    orders: tuple[tuple[int, ...], tuple[int, ...]],
    spread: list[int],
    late: bool,
    threads: int,
    split: str,
) -> None:
    values = torch.randn(batch, channels, height, width)
    given_ = guarded(values, orders[0], spread, late)
    wanted = guarded(torch.zeros_like(values), orders[1], spread[::-1], late)
    arena = Arena(name, threads, split)
    planes = arena.planes(Geometry.of(height, width, halo, images, width + halo + gap), channels)
    arena.run([*load(0, given_.stride(), planes), *store(1, wanted.stride(), planes)], batch, [given_, wanted])
    assert torch.equal(wanted, values)
    assert torch.equal(given_, values)
    assert outside(wanted).isnan().all()
