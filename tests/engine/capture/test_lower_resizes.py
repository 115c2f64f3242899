"""Interpolation against torch in float64: by whole scales in the engine, by others as torch does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
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


def compared(model: nn.Module, size: tuple[int, int], layouts: tuple[tuple[str, int], ...] = ()) -> list[str]:
    """What stays in torch, after a comparison of the graph, and of what is compiled of it, with the model."""
    x = torch.randn(3, 3, *size)
    graph = capture(model.eval(), None, x)
    with torch.no_grad():
        exact = model.double()(x.double())
    torch.testing.assert_close(Program(graph)(x).double(), exact, rtol=1e-4, atol=1e-5)
    for layout, batch in layouts:
        fast = Compiled(graph, threads=1, layout=layout)
        torch.testing.assert_close(fast(x[:batch]).double(), exact[:batch], rtol=1e-4, atol=1e-5)
    return [one.op for one in graph.nodes if not one.native]


def by_whole(mode: str, scale: tuple[int, int], size: tuple[int, int], by_size: bool, layouts: Any) -> None:
    torch.manual_seed(0)
    how = {"size": (size[0] * scale[0], size[1] * scale[1])} if by_size else {"scale_factor": scale}
    assert compared(Resized(mode=mode, align_corners=False, **how), size, layouts) == []


SCALES = st.tuples(st.integers(1, 5), st.integers(1, 5))
SIZES = st.tuples(st.integers(5, 11), st.integers(5, 11))


@settings(max_examples=3)
@given(st.sampled_from(["bilinear", "bicubic"]), SCALES, SIZES, st.booleans())
def test_whole_scales_run_in_the_engine(mode: str, scale: tuple[int, int], size: tuple[int, int], by_size: bool):
    by_whole(mode, scale, size, by_size, ())


@pytest.mark.parametrize(("mode", "size"), [("bilinear", (4, 5)), ("bicubic", (6, 7))])
def test_whole_scales_compiled_in_both_layouts(mode: str, size: tuple[int, int]) -> None:
    by_whole(mode, (2, 3), size, False, (("planes", 3), ("pixels", 1)))


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
    assert len(compared(Resized(**OTHERS[name]), (5, 6))) == 1


def test_images_too_small_or_too_large_stay_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Resized(scale_factor=2, mode="bilinear")
    assert len(compared(model, (2, 7))) == 1
    monkeypatch.setattr(lower_layers, "MOST_MOVED", 6 * 10 * 14)
    assert compared(model.float(), (5, 7)) == []
    monkeypatch.setattr(lower_layers, "MOST_MOVED", 6 * 10 * 14 - 1)
    assert len(compared(model.float(), (5, 7))) == 1
