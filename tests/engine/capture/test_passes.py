"""Each pass: what it changes, that it changes nothing else, and that the result is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.families import shake
from interpreter import Program
from ticketry.core.mask import Mask
from ticketry_engine.capture import capture
from ticketry_engine.ir import Graph


class Of(nn.Module):
    """A model that is a function of some modules and an input."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def captured(model: nn.Module, x: Tensor) -> Graph:
    """The graph, after a comparison with the model in float64 on three times as many examples."""
    model, x = shake(model.double().eval()), x.double()
    graph = capture(model, None, x)
    more = torch.randn(3 * len(x), *x.shape[1:], dtype=torch.float64) * 3
    with torch.no_grad():
        wanted = model(more)
    made = Program(graph)(more)
    assert torch.allclose(made, wanted, rtol=1e-10, atol=1e-11)
    return graph


def ops(graph: Graph) -> list[str]:
    return [one.op for one in graph.nodes]


IMAGE = (4, 6, 6)


def images() -> Tensor:
    return torch.randn(2, *IMAGE)


# -- norms -------------------------------------------------------------------------------------------------------------


FUSIONS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "norm after a convolution": (nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)), IMAGE, ["conv2d"]),
    "norm without factors after a convolution in groups": (
        nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8, affine=False)),
        IMAGE,
        ["conv2d"],
    ),
    "norm after a linear layer": (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), (5,), ["linear"]),
    "norm of features brought to the channels": (
        Of(lambda m, x: m.norm(m.layer(x).permute(0, 3, 1, 2)), layer=nn.Linear(6, 5), norm=nn.BatchNorm2d(5)),
        IMAGE,
        ["linear", "transpose"],
    ),
    "norm of another axis": (
        Of(lambda m, x: m.norm(m.layer(x).transpose(1, 2)), layer=nn.Linear(6, 5), norm=nn.BatchNorm2d(6)),
        IMAGE,
        ["linear", "transpose", "affine"],
    ),
    "norm whose input is read twice": (
        Of(lambda m, x: (lambda y: m.norm(y) * y)(m.conv(x)), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        IMAGE,
        ["conv2d", "affine", "mul"],
    ),
    "norm and activation over one axis": (
        nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, stride=2, groups=2), nn.BatchNorm1d(6), nn.ReLU()),
        (4, 9),
        ["reshape", "conv2d", "reshape", "affine"],
    ),
    "norm of other channels": (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), (3, 5), ["linear", "affine"]),
    "norm before a convolution": (
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)),
        IMAGE,
        ["affine", "conv2d"],
    ),
    "a factor for each feature": (
        Of(lambda m, x: x + m.scale[0] * m.a(x), a=nn.Linear(6, 6), scale=nn.ParameterList([torch.randn(6)])),
        (3, 6),
        ["linear"],
    ),
    "residual, then activation": (
        Of(lambda m, x: F.relu(x + m.b(m.a(x))), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 3, padding=1)),
        IMAGE,
        ["conv2d", "conv2d"],
    ),
    "activation before the sum": (Of(lambda m, x: x + F.relu(m.a(x)), a=nn.Conv2d(4, 4, 1)), IMAGE, ["conv2d", "add"]),
    "sum of two layers": (
        Of(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1)),
        IMAGE,
        ["conv2d", "conv2d"],
    ),
    "layer read twice": (
        Of(lambda m, x: (lambda y: F.relu(y) + y)(m.a(x)), a=nn.Conv2d(4, 4, 1)),
        IMAGE,
        ["conv2d", "act", "add"],
    ),
    "layer added to itself": (
        Of(lambda m, x: (lambda y: y + y)(m.a(x)), a=nn.Conv2d(4, 4, 1)),
        IMAGE,
        ["conv2d", "add"],
    ),
    "sum of other shapes": (
        Of(lambda m, x: m.a(x) + x.mean((2, 3), keepdim=True), a=nn.Conv2d(4, 4, 1)),
        IMAGE,
        ["conv2d", "global_avg_pool", "add"],
    ),
    "squeeze and excitation": (
        Of(
            lambda m, x: torch.sigmoid(m.b(F.relu(m.a(x.mean((2, 3), keepdim=True))))) * x,
            a=nn.Conv2d(4, 2, 1),
            b=nn.Conv2d(2, 4, 1),
        ),
        IMAGE,
        ["global_avg_pool", "conv2d", "conv2d", "mul"],
    ),
    "same padding": (nn.Conv2d(4, 4, (3, 5), padding="same", dilation=(1, 2)), (4, 12, 12), ["conv2d"]),
    "same padding that is uneven": (nn.Conv2d(4, 4, 2, padding="same"), IMAGE, ["aten.conv2d.padding"]),
    "zeros around": (nn.Sequential(nn.ZeroPad2d((1, 0, 2, 2)), nn.Conv2d(4, 4, 3, 2, groups=4)), IMAGE, ["conv2d"]),
    "zeros on one side": (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3)), (4, 7, 7), ["conv2d"]),
    "other numbers around": (
        nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.Conv2d(4, 4, 3)),
        IMAGE,
        ["aten.pad.default", "conv2d"],
    ),
    "rows cut off": (nn.Sequential(nn.ZeroPad2d((-1, 0, 0, 0)), nn.Conv2d(4, 4, 3)), IMAGE, ["slice", "conv2d"]),
    "views that mix examples": (
        Of(lambda m, x: F.relu(x.transpose(0, 1).reshape(-1, 4).view(-1, 6, 4))),
        (6, 4),
        ["aten.transpose.int", "aten.reshape.default", "aten.reshape.default", "act"],
    ),
    "parametrised weights": (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 5, 3)), IMAGE, ["conv2d"]),
    "a signal that does not part evenly": (
        nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.AdaptiveAvgPool1d(5)),
        (4, 16),
        ["reshape", "conv2d", "reshape", "aten.adaptive_avg_pool1d.default"],
    ),
    "scaled activation": (
        Of(lambda m, x: x * F.relu6(x + 2) / 6),
        IMAGE,
        ["add_constant", "act", "mul", "mul_constant"],
    ),
}


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions(name: str) -> None:
    model, shape, wanted = FUSIONS[name]
    assert ops(captured(model, torch.randn(2, *shape))) == wanted


