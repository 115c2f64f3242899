"""Operations of one name and several meanings, or that read memory: compiled, they are those of eager torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ticketry as tk
from engine.models import Of
from samples import sample
from ticketry.errors import CaptureError
from ticketry_engine import capture
from ticketry_engine.capture import batch_axis, lower_layers, lower_moves
from ticketry_engine.capture.convert import OVERLOADS
from ticketry_engine.ir.aten import has_no_written_argument

Case = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a layer's output, the input and a vector"""


def model_of(cases: Sequence[Case]) -> nn.Module:
    def function(m: Of, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(case(layer(x), x, m.vector[0]) for case, layer in zip(cases, m.layers, strict=True))

    layers = nn.ModuleList(nn.Linear(6, 6) for _ in cases)
    return Of(function, layers=layers, vector=nn.ParameterList([torch.randn(6)])).eval()


ROUNDINGS = ("floor", "trunc", None)
ALPHAS = (2, 0)


def pairs(h: Tensor) -> Tensor:
    """The features of each row as complex numbers."""
    return torch.view_as_complex(h.reshape(*h.shape[:-1], -1, 2))


def unit_length(h: Tensor) -> Tensor:
    return h.norm(dim=-1, keepdim=True).clamp_min(1e-12).expand_as(h)


def root_mean_square(h: Tensor) -> Tensor:
    return torch.sqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)


