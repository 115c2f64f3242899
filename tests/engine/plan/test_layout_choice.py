"""The choice of a layout: what a layout cannot run is never chosen, and what it runs better is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry_engine.kernels.channels_last.attention import MOST_KEYS
from ticketry_engine.kernels.target import cross_compile_target, target
from ticketry_engine.plan.layout_choice import images_per_pass, pointwise_share

needs_avx2 = pytest.mark.skipif(target().name not in ("avx512", "avx2"), reason="the processor has no AVX2")


class Attention(nn.Module):
    """Dense linear layers, which pixels run best, around an attention."""

    def __init__(self, keys: int, values: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, values)
        self.keys = keys

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        q, k, v = (part[:, None] for part in (self.q(x), self.k(y), self.v(y)))
        return nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]


@pytest.mark.parametrize(("keys", "values", "tune"), [(8, 24, True), (MOST_KEYS + 8, 16, False)])
def test_an_attention_that_pixels_have_no_kernel_for(keys: int, values: int, tune: bool) -> None:
    torch.manual_seed(0)
    model = Attention(keys, values).eval()
    inputs = (torch.randn(2, 4, 16), torch.randn(2, keys, 16))
    fast = tk.compile(model, None, inputs, threads=1, tune=tune)
    with torch.no_grad():
        wanted = model.double()(*(x.double() for x in inputs))
    assert float((fast(*inputs).double() - wanted).abs().max() / wanted.abs().max()) < 1e-5


def convolutions() -> list[nn.Module]:
    return [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1)]


def large_head() -> list[nn.Module]:
    """Layers with most of the weights, which take little time."""
    return [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)]


@pytest.mark.parametrize(
    ("head", "density", "layout"),
    [(list, 0.1, "planes"), (list, 1.0, "pixels"), (large_head, 0.2, "planes"), (large_head, 0.8, "pixels")],
)
def test_what_counts_is_the_multiplications_that_are_kept_and_not_the_weights(
    head: Callable[[], list[nn.Module]], density: float, layout: str
) -> None:
    """Of the weights of a large head a seventh is left."""
    torch.manual_seed(0)
    model = nn.Sequential(*convolutions(), *head()).eval()
    with torch.no_grad():
        for one in (model[0], model[3], *model[6:7]):
            one.weight.mul_(torch.rand_like(one.weight) < (0.15 if isinstance(one, nn.Linear) else density))
    fast = tk.compile(model, None, torch.randn(16, 32, 16, 16), threads=1)
    (native,) = fast._natives
    assert native.choose_plan(16, 1).layout == layout


@needs_avx2
@pytest.mark.parametrize(("rows", "layout"), [(1, "planes"), (4, "planes"), (32, "pixels")])
def test_dense_layers_and_large_groups_run_over_pixels_with_few_registers(rows: int, layout: str) -> None:
    """As measured with AVX2, of a fifth of the weights and of all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(192, 192), nn.GELU()))).eval()
    with torch.no_grad():
        for one in model[::2]:
            assert isinstance(one, nn.Linear)
            kept = (torch.rand(192 // rows, 192) < 0.2).repeat_interleave(rows, 0)
            one.weight.mul_(kept[torch.randperm(192)] if rows == 4 else kept)
    x = torch.randn(2, 197, 192)
    fast = tk.compile(model, None, x, threads=1, target="avx2")
    (native,) = fast._natives
    assert native.choose_plan(8, 1).layout == layout
    with torch.no_grad():
        wanted = model.double()(x.double())
    assert float((fast(x).double() - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize(("kernel", "expected"), [(1, 2), (3, 16)])
def test_images_of_single_pixels_are_as_many_as_the_second_cache_holds(kernel: int, expected: int) -> None:
    """Of 0.8 MB each; where kernels are larger, as many as fill vectors of AVX-512."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(64, 64, kernel, padding=kernel // 2) for _ in range(2))).eval()
    mask = tk.prune(model, density=0.2)
    fast = tk.compile(model, mask, torch.randn(2, 64, 56, 56), threads=1)
    (native,) = fast._natives
    assert images_per_pass(native.sketch, "planes", 16, cross_compile_target("avx512")) == expected
    assert pointwise_share(native.sketch) == (kernel == 1)