NOT_QUITE = {
    "hardswish of another": lambda x: x * F.relu6(x + 2) / 6,
    "gelu of another": lambda x: x * 0.5 * (1.0 + torch.erf(x / 1.7)),
    "silu of another": lambda x: x * torch.sigmoid(1.702 * x),
    "clamp to 5": lambda x: x.clamp(0, 5),
    "clamp from 1": lambda x: x.clamp(min=1),
    "difference": lambda x: torch.sub(x, x.sigmoid(), alpha=2),
    "weighted sum": lambda x: torch.add(x, x.sigmoid(), alpha=2),
    "floor": lambda x: torch.div(x, 1.0, rounding_mode="floor"),
    "elu": F.elu,
}


@pytest.mark.parametrize("name", NOT_QUITE)
def test_similar_activations_are_left(name: str) -> None:
    graph = captured(Of(lambda m, x: NOT_QUITE[name](m.conv(x)), conv=nn.Conv2d(4, 4, 1)), images())
    assert ops(graph) != ["conv2d"]


def test_a_norm_of_one_of_two_runs_of_a_layer_is_folded():
    model = Of(lambda m, x: m.norm(m.conv(x)) * m.conv(x).sigmoid(), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4))
    graph = captured(model, images())
    # A layer that runs twice has its weights folded for one of the runs only.
    assert sorted(ops(graph)) == ["conv2d", "conv2d", "mul"]
    assert len(graph.tensors) == 4


def test_zeros_stay_zeros_when_a_norm_is_folded():
    model = shake(nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)))
    mask = Mask({"0.weight": torch.rand(8, 4, 3, 3) < 0.3})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = capture(model, mask, images())
    assert torch.equal(graph.tensors["0.weight"] != 0, mask["0.weight"])
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- activations and residuals -----------------------------------------------------------------------------------------

