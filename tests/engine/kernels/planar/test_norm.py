"""Layer norm and softmax over the channels of planes against torch in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from arenas import Arena, targets
from ticketry_engine.kernels.planar.elementwise import layer_norm, rms_norm, softmax
from ticketry_engine.kernels.planar.geometry import Geometry, Planes
from ticketry_engine.kernels.planar.move import load, store

_SHAPES = {
    "batch": st.integers(1, 18),
    "channels": st.integers(1, 40),
    "size": st.one_of(st.tuples(st.just(1), st.integers(1, 150)), st.tuples(st.integers(1, 6), st.integers(1, 9))),
    "images": st.sampled_from([1, 2, 4, 8, 16]),
    "layouts": st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=2),
    "in_place": st.booleans(),
    "threads": st.integers(1, 3),
}


def _planes(arena: Arena, channels: int, size: tuple[int, int], images: int, layouts, in_place: bool) -> list[Planes]:
    x, y = (arena.planes(Geometry.of(*size, halo, images, size[1] + halo + gap), channels) for halo, gap in layouts)
    return [x, x if in_place else y]


@pytest.mark.parametrize("name", targets())
@given(**_SHAPES, affine=st.booleans(), far=st.sampled_from([0.0, 3000.0]))
def test_layer_norm(name, batch, channels, size, images, layouts, in_place, threads, affine, far) -> None:
    x = torch.randn(batch, channels, *size) + far
    weight, bias = (torch.randn(channels) if affine else None for _ in range(2))
    found = torch.empty_like(x)
    arena = Arena(name, threads)
    a, y = _planes(arena, channels, size, images, layouts, in_place)
    numbers = [None if value is None else value.numpy() for value in (weight, bias)]
    ops = layer_norm(a, y, *numbers, 1e-5)
    arena.run([*load(0, x.stride(), a), *ops, *store(1, found.stride(), y)], batch, [x, found])
    double = [None if value is None else value.double() for value in (weight, bias)]
    wanted = F.layer_norm(x.double().movedim(1, -1), (channels,), *double, 1e-5).movedim(-1, 1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", targets())
@given(**_SHAPES, scale=st.sampled_from([1e-4, 1.0, 200.0]), weighted=st.booleans())
def test_rms_norm(name, batch, channels, size, images, layouts, in_place, threads, scale, weighted) -> None:
    x = scale * torch.randn(batch, channels, *size)
    weight = torch.randn(channels) if weighted else None
    found = torch.empty_like(x)
    arena = Arena(name, threads)
    a, y = _planes(arena, channels, size, images, layouts, in_place)
    ops = rms_norm(a, y, None if weight is None else weight.numpy(), 1e-6)
    arena.run([*load(0, x.stride(), a), *ops, *store(1, found.stride(), y)], batch, [x, found])
    factor = None if weight is None else weight.double()
    wanted = torch.rms_norm(x.double().movedim(1, -1), (channels,), factor, 1e-6).movedim(-1, 1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", targets())
@given(**_SHAPES, scale=st.sampled_from([1.0, 200.0]))
def test_softmax(name, batch, channels, size, images, layouts, in_place, threads, scale) -> None:
    x = scale * torch.randn(batch, channels, *size)
    found = torch.empty_like(x)
    arena = Arena(name, threads)
    a, y = _planes(arena, channels, size, images, layouts, in_place)
    arena.run([*load(0, x.stride(), a), *softmax(a, y), *store(1, found.stride(), y)], batch, [x, found])
    torch.testing.assert_close(found.double(), x.double().softmax(1), rtol=1e-5, atol=1e-6)
