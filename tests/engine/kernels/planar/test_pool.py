"""Pooling of planes against torch in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from arenas import Arena, targets
from ticketry_engine.kernels.planar.geometry import Geometry, Planes
from ticketry_engine.kernels.planar.move import load, store
from ticketry_engine.kernels.planar.pool import avg_pool, global_mean, max_pool
from ticketry_engine.kernels.window import Window

_IMAGES = st.sampled_from([1, 2, 4, 8, 16])
_SMALL = st.integers(0, 2)


def _between(
    arena: Arena, x: torch.Tensor, wanted: torch.Tensor, halos: tuple[int, int], gaps: tuple[int, int], images: int
) -> tuple[Planes, Planes]:
    return tuple(
        arena.planes(Geometry.of(*t.shape[2:], halo, images, t.shape[3] + halo + gap), t.shape[1])
        for t, halo, gap in zip((x, wanted), halos, gaps, strict=True)
    )


@st.composite
def windows(draw: st.DrawFn) -> dict:
    """Arguments of one axis that torch accepts."""
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    reach = (kernel - 1) * dilation + 1
    padding = draw(st.integers(0, kernel // 2))
    size = draw(st.integers(max(1, reach - 2 * padding), 20))
    return {"kernel": kernel, "dilation": dilation, "padding": padding, "size": size, "stride": draw(st.integers(1, 5))}


_COMMON = {
    "axes": st.tuples(windows(), windows()),
    "ceil": st.booleans(),
    "batch": st.integers(1, 9),
    "channels": st.integers(1, 3),
    "images": _IMAGES,
    "halos": st.tuples(_SMALL, _SMALL),
    "gaps": st.tuples(_SMALL, _SMALL),
    "threads": st.integers(1, 3),
}


@pytest.mark.parametrize("name", targets())
@given(**_COMMON)
def test_max_pool(name, axes, ceil, batch, channels, images, halos, gaps, threads) -> None:
    size, kernel, stride, padding, dilation = (
        tuple(axis[key] for axis in axes) for key in ("size", "kernel", "stride", "padding", "dilation")
    )
    x = torch.randn(batch, channels, *size) - 3
    wanted = F.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    found = torch.empty_like(wanted)
    arena = Arena(name, threads)
    a, y = _between(arena, x, wanted, halos, gaps, images)
    ops = max_pool(a, y, Window(kernel, stride, padding, dilation))
    arena.run([*load(0, x.stride(), a), *ops, *store(1, found.stride(), y)], batch, [x, found])
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", targets())
@given(**_COMMON, pads=st.booleans())
def test_avg_pool(name, axes, ceil, batch, channels, images, halos, gaps, threads, pads) -> None:
    size, kernel, stride, padding = (
        tuple(axis[key] for axis in axes) for key in ("size", "kernel", "stride", "padding")
    )
    x = torch.randn(batch, channels, *size)
    wanted = F.avg_pool2d(x.double(), kernel, stride, padding, ceil, pads)
    found = torch.empty_like(wanted, dtype=torch.float32)
    arena = Arena(name, threads)
    a, y = _between(arena, x, wanted, halos, gaps, images)
    ops = avg_pool(a, y, Window(kernel, stride, padding), pads)
    arena.run([*load(0, x.stride(), a), *ops, *store(1, found.stride(), y)], batch, [x, found])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", targets())
@given(
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 40),
    _IMAGES,
    _SMALL,
    _SMALL,
    _SMALL,
    st.integers(1, 3),
)
def test_global_mean(name, batch, channels, height, width, images, halo, gap, halo_y, threads) -> None:
    x = torch.randn(batch, channels, height, width)
    wanted = x.double().mean((2, 3), keepdim=True)
    found = torch.empty_like(wanted, dtype=torch.float32)
    arena = Arena(name, threads)
    a, y = _between(arena, x, wanted, (halo, halo_y), (gap, 0), images)
    arena.run([*load(0, x.stride(), a), *global_mean(a, y), *store(1, found.stride(), y)], batch, [x, found])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
