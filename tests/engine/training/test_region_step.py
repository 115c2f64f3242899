"""Layers as nodes of autograd, forward and backward, against torch in float64 under the mask."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from arm_emulator import arm_library
from engine.training.regions import act as activation
from engine.training.regions import batch_norm, layer, layer_norm, max_pool, region
from samples import sample
from ticketry.errors import EngineError
from ticketry_engine.ir import native_node
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.target import target
from ticketry_engine.training.plan import TrainingRegion
from ticketry_engine.training.region_step import RegionStep


@functools.cache
def library(where: str) -> Library:
    return arm_library() if where == "aarch64" else Library(target(where))


PROCESSORS = ["host", "avx2", "generic", *(["aarch64"] if importlib.util.find_spec("unicorn") else [])]


def near(found: Tensor | None, expected: Tensor | None, what: str) -> None:
    assert found is not None, what
    assert expected is not None, what
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape, what
    scale = max(float(expected.abs().max()), 1e-3) if expected.numel() else 1.0
    assert float((found - expected).abs().max()) <= 1e-4 * scale, what


def check(
    region: TrainingRegion, model: nn.Module, x: Tensor, kept: dict[str, Any], where: str = "host", seed: int = 0
) -> None:
    """Outputs and all gradients of a region against those of the model that is the same, in float64."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, mask in kept.items():
            modules[name].weight.mul_(torch.from_numpy(mask).view_as(modules[name].weight))
    step = RegionStep(region, modules, kept, library(where))
    mine = x.clone().requires_grad_()
    (y,) = step([mine])
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(y.shape, generator=generator)
    y.backward(gradient)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.double().zero_grad()
    theirs = x.double().requires_grad_()
    truth = model(theirs)
    truth.backward(gradient.double().view_as(truth))
    near(y, truth.view_as(y), "output")
    near(mine.grad, theirs.grad, "gradient of the input")
    for name, parameter in model.named_parameters():
        mask = kept.get(name.removesuffix(".weight"))
        assert parameter.grad is not None
        expected = parameter.grad if mask is None or "weight" not in name else parameter.grad * torch.from_numpy(mask)
        near(found[name], expected, name)
        if mask is not None and "weight" in name:
            assert not found[name][torch.from_numpy(~mask)].any()


