"""Numbers in a model: every float32 and int64 there is compiles, and goes through a file, as torch computes with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ticketry as tk
from engine.models import Of, assert_exact
from samples import sample
from ticketry.errors import EngineError
from ticketry_engine.compiled import load

LARGEST = torch.finfo(torch.float32).max
FLOATS = [-0.0, math.inf, -LARGEST, math.nan, 1e-45, 2.0**63, 1e31, -math.inf, LARGEST]
INTS = [2**63 - 1, -(2**63), 2**53 + 1, -1]


class WithNumber(Of):
    """Its function sees a layer, a number, and a row of that number."""

    def __init__(self, function: Callable[..., Any], number: float = 0.0) -> None:
        super().__init__(function, layer=nn.Linear(8, 8))
        self.number = number
        self.register_buffer("row", torch.full((8,), number))


def filled(m: WithNumber, x: Tensor) -> Tensor:
    return torch.softmax(m.layer(x).masked_fill(x > 0, m.number), -1)


def arithmetic(m: WithNumber, x: Tensor) -> tuple[Tensor, ...]:
    y = m.layer(x)
    return y + m.row, y * m.number, torch.where(x > 0, y, m.number), y.minimum(m.row)


def parameters(m: WithNumber, x: Tensor) -> tuple[Tensor, ...]:
    """Numbers that native operations have as attributes."""
    y = m.layer(x)
    clamped = torch.clamp(y, min=m.number), torch.clamp(y, max=m.number), F.leaky_relu(y, m.number)
    return *clamped, F.layer_norm(y, (8,), eps=abs(m.number)), F.hardtanh(y, -abs(m.number), abs(m.number))


def masked(m: WithNumber, x: Tensor) -> Tensor:
    """Attention whose mask is made in the model."""
    y = m.layer(x)[:, None]
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), m.number)
    return F.scaled_dot_product_attention(y, y, y, attn_mask=mask)


def whole(m: WithNumber, x: Tensor) -> tuple[Tensor, ...]:
    y = (x > 0).long()
    made = [(y.masked_fill(x > 1, one), y + one, torch.clamp(y, max=one)) for one in INTS]
    return m.layer(x), *(each for several in made for each in several)


def check(model: nn.Module, x: Tensor, folder: Path) -> None:
    torch.manual_seed(0)
    fast = tk.compile(model.eval(), None, x, threads=1)
    with torch.no_grad():
        wanted = model(x)
    for compiled in (fast, load(fast.save(folder / "model.tk"), threads=1)):
        made = compiled(x)
        assert isinstance(made, tuple) == isinstance(wanted, tuple)
        for found, expected in zip(made, wanted, strict=True):
            tolerances = {"rtol": 1e-4, "atol": 1e-5} if found.is_floating_point() else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(found, expected, **tolerances, equal_nan=True)


@pytest.mark.parametrize("number", sample(FLOATS, 3))
@pytest.mark.parametrize("make", [filled, arithmetic, parameters, masked])
def test_every_float_compiles(make, number, tmp_path):
    if make is masked and math.isnan(number):
        pytest.skip("torch's own kernels differ")
    check(WithNumber(make, number), torch.randn(3, 5, 8), tmp_path)


def test_integers_of_64_bits_compile(tmp_path):
    check(WithNumber(whole), torch.randn(3, 8), tmp_path)


def test_powers_and_roots_of_the_number_of_examples(tmp_path: Path) -> None:
    def weighed(m: Of, x: Tensor) -> Tensor:
        y, examples = m.layer(x), x.shape[0]
        return torch.stack([y * examples**0.5, y * math.sqrt(examples), y * examples**-0.5, y * examples**2])

    model = Of(weighed, layer=nn.Linear(8, 8)).eval()
    fast = tk.compile(model, None, torch.randn(4, 8))
    for one in (fast, load(fast.save(tmp_path / "model.tk"))):
        assert_exact(one, model, *(torch.randn(examples, 8) for examples in (1, 2, 7)))


def test_values_of_types_that_no_kernel_has_run_in_torch():
    def others(m: Of, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(m.layer(x).reshape(-1, 4, 2)) * m.turn  # as rotary embeddings do
        turned = turned * (1 - 2j) + 1j
        back = torch.view_as_real(turned).reshape(-1, 8) + torch.imag(torch.complex(x, x).conj())
        return back.to(torch.float8_e5m2).float() + torch.fft.fft(m.layer(x)).real

    model, x = Of(others, layer=nn.Linear(8, 8)).eval(), torch.randn(3, 8)
    model.register_buffer("turn", torch.polar(torch.ones(4), torch.arange(4.0)))
    with torch.no_grad():
        torch.testing.assert_close(tk.compile(model, None, x, threads=1)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [-0.0, math.inf, -math.inf, math.nan])
def test_a_float_that_is_an_argument_goes_through_a_file(number: float, tmp_path: Path) -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor, options: dict[str, float]) -> Tensor:
            return x.masked_fill(x > 0, options["float"])

    x, options = torch.randn(3, 8), {"float": number}
    made = load(tk.compile(Given(), None, (x, options)).save(tmp_path / "model.tk"))
    found, expected = made(x, options), Given()(x, options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit(), expected.signbit()) or math.isnan(number)
    with pytest.raises(EngineError, match="captured with"):
        made(x, {"float": 1.0})


def test_numbers_beyond_float32_are_left_to_torch():
    least = torch.finfo(torch.float64).min
    beyond = Of(lambda m, x: (F.leaky_relu(x.double(), 1e300), x.double().masked_fill(x > 0, least)))
    x = torch.randn(3, 8)
    torch.testing.assert_close(tk.compile(beyond, None, x)(x), beyond(x), rtol=0, atol=0)
