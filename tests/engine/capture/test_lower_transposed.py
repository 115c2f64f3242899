"""Transposed convolutions of any settings against torch in float64: their graphs, and what is compiled of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from engine.families import shake
from interpreter import Program
from samples import sample
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled
from ticketry_engine.ir.graph import tensor_origins
from ticketry_engine.plan.storage import UnsupportedError

ACTS = {"none": None, "relu": nn.ReLU(), "gelu": nn.GELU(), "leaky": nn.LeakyReLU(0.2), "tanh": nn.Tanh()}


@dataclass(frozen=True)
class Axis:
    size: int
    kernel: int
    stride: int
    padding: int
    more: int
    dilation: int


@st.composite
def axes(draw: Any) -> Axis:
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 3]))
    padding = draw(st.integers(0, dilation * (kernel - 1) + 2))
    made = Axis(
        draw(st.integers(1, 7)), kernel, stride, padding, draw(st.integers(0, max(stride, dilation) - 1)), dilation
    )
    places = (made.size - 1) * stride - 2 * padding + dilation * (kernel - 1) + made.more + 1
    assume(places > 0)
    return made


def model_of(settings: list[Axis], groups: int, bias: bool, norm: bool, act: str) -> nn.Module:
    """Between two convolutions, so that the engine has something to do before and behind."""
    one = len(settings) == 1
    conv, norms = (nn.Conv1d, nn.BatchNorm1d) if one else (nn.Conv2d, nn.BatchNorm2d)
    kernel, stride, padding, more, dilation = zip(
        *((a.kernel, a.stride, a.padding, a.more, a.dilation) for a in settings), strict=True
    )
    kind = nn.ConvTranspose1d if one else nn.ConvTranspose2d
    up = kind(8, 12, kernel, stride, padding, more, groups, bias, dilation)
    behind = [*([norms(12)] if norm else []), *([ACTS[act]] if ACTS[act] is not None else [])]
    return shake(nn.Sequential(conv(3, 8, 1), up, *behind, conv(12, 5, 1)).eval())


def compared(
    settings: list[Axis], groups: int, bias: bool, norm: bool, act: str, density: float, layouts: tuple[str | None, ...]
) -> None:
    """The graph, and what is compiled of it in each of the layouts, with the model in float64."""
    torch.manual_seed(0)
    model = model_of(settings, groups, bias, norm, act)
    x = torch.randn(3, 3, *(axis.size for axis in settings))
    mask = tk.prune(model, density=density, score="random")
    graph = capture(model, mask, x)
    assert [one.op for one in graph.nodes if not one.native] == []
    assert [one.attrs["act"] is None for one in graph.nodes if one.op == "conv2d"] == [True, act == "none", True]
    assert not any(one.op in ("affine", "act") for one in graph.nodes)
    mask.apply_(model)
    with torch.no_grad():
        exact = model.double()(x.double())
    torch.testing.assert_close(Program(graph)(x).double(), exact, rtol=1e-4, atol=1e-5)
    for layout in layouts:
        fast = Compiled(graph, threads=1)
        assert [layer.why for layer in fast.layers() if layer.where == "torch"] == []
        for native in fast._natives:
            native.layout = layout
        for batch in (1, 3):
            # Where there is one pixel, channels are what is moved, and pixels may not take them in that order.
            with contextlib.suppress(*([UnsupportedError] if layout == "pixels" else [])):
                torch.testing.assert_close(fast(x[:batch]).double(), exact[:batch], rtol=1e-4, atol=1e-5)


@settings(max_examples=6)
@given(
    st.lists(axes(), min_size=1, max_size=2),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(sorted(ACTS)),
    st.sampled_from([0.3, 1.0]),
)
def test_any_settings(settings: list[Axis], groups: int, bias: bool, norm: bool, act: str, density: float) -> None:
    compared(settings, groups, bias, norm, act, density, ())


@pytest.mark.parametrize("layout", sample(["planes", "pixels"], 1))
def test_a_few_compiled(layout: str | None) -> None:
    """As many pixels again, and a kernel that the stride does not divide, cut on both sides and longer behind."""
    compared([Axis(5, 2, 2, 0, 0, 1)] * 2, 1, True, True, "relu", 0.3, (layout,))
    compared([Axis(4, 5, 3, 2, 1, 1), Axis(6, 3, 2, 1, 1, 1)], 2, False, True, "gelu", 0.3, (layout,))


def test_with_the_stride_for_a_kernel_no_weight_is_added() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, stride=2)).eval()
    graph = capture(model, None, torch.randn(2, 8, 5, 5))
    (layer,) = (one for one in graph.nodes if one.op == "conv2d")
    weight = graph.tensors[layer.weights["weight"]]
    assert weight.shape == (24, 8, 1, 1)
    assert int(weight.count_nonzero()) == model[0].weight.numel()
    assert tensor_origins(graph, ["0.weight"]) == {layer.weights["weight"]: "0.weight"}


def test_an_output_that_is_read_twice_and_a_third_axis_stay_as_they_are() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Any:
            up = self.up(x)
            return self.norm(up).relu(), up

    for model, x in (
        (shake(Twice().eval()), torch.randn(3, 4, 5, 5)),
        (nn.Sequential(nn.ConvTranspose3d(2, 3, 2, 2)).eval(), torch.randn(2, 2, 3, 3, 3)),
    ):
        with torch.no_grad():
            torch.testing.assert_close(tk.compile(model, None, x)(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_is_pruned_stays_pruned() -> None:
    model = shake(nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.BatchNorm2d(6)).eval())
    mask = tk.prune(model, density=0.25, score="random")
    fast = tk.compile(model, mask, torch.randn(2, 8, 5, 5))
    (layer,) = (one for one in fast.layers() if one.kind == "conv2d")
    assert (layer.name, layer.kept) == ("0", mask.kept)


def test_where_zeros_are_not_skipped_it_stays_as_it_is() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 4, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")).eval()
    graph = capture(model, None, torch.randn(2, 2, 4, 4), for_kernels=False)
    assert [one.native for one in graph.nodes] == [False, False]
    assert "0.weight" in graph.tensors
