"""The tensors that a handle of gates keeps for each parameter, and for each forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketry.core.gates.kind import Moment


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
