"""Group norms, sums over pixels and products with one channel: nothing stays in torch, and all is as in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine.models import Of, assert_exact, ops, ops_in_torch
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled


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
