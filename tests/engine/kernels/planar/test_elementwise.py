"""Sums, products, activations and affine maps of planes against torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from arenas import Arena, targets
from ticketry.errors import EngineError
from ticketry_engine.kernels.planar.elementwise import affine, apply, copy, elementwise
from ticketry_engine.kernels.planar.geometry import Geometry, Planes
from ticketry_engine.kernels.planar.move import load, store
from ticketry_engine.kernels.program import Op

_ACTS = {
    None: lambda x: x,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    ("leaky_relu", 0.1): lambda x: F.leaky_relu(x, 0.1),
}
_LAYOUT = st.tuples(st.integers(0, 2), st.integers(0, 2))


class Case:
    """Values, each in planes of a geometry of its own or all in the same, and what is done with them."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.batch, self.channels = draw(st.integers(1, 20)), draw(st.integers(1, 5))
        self.height, self.width = draw(st.integers(1, 6)), draw(st.one_of(st.integers(1, 9), st.integers(10, 70)))
        self.images = draw(st.sampled_from([1, 2, 4, 8, 16]))
        self.layouts = draw(st.one_of(_LAYOUT.map(lambda one: [one] * 3), st.lists(_LAYOUT, min_size=3, max_size=3)))
        self.place = draw(st.sampled_from(["own", "first"]))
        self.threads = draw(st.integers(1, 3))

    def random(self, one: bool = False) -> torch.Tensor:
        return torch.randn(self.batch, self.channels, *((1, 1) if one else (self.height, self.width)))

    def run(self, name: str, sources: list[torch.Tensor], ops: Callable[..., list[Op]]) -> torch.Tensor:
        """``ops(planes of each source, planes of the result)``, whose planes are the first's if that is the case."""
        arena = Arena(name, self.threads)
        found = torch.empty_like(sources[0])
        values: list[Planes] = []
        for (halo, gap), tensor in zip(self.layouts, [*sources, found], strict=False):
            height, width = tensor.shape[2:]
            in_place = len(values) == len(sources) and self.place == "first"
            geometry = Geometry.of(height, width, halo, self.images, width + halo + gap)
            values.append(values[0] if in_place else arena.planes(geometry, self.channels))
        moves = [op for k, t in enumerate(sources) for op in load(k, t.stride(), values[k])]
        program = [*moves, *ops(*values), *store(len(sources), found.stride(), values[-1])]
        arena.run(program, self.batch, [*sources, found])
        return found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(draw)


def _close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", targets())
@given(cases(), st.sampled_from(["add", "mul"]), st.sampled_from(list(_ACTS)), st.booleans())
def test_two_values(name: str, case: Case, kind: str, act: str | None, one: bool) -> None:
    a, b = case.random(), case.random(one)
    found = case.run(name, [a, b], lambda x, z, y: elementwise(kind, x, z, y, act))
    _close(found, _ACTS[act](a.double() + b if kind == "add" else a.double() * b))


@pytest.mark.parametrize("name", targets())
@given(cases(), st.sampled_from(list(_ACTS)))
def test_activations(name: str, case: Case, act: str | None) -> None:
    x = case.random()
    _close(case.run(name, [x], lambda x, y: apply(act, x, y)), _ACTS[act](x.double()))


@pytest.mark.parametrize("name", targets())
@given(cases(), st.sampled_from(list(_ACTS)))
def test_scale_and_shift(name: str, case: Case, act: str | None) -> None:
    x, (scale, shift) = case.random(), np.random.default_rng(case.channels).normal(size=(2, case.channels))
    found = case.run(name, [x], lambda x, y: affine(x, y, scale, shift, act))
    by_channel = (torch.from_numpy(v).float().double().view(-1, 1, 1) for v in (scale, shift))
    factor, offset = by_channel
    _close(found, _ACTS[act](x.double() * factor + offset))


@pytest.mark.parametrize("name", targets())
@given(cases())
def test_copies_are_equal(name: str, case: Case) -> None:
    x = case.random()
    assert torch.equal(case.run(name, [x], copy), x)


def test_infinite_values_do_not_reach_the_halo() -> None:
    """A halo that took one over would spoil every later run."""
    arena = Arena("host")
    a, b = (arena.planes(Geometry.of(size, size, 1, 1), 2) for size in (3, 1))
    x, scale, found = torch.randn(1, 2, 3, 3), torch.full((1, 2, 1, 1), torch.inf), torch.empty(1, 2, 3, 3)
    ops = [*load(0, x.stride(), a), *load(1, scale.stride(), b), *elementwise("mul", a, b, a)]
    arena.run([*ops, *store(2, found.stride(), a)], 1, [x, scale, found])  # which looks at the halos
    assert torch.equal(found, x * torch.inf)


def test_an_unknown_kind_is_told() -> None:
    planes = Planes.at(Geometry.of(1, 1, 0, 1), 1, 0)
    with pytest.raises(EngineError, match="add, mul"):
        elementwise("pow", planes, planes, planes)
