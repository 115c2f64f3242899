"""Random streams that are pure functions of what they are for."""

from __future__ import annotations

import hashlib

import torch


def mix(*parts: int | str) -> int:
    """A 63-bit seed from any parts: equal parts give equal seeds, other parts unrelated ones, on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator of its own, seeded by `mix`."""
    return torch.Generator().manual_seed(mix(*parts))