ACTS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "relu": ("relu", F.relu),
    "clamp": ("relu", lambda x: x.clamp(min=0)),
    "relu6": ("relu6", F.relu6),
    "clamp to 6": ("relu6", lambda x: x.clamp(0, 6)),
    "silu": ("silu", F.silu),
    "silu by hand": ("silu", lambda x: x * torch.sigmoid(x)),
    "gelu": ("gelu", F.gelu),
    "gelu by hand": ("gelu", lambda x: x * 0.5 * (1.0 + torch.erf(x / 2**0.5))),
    "gelu tanh": ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    "gelu tanh by hand": (
        "gelu_tanh",
        lambda x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0)))),
    ),
    "hardswish": ("hardswish", F.hardswish),
    "hardswish by hand": ("hardswish", lambda x: x * F.relu6(x + 3) / 6),
    "hardswish by halves": ("hardswish", lambda x: x * (F.relu6(x + 3.0) * (1 / 6))),
    "hardsigmoid": ("hardsigmoid", F.hardsigmoid),
    "hardsigmoid by hand": ("hardsigmoid", lambda x: F.relu6(x + 3) / 6),
    "sigmoid": ("sigmoid", torch.sigmoid),
    "tanh": ("tanh", torch.tanh),
    "leaky": ({"leaky_relu": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
}


@pytest.mark.parametrize("name", ACTS)
def test_activations_are_recognised_and_fused(name: str) -> None:
    act, function = ACTS[name]
    graph = captured(Of(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(4, 4, 1)), images())
    assert ops(graph) == ["conv2d"]
    assert graph.nodes[0].attrs["act"] == act
    graph = captured(Of(lambda m, x: function(x)), images())
    assert [one.attrs for one in graph.nodes] == [{"act": act}]


# -- one to one --------------------------------------------------------------------------------------------------------

ONE: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "mean": (lambda x: x.mean([-1, -2]), ["global_avg_pool"]),
    "mean of channels": (lambda x: x.mean(1), ["aten.mean.dim"]),
    "mean, channels last": (lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), ["global_avg_pool"]),
    "mean of tokens": (lambda x: x.flatten(2).transpose(1, 2).mean(1), ["reshape", "global_avg_pool"]),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1), ["global_avg_pool"]),
    "adaptive, even": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), ["avg_pool2d"]),
    "adaptive, uneven": (lambda x: F.adaptive_avg_pool2d(x, 4), ["aten.adaptive_avg_pool2d.default"]),
    "adaptive to the same": (lambda x: F.adaptive_avg_pool2d(x, 6) + 1, ["add_constant"]),
    "whole average": (lambda x: F.avg_pool2d(x, 6), ["global_avg_pool"]),
    "average": (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), ["avg_pool2d"]),
    "average by another number": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), ["aten.avg_pool2d.default"]),
    "maximum": (lambda x: F.max_pool2d(x, 3, 2, 1, 2, ceil_mode=True), ["max_pool2d"]),
    "maximum and where": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], ["max_pool2d"]),
    "flatten": (lambda x: x.flatten(1), ["flatten"]),
    "view": (lambda x: x.view(len(x), -1), ["flatten"]),
    "view and back": (lambda x: F.relu(x.view(len(x), -1).view_as(x)), ["act"]),
    "nothing": (lambda x: F.relu(F.dropout(x.contiguous().clone().detach(), 0.5, False).expand_as(x) * 1), ["act"]),
    "slice": (lambda x: F.relu(x[:, 1:3]), ["slice", "act"]),
    "slice from the end": (lambda x: F.relu(x[:, -3:, 2:-1]), ["slice", "slice", "act"]),
    "every second": (lambda x: F.relu(x[:, ::2]), ["reshape", "slice", "reshape", "act"]),
    "one channel": (lambda x: F.relu(x[:, 2]), ["slice", "reshape", "act"]),
    "chunks": (lambda x: torch.cat([F.relu(x.chunk(3, 1)[1]), x], 1), ["slice", "act", "concat"]),
    "splits": (lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1), ["slice", "slice", "concat"]),
    "equal splits": (lambda x: torch.cat(x.split(3, 1)[::-1], 1), ["slice", "slice", "concat"]),
    "unbind": (lambda x: x.unbind(1)[1] * x.unbind(1)[3], ["slice", "reshape", "slice", "reshape", "mul"]),
    "transposes": (lambda x: F.relu(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)), ["act"]),
    "transpose": (lambda x: F.relu(x.transpose(1, -1)), ["transpose", "act"]),
    "softmax": (lambda x: x.softmax(-1), ["softmax"]),
    "softmax over the batch": (lambda x: x.softmax(0), ["aten.softmax.int"]),
    "layer norm": (lambda x: F.layer_norm(x, (6,)), ["layer_norm"]),
    "layer norm of two axes": (lambda x: F.layer_norm(x, (6, 6)), ["aten.layer_norm.default"]),
    "shuffle": (
        lambda x: F.relu(x.view(-1, 2, 2, 6, 6).transpose(1, 2).reshape(-1, 4, 6, 6)),
        ["channel_shuffle", "act"],
    ),
    "shuffle of torch's": (lambda x: F.channel_shuffle(x, 2), ["channel_shuffle"]),
    "constant": (lambda x: x + torch.arange(6).float().double().sin() * 2, ["add_constant"]),
    "constant for each channel": (lambda x: x * torch.arange(4.0).double().view(4, 1, 1), ["affine"]),
}