@st.composite
def convolutions(draw: st.DrawFn, rows: Sequence[int] = (1,), images: Sequence[int] = (1, 5, 16, 40)) -> tuple:
    """A layer, what it retains, and its input. Sets of rows, in any order, retain the same columns."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups, share = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from(rows))
    inputs, outputs = groups * draw(st.integers(1, 9)), groups * share * draw(st.integers(1, 3))
    left = draw(st.sampled_from([0, 0, 1])) if groups == 1 else 0  # rows that are no whole set
    if share == 1 and draw(st.integers(0, 3)) == 0:
        groups, outputs, left = inputs, inputs, 0  # depthwise
    size, dilation, stride = draw(pairs), draw(st.one_of(st.just((1, 1)), pairs)), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, size, padding, strict=True)]
    height, width = (low + draw(st.integers(0, 17)) for low in least)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    torch.manual_seed(int(rng.integers(2**31)))
    conv = nn.Conv2d(inputs, outputs + left, size, stride, padding, dilation, groups, draw(st.booleans()))
    kept = rng.random((outputs // share + left, *conv.weight.shape[1:])) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    kept = np.repeat(kept, share, axis=0)[: outputs + left]
    if groups == 1:
        kept = kept[rng.permutation(len(kept))]
    return conv, kept, torch.randn(draw(st.sampled_from(images)), inputs, height, width)


def check_layer(drawn: tuple, where: str) -> None:
    conv, kept, x = drawn
    model = nn.Sequential(conv)
    check(region(model, layer("x", "y", "0", conv)), model, x, {"0": kept}, where)


GROUPS = (2, 3, 4, 5, 6, 8, 16)


@pytest.mark.parametrize("rows", [(1,), GROUPS], ids=["single weights", "groups of rows"])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_any_convolution(rows: Sequence[int], data: st.DataObject) -> None:
    check_layer(data.draw(convolutions(rows)), "host")


@pytest.mark.slow
@pytest.mark.parametrize("where", PROCESSORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_convolution_on_any_processor(where: str, data: st.DataObject) -> None:
    check_layer(data.draw(convolutions((1, *GROUPS))), where)


@pytest.mark.parametrize(("inputs", "outputs", "images"), [(1, 1, 1), (300, 10, 128)])
def test_linear(inputs: int, outputs: int, images: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, outputs))
    kept = np.random.default_rng(0).random((outputs, inputs)) < 0.2
    check(region(model, layer("x", "y", "0", model[0])), model, torch.randn(images, inputs), {"0": kept})


@pytest.mark.parametrize("shape", [(3, 100, 16), (2, 2, 9, 40)])
@pytest.mark.parametrize("where", sample(PROCESSORS, 1))
def test_linear_over_tokens(shape: tuple[int, ...], where: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(shape[-1], 37), nn.ReLU(), nn.Linear(37, 3))
    rng = np.random.default_rng(0)
    kept = {name: rng.random(model.get_submodule(name).weight.shape) < 0.3 for name in "02"}
    nodes = layer("x", "1", "0", model[0]), activation("1", "2", "relu"), layer("2", "y", "2", model[2])
    check(region(model, *nodes, tokens=True), model, torch.randn(shape), kept, where)


@pytest.mark.parametrize(
    ("shape", "kind"), [((2, 5, 33), "scale and shift"), ((1, 700, 1), "scale"), ((2, 2, 9, 40), "plain")]
)
@pytest.mark.parametrize("where", sample(PROCESSORS, 1))
def test_layer_norm(shape: tuple[int, ...], kind: str, where: str) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape[-1], eps=1e-4, elementwise_affine=kind != "plain", bias=kind == "scale and shift")
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, model = 3 + torch.randn(shape) * torch.rand(shape[:-1])[..., None], nn.Sequential(norm)
    check(region(model, layer_norm("x", "y", "0", norm), tokens=True), model, x, {}, where)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": functional.relu6,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("where", sample(PROCESSORS, 1))
def test_activations(act: str, where: str) -> None:
    step = RegionStep(region(nn.Module(), activation("x", "y", act), tokens=True), {}, {}, library(where))
    x = torch.cat([torch.linspace(-12, 12, 4816), torch.tensor([1e-6, -1e-6, 100.0, -100.0])])[:, None].requires_grad_()
    exact, gradient = x.detach().double().requires_grad_(), torch.randn(len(x), 1)
    (y,) = step([x])
    y.backward(gradient)
    expected = ACTIVATIONS[act](exact)
    expected.backward(gradient.double())
    assert torch.allclose(y.double(), expected, rtol=2e-6, atol=1e-6)
    assert exact.grad is not None
    assert x.grad is not None
    assert torch.allclose(x.grad.double(), exact.grad, rtol=1e-5, atol=5e-6)


class Residual(nn.Module):
    """Everything that regions know, with values that several layers read."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.b, self.c = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.d = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.e = nn.Conv2d(width, width, 1, stride=2, bias=False)
        for norm in (self.b, self.c):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.b(self.a(x)))
        second = torch.relu(self.c(self.d(first)) + first)
        third = second + first
        fourth = torch.relu(nn.functional.max_pool2d(third, 2)) + self.e(third)[:, :, :5, :4]
        return nn.functional.avg_pool2d(fourth, (2, 2)).mean((2, 3), keepdim=True)

    @property
    def region(self) -> TrainingRegion:
        return region(
            self,
            layer("x", "1", "a", self.a),
            batch_norm("1", "2", "b", act="relu"),
            layer("2", "3", "d", self.d),
            batch_norm("3", "4", "c", "2", act="relu"),
            native_node("add", ("4", "2"), "5"),
            max_pool("5", "6", (2, 2)),
            activation("6", "7", "relu"),
            layer("5", "8", "e", self.e),
            native_node("add", ("7", "8"), "9"),
            native_node("avg_pool2d", ("9",), "10", kernel=(2, 2), stride=(2, 2)),
            native_node("global_avg_pool", ("10",), "out"),
        )


