"""The tensors that a handle of gates keeps for each parameter, and for each forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketry.core.gates.kind import Moment
from ticketry.core.seeds import generator


@dataclass(frozen=True)
class Sums:
    """What the gates of the last forward pass add up to, and when that was."""

    totals: list[Tensor]
    moment: Moment
    versions: tuple[int, ...]


def logits_like(parameter: nn.Parameter, init: float) -> nn.Parameter:
    """float32 at least: a bfloat16 s would not move by small steps, and a sigmoid of it would jump."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return nn.Parameter(torch.full_like(parameter, init, dtype=dtype, requires_grad=False))


def kept_like(logits: Tensor, kept: Tensor) -> Tensor:
    """The mask as 0 and 1 in the type, layout and place of s."""
    return torch.empty_like(logits, requires_grad=False).copy_(kept)


def uniform_like(logits: Tensor, seed: int, step: int, number: int) -> Tensor:
    """Draws from (0, 1) for the gates of parameter `number` at a step: the same on any device and in any layout."""
    draws = torch.rand(logits.shape, dtype=logits.dtype, generator=generator(seed, "gates", step, number))
    return torch.empty_like(logits, requires_grad=False).copy_(draws.clamp_(min=torch.finfo(draws.dtype).eps))
