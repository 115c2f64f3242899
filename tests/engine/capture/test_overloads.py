"""Operations of one name and several meanings: compiled models compute what eager torch computes, or refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ticketry as tk
from ticketry_engine import capture
from ticketry_engine.capture import batch_axis, lower_layers, lower_moves, view_chains
from ticketry_engine.capture.convert import OVERLOADS
from ticketry_engine.ir.aten import is_function


class Model(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.vector = nn.Parameter(torch.randn(6))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x), x, self.vector)


ROUNDINGS = ("floor", "trunc", None)
ALPHAS = (1, 2, -0.5, 0)

Case = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a layer's output, the input and a vector"""

CASES: dict[str, Case] = {
    "view int32": lambda h, x, v: h.view(torch.int32).float() * 1e-9,
    "view int32 and back": lambda h, x, v: (h.view(torch.int32) & -256).view(torch.float32),
    "view int16": lambda h, x, v: torch.round(h).view(torch.int16).float(),
    "view int32, batch on axis 1": lambda h, x, v: (h.transpose(0, 1).contiguous().view(torch.int32) * 1e-9).mT,
    "bitwise and": lambda h, x, v: torch.bitwise_and((10 * h).int(), (10 * x).int()).float(),
    "logical and": lambda h, x, v: torch.logical_and((10 * h).int(), (10 * x).int()).float(),
    "bitwise not": lambda h, x, v: (~(10 * h).int()).float(),
    "logical not": lambda h, x, v: torch.logical_not((10 * h).int()).float(),
    **{
        f"div by {what}, {mode}": lambda h, x, v, mode=mode, by=by: torch.div(h, by(v), rounding_mode=mode)
        for mode in ROUNDINGS
        for what, by in (("1", lambda v: 1), ("0.3", lambda v: 0.3), ("a vector", lambda v: v))
    },
    **{
        f"unit length, {mode}": lambda h, x, v, mode=mode: torch.div(
            h, h.norm(dim=-1, keepdim=True).clamp_min(1e-12).expand_as(h), rounding_mode=mode
        )
        for mode in ROUNDINGS
    },
    **{
        f"root mean square, {mode}": lambda h, x, v, mode=mode: torch.div(
            h, torch.sqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5), rounding_mode=mode
        )
        for mode in ROUNDINGS
    },
    "root mean square over x": lambda h, x, v: torch.sqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5) / (h.abs() + 1),
    "root mean square over itself": lambda h, x, v: (torch.sqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5) / h).clamp(
        -9, 9
    ),
    "root of two to the power": lambda h, x, v: h * torch.rsqrt(torch.pow(2, h).mean(-1, keepdim=True) + 1e-5),
    "root with alpha": lambda h, x, v: h * torch.rsqrt(torch.add(h.pow(2).mean(-1, True), 1e-2, alpha=50)),
    "unit length of one entry": lambda h, x, v: (
        h[..., :1, :] / h[..., :1, :].norm(dim=-1, keepdim=True).clamp_min(1e-12).expand(-1, 3, 1)
    ),
    "number over x": lambda h, x, v: 2 / (h.abs() + 1),
    "vector over x": lambda h, x, v: v / (h.abs() + 1),
    "floor of x over a number": lambda h, x, v: h // 0.5,
    "hardswish rounded": lambda h, x, v: h * torch.div(F.relu6(h + 3), 6, rounding_mode="floor"),
    **{f"add, alpha {a}": lambda h, x, v, a=a: torch.add(h, x, alpha=a) for a in ALPHAS},
    **{f"add vector, alpha {a}": lambda h, x, v, a=a: torch.add(h, v, alpha=a) for a in ALPHAS},
    **{f"vector add, alpha {a}": lambda h, x, v, a=a: torch.add(v, h, alpha=a) for a in ALPHAS},
    **{f"add number, alpha {a}": lambda h, x, v, a=a: torch.add(h, 3, alpha=a) for a in ALPHAS},
    **{f"sub, alpha {a}": lambda h, x, v, a=a: torch.sub(h, x, alpha=a) for a in ALPHAS},
    **{f"vector sub, alpha {a}": lambda h, x, v, a=a: torch.sub(v, h, alpha=a) for a in ALPHAS},
    **{f"rsub, alpha {a}": lambda h, x, v, a=a: torch.rsub(h, 3, alpha=a) for a in ALPHAS},
    **{f"rsub of a vector, alpha {a}": lambda h, x, v, a=a: torch.rsub(v, h, alpha=a) for a in ALPHAS},
    **{f"addcmul, value {a}": lambda h, x, v, a=a: torch.addcmul(v, h, v, value=a) for a in ALPHAS},
    **{f"addmm, beta {a}": lambda h, x, v, a=a: torch.addmm(v, h[:, 0], v.outer(v), beta=a, alpha=2) for a in ALPHAS},
    "linear with one bias for all": lambda h, x, v: F.linear(h, v.outer(v), v[:1]),
    "addmm with one bias for all": lambda h, x, v: torch.addmm(v[:1], h[:, 0], v.outer(v)),
    "clamp by numbers": lambda h, x, v: torch.clamp(10 * h, 0, 6),
    "clamp by a tensor": lambda h, x, v: torch.clamp(h, v),
    "clamp from above": lambda h, x, v: torch.clamp(h, None, 0),
    "clamp_min by a tensor": lambda h, x, v: torch.clamp_min(h, v),
    "clamp to one number": lambda h, x, v: torch.clamp(h, 0, 0),
    "threshold of another value": lambda h, x, v: F.threshold(h, 0, 2),
    "pow of a tensor": lambda h, x, v: torch.pow(h.abs(), v),
    "pow of a number": lambda h, x, v: torch.pow(2.0, h),
    "gelu": lambda h, x, v: F.gelu(h),
    "gelu tanh": lambda h, x, v: F.gelu(h, approximate="tanh"),
    "gelu with an alpha": lambda h, x, v: 0.5 * h * torch.add(torch.erf(h / 2**0.5), 1, alpha=2),
    "gelu with a power of three": lambda h, x, v: (
        0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * torch.pow(3, h))))
    ),
    "softmax in float64": lambda h, x, v: F.softmax(h, -1, dtype=torch.float64).float(),
    "softmax over the batch": lambda h, x, v: F.softmax(h, 0),
    "mean in float64": lambda h, x, v: h.mean(1, dtype=torch.float64).float(),
    "mean of everything": lambda h, x, v: h + h.mean(),
    "mean of no axes": lambda h, x, v: h + h.mean([]),
    "sum of everything": lambda h, x, v: h + h.sum(),
    "sum in float64": lambda h, x, v: h.sum(1, dtype=torch.float64).float(),
    "largest of everything": lambda h, x, v: h + h.max(),
    "largest of an axis": lambda h, x, v: h.max(1)[0],
    "place of the largest": lambda h, x, v: h.max(1)[1].float(),
    "larger of two": lambda h, x, v: torch.max(h, x),
    "any of everything": lambda h, x, v: h * (h > 100).any(),
    "any of an axis": lambda h, x, v: (h > 0).any(1).float(),
    "all of an axis": lambda h, x, v: (h > -1).all(-1, keepdim=True).float(),
    "to float64 and back": lambda h, x, v: (h.to(torch.float64) * 3).to(h),
    "to int": lambda h, x, v: (10 * h).to(torch.int64).float(),
    "type_as": lambda h, x, v: h.type_as(x.half()).float(),
    "narrow by a tensor": lambda h, x, v: h.narrow(1, torch.tensor(1), 3),
    "split into sizes": lambda h, x, v: torch.ops.aten.split.default(h, [1, 4], 1)[1],
    "roll of the flat tensor": lambda h, x, v: h.roll(2),
    "squeeze of every axis": lambda h, x, v: h[:, :1].unsqueeze(1).squeeze(),
    "movedim of several": lambda h, x, v: h.unsqueeze(1).movedim((1, 2), (3, 1)),
    "repeats by a tensor": lambda h, x, v: h.repeat_interleave(torch.tensor([1, 0, 2, 1, 1]), 1),
    "where of numbers": lambda h, x, v: torch.where(h > 0, 1.0, 0.0),
    "masked_fill of a tensor": lambda h, x, v: h.masked_fill(h > 0, v[0]),
    "queries broadcast": lambda h, x, v: F.scaled_dot_product_attention(
        h[:, None, None, 0].expand(-1, 1, 2, -1),
        x[:, :, None].expand(-1, -1, 3, -1),
        x[:, :, None].expand(-1, -1, 3, -1),
    ),
    "triangle of examples": lambda h, x, v: h[:, 0] + torch.ones(h.shape[0], 6).triu(-2),
    "the first examples alone": lambda h, x, v: h[:5] + torch.ones(h.shape[0], 5, 6)[:5],
}


