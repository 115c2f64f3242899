"""Storage of values: written over what nothing else reads, and copied only where they were moved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from engine.capture.test_passes import Of
from samples import sample
from ticketry_engine.capture import capture
from ticketry_engine.ir import Region
from ticketry_engine.plan.region_programs import partition_graph, sketch_region
from ticketry_engine.plan.storage import UnsupportedError

F = nn.functional


def model_of(case: str) -> nn.Module:
    """A convolution, what a case makes of its output, and another convolution."""
    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 32, 3, 1, 1), "middle": nn.Conv2d(32, 32, 3, 1, 1), "last": nn.Conv2d(32, 8, 1)}
    return Of(lambda m, x: m.last(CASES[case](m, m.first(x).relu())), **layers).eval()


def gate(y: Tensor) -> Tensor:
    return y.mean((2, 3), keepdim=True).sigmoid()


CASES: dict[str, Callable[[Of, Tensor], Tensor]] = {
    "a gate": lambda m, y: y * gate(y),
    "a gated value that is read again": lambda m, y: m.middle(y * gate(y)) + y,
    "a gate, and a residual": lambda m, y: m.middle(m.middle(y * gate(y)).relu()) + y * 2,
    "a residual that is convolved": lambda m, y: m.middle(y) + y,
    "a sum with its own channels in another order": lambda m, y: y + F.channel_shuffle(y, 4),
    "a sum with its own halves exchanged": lambda m, y: y + torch.cat([y[:, 16:], y[:, :16]], 1),
    "a value with itself": lambda m, y: (y + y) * y,
}


@pytest.mark.parametrize("layout", sample(["planes", "pixels"], 1))
@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name: str, layout: str) -> None:
    model, x = model_of(name), torch.randn(16, 3, 9, 11)
    mask = tk.prune(model, 0.4, distribution="uniform")
    mask.apply_(model)
    fast = tk.compile(model, mask, x, threads=1)
    for native in fast._natives:
        native.layout = layout
    if layout == "pixels" and "its" in name.split():
        with pytest.raises(UnsupportedError, match="side by side"):
            fast(x)
        return
    with torch.no_grad():
        wanted = model.double()(x.double())
    for batch in (16, 3, 3):
        assert float((fast(x[:batch]) - wanted[:batch]).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_a_gated_value_needs_no_memory_of_its_own() -> None:
    def arena(case: str) -> int:
        model, x = model_of(case), torch.randn(1, 3, 32, 32)
        fast = tk.compile(model, tk.prune(model, 0.4, distribution="uniform"), x, threads=1)
        (native,) = fast._natives
        native.layout = "planes"
        fast(x)
        return max(program.arena for program in native.programs.values())

    plane = 32 * 32 * 32 * 4
    assert arena("a gated value that is read again") - arena("a gate") >= plane


class Joined(nn.Module):
    """An image of twice the size beside one that is there already, as on the way up in a U-Net."""

    def __init__(self, then: str = "computed with") -> None:
        super().__init__()
        self.wide, self.small = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.up, self.last, self.then = nn.ConvTranspose2d(12, 6, 2, stride=2), nn.Conv2d(14, 5, 3, padding=1), then

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.wide(x), self.up(self.small(x))], 1)
        return self.last(joined.roll(1, 2) if self.then == "moved" else joined)


@pytest.mark.parametrize(("then", "channels"), [("computed with", [6]), ("moved", [14])])
def test_what_is_joined_to_planes_is_copied_alone(then: str, channels: list[int]) -> None:
    model, x = Joined(then).eval(), torch.randn(2, 3, 8, 10)
    graph = capture(model, None, x)
    ((region,), _) = partition_graph(graph)
    assert isinstance(region, Region)
    tasks = sketch_region(graph, region).tasks
    assert [task.output.channels for task in tasks if task.kind == "gather"] == channels
    fast = tk.compile(model, None, x)
    with torch.no_grad():
        for batch in (x, torch.randn(5, 3, 8, 10)):
            torch.testing.assert_close(fast(batch), model(batch), rtol=1e-4, atol=1e-5)
