"""Where values are put: copies are of what was moved alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry_engine.capture import capture
from ticketry_engine.ir import Region
from ticketry_engine.plan.partition import partition, sketch_region
from ticketry_engine.plan.sketch import Sketch


class Joined(nn.Module):
    """An image of twice the size beside one that is there already, as on the way up in a U-Net."""

    def __init__(self, then: str = "computed with") -> None:
        super().__init__()
        self.wide, self.small = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.up, self.last, self.then = nn.ConvTranspose2d(12, 6, 2, stride=2), nn.Conv2d(14, 5, 3, padding=1), then

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.wide(x), self.up(self.small(x))], 1)
        return self.last(joined.roll(1, 2) if self.then == "moved" else joined)


def sketch_of(model: nn.Module, x: Tensor) -> Sketch:
    graph = capture(model, None, x)
    (region,) = partition(graph).steps
    assert isinstance(region, Region)
    return sketch_region(graph, region)


@pytest.mark.parametrize(("then", "channels"), [("computed with", [6]), ("moved", [14])])
def test_what_is_joined_to_planes_is_copied_alone(then: str, channels: list[int]) -> None:
    model, x = Joined(then).eval(), torch.randn(2, 3, 8, 10)
    gathered = [task.output.channels for task in sketch_of(model, x).tasks if task.kind == "gather"]
    assert gathered == channels
    fast = tk.compile(model, None, x)
    with torch.no_grad():
        for batch in (x, torch.randn(5, 3, 8, 10)):
            torch.testing.assert_close(fast(batch), model(batch), rtol=1e-4, atol=1e-5)
