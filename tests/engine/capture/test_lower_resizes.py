"""Interpolation against torch in float64: by whole scales in the engine, by others as torch does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interpreter import Program
from ticketry_engine.capture import capture, lower_layers
from ticketry_engine.compiled import Compiled


class Resized(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.one, self.two, self.how = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), how

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.interpolate(self.one(x), **self.how))


LAYOUTS = ("planes", "pixels")


def compared(model: nn.Module, size: tuple[int, int], layouts: tuple[str, ...] = ()) -> list[str]:
    """What stays in torch, after a comparison of the graph, and of what is compiled of it, with the model."""
    x = torch.randn(3, 3, *size)
    graph = capture(model.eval(), None, x)
    with torch.no_grad():
        exact = model.double()(x.double())
    torch.testing.assert_close(Program(graph)(x).double(), exact, rtol=1e-4, atol=1e-5)
    for layout in layouts:
        fast = Compiled(graph, threads=1)
        for native in fast._natives:
            native.layout = layout
        for batch in (1, 3):
            torch.testing.assert_close(fast(x[:batch]).double(), exact[:batch], rtol=1e-4, atol=1e-5)
    return [one.op for one in graph.nodes if not one.native]


ANY = (
    st.sampled_from([("bilinear", 3), ("bicubic", 5)]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.booleans(),
)


def by_whole(
    mode: tuple[str, int], scale: tuple[int, int], more: tuple[int, int], by_size: bool, layouts: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    name, least = mode
    size = least + more[0], least + more[1]
    how = {"size": (size[0] * scale[0], size[1] * scale[1])} if by_size else {"scale_factor": scale}
    assert compared(Resized(mode=name, align_corners=False, **how), size, layouts) == []


@given(*ANY)
def test_whole_scales(mode: tuple[str, int], scale: tuple[int, int], more: tuple[int, int], by_size: bool) -> None:
    by_whole(mode, scale, more, by_size, ())


@pytest.mark.slow
@given(*ANY)
def test_compiled(mode: tuple[str, int], scale: tuple[int, int], more: tuple[int, int], by_size: bool) -> None:
    by_whole(mode, scale, more, by_size, LAYOUTS)


@pytest.mark.parametrize("mode", [("bilinear", 3), ("bicubic", 5)])
def test_a_few_compiled(mode: tuple[str, int]) -> None:
    by_whole(mode, (2, 3), (1, 2), False, LAYOUTS)


OTHERS: dict[str, dict[str, Any]] = {
    "no whole scale": {"scale_factor": 1.5, "mode": "bilinear"},
    "corners aligned": {"scale_factor": 2, "mode": "bilinear", "align_corners": True},
    "smaller": {"scale_factor": 0.5, "mode": "bilinear"},
    "a scale that is not the sizes'": {"scale_factor": (2.1, 2.1), "mode": "bilinear", "recompute_scale_factor": False},
    "without what would alias": {"scale_factor": 2, "mode": "bilinear", "antialias": True},
    "an area": {"scale_factor": 2, "mode": "area"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay_in_torch(name: str) -> None:
    torch.manual_seed(0)
    assert len(compared(Resized(**OTHERS[name]), (5, 6), LAYOUTS[:1])) == 1


def test_of_edges_alone_it_stays_in_torch() -> None:
    assert len(compared(Resized(scale_factor=2, mode="bilinear"), (2, 7))) == 1


def test_images_too_large_to_be_moved_stay_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Resized(scale_factor=2, mode="bilinear")
    monkeypatch.setattr(lower_layers, "MOST_MOVED", 6 * 10 * 14)
    assert compared(model, (5, 7)) == []
    monkeypatch.setattr(lower_layers, "MOST_MOVED", 6 * 10 * 14 - 1)
    assert len(compared(model.float(), (5, 7))) == 1