CASES: dict[str, Case] = {
    "view int32": lambda h, x, v: h.view(torch.int32).float() * 1e-9,
    "view int32 and back": lambda h, x, v: (h.view(torch.int32) & -256).view(torch.float32),
    "view int32, batch on axis 1": lambda h, x, v: (h.transpose(0, 1).contiguous().view(torch.int32) * 1e-9).mT,
    "bitwise and": lambda h, x, v: torch.bitwise_and((10 * h).int(), (10 * x).int()).float(),
    "logical and": lambda h, x, v: torch.logical_and((10 * h).int(), (10 * x).int()).float(),
    "bitwise not": lambda h, x, v: (~(10 * h).int()).float(),
    **{
        f"div by {what}, {mode}": lambda h, x, v, mode=mode, by=by: torch.div(h, by(v), rounding_mode=mode)
        for mode in ROUNDINGS
        for what, by in (("1", lambda v: 1), ("0.3", lambda v: 0.3), ("a vector", lambda v: v))
    },
    **{
        f"{what}, {mode}": lambda h, x, v, mode=mode, length=length: torch.div(h, length(h), rounding_mode=mode)
        for mode in ROUNDINGS
        for what, length in (("unit length", unit_length), ("root mean square", root_mean_square))
    },
    "root mean square over itself": lambda h, x, v: (root_mean_square(h) / h).clamp(-9, 9),
    "root of two to the power": lambda h, x, v: h * torch.rsqrt(torch.pow(2, h).mean(-1, keepdim=True) + 1e-5),
    "root with alpha": lambda h, x, v: h * torch.rsqrt(torch.add(h.pow(2).mean(-1, True), 1e-2, alpha=50)),
    "unit length of one entry": lambda h, x, v: (
        h[..., :1, :] / h[..., :1, :].norm(dim=-1, keepdim=True).clamp_min(1e-12).expand(-1, 3, 1)
    ),
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
    "clamp by a tensor": lambda h, x, v: torch.clamp(h, v),
    "clamp from above": lambda h, x, v: torch.clamp(h, None, 0),
    "clamp_min by a tensor": lambda h, x, v: torch.clamp_min(h, v),
    "threshold of another value": lambda h, x, v: F.threshold(h, 0, 2),
    "pow of a tensor": lambda h, x, v: torch.pow(h.abs(), v),
    "pow of a number": lambda h, x, v: torch.pow(2.0, h),
    "gelu with an alpha": lambda h, x, v: 0.5 * h * torch.add(torch.erf(h / 2**0.5), 1, alpha=2),
    "gelu with a power of three": lambda h, x, v: (
        0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * torch.pow(3, h))))
    ),
    "softmax in float64": lambda h, x, v: F.softmax(h, -1, dtype=torch.float64).float(),
    "mean in float64": lambda h, x, v: h.mean(1, dtype=torch.float64).float(),
    "mean of everything": lambda h, x, v: h + h.mean(),
    "sum of everything": lambda h, x, v: h + h.sum(),
    "largest of everything": lambda h, x, v: h + h.max(),
    "largest of an axis": lambda h, x, v: h.max(1)[0],
    "larger of two": lambda h, x, v: torch.max(h, x),
    "any of everything": lambda h, x, v: h * (h > 100).any(),
    "all of an axis": lambda h, x, v: (h > -1).all(-1, keepdim=True).float(),
    "to float64 and back": lambda h, x, v: (h.to(torch.float64) * 3).to(h),
    "narrow from behind": lambda h, x, v: h.narrow(-1, -3, 2),
    "narrow, start where an axis of that size could begin": lambda h, x, v: h.narrow(1, 2, 2),
    "narrow two axes at once": lambda h, x, v: h.flatten(1).narrow(1, 5, 12).view(-1, 3, 4),
    "narrow, turned": lambda h, x, v: h.narrow(1, 1, 4).transpose(1, 2),
    "a part of a part": lambda h, x, v: h[:, 1:5].narrow(1, 2, 2),
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
    "view int16": lambda h, x, v: torch.round(h).view(torch.int16).float(),
    "logical not": lambda h, x, v: torch.logical_not((10 * h).int()).float(),
    "root mean square over x": lambda h, x, v: root_mean_square(h) / (h.abs() + 1),
    "number over x": lambda h, x, v: 2 / (h.abs() + 1),
    "clamp to one number": lambda h, x, v: torch.clamp(h, 0, 0),
    "sum in float64": lambda h, x, v: h.sum(1, dtype=torch.float64).float(),
    "type_as": lambda h, x, v: h.type_as(x.half()).float(),
    "any of an axis": lambda h, x, v: (h > 0).any(1).float(),
    "mean of no axes": lambda h, x, v: h + h.mean([]),
    "to int": lambda h, x, v: (10 * h).to(torch.int64).float(),
    "place of the largest": lambda h, x, v: h.max(1)[1].float(),
    "rotary": lambda h, x, v: torch.view_as_real(pairs(h) * torch.polar(torch.ones(3), torch.arange(3.0))).flatten(-2),
    "a copied transpose": lambda h, x, v: pairs(h.transpose(1, 2).contiguous().transpose(1, 2).contiguous()).abs(),
    "a copied transpose of odd axes": lambda h, x, v: pairs(h.transpose(1, 2)[..., :4].contiguous()).imag,
    "a slice that starts between two numbers": lambda h, x, v: pairs(h[..., 1:5]).abs() if h.stride(-2) < 5 else h,
    "a copied slice": lambda h, x, v: pairs(h[..., 1:5].contiguous()).abs(),
    "a lazy conjugate that is copied": lambda h, x, v: torch.view_as_real(pairs(h).conj().clone()).flatten(-2),
    "a lazy conjugate that is resolved": lambda h, x, v: torch.view_as_real(pairs(h).mH.resolve_conj()).flatten(-3),
    "a lazy negative that a layer reads": lambda h, x, v: F.linear(pairs(h).conj().imag, v.outer(v)[:, :3]),
    "bits of a copied transpose": lambda h, x, v: h.transpose(1, 2).contiguous().view(torch.int32).double() * 1e-9,
    "bits of wider numbers": lambda h, x, v: (h.view(torch.float64).view(torch.int64) >> 32).double() * 1e-9,
    "a copied view": lambda h, x, v: torch.ops.aten.view_copy(h.transpose(1, 2).contiguous(), [h.shape[0], -1]),
    "as another": lambda h, x, v: h.transpose(1, 2).contiguous().view_as(torch.empty(h.shape[0], 6, 5)),
    "by strides": lambda h, x, v: h.clone().as_strided((h.shape[0], 3), (30, 2)) if h.dim() == 3 else h,
    "Fourier": lambda h, x, v: F.linear(torch.fft.irfft(torch.fft.rfft(h) * 2, n=6), v.outer(v)),
    "triangle of examples": lambda h, x, v: h[:, 0] + torch.ones(h.shape[0], 6).triu(-2),
    "the first examples alone": lambda h, x, v: h[:5] + torch.ones(h.shape[0], 5, 6)[:5],
}


