"""Numbers in a model: every float32 and int64 there is compiles, and goes through a file, as torch computes with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ticketry as tk
from samples import sample
from ticketry.errors import EngineError
from ticketry_engine.compiled import load

LARGEST = torch.finfo(torch.float32).max
FLOATS = [-0.0, math.inf, -LARGEST, math.nan, 1e-45, 2.0**63, 1e31, -math.inf, LARGEST]
INTS = [2**63 - 1, -(2**63), 2**53 + 1, -1]


class WithLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)


class WithNumber(WithLayer):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number
        self.register_buffer("row", torch.full((8,), number))


class Filled(WithNumber):
    """What attention masks do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.layer(x).masked_fill(x > 0, self.number), -1)


class Arithmetic(WithNumber):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.layer(x)
        return y + self.row, y * self.number, torch.where(x > 0, y, self.number), y.minimum(self.row)


class Parameters(WithNumber):
    """Numbers that native operations have as attributes."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.layer(x)
        clamped = torch.clamp(y, min=self.number), torch.clamp(y, max=self.number), F.leaky_relu(y, self.number)
        return *clamped, F.layer_norm(y, (8,), eps=abs(self.number)), F.hardtanh(y, -abs(self.number), abs(self.number))


class Masked(WithNumber):
    """Attention whose mask is made in the model."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)[:, None]
        mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), self.number)
        return F.scaled_dot_product_attention(y, y, y, attn_mask=mask)


class Whole(WithLayer):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = (x > 0).long()
        made = [(y.masked_fill(x > 1, one), y + one, torch.clamp(y, max=one)) for one in INTS]
        return self.layer(x), *(each for several in made for each in several)


def check(model: nn.Module, x: Tensor, folder) -> None:
    torch.manual_seed(0)
    fast = tk.compile(model.eval(), None, x, threads=1)
    with torch.no_grad():
        wanted = model(x)
    for compiled in (fast, load(fast.save(folder / "model.tk"), threads=1)):
        made = compiled(x)
        assert isinstance(made, tuple) == isinstance(wanted, tuple)
        for found, expected in zip(made, wanted, strict=True):
            assert found.dtype == expected.dtype
            if found.is_floating_point():
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
            else:
                assert torch.equal(found, expected)


@pytest.mark.parametrize("number", sample(FLOATS, 3))
@pytest.mark.parametrize("make", [Filled, Arithmetic, Parameters, Masked])
def test_every_float_compiles(make, number, tmp_path):
    if make is Masked and math.isnan(number):
        pytest.skip("torch's own kernels differ")
    check(make(number), torch.randn(3, 5, 8), tmp_path)


def test_integers_of_64_bits_compile(tmp_path):
    check(Whole(), torch.randn(3, 8), tmp_path)


class Weighed(WithLayer):
    """A layer times powers of the number of examples."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, examples = self.layer(x), x.shape[0]
        return y * examples**0.5, y * math.sqrt(examples), y * examples**-0.5, y * examples**2


def test_powers_and_roots_of_the_number_of_examples(tmp_path: Path) -> None:
    model = Weighed().eval()
    fast = tk.compile(model, None, torch.randn(4, 8))
    again = load(fast.save(tmp_path / "model.tk"))
    for examples in (1, 2, 7):
        x = torch.randn(examples, 8)
        with torch.no_grad():
            wanted = model(x)
        for one in (fast, again):
            torch.testing.assert_close(one(x), wanted, rtol=1e-4, atol=1e-5)


def test_values_of_types_that_no_kernel_has_run_in_torch():
    class Others(WithLayer):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("turn", torch.polar(torch.ones(4), torch.arange(4.0)))

        def forward(self, x: Tensor) -> Tensor:
            turned = torch.view_as_complex(self.layer(x).reshape(-1, 4, 2)) * self.turn  # as rotary embeddings do
            turned = turned * (1 - 2j) + 1j
            back = torch.view_as_real(turned).reshape(-1, 8) + torch.imag(torch.complex(x, x).conj())
            return back.to(torch.float8_e5m2).float() + torch.fft.fft(self.layer(x)).real

    model, x = Others().eval(), torch.randn(3, 8)
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
    class Beyond(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x = x.double()
            return F.leaky_relu(x, 1e300), x.masked_fill(x > 0, torch.finfo(torch.float64).min)

    x = torch.randn(3, 8)
    for found, wanted in zip(tk.compile(Beyond(), None, x)(x), Beyond()(x), strict=True):
        assert torch.equal(found, wanted)