@pytest.mark.parametrize("case", CASES)
def test_an_overload_means_what_it_means_in_eager_torch(case: str):
    torch.manual_seed(0)
    model, x = Model(CASES[case]).eval(), torch.randn(4, 5, 6)
    fast = tk.compile(model, None, x)
    for given in (x, 3 * torch.randn(4, 5, 6), torch.randn(9, 5, 6)):
        with torch.no_grad():
            wanted = model(given)
        found = fast(given)
        assert found.dtype == wanted.dtype
        if "floor" in case or "trunc" in case or "rounded" in case:
            assert float(((found - wanted).abs() > 1e-3).float().mean()) < 0.02  # rounding may tip over
        else:
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


INTERPOLATIONS = [
    (settings, mode, corners, smooth)
    for settings in ({"scale_factor": 2}, {"size": (12, 9)}, {"scale_factor": 1.5})
    for mode, corners, smooth in (
        ("nearest", None, False),
        ("nearest-exact", None, False),
        ("bilinear", False, False),
        ("bilinear", True, False),
        ("bilinear", False, True),
        ("bicubic", False, False),
    )
]


@pytest.mark.parametrize(("settings", "mode", "corners", "smooth"), INTERPOLATIONS)
def test_interpolations(settings: dict[str, object], mode: str, corners: bool | None, smooth: bool):
    def function(h: Tensor, x: Tensor, v: Tensor) -> Tensor:
        return F.interpolate(h, mode=mode, align_corners=corners, antialias=smooth, **settings)  # type: ignore[arg-type]

    torch.manual_seed(0)
    model, x = Model(function).eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(tk.compile(model, None, x)(x), model(x), atol=1e-4, rtol=1e-4)


def test_every_listed_overload_is_one_of_torchs_and_writes_nothing():
    for name, overloads in OVERLOADS.items():
        packet = getattr(torch.ops.aten, name)
        assert overloads <= set(packet.overloads()), name
        assert all(is_function(getattr(packet, overload)) for overload in overloads), name


def test_every_operation_that_a_rule_names_is_listed():
    tables = (lower_layers.RULES, lower_moves.RULES, lower_moves._RULES, batch_axis._ROW_BY_ROW, lower_moves._PARTS)
    named = {name for table in tables for name in table} | view_chains.VIEWS
    sources = "".join(path.read_text() for path in Path(str(capture.__file__)).parent.glob("*.py"))
    named |= set(re.findall(r'base\(\w+\) (?:==|!=) "(\w+)"', sources))
    for arguments in re.findall(r"made_by\((.*)\)", sources):
        named |= set(re.findall(r'(?<!\[)"(\w+)"', arguments))
    native = {"act", "slice", "concat", "transpose", "affine", "reshape", "softmax", "rotary", "flatten"}
    assert named - set(OVERLOADS) - native - {"getitem", "add_constant", "mul_constant"} == set()