@pytest.mark.parametrize("name", ONE)
def test_operations(name: str) -> None:
    function, wanted = ONE[name]
    assert ops(captured(Of(lambda m, x: function(x)), images())) == wanted


SIGNAL = nn.Conv1d(4, 6, 3, padding=1)
OVER_ONE_AXIS = {
    "max": (nn.MaxPool1d(3, 2, 1), "max_pool2d"),
    "max, dilated, rounded up": (nn.MaxPool1d(2, 2, dilation=2, ceil_mode=True), "max_pool2d"),
    "mean": (nn.AvgPool1d(4), "avg_pool2d"),
    "mean without what is padded": (nn.AvgPool1d(3, 2, 1, count_include_pad=False), "avg_pool2d"),
    "mean of all places": (nn.AvgPool1d(16), "global_avg_pool"),
    "mean of all and of zeros around": (nn.AvgPool1d(18, padding=1), "avg_pool2d"),
    "to as many places": (nn.AdaptiveAvgPool1d(16), "conv2d"),
    "to four places": (nn.AdaptiveAvgPool1d(4), "avg_pool2d"),
    "to one place": (nn.AdaptiveAvgPool1d(1), "global_avg_pool"),
    "written out": (Of(lambda m, x: x.mean(-1)), "global_avg_pool"),
}


@pytest.mark.parametrize("name", OVER_ONE_AXIS)
def test_poolings_over_one_axis(name: str) -> None:
    pooling, wanted = OVER_ONE_AXIS[name]
    graph = captured(nn.Sequential(SIGNAL, pooling), torch.randn(3, 4, 16))
    assert ops(graph).count(wanted) == 1
    assert all(one.native for one in graph.nodes)


# -- attention and rows ------------------------------------------------------------------------------------------------


def qkv() -> dict[str, nn.Module]:
    return {name: nn.Linear(8, 8) for name in "qkvo"}


# From queries and values by head and keys by place: (batch, heads, places, 4) and (batch, places, heads, 4).
ATTENTION: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], list[float]]] = {
    "by hand": (lambda q, k, v: ((q * 0.5) @ k.transpose(1, 2).transpose(-1, -2)).softmax(-1) @ v, [0.5]),
    "keys turned at once": (lambda q, k, v: (q @ k.permute(0, 2, 3, 1) / 2).softmax(-1) @ v, [0.5]),
    "over queries": (lambda q, k, v: (q @ k.transpose(1, 2).transpose(-1, -2)).softmax(2) @ v, []),
    "over heads": (lambda q, k, v: (q @ k.transpose(1, 2).transpose(-1, -2)).softmax(1) @ v, []),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_by_hand(name: str) -> None:
    attend, scales = ATTENTION[name]

    def function(m: Of, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], 2, 4) for layer in (m.q, m.k, m.v))
        return m.o(attend(q.transpose(1, 2), k, v.transpose(1, 2)).transpose(1, 2).reshape(x.shape))

    graph = captured(Of(function, **qkv()), torch.randn(2, 5, 8))
    assert [one.attrs["scale"] for one in graph.nodes if one.op == "attention"] == scales
    assert all(one.native for one in graph.nodes) == bool(scales)
    assert ({"softmax", "aten.matmul.default"} & set(ops(graph)) == set()) == bool(scales)