@pytest.mark.parametrize("where", sample(PROCESSORS, 1))
def test_norms_sums_and_pools(where: str) -> None:
    """The last block of 21 images is not full: the rest of it counts in no statistic."""
    torch.manual_seed(3)
    model = Residual()
    rng = np.random.default_rng(1)
    kept = {name: rng.random(model.get_submodule(name).weight.shape) < 0.4 for name in "ade"}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    twin = Residual()
    twin.load_state_dict(model.state_dict())
    x = 5 + torch.randn(21, 3, 10, 8)
    with torch.no_grad():
        for name, mask in kept.items():
            twin.get_submodule(name).weight.mul_(torch.from_numpy(mask))
    twin(x)
    step = RegionStep(model.region, dict(model.named_modules()), kept, library(where))
    step([x])
    for name, norm in norms.items():
        other = twin.get_submodule(name)
        near(norm.running_mean, other.running_mean, name)
        near(norm.running_var, other.running_var, name)
        assert int(norm.num_batches_tracked) == int(other.num_batches_tracked) == 1
    check(model.region, model, x, kept, where)


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_any_max_pool(data: st.DataObject) -> None:
    """With many values that are the same: the first of them has the gradient, as in torch."""
    size, stride = (data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(2))
    padding = tuple(data.draw(st.integers(0, one // 2)) for one in size)
    height, width = (one + data.draw(st.integers(0, 12)) for one in size)
    ceil = data.draw(st.booleans())
    pool = nn.MaxPool2d(size, stride, padding, ceil_mode=ceil)  # type: ignore[arg-type]
    x = torch.randint(-3, 2, (data.draw(st.sampled_from([1, 20])), 3, height, width)).float()
    model = nn.Sequential(pool)
    check(region(model, max_pool("x", "y", size, stride, padding, ceil=ceil)), model, x, {})


def test_nan_in_a_max_pool() -> None:
    x = torch.tensor([[0.0, torch.nan, 2.0], [1.0, 3.0, torch.nan]]).view(1, 1, 2, 3)
    found, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    pool = region(nn.Module(), max_pool("x", "y", (2, 2), (1, 1)))
    (y,) = RegionStep(pool, {}, {}, library("host"))([found])
    expected = functional.max_pool2d(theirs, 2, 1)
    torch.testing.assert_close(y, expected, equal_nan=True)
    y.backward(torch.ones_like(y))
    expected.backward(torch.ones_like(expected))
    assert found.grad is not None
    assert theirs.grad is not None
    assert float(found.grad.sum()) == float(theirs.grad.sum())


def _linear_step() -> tuple[RegionStep, nn.Module]:
    model = nn.Sequential(nn.Linear(4, 3))
    whole = region(model, layer("x", "y", "0", model[0]))
    return RegionStep(whole, dict(model.named_modules()), {}, library("host")), model


def test_other_steps_and_other_weights_before_the_backward_pass() -> None:
    """Both passes share tables of weights: a step that other weights came between has its own on the way back."""
    step, model = _linear_step()
    x = torch.randn(2, 8, 4, requires_grad=True)
    first, second = step([x[0]])[0], step([x[1]])[0]
    (first.sum() - 2 * second.sum()).backward()
    weight = model[0].weight.detach().clone()
    torch.testing.assert_close(x.grad, torch.stack([weight.sum(0), -2 * weight.sum(0)])[:, None].expand(2, 8, 4))
    x.grad, first = None, step([x[0]])[0]
    model[0].weight = nn.Parameter(torch.randn(3, 4))
    second = step([x[1]])[0]
    (first.sum() + second.sum()).backward()
    expected = torch.stack([weight.sum(0), model[0].weight.detach().sum(0)])
    torch.testing.assert_close(x.grad, expected[:, None].expand(2, 8, 4))


def test_passes_and_inputs_that_are_refused() -> None:
    step, model = _linear_step()
    loss = step([torch.randn(8, 4)])[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(EngineError, match="a second time"):
        loss.backward()
    x = torch.randn(8, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(step([x])[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()
    loss = step([torch.randn(8, 4)])[0].sum()
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    for value, why in (
        (torch.randn(8, 4, dtype=torch.float64), "float64"),
        (torch.randn(8, 5), "5 channels come in, not 4"),
        (torch.randn(8, 4, 2), "images x channels"),
    ):
        with pytest.raises(EngineError, match=why):
            step([value])


def test_tensors_that_are_read_negated() -> None:
    """Inputs and gradients whose numbers in memory have the other sign: imaginary parts of conjugates."""
    step, model = _linear_step()
    x, gradient = torch.randn(8, 4), torch.randn(8, 3)
    (made,) = step([torch._neg_view(x).requires_grad_()])
    torch.testing.assert_close(made.flatten(1), model(-x))
    made.flatten(1).backward(torch._neg_view(gradient))
    torch.testing.assert_close(model[0].weight.grad, gradient.t() @ x)
