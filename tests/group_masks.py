"""Matrices with groups of rows that share their columns, for tests of the GPU's engine."""

from __future__ import annotations

import torch


def grouped(outputs: int, columns: int, rows: int, density: float, seed: int = 0) -> torch.Tensor:
    """A matrix whose sets of `rows` rows, in any order, share their columns."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-outputs // rows), columns, generator=generator) < density
    kept = kept.repeat_interleave(rows, 0)[:outputs][torch.randperm(outputs, generator=generator)]
    return torch.where(kept, torch.randn(outputs, columns, generator=generator), 0.0)