@pytest.mark.parametrize("mask", ["none", "all seen", "zeros", "causal", "window", "of each head", "of the input"])
def test_masks_of_attention(mask: str) -> None:
    seen = torch.ones(5, 5, dtype=torch.bool)
    masks = {
        "none": None,
        "all seen": seen,
        "zeros": torch.zeros(5, 5, dtype=torch.float64),
        "causal": seen.tril(),
        "window": seen.tril().triu(-1),
        "of each head": torch.randn(2, 5, 5, dtype=torch.float64),
    }

    def function(m: Of, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        given = x[:, None, :, :5] if mask == "of the input" else masks[mask]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=given)

    found = [one for one in captured(Of(function, **qkv()), torch.randn(2, 5, 8)).nodes if one.op == "attention"]
    assert len(found) == (mask != "of the input")
    assert [one.attrs["causal"] for one in found] == [mask == "causal"] * len(found)
    assert [set(one.weights) for one in found] == [{"bias"} if mask in ("window", "of each head") else set()] * len(
        found
    )


ROWS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "examples first": lambda layer, x: layer(x.reshape(-1, 6)).view(*x.shape[:3], 5),
    "examples last": lambda layer, x: layer(x.transpose(0, 1).reshape(-1, 6)).view(3, -1, 4, 5).transpose(0, 1),
    "turned": lambda layer, x: layer(x.permute(2, 1, 0, 3)).permute(2, 1, 0, 3),
    "windows": lambda layer, x: layer(x.reshape(-1, 3, 2, 2, 6).transpose(1, 2).reshape(-1, 6, 6)).view(-1, 2, 6, 5),
    "a part": lambda layer, x: layer(x.reshape(-1, 4, 6))[:, 2].view(-1, 3, 5),
    "flipped": lambda layer, x: layer(x.flip(1).reshape(-1, 6)).view(*x.shape[:3], 5),
    "flipped with the batch": lambda layer, x: layer(x.reshape(-1, 6).flip(0)).view(*x.shape[:3], 5),
    "product": lambda layer, x: (x.reshape(-1, 6) @ layer.weight.t()).view(*x.shape[:3], 5),
    "sum and product": lambda layer, x: torch.addmm(layer.bias, x.reshape(-1, 6), layer.weight.t()).view(
        *x.shape[:3], 5
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_linear_layers_see_rows_in_any_order(name: str) -> None:
    graph = captured(Of(lambda m, x: ROWS[name](m.layer, x), layer=nn.Linear(6, 5)), torch.randn(2, 3, 4, 6))
    assert ops(graph).count("linear") == 1
    assert not {"aten.linear.default", "aten.addmm.default", "aten.mm.default"} & set(ops(graph))


# -- weights -----------------------------------------------------------------------------------------------------------


def test_tied_weights_are_stored_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(11, 6)
            self.out = nn.Linear(6, 11, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.words(x))

    graph = capture(Tied(), None, torch.zeros(2, 5, dtype=torch.long))
    assert list(graph.tensors) == ["words.weight"]


def test_a_layer_that_is_an_output_itself_is_left_alone():
    model = Of(lambda m, x: (lambda y: (y, F.relu(y)))(m.a(x)), a=nn.Conv2d(4, 4, 1))
    graph = capture(model, None, images())
    assert ops(graph) == ["conv2d", "act"]
    x = images()
    with torch.no_grad():
        assert all(torch.equal(made, wanted) for made, wanted in zip(Program(graph)(x), model(x), strict=True))


@pytest.mark.parametrize("batch_first", [False, True])
def test_multi_head_attention_is_native(batch_first: bool) -> None:
    def function(m: Of, x: Tensor) -> Tensor:
        y = x if batch_first else x.transpose(0, 1)
        made = m.attention(y, y, y, need_weights=False)[0]
        return made if batch_first else made.transpose(0, 1)

    graph = captured(Of(function, attention=nn.MultiheadAttention(8, 2, batch_first=batch_first)), torch.randn(2, 5, 8))
    assert all(one.native for one in graph.nodes)
    assert ops(graph).count("linear") == 2
    assert ops(graph).count("attention") == 1


def test_dropout_that_is_always_on_stays_random():
    graph = capture(
        Of(lambda m, x: F.dropout(m.a(x), 0.5, training=True), a=nn.Linear(4, 400)), None, torch.randn(2, 4)
    )
    made = Program(graph)(torch.randn(3, 4))
    assert 0.3 < float((made == 0).float().mean()) < 0.7
