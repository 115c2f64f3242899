"""Numbers that a module's code takes from its attributes: they follow, and whole heads, parts and groups can go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from halving import check, example, groups_of, without
from ticketry.errors import StructureError


class Attention(nn.Module):
    """As vision transformers have it: number and width of heads are attributes, one matrix for all three."""

    def __init__(self, dim: int = 12, heads: int = 3, width: int = 4, *, fused: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width, heads * width
        self.qkv, self.proj = nn.Linear(dim, 3 * self.attn_dim), nn.Linear(self.attn_dim, dim)
        self.norm, self.fused = nn.LayerNorm(dim), fused

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        shape = batch, length, 3, self.num_heads, self.head_dim
        q, k, v = self.qkv(self.norm(x)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(batch, length, self.attn_dim))


class Bias(Attention):
    """A bias for each head, looked up by relative position; windows are rolled."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, self.num_heads))
        self.register_buffer("places", (torch.arange(5)[:, None] - torch.arange(5) + 4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        x = x.roll(1, 1)
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = (part.squeeze(0) for part in qkv.split(1))
        bias = self.table[self.places].permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).flatten(2)).roll(-1, 1)


@pytest.mark.parametrize("kind", ["fused", "written out", "bias"])
def test_heads_that_the_code_counts(kind: str) -> None:
    torch.manual_seed(0)
    attention = Bias() if kind == "bias" else Attention(fused=kind == "fused")
    model, x = nn.Sequential(nn.Linear(5, 12), attention, nn.Linear(12, 2)), example(2, 5, 5)
    heads = groups_of(model, x)["1.qkv"]
    assert heads.prunable
    assert heads.size == 3
    assert all(len(channel) == (4 if m.name == "1.proj.weight" else 12) for m in heads.members
               for channel in m.indices if m.name != "1.table")  # fmt: skip
    small = check(model, x, without(model, [heads]))
    assert small[1].num_heads == 2
    assert small[1].qkv.out_features == 24


def test_another_attribute_of_the_same_number_is_left_alone() -> None:
    """As many heads as each is wide: which of the two attributes counts the heads, trying shows."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 12), Attention(heads=4, width=4), nn.Linear(12, 2)), example(2, 5, 5)
    heads = groups_of(model, x)["1.qkv"]
    assert heads.prunable, heads.reason
    assert heads.size == 4
    small = check(model, x, without(model, [heads]))
    assert (small[1].num_heads, small[1].head_dim) == (2, 4)


def test_a_head_width_that_attributes_and_a_scale_fix() -> None:
    """Where the scores' scale is the module's own, heads can be narrower too; that is found first."""

    class Scaled(Attention):
        def forward(self, x: Tensor) -> Tensor:
            batch, length, _ = x.shape
            q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, self.num_heads, self.head_dim).unbind(2)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
            return x + self.proj(y.transpose(1, 2).reshape(batch, length, self.attn_dim))

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 12), Scaled(), nn.Linear(12, 2)), example(2, 5, 5)
    group = groups_of(model, x)["1.qkv"]
    assert group.prunable
    assert group.size == 4
    small = check(model, x, without(model, [group]))
    assert (small[1].num_heads, small[1].head_dim, small[1].attn_dim) == (3, 2, 6)


def test_heads_that_share_their_number_with_the_stream_stay() -> None:
    """`width // heads` of the stream, which a layer norm keeps: no other number of heads will do."""

    class Divided(Attention):
        def forward(self, x: Tensor) -> Tensor:
            batch, length, width = x.shape
            shape = batch, length, 3, self.num_heads, width // self.num_heads
            q, k, v = self.qkv(self.norm(x)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v)
            return x + self.proj(y.transpose(1, 2).reshape(batch, length, width))

    model, x = (
        nn.Sequential(nn.Linear(5, 12), Divided(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)),
        example(2, 5, 5),
    )
    groups = groups_of(model, x)
    assert not groups["1.qkv"].prunable
    assert "(in 1)" in groups["1.qkv"].reason
    assert groups["2"].prunable


class Parts(nn.Module):
    """Cut into unequal parts, each number of which is an attribute: single ones, or a list."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 10, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.narrow, self.wide, self.parts = 4, 6, [6, 4]
        self.how, self.fc = how, nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if self.how == "split":
            one, other = torch.split(x, [self.wide, self.narrow], 1)
        elif self.how == "list":
            one, other = torch.split(x, self.parts, 1)
        elif self.how == "from the end":
            one, other = x[:, : -self.narrow], x[:, -self.narrow :]
        else:
            one, other = x[:, : self.wide], x[:, self.wide :]
        return self.fc(torch.cat([self.b(one), self.c(other)], 1).mean((2, 3)))