def compared(cases: Sequence[Case], x: Tensor, *others: Tensor) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = model_of(cases)
    fast = tk.compile(model, None, x)
    found = []
    for given in (x, *others):
        with torch.no_grad():
            found += zip(fast(given), model(given), strict=True)
    assert all(made.dtype == wanted.dtype for made, wanted in found)
    return found


EXPORTED = ["narrow by a tensor", "repeats by a tensor"]
"""Cases that torch.export captures; it would capture others in their group, too."""
RECORDED = [name for name in CASES if name not in EXPORTED]


@pytest.mark.parametrize("names", [*(RECORDED[at : at + 8] for at in range(0, len(RECORDED), 8)), *zip(EXPORTED)])
def test_an_overload_means_what_it_means_in_eager_torch(names: Sequence[str]):
    more = 3 * torch.randn(4, 5, 6), torch.randn(9, 5, 6)
    found = compared([CASES[name] for name in names], torch.randn(4, 5, 6), *more)
    for name, (made, wanted) in zip(3 * [*names], found, strict=True):
        if any(word in name for word in ("floor", "trunc", "rounded")):
            assert float(((made - wanted).abs() > 1e-3).float().mean()) < 0.02, name  # rounding may tip over
        else:
            torch.testing.assert_close(made, wanted, atol=1e-3, rtol=1e-3, msg=name)


MODES: list[dict[str, object]] = [
    *({"mode": "nearest"}, {"mode": "nearest-exact"}, {"mode": "bilinear"}, {"mode": "bicubic"}),
    *({"mode": "bilinear", "align_corners": True}, {"mode": "bilinear", "antialias": True}),
]


@pytest.mark.parametrize("settings", sample([{"size": (12, 9)}, {"scale_factor": 2}, {"scale_factor": (1.5, 3.2)}], 1))
def test_interpolations(settings: dict[str, object]):
    cases = [lambda h, x, v, how=how: F.interpolate(h, **how, **settings) for how in MODES]
    for made, wanted in compared(cases, torch.randn(2, 3, 6, 6)):
        torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)


def test_strides_of_a_view_are_refused():
    model = model_of([lambda h, x, v: h.transpose(1, 2).as_strided((3, 2), (2, 6))])
    with pytest.raises(CaptureError, match="reads memory by strides"):
        tk.compile(model, None, torch.randn(4, 5, 6))


@torch.library.custom_op("ticketry_tests::by_view", mutates_args=())
def by_view(x: Tensor) -> Tensor:
    """An operation of a user's, which needs its input without gaps."""
    return x.view(x.shape[0], -1).clone()


@by_view.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x[0].numel())


def test_an_operation_of_a_users_sees_contiguous_memory():
    ((made, wanted),) = compared([lambda h, x, v: by_view(h.transpose(1, 2).contiguous())], torch.randn(4, 5, 6))
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


def test_every_listed_overload_is_one_of_torchs_and_writes_nothing():
    for name, overloads in OVERLOADS.items():
        packet = getattr(torch.ops.aten, name)
        assert overloads <= set(packet.overloads()), name
        assert all(has_no_written_argument(getattr(packet, overload)) for overload in overloads), name


def test_operations_that_rules_name_have_the_default_overload_or_are_listed():
    tables = (lower_layers.RULES, lower_moves.RULES, lower_moves._RULES, batch_axis._ROW_BY_ROW, lower_moves._PARTS)
    named = {name for table in tables for name in table} | batch_axis.VIEWS
    sources = "".join(path.read_text() for path in Path(str(capture.__file__)).parent.glob("*.py"))
    named |= set(re.findall(r'aten_name\(\w+\) (?:==|!=) "(\w+)"', sources))
    native = {"act", "slice", "concat", "transpose", "affine", "reshape", "softmax", "rotary", "flatten", "gelu_tanh"}
    native |= {"inverse_root", "add_constant", "mul_constant"}
    for name in named - set(OVERLOADS) - native - {"getitem"}:
        assert has_no_written_argument(getattr(torch.ops.aten, name).default), name
