"""Random masks that serve as controls: they have a mask's density and structure, but not its choice of weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ticketry.core.allocate import allocate, mask_of_largest
from ticketry.core.mask import Mask
from ticketry.core.structure.channel_choice import RemainingWeights, rank_channels_globally, remove_to_density
from ticketry.core.structure.coupling import Structure
from ticketry.core.structure.layout import MatrixView, layouts, mark_best_n_of_m, matrix_views, row_groups
from ticketry.core.structure.pattern import Pattern
from ticketry.core.structure.plans import build_channel_mask, flag_removed_channels, flag_removed_indices, named_shapes
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.seeds import generator


def random_mask(like: Mask, seed: int, distribution: str = "global") -> Mask:
    """Return a random mask that retains as many weights as `like`; no layer is left empty; see `core.allocate`."""
    scores = {
        name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "random_prune", index))
        for index, (name, shape) in enumerate(like.shapes.items())
    }
    return allocate(scores, like.density, distribution=distribution, collapse="keep")


@entry_point(Need(values=False))
def shuffled_structure(mask: Mask, seed: int, *, model: nn.Module | None = None) -> Mask:
    """Return a mask whose row groups are as large as those of `mask`, but have random rows and random columns.

    Groups have the same numbers of rows and of columns as in `mask`. Every layer keeps its density and its number of
    empty rows. The random numbers of a layer are seeded by `seed` and the layer's name.

    Args:
        mask: a mask with groups of rows, for example from `regroup` or `refill`. Of an N:M mask, only the number of
            weights of each row is preserved.
        seed: seed of the random numbers.
        model: the model of the mask, which shows the dimensions of transposed convolutions and the groups of grouped
            convolutions. Without it, rows are in dimension 0, and all rows of a layer read the same inputs.

    Raises:
        UsageError: if `mask` is not a mask.
        MaskError: if the mask does not fit the model.

    Examples:
        >>> model = nn.Linear(32, 32, bias=False)
        >>> grouped = tk.structure.regroup(model, tk.prune(model, 0.25), rows=8)
        >>> control = tk.structure.shuffled_structure(grouped, seed=1)
        >>> control.kept == grouped.kept, control == grouped
        (True, False)
    """
    views = {} if model is None else matrix_views(model, mask)
    shuffled = dict(mask)
    for name, kept in mask.items():
        if not kept.dim():
            continue
        view = views.get(name, MatrixView(tuple(kept.shape)))
        matrix, draw = view.to_matrix(kept.cpu()), generator(seed, "structure", name)
        new = torch.zeros_like(matrix)
        for run in view.row_ranges:
            order = torch.randperm(len(run), generator=draw) + run.start
            for group in row_groups(matrix[run.start : run.stop]):
                rows, order = order[: len(group.rows)], order[len(group.rows) :]
                columns = torch.randperm(matrix.shape[1], generator=draw)[: group.width]
                new[rows[:, None], columns] = True
        shuffled[name] = view.to_weight(new).to(kept.device)
    return Mask(shuffled)


def random_structure(model: nn.Module, mask: Mask, seed: int) -> Mask:
    """Return a mask of random row groups with random columns, which retains as many weights as `mask` in total.

    Rows form random groups of the median size of the groups in `mask`. Every group first gets one column. Then columns
    of all groups and layers are added in random order, up to the number of weights. Layers do not keep their densities.
    Vectors are unchanged.
    """
    views = matrix_views(model, mask)
    size = _median_group_size(mask, views)
    drawn: dict[str, list[Tensor]] = {}
    for name, view in views.items():
        draw = generator(seed, "groups", name)
        orders = [torch.randperm(len(run), generator=draw) + run.start for run in view.row_ranges]
        drawn[name] = [part for order in orders for part in torch.split(order, min(size, len(order)))]
    budget = sum(int(mask[name].sum()) for name in views)
    columns = _draw_columns(views, drawn, budget, seed)
    new = {name: torch.zeros(view.row_count, view.column_count, dtype=torch.bool) for name, view in views.items()}
    for name, groups in drawn.items():
        for rows, kept in zip(groups, columns[name], strict=True):
            new[name][rows] = kept
    return Mask(
        {
            name: views[name].to_weight(new[name]).to(kept.device) if name in views else kept
            for name, kept in mask.items()
        }
    )


def _median_group_size(mask: Mask, views: dict[str, MatrixView]) -> int:
    """Return the median, over all rows that are not empty, of the number of rows in the row's group."""
    sizes = [
        len(group.rows)
        for name, view in views.items()
        for run in view.row_ranges
        for group in row_groups(view.to_matrix(mask[name].cpu())[run.start : run.stop])
        if group.width
    ]
    return int(np.median(np.repeat(sizes, sizes))) if sizes else 1


def _draw_columns(
    views: dict[str, MatrixView], groups: dict[str, list[Tensor]], budget: int, seed: int
) -> dict[str, Tensor]:
    """Draw at random the columns that each group retains: bool [groups, columns] for each layer.

    Each group retains at least one column. Further columns are added while all together have at most `budget` weights.
    """
    keys = {
        name: torch.rand(
            len(groups[name]), view.column_count, dtype=torch.float64, generator=generator(seed, "keys", name)
        )
        for name, view in views.items()
    }
    for each in keys.values():  # one column of every group comes before all others
        each.scatter_(1, each.argmin(1, keepdim=True), -1.0)
    cost = torch.cat([torch.tensor([len(g) for g in groups[n]]).repeat_interleave(keys[n].shape[1]) for n in views])
    flat = torch.cat([keys[name].flatten() for name in views])
    order = flat.argsort(stable=True)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[(cost[order].cumsum(0) <= budget) | (flat[order] < 0)]] = True
    parts = torch.split(chosen, [keys[name].numel() for name in views])
    return {name: part.reshape(keys[name].shape) for name, part in zip(views, parts, strict=True)}


