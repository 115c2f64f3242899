"""Helpers for tests of group-wise masks."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

import ticketry as tk


class Bank(nn.Module):
    """A layer alone, with a weight that is given."""

    def __init__(self, layer: nn.Module, weight: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        if weight is not None:
            assert weight.shape == layer.weight.shape
            layer.weight = nn.Parameter(weight)


def linear(weight: Tensor) -> Bank:
    return Bank(nn.Linear(weight.shape[1], weight.shape[0], bias=False), weight)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(rows: int, columns: int, of: int, width: int, seed: int = 0) -> Tensor:
    """A matrix whose hidden groups of `of` rows, in any order, share `width` columns."""
    generator = torch.Generator().manual_seed(seed)
    supports = torch.rand(rows // of, columns, generator=generator).argsort(1) < width
    group = (torch.arange(rows) // of)[torch.randperm(rows, generator=generator)]
    return torch.where(supports[group], torch.rand(rows, columns, generator=generator) + 0.5, 0.0)


def in_groups(kept: Tensor, rows: int) -> bool:
    """Whether the rows that keep anything make groups of `rows`, and a smaller one of those that remain.

    Groups that happen to keep the same columns look like one of several times as many rows.
    """
    sizes = Counter({row.numpy().tobytes(): 0 for row in kept.flatten(1) if row.any()})
    for group in tk.structure.row_groups(kept):
        if group.width:
            sizes[kept.flatten(1)[group.rows[0]].numpy().tobytes()] += len(group.rows)
    alone = [size % rows for size in sizes.values() if size % rows]
    return alone in ([], [sum(sizes.values()) % rows])


def share_inside(weight: Tensor, before: Tensor, after: Tensor) -> float:
    """Coverage, one weight at a time."""
    inside = total = 0.0
    for value, was, stays in zip(weight.flatten().tolist(), before.flatten(), after.flatten(), strict=True):
        total += abs(value) * bool(was)
        inside += abs(value) * bool(was and stays)
    return inside / total


def grouped(outputs: int, columns: int, rows: int, density: float, seed: int = 0) -> torch.Tensor:
    """A matrix whose sets of `rows` rows, in any order, share their columns."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-outputs // rows), columns, generator=generator) < density
    kept = kept.repeat_interleave(rows, 0)[:outputs][torch.randperm(outputs, generator=generator)]
    return torch.where(kept, torch.randn(outputs, columns, generator=generator), 0.0)