@pytest.mark.parametrize("how", ["split", "list", "slices", "from the end"])
def test_unequal_parts(how: str) -> None:
    torch.manual_seed(0)
    model, x = Parts(how), example(2, 3, 5, 5)
    groups = [group for group in tk.structure.channel_groups(model, x) if group.prunable]
    assert sorted(group.size for group in groups) == [4, 4, 6, 6]
    small = check(model, x, without(model, groups, step=3))
    assert (small.a.out_channels, small.b.in_channels, small.c.in_channels) == (7, 4, 3)
    plan = tk.structure.shrink_plan(model, without(model, groups, step=3), x)
    again = tk.structure.rebuild(Parts(how), tk.structure.ShrinkPlan.from_bytes(plan.to_bytes()))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(x), small.eval()(x))


def test_unequal_parts_by_numbers_in_the_code_stay() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 10), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[:, :6])

    with pytest.raises(StructureError, match="it is cut into unequal parts"):
        tk.structure.channels(Plain(), example(2, 3), 0.5)


class Several(nn.Module):
    """Parts of one width, taken by it (Res2Net), or by half of the whole (CSPNet)."""

    def __init__(self, *, halves: bool) -> None:
        super().__init__()
        self.width, self.whole, self.halves = 4, 8, halves
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.a(x).split(self.whole // 2 if self.halves else self.width, 1)
        return self.fc(torch.cat([self.b(one), other], 1).mean((2, 3)))


@pytest.mark.parametrize("halves", [False, True])
def test_equal_parts_of_a_width_that_is_an_attribute(halves: bool) -> None:
    torch.manual_seed(0)
    model, x = Several(halves=halves), example(2, 3, 5, 5)
    groups = groups_of(model, x)
    assert groups["a"].size == 4
    small = check(model, x, without(model, groups.values()))
    assert (small.width, small.whole) == ((4, 4) if halves else (2, 8)), "one that is not read may stand for anything"


def test_a_number_that_stands_for_two_things_is_left_alone() -> None:
    """Both widths are 6, and so is the attribute that the code uses for one of them."""

    class Twofold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.a, self.b, self.c = 6, nn.Linear(3, 12), nn.Linear(12, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x).reshape(-1, 2, self.width).flatten(1))
            return self.c(F.relu(self.b(x).unflatten(1, (2, -1)).flatten(1)))

    torch.manual_seed(0)
    model, x = Twofold(), example(4, 3)
    groups = groups_of(model, x)
    assert groups["b"].prunable or "not the same" in groups["b"].reason
    small = check(model, x, without(model, groups.values()))
    assert small.c.in_features == small.b.out_features


def test_a_convolution_by_depth_with_a_fixed_filter() -> None:
    """Blurring before each subsampling; the number of its groups is the module's own."""

    class Blur(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels
            self.register_buffer("filter", (torch.ones(1, 1, 3, 3) / 9).repeat(channels, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.filter, stride=2, groups=self.channels)

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), Blur(8), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
    model, x = nn.Sequential(*layers), example(2, 3, 9, 9)
    groups = groups_of(model, x)
    assert groups["0"].prunable
    small = check(model, x, without(model, groups.values()))
    assert small[2].channels == 4
    assert small[2].filter.shape[0] == 4


def test_a_plan_sets_numbers_alone() -> None:
    model, x = Several(halves=False), example(2, 3, 5, 5)
    plan = tk.structure.shrink_plan(model, without(model, tk.structure.channel_groups(model, x)), x)
    for name in ("halves", "forward", "a", "absent", "whole.0"):
        hostile = tk.structure.ShrinkPlan(plan.shapes, plan.kept, {"": {name: 1}})
        with pytest.raises(StructureError, match=f"a number '{name}' of the module ''"):
            tk.structure.rebuild(model, hostile)


class _Attends(nn.Module):
    """Attention whose values lie in another order than the fused kernel takes, so that it runs as products."""

    def __init__(self) -> None:
        super().__init__()
        self.to_all, self.out = nn.Linear(6, 3 * 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_all(x).transpose(1, 2).reshape(len(x), 1, 24, -1).transpose(2, 3).chunk(3, 3)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))


def test_a_scale_from_a_width_is_seen_where_attention_runs_as_products() -> None:
    """Even where weights are so small that hardly anything comes of the scale."""
    model = _Attends()
    with torch.no_grad():
        model.to_all.weight[:16] *= 1e-4
    assert "scales its scores by the width" in groups_of(model, example(2, 5, 6))["to_all"].reason
