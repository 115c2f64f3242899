"""Values that are written in the place of one that they end: only where nothing reads that one besides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry_engine.plan.value_axes import UnsupportedError

F = nn.functional


class Model(nn.Module):
    """A convolution, what a case makes of its output, and another convolution."""

    def __init__(self, case: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 8, 1)
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.case(self, self.first(x).relu()))


def gate(y: Tensor) -> Tensor:
    return y.mean((2, 3), keepdim=True).sigmoid()


CASES: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "a gate": lambda m, y: y * gate(y),
    "a gated value that is read again": lambda m, y: m.middle(y * gate(y)) + y,
    "a gate, and a residual": lambda m, y: m.middle(m.middle(y * gate(y)).relu()) + y * 2,
    "a residual that is convolved": lambda m, y: m.middle(y) + y,
    "a sum with its own channels in another order": lambda m, y: y + F.channel_shuffle(y, 4),
    "a sum with its own halves exchanged": lambda m, y: y + torch.cat([y[:, 16:], y[:, :16]], 1),
    "a value with itself": lambda m, y: (y + y) * y,
    "sums of sums": lambda m, y: (m.middle(y) + y) + (m.middle(y).relu() + y),
}


@pytest.mark.parametrize("layout", ["planes", "pixels"])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name: str, batch: int, layout: str) -> None:
    torch.manual_seed(0)
    model, x = Model(CASES[name]).eval(), torch.randn(batch, 3, 9, 11)
    mask = tk.prune(model, 0.4, distribution="uniform")
    mask.apply_(model)
    fast = tk.compile(model, mask, x, threads=1)
    for native in fast._natives:
        native.layout = layout
    with torch.no_grad():
        wanted = model.double()(x.double())
    if layout == "pixels" and "its" in name.split():
        with pytest.raises(UnsupportedError, match="side by side"):
            fast(x)
        return
    for _ in range(2):
        assert float((fast(x) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_a_gated_value_needs_no_memory_of_its_own(layout: str) -> None:
    def arena(case: str) -> int:
        torch.manual_seed(0)
        model, x = Model(CASES[case]).eval(), torch.randn(1, 3, 32, 32)
        fast = tk.compile(model, tk.prune(model, 0.4, distribution="uniform"), x, threads=1)
        (native,) = fast._natives
        native.layout = layout
        fast(x)
        return max(program.arena for program in native.programs.values())

    plane = 32 * 32 * 32 * 4
    assert arena("a gated value that is read again") - arena("a gate") >= plane
