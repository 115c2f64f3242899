"""Which columns each group of rows keeps: those of greatest worth a weight, up to a number of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ticketry.core.structure.group_wise.matrices import Indices

WORTHS = ("kept", "all", "squares", "count")


@dataclass(frozen=True)
class GroupWorth:
    """What each column is worth to each group of a layer, and what it costs."""

    worth: Tensor
    """[groups, columns] of a column, summed over the group's rows."""
    second: Tensor
    """[groups, columns] what decides where the worth is 0."""
    sizes: Tensor
    """[groups] rows: what a column costs."""

    @property
    def least(self) -> int:
        """Weights that one column for each group takes."""
        return int(self.sizes.sum())


def worth_of(size: Tensor, kept: Tensor, by: str) -> Tensor:
    """What each weight [rows, columns] adds to the worth of its group's column; `size` is |w|.

    ``kept``: |w| of weights that the mask keeps: for given groups, no other choice retains more of their magnitude.
    ``all``: |w| of all weights; ``squares``: w ** 2 of those kept; ``count``: 1 for each that is kept.
    """
    if by == "all":
        return size
    if by == "count":
        return kept.double()
    return torch.where(kept, size.square() if by == "squares" else size, 0.0)


def group_worth(worth: Tensor, second: Tensor, groups: Sequence[Indices]) -> GroupWorth:
    """Worth [rows, columns] summed over groups of rows."""
    return GroupWorth(_summed(worth, groups), _summed(second, groups), torch.tensor([len(rows) for rows in groups]))


def choose(layers: Sequence[GroupWorth], budget: int, *, every_group: bool = True) -> list[Tensor]:
    """For each layer, boolean [groups, columns]: the columns kept, by one threshold over all layers given.

    The threshold is on the worth a weight (the mean over the group's rows); ties break by `second`, then by position.
    The best column of each group is always among them, or of each layer if not `every_group`. The number of weights
    kept is as near to `budget` as whole columns allow: half a column away at most, unless the best are more than that.
    """
    first = torch.cat([_best(layer, every_group).flatten() for layer in layers])
    worth = torch.cat([(layer.worth / layer.sizes[:, None]).flatten() for layer in layers])
    cost = torch.cat([layer.sizes[:, None].expand_as(layer.worth).flatten() for layer in layers])
    order = torch.arange(len(worth))
    if int(cost[worth > 0].sum()) < budget:
        second = torch.cat([(layer.second / layer.sizes[:, None]).flatten() for layer in layers])
        order = second.argsort(descending=True, stable=True)
    worth = worth.masked_fill(first, torch.inf)
    order = order[worth[order].argsort(descending=True, stable=True)]
    total = torch.cat([torch.zeros(1, dtype=torch.long), cost[order].cumsum(0)])
    count = max(int((total - budget).abs().argmin()), int(first.sum()))
    chosen = torch.zeros(len(worth), dtype=torch.bool)
    chosen[order[:count]] = True
    parts = torch.split(chosen, [layer.worth.numel() for layer in layers])
    return [part.reshape(layer.worth.shape) for part, layer in zip(parts, layers, strict=True)]


def _summed(worth: Tensor, groups: Sequence[Indices]) -> Tensor:
    rows = torch.cat([torch.as_tensor(one) for one in groups])
    of = torch.repeat_interleave(torch.tensor([len(one) for one in groups]))
    return torch.zeros(len(groups), worth.shape[1], dtype=worth.dtype).index_add_(0, of, worth[rows])


def _best(layer: GroupWorth, every_group: bool) -> Tensor:
    """One column of each group, or of the layer."""
    best = torch.zeros(layer.worth.shape, dtype=torch.bool)
    if every_group:
        return best.scatter_(1, layer.worth.argmax(1, keepdim=True), True)
    best.view(-1)[(layer.worth / layer.sizes[:, None]).argmax()] = True
    return best
