"""Computes seeds and random generators from numbers and texts that name their purpose."""

from __future__ import annotations

import hashlib

import torch


def mix_seeds(*parts: int | str) -> int:
    """Return a 63-bit seed, a hash of `parts`; equal parts give equal seeds on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_torch(seed: int) -> None:
    """Seed torch's generators; on machines without an accelerator, this is faster than `torch.manual_seed`."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def generator(*parts: int | str) -> torch.Generator:
    """Return a new CPU generator, seeded with a hash of `parts`."""
    return torch.Generator().manual_seed(mix_seeds(*parts))
