"""A mask that moves: in each layer as many weights are grown as are dropped."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from ticketry.core.allocate import largest
from ticketry.core.mask import Mask
from ticketry.errors import MaskError, UsageError


def moved(
    mask: Mask, weights: Mapping[str, Tensor], growth: Mapping[str, Tensor], share: float, *, regrow: bool = False
) -> Mask:
    """The mask after one update of dynamic sparse training; each layer keeps as many weights as before.

    In each layer the floor(share * kept) weights of smallest magnitude are dropped and those of the largest `growth`
    take their place (a layer that is nearly dense has no more places than removed weights, and drops no more). Ties go
    to the earlier position. Evci et al., "Rigging the Lottery" (2020, arXiv 1911.11134), section 3; growth there is
    |gradient|; random numbers make it that of Mocanu et al. (2018, SET).

    Args:
        mask: what is kept now.
        weights, growth: parameter name -> tensor of the mask's shapes; they may name more.
        share: of the weights kept that are dropped, 0 <= share < 1.
        regrow: whether what has just been dropped may be grown again.

    Raises:
        UsageError: for a share outside [0, 1).
        MaskError: if weights or growth are not of the mask's tensors, or not all numbers.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the share of weights that move lies in 0 <= share < 1, not {share}")
    for what, tensors in (("weights", weights), ("growth", growth)):
        for name, shape in mask.shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise MaskError(f"{what} have no tensor {name!r} of the shape {shape}, which the mask is of")
            if bool(torch.isnan(tensors[name]).any()):
                raise MaskError(f"the {what} of {name!r} are not all numbers (NaN)")
    moved = {name: _moved(kept, weights[name].abs(), growth[name], share, regrow) for name, kept in mask.items()}
    return Mask(moved, copy=False)


def _moved(kept: Tensor, sizes: Tensor, growth: Tensor, share: float, regrow: bool) -> Tensor:
    now = kept.flatten()
    active = int(now.sum())
    count = int(Fraction(str(share)) * active)
    if not regrow:
        count = min(count, len(now) - active)
    left = _best(sizes, now, active - count)
    return (left | _best(growth, ~(left if regrow else now), count)).reshape(kept.shape)


def _best(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Boolean [n]: the `count` largest of `values` at the positions that are `among` [n]."""
    positions = among.nonzero().flatten()
    chosen = torch.zeros_like(among)
    chosen[positions[largest(values.detach().cpu().flatten()[positions], count)]] = True
    return chosen
