"""Operations that read the memory of a tensor see the layout they need, whatever the engine computed before them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from engine.capture.test_passes import Of
from samples import sample
from ticketry.errors import CaptureError


def model_of(function: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    return Of(lambda m, x: function(m.layer(x), m.layer.weight), layer=nn.Linear(6, 6)).eval()


def pairs(h: Tensor) -> Tensor:
    """The features of each row as complex numbers."""
    return torch.view_as_complex(h.reshape(*h.shape[:-1], -1, 2))


CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rotary": lambda h, w: torch.view_as_real(pairs(h) * torch.polar(torch.ones(3), torch.arange(3.0))).flatten(-2),
    "a copied transpose": lambda h, w: pairs(h.transpose(1, 2).contiguous().transpose(1, 2).contiguous()).abs(),
    "a copied transpose of odd axes": lambda h, w: pairs(h.transpose(1, 2)[..., :4].contiguous()).imag,
    "a slice that starts between two numbers": lambda h, w: pairs(h[..., 1:5]).abs() if h.stride(-2) < 5 else h,
    "a copied slice": lambda h, w: pairs(h[..., 1:5].contiguous()).abs(),
    "a lazy conjugate that is copied": lambda h, w: torch.view_as_real(pairs(h).conj().clone()).flatten(-2),
    "a lazy conjugate that is resolved": lambda h, w: torch.view_as_real(pairs(h).mH.resolve_conj()).flatten(-3),
    "a lazy negative that a layer reads": lambda h, w: nn.functional.linear(pairs(h).conj().imag, w[:, :3]),
    "bits of a copied transpose": lambda h, w: h.transpose(1, 2).contiguous().view(torch.int32).double() * 1e-9,
    "bits of wider numbers": lambda h, w: (h.view(torch.float64).view(torch.int64) >> 32).double() * 1e-9,
    "a copied view": lambda h, w: torch.ops.aten.view_copy(h.transpose(1, 2).contiguous(), [h.shape[0], -1]),
    "as another": lambda h, w: h.transpose(1, 2).contiguous().view_as(torch.empty(h.shape[0], 6, 5)),
    "by strides": lambda h, w: h.clone().as_strided((h.shape[0], 3), (30, 2)) if h.dim() == 3 else h,
    "Fourier": lambda h, w: nn.functional.linear(torch.fft.irfft(torch.fft.rfft(h) * 2, n=6), w),
}


@pytest.mark.parametrize("case", sample(CASES, [*CASES][::2]))
def test_what_reads_memory_gives_what_eager_torch_gives(case: str):
    torch.manual_seed(0)
    model, x = model_of(CASES[case]), torch.randn(4, 5, 6)
    mask = tk.prune(model, density=0.7)
    fast = tk.compile(model, mask, x)
    mask.apply_(model)
    for given in (x, torch.randn(7, 5, 6)):
        with torch.no_grad():
            wanted = model(given)
        torch.testing.assert_close(fast(given), wanted, atol=1e-3, rtol=1e-3)


def test_strides_of_a_view_are_refused():
    model = model_of(lambda h, w: h.transpose(1, 2).as_strided((3, 2), (2, 6)))
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
    model = model_of(lambda h, w: by_view(h.transpose(1, 2).contiguous()))
    x = torch.randn(4, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(tk.compile(model, None, x)(x), model(x), atol=1e-5, rtol=1e-5)
