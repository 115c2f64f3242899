"""What networks on tokens write out: recognised where it is just that, and computing what the model does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine.capture.test_passes import Of, captured, ops

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
    "torch's own": (lambda x: nn.functional.rms_norm(x, (D,), _weight(), 1e-3), True),
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
        return nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=how == "enable_gqa")

    layers = {"q": nn.Linear(D, 24), "k": nn.Linear(D, 8), "v": nn.Linear(D, 8)}
    graph = captured(Of(attend, **layers), torch.randn(2, T, D))
    assert ops(graph).count("attention") == 1
    assert all(one.native for one in graph.nodes)


ROWS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "positions": (lambda x: torch.ones(x.shape[0], T).cumsum(1).double()[..., None], True),
    "a row of each example": (
        lambda x: torch.arange(T).expand(x.shape[0], T)[torch.arange(x.shape[0])].double()[..., None],
        True,
    ),
    "their number": (lambda x: torch.full((x.shape[0], T, 1), x.shape[0]), False),
    "which example": (lambda x: torch.arange(x.shape[0])[:, None, None], False),
    "the first few": (lambda x: (torch.arange(x.shape[0]) < 4)[:, None, None], False),
    "up to their number": (lambda x: torch.arange(2).expand(x.shape[0], 2).clamp(max=x.shape[0])[:, :1, None], False),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_is_the_same_for_every_example(name: str) -> None:
    """Comparison is with as many examples as were not tried."""
    function, same = ROWS[name]
    graph = captured(Of(lambda m, x: x + function(x)), torch.randn(2, T, D))
    assert (ops(graph) == ["add_constant"]) == same
