"""Each pass: what it changes, that it changes nothing else, and that the result is the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.families import shake
from engine.models import Of, captured, ops, ops_in_torch
from interpreter import Program
from ticketry.core.mask import Mask
from ticketry_engine.capture import capture

IMAGE = (4, 6, 6)


IMAGES = torch.randn(2, *IMAGE)


CONV = {"a": nn.Conv2d(4, 4, 1)}
GATE = nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid()
FUSIONS: dict[str, tuple[str, nn.Module] | tuple[str, nn.Module, tuple[int, ...]]] = {
    "norm after a convolution": ("conv2d", nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))),
    "norm without factors after a convolution in groups": (
        "conv2d",
        nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8, affine=False)),
    ),
    "norm after a linear layer": ("linear", nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), (5,)),
    "norm of features brought to the channels": (
        "linear transpose",
        Of(lambda m, x: m.norm(m.layer(x).permute(0, 3, 1, 2)), layer=nn.Linear(6, 5), norm=nn.BatchNorm2d(5)),
    ),
    "norm of another axis": (
        "linear transpose affine",
        Of(lambda m, x: m.norm(m.layer(x).transpose(1, 2)), layer=nn.Linear(6, 5), norm=nn.BatchNorm2d(6)),
    ),
    "norm whose input is read twice": (
        "conv2d affine mul",
        Of(lambda m, x: (lambda y: m.norm(y) * y)(m.a(x)), **CONV, norm=nn.BatchNorm2d(4)),
    ),
    "norm and activation over one axis": (
        "reshape conv2d reshape affine",
        nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, stride=2, groups=2), nn.BatchNorm1d(6), nn.ReLU()),
        (4, 9),
    ),
    "norm of other channels": ("linear affine", nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), (3, 5)),
    "norm before a convolution": ("affine conv2d", nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1))),
    "a factor for each feature": (
        "linear",
        Of(lambda m, x: x + m.scale[0] * m.a(x), a=nn.Linear(6, 6), scale=nn.ParameterList([torch.randn(6)])),
        (3, 6),
    ),
    "residual, then activation": (
        "conv2d conv2d",
        Of(lambda m, x: F.relu(x + m.b(m.a(x))), **CONV, b=nn.Conv2d(4, 4, 3, padding=1)),
    ),
    "activation before the sum": ("conv2d add", Of(lambda m, x: x + F.relu(m.a(x)), **CONV)),
    "sum of two layers": ("conv2d conv2d", Of(lambda m, x: m.a(x) + m.b(x), **CONV, b=nn.Conv2d(4, 4, 1))),
    "layer read twice": ("conv2d act add", Of(lambda m, x: (lambda y: F.relu(y) + y)(m.a(x)), **CONV)),
    "layer added to itself": ("conv2d add", Of(lambda m, x: (lambda y: y + y)(m.a(x)), **CONV)),
    "sum of other shapes": (
        "conv2d global_avg_pool add",
        Of(lambda m, x: m.a(x) + x.mean((2, 3), keepdim=True), **CONV),
    ),
    "squeeze and excitation": (
        "global_avg_pool conv2d conv2d mul",
        Of(lambda m, x: m.gate(x.mean((2, 3), keepdim=True)) * x, gate=nn.Sequential(*GATE)),
    ),
    "same padding": ("conv2d", nn.Conv2d(4, 4, (3, 5), padding="same", dilation=(1, 2)), (4, 12, 12)),
    "same padding that is uneven": ("aten.conv2d.padding", nn.Conv2d(4, 4, 2, padding="same")),
    "zeros around": ("conv2d", nn.Sequential(nn.ZeroPad2d((1, 0, 2, 2)), nn.Conv2d(4, 4, 3, 2, groups=4))),
    "zeros on one side": ("conv2d", nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3)), (4, 7, 7)),
    "other numbers around": (
        "aten.pad.default conv2d",
        nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.Conv2d(4, 4, 3)),
    ),
    "rows cut off": ("slice conv2d", nn.Sequential(nn.ZeroPad2d((-1, 0, 0, 0)), nn.Conv2d(4, 4, 3))),
    "views that mix examples": (
        "aten.transpose.int aten.reshape.default aten.reshape.default act",
        Of(lambda m, x: F.relu(x.transpose(0, 1).reshape(-1, 4).view(-1, 6, 4))),
        (6, 4),
    ),
    "parametrised weights": ("conv2d", nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 5, 3))),
    "a signal that does not part evenly": (
        "reshape conv2d reshape aten.adaptive_avg_pool1d.default",
        nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.AdaptiveAvgPool1d(5)),
        (4, 16),
    ),
    "scaled activation": ("add_constant act mul mul_constant", Of(lambda m, x: x * F.relu6(x + 2) / 6)),
}
"""Name -> the operations, the model, and the shape of an example where it is no image."""


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions(name: str) -> None:
    wanted, model, *shape = FUSIONS[name]
    assert ops(captured(model, torch.randn(2, *(shape[0] if shape else IMAGE)))) == wanted.split()


NOT_QUITE = {
    "gelu of another": lambda x: x * 0.5 * (1.0 + torch.erf(x / 1.7)),
    "silu of another": lambda x: x * torch.sigmoid(1.702 * x),
    "clamp to 5": lambda x: x.clamp(0, 5),
    "clamp from 1": lambda x: x.clamp(min=1),
    "elu": F.elu,
}


@pytest.mark.parametrize("name", NOT_QUITE)
def test_similar_activations_are_left(name: str) -> None:
    graph = captured(Of(lambda m, x: NOT_QUITE[name](m.a(x)), **CONV), IMAGES)
    assert ops(graph) != ["conv2d"]


def test_a_norm_of_one_of_two_runs_of_a_layer_is_folded():
    graph = captured(Of(lambda m, x: m.norm(m.a(x)) * m.a(x).sigmoid(), **CONV, norm=nn.BatchNorm2d(4)), IMAGES)
    # A layer that runs twice has its weights folded for one of the runs only.
    assert sorted(ops(graph)) == ["conv2d", "conv2d", "mul"]
    assert len(graph.tensors) == 4


def test_zeros_stay_zeros_when_a_norm_is_folded_and_the_model_is_left_as_it_was():
    model = shake(nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)))
    mask = Mask({"0.weight": torch.rand(8, 4, 3, 3) < 0.3})
    before, gradients = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.is_grad_enabled()
    graph = capture(model, mask, IMAGES)
    assert torch.equal(graph.tensors["0.weight"] != 0, mask["0.weight"])
    assert model.training
    assert torch.is_grad_enabled() == gradients
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


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
    graph = captured(Of(lambda m, x: function(m.a(x)), **CONV), IMAGES)
    assert ops(graph) == ["conv2d"]
    assert graph.nodes[0].attrs["act"] == act
    graph = captured(Of(lambda m, x: function(x)), IMAGES)
    assert [one.attrs for one in graph.nodes] == [{"act": act}]


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
    assert ops(captured(Of(lambda m, x: function(x)), IMAGES)) == wanted


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
    assert not ops_in_torch(graph)


QKV = {name: nn.Linear(8, 8) for name in "qkvo"}
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

    graph = captured(Of(function, **QKV), torch.randn(2, 5, 8))
    assert [one.attrs["scale"] for one in graph.nodes if one.op == "attention"] == scales
    assert (not ops_in_torch(graph)) == bool(scales)
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

    found = [one for one in captured(Of(function, **QKV), torch.randn(2, 5, 8)).nodes if one.op == "attention"]
    weights = {"bias"} if mask in ("window", "of each head") else set()
    wanted = [] if mask == "of the input" else [(mask == "causal", weights)]
    assert [(one.attrs["causal"], set(one.weights)) for one in found] == wanted


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


def test_tied_weights_are_stored_once():
    model = nn.Sequential(OrderedDict(words=nn.Embedding(11, 6), out=nn.Linear(6, 11, bias=False)))
    model.out.weight = model.words.weight
    graph = capture(model, None, torch.zeros(2, 5, dtype=torch.long))
    assert list(graph.tensors) == ["words.weight"]


def test_a_layer_that_is_an_output_itself_is_left_alone():
    model = Of(lambda m, x: (lambda y: (y, F.relu(y)))(m.a(x)), **CONV).float()
    graph = capture(model, None, IMAGES)
    assert ops(graph) == ["conv2d", "act"]
    torch.testing.assert_close(Program(graph)(IMAGES), model(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize("batch_first", [False, True])
def test_multi_head_attention_is_native(batch_first: bool) -> None:
    def function(m: Of, x: Tensor) -> Tensor:
        y = x if batch_first else x.transpose(0, 1)
        made = m.attention(y, y, y, need_weights=False)[0]
        return made if batch_first else made.transpose(0, 1)

    graph = captured(Of(function, attention=nn.MultiheadAttention(8, 2, batch_first=batch_first)), torch.randn(2, 5, 8))
    assert not ops_in_torch(graph)
    assert ops(graph).count("linear") == 2
    assert ops(graph).count("attention") == 1


def test_dropout_that_is_always_on_stays_random():
    model = Of(lambda m, x: F.dropout(m.a(x), 0.5, training=True), a=nn.Linear(4, 400))
    graph = capture(model, None, torch.randn(2, 4))
    made = Program(graph)(torch.randn(3, 4))
    assert 0.3 < float((made == 0).float().mean()) < 0.7


T, D = 5, 8


def _mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def _weight() -> Tensor:
    return torch.linspace(0.5, 1.5, D).double()


NORMS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "llama": (lambda x: _weight() * (x * torch.rsqrt(_mean_square(x) + 1e-6)), True),
    "without a weight": (lambda x: x * torch.rsqrt(_mean_square(x) + 1e-5), True),
    "divided": (lambda x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5), True),
    "as a power": (lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-5).pow(-0.5) * _weight(), True),
    "torch's own": (lambda x: F.rms_norm(x, (D,), _weight(), 1e-3), True),
    "of another": (lambda x: x * torch.rsqrt(_mean_square(x + 1) + 1e-6), False),
    "over tokens": (lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6), False),
    "of cubes": (lambda x: x * torch.rsqrt(x.pow(3).abs().mean(-1, keepdim=True) + 1e-6), False),
}


@pytest.mark.parametrize("name", NORMS)
def test_root_mean_square_norms(name: str) -> None:
    function, is_one = NORMS[name]
    graph = captured(Of(lambda m, x: function(m.layer(x)), layer=nn.Linear(D, D)), torch.randn(2, T, D))
    assert (ops(graph) == ["linear", "rms_norm"]) == is_one


def _angles(width: int = D) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(float(T)), torch.linspace(1.0, 0.1, width)).double()
    return angles.cos(), angles.sin()


def _half_turned(x: Tensor) -> Tensor:
    return torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1)


def _turned(x: Tensor) -> Tensor:
    cos, sin = _angles(x.shape[-1])
    return x * cos + _half_turned(x) * sin


ROTARIES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "whole": (_turned, True),
    "a part": (lambda x: torch.cat([_turned(x[..., :4]), x[..., 4:]], -1), True),
    "without a sign": (lambda x: x * _angles()[0] + torch.cat([x[..., 4:], x[..., :4]], -1) * _angles()[1], True),
    "of another": (lambda x: x * _angles()[0] + _half_turned(x + 1) * _angles()[1], False),
    "uneven halves": (lambda x: x * _angles()[0] + torch.cat([-x[..., 3:], x[..., :3]], -1) * _angles()[1], False),
}


@pytest.mark.parametrize("name", ROTARIES)
def test_rotary_embeddings(name: str) -> None:
    function, is_one = ROTARIES[name]

    def heads(m: Of, x: Tensor) -> Tensor:
        return function(m.layer(x).view(-1, T, 3, D).transpose(1, 2))

    graph = captured(Of(heads, layer=nn.Linear(6, 3 * D)), torch.randn(2, T, 6))
    assert (ops(graph) == ["linear", "reshape", "transpose", "rotary"]) == is_one


@pytest.mark.parametrize("how", ["expand", "repeat_interleave", "enable_gqa"])
def test_heads_of_keys_that_serve_several_of_queries(how: str) -> None:
    def attend(m: Of, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, T, layer.out_features // 4, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        if how == "expand":
            k, v = (one[:, :, None].expand(-1, -1, 3, -1, -1).reshape(-1, 6, T, 4) for one in (k, v))
        elif how == "repeat_interleave":
            k, v = (one.repeat_interleave(3, 1) for one in (k, v))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=how == "enable_gqa")

    layers = {"q": nn.Linear(D, 24), "k": nn.Linear(D, 8), "v": nn.Linear(D, 8)}
    graph = captured(Of(attend, **layers), torch.randn(2, T, D))
    assert ops(graph).count("attention") == 1
    assert not ops_in_torch(graph)


SAME_FOR_ALL: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "positions": (lambda x: torch.ones(x.shape[0], T).cumsum(1).double()[..., None], True),
    "a row of each": (lambda x: torch.arange(T).expand(len(x), T)[torch.arange(len(x))].double()[..., None], True),
    "their number": (lambda x: torch.full((x.shape[0], T, 1), x.shape[0]), False),
    "which example": (lambda x: torch.arange(x.shape[0])[:, None, None], False),
    "the first few": (lambda x: (torch.arange(x.shape[0]) < 4)[:, None, None], False),
    "up to their number": (lambda x: torch.arange(2).expand(x.shape[0], 2).clamp(max=x.shape[0])[:, :1, None], False),
}


@pytest.mark.parametrize("name", SAME_FOR_ALL)
def test_what_is_the_same_for_every_example(name: str) -> None:
    """Comparison is with as many examples as were not tried."""
    function, same = SAME_FOR_ALL[name]
    graph = captured(Of(lambda m, x: x + function(x)), torch.randn(2, T, D))
    assert (ops(graph) == ["add_constant"]) == same
