"""Lowered layers against torch in float64, as graphs and compiled.

Transposed convolutions, interpolation, group norms, sums over pixels and products with one channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from engine.families import shake
from engine.models import Of, assert_exact, in_layout, ops, ops_in_torch
from interpreter import Program
from samples import sample
from ticketry_engine.capture import capture, lower_layers
from ticketry_engine.compiled import Compiled
from ticketry_engine.ir.graph import tensor_origins
from ticketry_engine.plan.storage import UnsupportedError

OVER = {1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)}
ACTS = {"none": None, "relu": nn.ReLU(), "gelu": nn.GELU(), "leaky": nn.LeakyReLU(0.2), "tanh": nn.Tanh()}


@st.composite
def axes(draw: Any) -> tuple[int, ...]:
    """Size, kernel, stride, padding, output padding and dilation of an axis."""
    size, kernel, stride = draw(st.integers(1, 7)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    dilation = draw(st.sampled_from([1, 1, 2, 3]))
    padding, more = draw(st.integers(0, dilation * (kernel - 1) + 2)), draw(st.integers(0, max(stride, dilation) - 1))
    assume((size - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1 > 0)
    return size, kernel, stride, padding, more, dilation


def compared(
    axes: list[tuple[int, ...]], groups: int, bias: bool, norm: bool, act: str, density: float, layouts: Collection[str]
) -> None:
    """The graph, and what is compiled of it in each of the layouts, with the model in float64.

    The layer is between two convolutions, so that the engine has something to do before and behind.
    """
    torch.manual_seed(0)
    size, kernel, stride, padding, more, dilation = zip(*axes, strict=True)
    conv, kind, norms = OVER[len(axes)]
    up = kind(8, 12, kernel, stride, padding, more, groups, bias, dilation)
    behind = [*([norms(12)] if norm else []), *([ACTS[act]] if ACTS[act] is not None else [])]
    model = shake(nn.Sequential(conv(3, 8, 1), up, *behind, conv(12, 5, 1)).eval())
    x = torch.randn(3, 3, *size)
    mask = tk.prune(model, density=density, score="random")
    graph = capture(model, mask, x)
    assert ops_in_torch(graph) == []
    assert [one.attrs["act"] is None for one in graph.nodes if one.op == "conv2d"] == [True, act == "none", True]
    assert not {"affine", "act"} & set(ops(graph))
    mask.apply_(model)
    assert_exact(Program(graph), model, x)
    for layout in layouts:
        fast = Compiled(graph, threads=1)
        assert [layer.why for layer in fast.layers() if layer.where == "torch"] == []
        for batch in (1, 3):
            # Where there is one pixel, channels are what is moved, and pixels may not take them in that order.
            with contextlib.suppress(*([UnsupportedError] if layout == "pixels" else [])):
                assert_exact(in_layout(fast, layout), model, x[:batch])


@settings(max_examples=6)
@given(
    st.lists(axes(), min_size=1, max_size=2),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(sorted(ACTS)),
    st.sampled_from([0.3, 1.0]),
)
def test_any_settings(
    axes: list[tuple[int, ...]], groups: int, bias: bool, norm: bool, act: str, density: float
) -> None:
    compared(axes, groups, bias, norm, act, density, ())


@pytest.mark.parametrize("layout", sample(["planes", "pixels"], 1))
def test_a_few_compiled(layout: str | None) -> None:
    """As many pixels again, and a kernel that the stride does not divide, cut on both sides and longer behind."""
    compared([(5, 2, 2, 0, 0, 1)] * 2, 1, True, True, "relu", 0.3, (layout,))
    compared([(4, 5, 3, 2, 1, 1), (6, 3, 2, 1, 1, 1)], 2, False, True, "gelu", 0.3, (layout,))


def test_with_the_stride_for_a_kernel_no_weight_is_added() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, stride=2)).eval()
    graph = capture(model, None, torch.randn(2, 8, 5, 5))
    (layer,) = (one for one in graph.nodes if one.op == "conv2d")
    weight = graph.tensors[layer.weights["weight"]]
    assert weight.shape == (24, 8, 1, 1)
    assert int(weight.count_nonzero()) == model[0].weight.numel()
    assert tensor_origins(graph, ["0.weight"]) == {layer.weights["weight"]: "0.weight"}


def test_an_output_that_is_read_twice_and_a_third_axis_stay_as_they_are() -> None:
    twice = Of(
        lambda m, x: (lambda up: torch.cat([m.norm(up).relu(), up], 1))(m.up(x)),
        up=nn.ConvTranspose2d(4, 6, 2, 2),
        norm=nn.BatchNorm2d(6),
    )
    for model, x in (
        (shake(twice.eval()), torch.randn(3, 4, 5, 5)),
        (nn.Sequential(nn.ConvTranspose3d(2, 3, 2, 2)).eval(), torch.randn(2, 2, 3, 3, 3)),
    ):
        assert_exact(tk.compile(model, None, x), model, x)


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


def resized(**how: Any) -> Of:
    convolutions = {"one": nn.Conv2d(3, 6, 1), "two": nn.Conv2d(6, 4, 1)}
    return Of(lambda m, x: m.two(F.interpolate(m.one(x), **how)), **convolutions).eval()


def compared_resized(model: nn.Module, size: tuple[int, int], layouts: tuple[tuple[str, int], ...] = ()) -> list[str]:
    x = torch.randn(3, 3, *size)
    graph = capture(model, None, x)
    assert_exact(Program(graph), model, x)
    for layout, batch in layouts:
        assert_exact(Compiled(graph, threads=1, layout=layout), model, x[:batch])
    return ops_in_torch(graph)


def by_whole(mode: str, scale: tuple[int, int], size: tuple[int, int], by_size: bool, layouts: Any) -> None:
    torch.manual_seed(0)
    how = {"size": (size[0] * scale[0], size[1] * scale[1])} if by_size else {"scale_factor": scale}
    assert compared_resized(resized(mode=mode, align_corners=False, **how), size, layouts) == []


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
    assert len(compared_resized(resized(**OTHERS[name]), (5, 6))) == 1


def test_images_too_small_or_too_large_stay_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = resized(scale_factor=2, mode="bilinear")
    assert len(compared_resized(model, (2, 7))) == 1
    monkeypatch.setattr(lower_layers, "MOST_MOVED", 6 * 10 * 14)
    assert compared_resized(model, (5, 7)) == []
    monkeypatch.setattr(lower_layers, "MOST_MOVED", 6 * 10 * 14 - 1)
    assert len(compared_resized(model, (5, 7))) == 1


def _network(formula: Callable[[Of, Tensor], Tensor], **parts: nn.Module) -> Of:
    parts |= {"first": nn.Conv2d(3, 12, 1), "gate": nn.Conv2d(12, 1, 3, padding=1)}
    return Of(lambda net, x: formula(net, net.first(x)), **parts)


def _norm(groups: int, **options: bool) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, 12, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def _separable_attention(network: Of, x: Tensor) -> Tensor:
    """As in MobileViTv2 (Mehta & Rastegari 2022): one query channel, whose softmax weighs the keys of all pixels."""
    query, key, value = x.split([1, 5, 6], 1)
    context = (key * query.softmax(-1)).sum(-1, keepdim=True)
    return torch.relu(value[:, :5]) * context.expand_as(key)


NETWORKS: dict[str, Callable[[], Of]] = {
    "one group": lambda: _network(lambda net, x: net.norm(x), norm=_norm(1)),
    "several groups": lambda: _network(lambda net, x: net.norm(x), norm=_norm(4)),
    "a group for each channel": lambda: _network(lambda net, x: net.norm(x), norm=_norm(12)),
    "a norm without parameters": lambda: _network(lambda net, x: net.norm(x), norm=_norm(3, affine=False)),
    "a mean far above the deviation": lambda: _network(lambda net, x: net.norm(x + 1000), norm=_norm(2)),
    "constant images": lambda: _network(lambda net, x: net.norm(0 * x), norm=_norm(2)),
    "separable attention": lambda: _network(_separable_attention),
    "a gate of one channel": lambda: _network(lambda net, x: torch.sigmoid(net.gate(x)) * x + net.gate(x)),
    "a sum of rows": lambda: _network(lambda net, x: x.sum(2)),
    "a sum of columns": lambda: _network(lambda net, x: x.sum(-1, keepdim=True)),
    "a sum of pixels": lambda: _network(lambda net, x: x.sum((2, 3))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_stays_in_torch_and_all_is_as_in_float64(name: str) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS[name]().eval(), torch.randn(17, 3, 5, 7)
    graph = capture(model, None, x)
    assert ops_in_torch(graph) == []
    atol = 5e-3 if name == "a mean far above the deviation" else 1e-5  # float32 has 7 digits of 1000 + x
    for layout, batch in (("planes", 17), ("pixels", 2)):
        fast = Compiled(graph, threads=1, layout=layout)
        assert not fast.reasons
        assert_exact(fast, model, x[:batch], atol=atol)


@pytest.mark.parametrize(("eps", "for_kernels"), [(1e-30, True), (1e-5, False)], ids=["eps too small", "for a GPU"])
def test_group_norms_that_stay_in_torch(eps: float, for_kernels: bool) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4, eps=eps)).eval(), torch.randn(2, 3, 5, 5)
    graph = capture(model, None, x, for_kernels=for_kernels)
    assert ops_in_torch(graph) == ["aten.group_norm.default"]
    assert_exact(Compiled(graph, threads=1), model, x)


def test_a_model_with_a_fixed_batch_keeps_group_norms_because_torch_runs_it() -> None:
    layers = {"conv": nn.Conv2d(3, 4, 1), "norm": nn.GroupNorm(2, 4)}
    model = Of(lambda m, x: m.norm(m.conv(x)).view(2, 2, 2, 5, 5).sum(2), **layers).eval()
    x = torch.randn(2, 3, 5, 5)
    graph = capture(model, None, x)
    assert not graph.accepts_any_batch
    assert ops(graph)[:2] == ["conv2d", "aten.group_norm.default"]
    torch.testing.assert_close(Compiled(graph, threads=1)(x), model(x).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_group_norms_of_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    graph = capture(nn.GroupNorm(2, 4).to(dtype).eval(), None, torch.randn(2, 4, 3, 3, dtype=dtype))
    assert ops(graph) == ["aten.group_norm.default"]
