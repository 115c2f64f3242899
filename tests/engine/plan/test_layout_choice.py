"""The choice of a layout: what a layout cannot run is never chosen, and what it runs better is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.engine.cpu.pixels.attention import MOST_KEYS


class Attention(nn.Module):
    """Dense linear layers, which pixels run best, around an attention."""

    def __init__(self, keys: int, values: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, values)
        self.keys = keys

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        q, k, v = (part[:, None] for part in (self.q(x), self.k(y), self.v(y)))
        return nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]


@pytest.mark.parametrize("tune", [False, True])
@pytest.mark.parametrize(("keys", "values"), [(8, 16), (8, 24), (MOST_KEYS + 8, 16)])
def test_an_attention_that_pixels_have_no_kernel_for(keys: int, values: int, tune: bool) -> None:
    torch.manual_seed(0)
    model = Attention(keys, values).eval()
    inputs = (torch.randn(2, 4, 16), torch.randn(2, keys, 16))
    fast = tk.compile(model, None, inputs, threads=1, tune=tune)
    with torch.no_grad():
        wanted = model.double()(*(x.double() for x in inputs))
    assert float((fast(*inputs).double() - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize(("density", "layout"), [(0.1, "planes"), (1.0, "pixels")])
def test_single_rows_run_over_planes_and_dense_layers_over_pixels(density: float, layout: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    with torch.no_grad():
        for one in (model[0], model[2]):
            one.weight.mul_(torch.rand_like(one.weight) < density)
    fast = tk.compile(model, None, torch.randn(2, 32, 16, 16), threads=1)
    (native,) = fast._natives
    assert native.plan(16, 1).layout == layout
