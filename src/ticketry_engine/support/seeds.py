"""Seeds and random generators that depend only on the parts that name their purpose."""

from __future__ import annotations

import hashlib

import torch


def mix(*parts: int | str) -> int:
    """Return a 63-bit seed computed from any parts: equal parts give equal seeds on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_torch(seed: int) -> None:
    """Seed torch like `torch.manual_seed`, without the stack trace that it stores for unused devices on CPU-only
    machines."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def generator(*parts: int | str) -> torch.Generator:
    """Return a new CPU generator, seeded by `mix`."""
    return torch.Generator().manual_seed(mix(*parts))
