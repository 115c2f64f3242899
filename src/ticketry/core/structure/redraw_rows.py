"""Group-wise and N:M masks drawn anew: controls that keep the structure and none of the choices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ticketry.core.mask import Mask
from ticketry.core.seeds import generator
from ticketry.core.structure.groups import row_groups
from ticketry.core.structure.matrices import MatrixView, matrix_views


def random_structure(model: nn.Module, mask: Mask, seed: int) -> Mask:
    """Random groups of rows that keep random columns, of all layers together: group-wise, with as many weights.

    Every layer's rows are put into groups at random, of the size that most rows of `mask` are in; every group keeps one
    column; then columns of all groups are added in one random order, as long as the mask's number of weights allows.
    So no layer has the density that it has in the mask, but by chance. Vectors are as in the mask.
    """
    views = matrix_views(model, mask)
    size = _usual_size(mask, views)
    drawn = {name: _groups_of(name, view, size, seed) for name, view in views.items()}
    budget = sum(int(mask[name].sum()) for name in views)
    columns = _random_columns(views, drawn, budget, seed)
    new = {name: torch.zeros(view.rows, view.columns, dtype=torch.bool) for name, view in views.items()}
    for name, groups in drawn.items():
        for rows, kept in zip(groups, columns[name], strict=True):
            new[name][rows] = kept
    return Mask(
        {name: views[name].weight(new[name]).to(kept.device) if name in views else kept for name, kept in mask.items()}
    )


def _usual_size(mask: Mask, views: dict[str, MatrixView]) -> int:
    """Rows of the group that a row is in: the median over rows that keep anything."""
    sizes = [
        len(group.rows)
        for name, view in views.items()
        for run in view.runs
        for group in row_groups(view.matrix(mask[name].cpu())[run.start : run.stop])
        if group.width
    ]
    return int(np.median(np.repeat(sizes, sizes))) if sizes else 1


def _groups_of(name: str, view: MatrixView, size: int, seed: int) -> list[Tensor]:
    draw = generator(seed, "groups", name)
    return [
        part
        for run in view.runs
        for part in torch.split(torch.randperm(len(run), generator=draw) + run.start, min(size, len(run)))
    ]


def _random_columns(
    views: dict[str, MatrixView], groups: dict[str, list[Tensor]], budget: int, seed: int
) -> dict[str, Tensor]:
    """For each layer boolean [groups, columns]: one column of each group, others by chance within the budget."""
    keys = {
        name: torch.rand(len(groups[name]), view.columns, dtype=torch.float64, generator=generator(seed, "keys", name))
        for name, view in views.items()
    }
    for each in keys.values():  # of every group its first column comes before all others
        each.scatter_(1, each.argmin(1, keepdim=True), -1.0)
    cost = torch.cat([torch.tensor([len(g) for g in groups[n]]).repeat_interleave(keys[n].shape[1]) for n in views])
    flat = torch.cat([keys[name].flatten() for name in views])
    order = flat.argsort(stable=True)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[(cost[order].cumsum(0) <= budget) | (flat[order] < 0)]] = True
    parts = torch.split(chosen, [keys[name].numel() for name in views])
    return {name: part.reshape(keys[name].shape) for name, part in zip(views, parts, strict=True)}


def shuffled_n_m(model: nn.Module, mask: Mask, m: int, seed: int) -> Mask:
    """As many weights of every m inputs that are neighbours, at one tap of one row, as `mask` keeps: other ones.

    The last inputs, if fewer than m, are shuffled among themselves. Vectors are as in the mask.
    """
    views = matrix_views(model, mask)
    made = {}
    for name, view in views.items():
        kept = view.matrix(mask[name].cpu())
        cube = kept.reshape(view.rows, view.inputs, view.columns // view.inputs)
        keys = torch.rand(cube.shape, generator=generator(seed, "n:m", name))
        filled = (0, 0, 0, -view.inputs % m)
        # What fills up the last inputs has the largest keys: it stays at the end, and is cut off.
        blocks, drawn = (
            torch.unflatten(pad(one, filled, value=value), 1, (-1, m)) for one, value in ((cube.int(), 0), (keys, 2.0))
        )
        new = blocks.gather(2, drawn.argsort(dim=2)).flatten(1, 2)[:, : view.inputs].bool()
        made[name] = view.weight(new.reshape(kept.shape)).to(mask[name].device)
    return Mask({name: made.get(name, kept) for name, kept in mask.items()})
