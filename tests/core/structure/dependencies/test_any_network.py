"""Networks put together at random: whatever is coupled in them, the smaller model is the masked one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from small_networks import SqueezeExcite, settled
from ticketry.errors import StructureError

LAYERS = {
    "conv": lambda c, out: nn.Conv2d(c, out, 3, padding=1),
    "grouped": lambda c, out: nn.Conv2d(c, 2 * c, 1, groups=2),
    "depthwise": lambda c, out: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "up": lambda c, out: nn.ConvTranspose2d(c, out, 3, padding=1),
    "batch": lambda c, out: nn.BatchNorm2d(c),
    "group": lambda c, out: nn.GroupNorm(2, c),
    "squeeze": lambda c, out: SqueezeExcite(c),
    "slope": lambda c, out: nn.PReLU(c),
}
"""Layers by name: of channels before and wanted."""

PLAIN = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "glu": lambda x: F.glu(x, 1),
    "shuffle": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "swap": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "turn": lambda x: x.flip(1),
    "pad": lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
    "pixels": lambda x: F.avg_pool2d(F.pixel_shuffle(x, 2), 2),
    "centre": lambda x: x - x.mean(1, keepdim=True),
}

JOINS = {"add": torch.add, "times": torch.mul, "cat": lambda a, b: torch.cat([a, b], 1)}

steps = st.lists(
    st.tuples(
        st.sampled_from([*LAYERS, *PLAIN, *JOINS, "conv", "conv", "batch"]),
        st.integers(0, 3),
        st.sampled_from([4, 6, 8]),
    ),
    min_size=3,
    max_size=9,
)


class Program(nn.Module):
    """Each step takes the newest of the tensors so far; a join takes an older one too, where it fits."""

    def __init__(self, program: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 1)
        self.layers = nn.ModuleList()
        self.program = []
        widths = [8]
        for name, older, out in program:
            c, other = widths[-1], widths[-1 - min(older, len(widths) - 1)]
            if c % 2 or c > 24 or (name in ("add", "times") and c != other) or (name == "pixels" and c % 4):
                continue
            layer = LAYERS[name](c, out) if name in LAYERS else nn.Identity()
            self.layers.append(layer)
            self.program.append((name, min(older, len(widths) - 1)))
            with torch.no_grad():
                sizes = [torch.zeros(1, width, 2, 2) for width in (c, other)]
                widths.append(self.eval().step(layer, name, *sizes).shape[1])
        self.fc = nn.Linear(widths[-1], 3)

    @staticmethod
    def step(layer: nn.Module, name: str, x: Tensor, other: Tensor) -> Tensor:
        return layer(x) if name in LAYERS else PLAIN[name](x) if name in PLAIN else JOINS[name](x, other)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer, (name, older) in zip(self.layers, self.program, strict=True):
            found.append(self.step(layer, name, found[-1], found[-1 - older]))
        return self.fc(found[-1].mean((2, 3)))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(steps, st.integers(0, 100), st.sampled_from([0.8, 0.5]))
def test_smaller_is_equal(program: list[tuple[str, int, int]], seed: int, density: float) -> None:
    torch.manual_seed(seed)
    model = settled(Program(program).double())
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    options = {"score": "random", "seed": seed, "distribution": "uniform"}
    try:
        mask = tk.structure.channels(model, x, density, **options)
    except (StructureError, tk.errors.LayerCollapseError):  # little or nothing is free in this network
        return
    small = tk.shrink(model, mask, x)
    mask.apply_(model)
    for training in (False, True, False):
        wanted, found = model.train(training)(x), small.train(training)(x)
        assert float((wanted - found).detach().abs().max()) <= 1e-10 * max(float(wanted.detach().abs().max()), 1.0)
