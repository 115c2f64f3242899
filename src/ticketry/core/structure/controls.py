"""Masks drawn anew, as controls: they keep the density, and a structure if there is one, and none of the choices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ticketry.core.allocate import allocate, largest
from ticketry.core.layout import Layout, best_of_m, layouts
from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern
from ticketry.core.structure.channel_wise.ranking import Count, global_order, remove
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup, Structure
from ticketry.core.structure.group_wise.matrices import MatrixView, matrix_views, row_groups
from ticketry.core.structure.shrinking.selection import (
    channel_mask,
    dead_channels,
    dead_indices,
    shapes_of,
)
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.seeds import generator


def random_mask(like: Mask, seed: int, distribution: str = "global") -> Mask:
    """A random mask with as many weights over the whole scope as `like`; no layer is left empty.

    Args:
        distribution: of these weights over the layers: ``global`` (as chance has it), ``uniform`` or ``erk``, see
            `core.allocate`.
    """
    scores = {
        name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "random_prune", index))
        for index, (name, shape) in enumerate(like.shapes.items())
    }
    return allocate(scores, like.density, distribution=distribution, collapse="keep")


@entry_point(Need(values=False))
def shuffled_structure(mask: Mask, seed: int, *, model: nn.Module | None = None) -> Mask:
    """A mask with as many groups of rows as `mask`, each of as many rows and columns, drawn at random.

    Every layer keeps its density and its groups' sizes and widths; which rows are together, and which columns each
    group keeps, is drawn by a generator seeded by (seed, the layer's name). Rows that keep nothing are others, as many.

    Args:
        mask: made by `regroup` or `refill`, say. Of an N:M mask only the number of weights of each row remains.
        model: tells where outputs lie that are not in dimension 0 (transposed convolutions) and which outputs of a
            grouped convolution read the same inputs; without it, dimension 0 is taken as one run of rows.

    Raises:
        UsageError: if `mask` is no mask.
        MaskError: if a model is given that the mask does not fit.

    Examples:
        >>> model = nn.Linear(32, 32, bias=False)
        >>> grouped = tk.structure.regroup(model, tk.prune(model, 0.25), rows=8)
        >>> control = tk.structure.shuffled_structure(grouped, seed=1)
        >>> control.kept == grouped.kept, control == grouped
        (True, False)
    """
    views = {} if model is None else matrix_views(model, mask)
    return Mask(
        {
            name: _redrawn(name, kept, views.get(name, MatrixView(tuple(kept.shape))), seed) if kept.dim() else kept
            for name, kept in mask.items()
        }
    )


def _redrawn(name: str, kept: Tensor, view: MatrixView, seed: int) -> Tensor:
    matrix = view.matrix(kept.cpu())
    new = torch.zeros_like(matrix)
    draw = generator(seed, "structure", name)
    for run in view.runs:
        order = torch.randperm(len(run), generator=draw) + run.start
        for group in row_groups(matrix[run.start : run.stop]):
            rows, order = order[: len(group.rows)], order[len(group.rows) :]
            columns = torch.randperm(matrix.shape[1], generator=draw)[: group.width]
            new[rows[:, None], columns] = True
    return view.weight(new).to(kept.device)


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


def shuffled_blocks(model: nn.Module, mask: Mask, pattern: str | Pattern, seed: int) -> Mask:
    """As many blocks of each size in each layer as `mask` keeps, in random places: a mask of the same layer densities.

    Of N:M, as many weights of each layer, of every M inputs at most N. A pure function of its arguments: every layer
    has a generator seeded by (seed, position of the layer).

    Raises:
        MaskError: if the mask is not of the pattern.
    """
    pattern, known = Pattern.parse(pattern), layouts(model, mask)
    redrawn = _shuffled_n_of_m if pattern.m else _shuffled
    return Mask(
        {
            name: redrawn(kept, name, pattern, known[name], generator(seed, "shuffled", index)).to(kept.device)
            for index, (name, kept) in enumerate(mask.items())
        }
    )


def _shuffled(kept: Tensor, name: str, pattern: Pattern, layout: Layout, draw: torch.Generator) -> Tensor:
    blocks = pattern.blocks(tuple(kept.shape), layout)
    flags, sizes = blocks.whole(kept, name).flatten(), blocks.sizes.flatten()
    for size in sorted(set(sizes.tolist())):  # the last rows of a layer have smaller ones
        places = (sizes == size).nonzero()[:, 0]
        flags[places] = flags[places[torch.randperm(len(places), generator=draw)]]
    return blocks.spread(flags.view(blocks.shape))


def _shuffled_n_of_m(kept: Tensor, name: str, pattern: Pattern, layout: Layout, draw: torch.Generator) -> Tensor:
    keys = torch.rand(kept.shape, dtype=torch.float64, generator=draw)
    possible = best_of_m(keys, pattern.n, pattern.m, layout)
    return largest(keys.masked_fill(~possible, -1.0).flatten(), int(kept.sum())).view(kept.shape)


def random_blocks(model: nn.Module, like: Mask, pattern: str | Pattern, seed: int) -> Mask:
    """Random blocks of all layers together, as near to the density of `like` as they come; no layer is left empty."""
    pattern, known = Pattern.parse(pattern), layouts(model, like)
    scores = {}
    for index, (name, shape) in enumerate(like.shapes.items()):
        draw = generator(seed, "random_prune", index)
        blocks = None if pattern.m else pattern.blocks(shape, known[name])
        keys = torch.rand(blocks.shape if blocks else shape, dtype=torch.float64, generator=draw)
        scores[name] = blocks.spread(keys) if blocks else keys
    density = min(like.density, pattern.densest)  # of N:M, a little above it where inputs are no multiple of M
    return allocate(scores, density, pattern=pattern, layouts=known, collapse="keep")


def shuffled_channels(model: nn.Module, structure: Structure, mask: Mask, seed: int) -> Mask:
    """As many channels of each group as `mask` removes, in random places: random, with the mask's own layer ratios.

    A pure function of its arguments: every group has a generator seeded by (seed, position of the group).
    """
    dead, removed = dead_indices(mask), {}
    for position, group in enumerate(structure.groups):
        if group.prunable:
            gone = int(dead_channels(group, dead).sum())
            flags = np.zeros(group.size, dtype=bool)
            order = torch.randperm(group.size, generator=generator(seed, "shuffled", position))
            flags[order[:gone].numpy()] = True
            removed[position] = flags
    return channel_mask(mask, structure, shapes_of(model), removed)


def random_channels(model: nn.Module, structure: Structure, mask: Mask, seed: int) -> Mask:
    """Random channels of all groups together, up to the density of `mask`; one of each group stays.

    The groups are those of which the mask has every parameter.
    """
    positions = [position for position, group in enumerate(structure.groups) if group.prunable and _within(group, mask)]
    groups = [structure.groups[position] for position in positions]
    scores = [
        torch.rand(group.size, dtype=torch.float64, generator=generator(seed, "random_prune", position))
        for position, group in zip(positions, groups, strict=True)
    ]
    count = Count(groups, mask.shapes)
    steps = [[step] for step in global_order(count, scores, 1)]
    removed = remove(count, steps, mask.density, "1")
    return channel_mask(mask, structure, shapes_of(model), dict(zip(positions, removed, strict=True)))


def _within(group: ChannelGroup, mask: Mask) -> bool:
    return all(member.name in mask for member in group.parameters)
