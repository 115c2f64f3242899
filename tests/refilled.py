"""For tests of refill: a chain and a residual network, masks of them, and what is left in a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from small_networks import Chain, settled

refill = tk.structure.refill


class Residual(nn.Module):
    """A stream that three convolutions add to, and one separate channel inside each block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 8, 3, padding=1)
        self.three, self.four = nn.Conv2d(8, 7, 1), nn.Conv2d(7, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.two(F.relu(self.one(x)))
        x = F.relu(x + self.four(F.relu(self.three(x))))
        return self.fc(x.mean((2, 3)))


def make_model(kind: type[nn.Module], *shape: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return settled(kind().double()), torch.randn(*shape, dtype=torch.float64)


CHAIN, CHAIN_INPUTS = make_model(Chain, 5, 1, 6, 6)
CHAIN_STRUCTURE = tk.structure.tried_structure(CHAIN, CHAIN_INPUTS)
RESIDUAL, RESIDUAL_INPUTS = make_model(Residual, 3, 3, 6, 6)
RESIDUAL_STRUCTURE = tk.structure.tried_structure(RESIDUAL, RESIDUAL_INPUTS)


def random_mask(model: nn.Module, density: float, seed: int = 0) -> tk.Mask:
    draw = torch.Generator().manual_seed(seed)
    shapes = tk.scope(model).shapes
    return tk.Mask({name: torch.rand(shape, generator=draw) < density for name, shape in shapes.items()})


def chain(mask: tk.Mask, *arguments: Any, **options: Any) -> tk.Mask:
    return refill(CHAIN, mask, CHAIN_INPUTS, *arguments, structure=CHAIN_STRUCTURE, **options)


def residual(mask: tk.Mask, *arguments: Any, **options: Any) -> tk.Mask:
    return refill(RESIDUAL, mask, RESIDUAL_INPUTS, *arguments, structure=RESIDUAL_STRUCTURE, **options)


def paid(layers: list[tuple[Tensor, Tensor]], plus: float = 0.0) -> int:
    """Channels that the kept weights of layers with the same outputs fill."""
    channels = len(layers[0][1])
    kept = sum(int(mask.sum()) for _, mask in layers)
    total = sum(mask.numel() for _, mask in layers)
    k0 = max(int(kept * channels / total + 1e-9), 1)
    return int(k0 + (channels - k0) * plus + 1e-9)


def kept_channels(mask: tk.Mask, name: str) -> list[int]:
    """Return the retained rows; in a residual network, the rows with any weight."""
    return [row for row, weights in enumerate(mask[name]) if bool(weights.any())]


def kept_in(mask: tk.Mask, name: str) -> int:
    return int(mask[name].sum())


def without(mask: tk.Mask, *names: str) -> tk.Mask:
    return tk.Mask({name: kept for name, kept in mask.items() if name not in names})
