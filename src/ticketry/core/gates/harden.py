"""Trained gates to a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ticketry.core.mask import Mask
from ticketry.errors import LayerCollapseError, UsageError


def hardened_mask(
    logits: Mapping[str, Tensor], kept: Sequence[Tensor] | None, threshold: float, collapse: str, where: str
) -> Mask:
    """The mask of the gates whose s is above the threshold, within `kept`. See `Gates.harden`.

    Args:
        logits: parameter name -> s.
        kept: for each of them 0 and 1 in its shape, or None.
        where: how far the search is, for the error's message.
    """
    if collapse not in ("raise", "keep"):
        raise UsageError(f"collapse is raise or keep, not {collapse!r}")
    candidates = [torch.ones_like(s, dtype=torch.bool) for s in logits.values()] if kept is None else kept
    on = {}
    for (name, s), within in zip(logits.items(), candidates, strict=True):
        on[name] = ((s.detach() > threshold) & (within != 0)).cpu().contiguous()
        if collapse == "keep" and bool(within.any()) and not bool(on[name].any()):
            best = s.detach().masked_fill(within == 0, -torch.inf).flatten().argmax()
            on[name].view(-1)[best] = True
    empty = [name for name, mask in on.items() if mask.numel() and not bool(mask.any())]
    if empty:
        raise LayerCollapseError(
            f"no gate of {', '.join(map(repr, empty))} is on (layer collapse) at {where}: choose a larger init (s0), a"
            " smaller penalty, spare the layer, or keep one weight of it (collapse='keep')"
        )
    return Mask(on)