def shuffled_n_m(model: nn.Module, mask: Mask, m: int, seed: int) -> Mask:
    """Return a mask that is shuffled within every run of m neighbouring inputs of a row, at each kernel position.

    A last run with fewer than m inputs is shuffled too. Vectors are unchanged.
    """
    views = matrix_views(model, mask)
    made = {}
    for name, view in views.items():
        kept = view.to_matrix(mask[name].cpu())
        cube = kept.reshape(view.row_count, view.input_count, view.column_count // view.input_count)
        keys = torch.rand(cube.shape, generator=generator(seed, "n:m", name))
        filled = (0, 0, 0, -view.input_count % m)
        # Padding has the largest keys, so that it stays at the end and is cut off.
        blocks, drawn = (
            torch.unflatten(pad(one, filled, value=value), 1, (-1, m)) for one, value in ((cube.int(), 0), (keys, 2.0))
        )
        new = blocks.gather(2, drawn.argsort(dim=2)).flatten(1, 2)[:, : view.input_count].bool()
        made[name] = view.to_weight(new.reshape(kept.shape)).to(mask[name].device)
    return Mask({name: made.get(name, kept) for name, kept in mask.items()})


def shuffled_blocks(model: nn.Module, mask: Mask, pattern: str | Pattern, seed: int) -> Mask:
    """Return a mask whose layers retain as many blocks of each size as in `mask`, at random positions.

    For an N:M pattern, each layer retains as many weights as in `mask`, with at most N of every M inputs. The random
    numbers of a layer are seeded by `seed` and the layer's index.
    """
    pattern, known = Pattern.parse(pattern), layouts(model, mask)
    shuffled = {}
    for index, (name, kept) in enumerate(mask.items()):
        draw = generator(seed, "shuffled", index)
        if pattern.m:
            keys = torch.rand(kept.shape, dtype=torch.float64, generator=draw)
            possible = mark_best_n_of_m(keys, pattern.n, pattern.m, known[name])
            new = mask_of_largest(keys.masked_fill(~possible, -1.0).flatten(), int(kept.sum())).view(kept.shape)
        else:
            blocks = pattern.blocks(tuple(kept.shape), known[name])
            flags, sizes = blocks.retained_blocks(kept, name).flatten(), blocks.sizes.flatten()
            for size in sorted(set(sizes.tolist())):  # the last rows of a layer have smaller blocks
                places = (sizes == size).nonzero()[:, 0]
                flags[places] = flags[places[torch.randperm(len(places), generator=draw)]]
            new = blocks.expand_to_weights(flags.view(blocks.shape))
        shuffled[name] = new.to(kept.device)
    return Mask(shuffled)


def random_blocks(model: nn.Module, like: Mask, pattern: str | Pattern, seed: int) -> Mask:
    """Return a mask of random blocks of all layers, with about the density of `like`; no layer is left empty."""
    pattern, known = Pattern.parse(pattern), layouts(model, like)
    scores = {}
    for index, (name, shape) in enumerate(like.shapes.items()):
        draw = generator(seed, "random_prune", index)
        blocks = None if pattern.m else pattern.blocks(shape, known[name])
        keys = torch.rand(blocks.shape if blocks else shape, dtype=torch.float64, generator=draw)
        scores[name] = blocks.expand_to_weights(keys) if blocks else keys
    density = min(like.density, pattern.densest)  # N:M may exceed n / m slightly
    return allocate(scores, density, pattern=pattern, layouts=known, collapse="keep")


def shuffled_channels(model: nn.Module, structure: Structure, mask: Mask, seed: int) -> Mask:
    """Return a mask that removes as many channels of each group as `mask` does, chosen at random."""
    removed_indices, removed = flag_removed_indices(mask), {}
    for position, group in enumerate(structure.groups):
        if group.prunable:
            gone = int(flag_removed_channels(group, removed_indices).sum())
            flags = np.zeros(group.size, dtype=bool)
            order = torch.randperm(group.size, generator=generator(seed, "shuffled", position))
            flags[order[:gone].numpy()] = True
            removed[position] = flags
    return build_channel_mask(mask, structure, named_shapes(model), removed)


def random_channels(model: nn.Module, structure: Structure, mask: Mask, seed: int) -> Mask:
    """Return a mask that removes random channels of all groups, down to the density of `mask`.

    Each group retains at least one channel. Only groups whose parameters are all in the mask lose channels.
    """
    positions = [
        position
        for position, group in enumerate(structure.groups)
        if group.prunable and all(member.name in mask for member in group.parameters)
    ]
    groups = [structure.groups[position] for position in positions]
    scores = [
        torch.rand(group.size, dtype=torch.float64, generator=generator(seed, "random_prune", position))
        for position, group in zip(positions, groups, strict=True)
    ]
    count = RemainingWeights(groups, mask.shapes)
    steps = [[step] for step in rank_channels_globally(count, scores, 1)]
    removed = remove_to_density(count, steps, mask.density, "1")
    return build_channel_mask(mask, structure, named_shapes(model), dict(zip(positions, removed, strict=True)))
