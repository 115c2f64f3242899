"""Random streams that are pure functions of what they are for."""

from __future__ import annotations

import hashlib

import torch


def mix(*parts: int | str) -> int:
    """A 63-bit seed from any parts: equal parts give equal seeds, other parts unrelated ones, on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_torch(seed: int) -> None:
    """`torch.manual_seed`, but on a machine that has only a CPU without the stack trace that it notes there, each time
    and for good, for devices not yet in use."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def generator(*parts: int | str) -> torch.Generator:
    """Return a new CPU generator, seeded by `mix`."""
    return torch.Generator().manual_seed(mix(*parts))
