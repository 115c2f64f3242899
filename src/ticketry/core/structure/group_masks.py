"""Group-wise masks, in which all rows of a group retain exactly the same columns.

Rows are grouped by similarity, or by partitioning a hypergraph whose nodes are rows and whose edges are columns. Then
the columns of highest worth per weight are chosen for each group.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.choices import check_choice
from ticketry.core.allocate import apportion
from ticketry.core.mask import Mask
from ticketry.core.scope import Patterns
from ticketry.core.structure.layout import Indices, MatrixView, matrix_views, weight_magnitudes
from ticketry.core.structure.pattern import REGROUP_METHODS, check_collapse, check_density, count_retained
from ticketry.errors import LayerCollapseError, MaskError, MissingExtraError, StructureError, UsageError
from ticketry_engine.support.entry_points import entry_point
from ticketry_engine.support.seeds import generator, mix_seeds

WORTHS = ("kept", "all", "squares", "count")


@dataclass(frozen=True)
class GroupWorth:
    """Contains what retaining each column in each row group of a layer is worth, and how many weights it costs."""

    worth: Tensor
    """[groups, columns]: worth of each column, summed over the rows of the group."""
    second: Tensor
    """[groups, columns]: a second worth, which ranks columns whose first worth is 0."""
    sizes: Tensor
    """[groups]: number of rows of each group, which is the number of weights that a column costs."""


def compute_weight_worth(size: Tensor, kept: Tensor, by: str) -> Tensor:
    """Return what each weight contributes to the worth of its column: [rows, columns].

    Args:
        size: absolute weights [rows, columns].
        kept: the mask: bool [rows, columns].
        by: the contribution of a weight w. ``kept``: |w| if the mask retains w, else 0; for given groups, this retains
            the largest total magnitude. ``all``: |w|. ``squares``: w ** 2 if retained. ``count``: 1 if retained.
    """
    if by == "all":
        return size
    if by == "count":
        return kept.double()
    return torch.where(kept, size.square() if by == "squares" else size, 0.0)


def sum_group_worth(worth: Tensor, second: Tensor, groups: Sequence[Indices]) -> GroupWorth:
    """Return the worth of each column in each group: the sum of `worth` [rows, columns] over the group's rows.

    Args:
        second: contribution of each weight to the second worth, which ranks columns whose worth is 0.
    """
    rows, sizes = torch.cat([torch.as_tensor(one) for one in groups]), torch.tensor([len(one) for one in groups])
    group_of_row = torch.repeat_interleave(sizes)
    first, other = (
        torch.zeros(len(groups), each.shape[1], dtype=each.dtype).index_add_(0, group_of_row, each[rows])
        for each in (worth, second)
    )
    return GroupWorth(first, other, sizes)


def choose_columns(layers: Sequence[GroupWorth], budget: int, *, every_group: bool = True) -> list[Tensor]:
    """Choose the columns that each group retains, by a common threshold for all layers; return bool [groups, columns].

    The threshold applies to the worth per weight, that is, the mean over the group's rows. Of equal columns, those with
    the higher `second` are retained, then the earlier. The best column of each group is always retained; without
    `every_group`, only the best of each layer. The number of weights is as close to `budget` as whole columns permit,
    unless the columns that are always retained exceed it.
    """
    always = []
    for layer in layers:
        best = torch.zeros(layer.worth.shape, dtype=torch.bool)
        if every_group:
            best.scatter_(1, layer.worth.argmax(1, keepdim=True), True)
        else:
            best.view(-1)[(layer.worth / layer.sizes[:, None]).argmax()] = True
        always.append(best.flatten())
    first = torch.cat(always)
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


Values = np.ndarray[Any, np.dtype[np.float64]]

ROUNDS = 40
BLOCK = 64
"""Number of rows whose exchanges are computed together, so that intermediate results stay in the cache."""
SMALLEST_GAIN = 5e-4
"""The rounds of exchanges end when a round raises the similarity within groups by less than this fraction."""


def group_similar_rows(worth: Tensor, sizes: Sequence[int]) -> list[Indices]:
    """Divide the rows of `worth` [rows, columns], which is not negative, into groups of similar rows of these `sizes`.

    A group starts with the row of largest norm that is left. Then the row with the highest mean cosine similarity to
    the rows of the group is added repeatedly. Finally, pairs of rows in different groups are exchanged if the exchange
    raises the sum of inner products within groups. Cosine similarity matches rows that retain the same columns,
    at any magnitude; inner products give large rows more weight.

    The result is deterministic: of equal rows, the earlier is taken. Takes O(rows^2 columns) time and O(rows^2) memory.
    """
    similarity = (worth @ worth.T).numpy()
    groups = _group_rows_by_similarity(similarity, sorted(sizes, reverse=True))
    return _exchange_rows(similarity, groups) if len(groups) > 1 else groups


def _group_rows_by_similarity(similarity: Values, sizes: Sequence[int]) -> list[Indices]:
    norms = np.sqrt(similarity.diagonal())
    cosine = similarity / np.maximum(np.outer(norms, norms), np.finfo(np.float64).tiny)
    by_norm = (-norms).argsort(kind="stable")
    taken, first, groups = np.zeros(len(similarity), dtype=bool), 0, []
    for size in sizes:
        while taken[by_norm[first]]:
            first += 1
        rows = [int(by_norm[first])]
        near = cosine[rows[0]].copy()
        taken[rows[0]] = True
        for _ in range(size - 1):
            rows.append(int(np.where(taken, -1.0, near).argmax()))
            taken[rows[-1]] = True
            near += cosine[rows[-1]]
        groups.append(np.sort(np.array(rows, dtype=np.int64)))
    return groups


def _exchange_rows(similarity: Values, groups: list[Indices]) -> list[Indices]:
    count = len(similarity)
    group_of_row = np.empty(count, dtype=np.int64)
    for group, rows in enumerate(groups):
        group_of_row[rows] = group
    similarity = similarity.copy()
    np.fill_diagonal(similarity, 0)
    similarity_to_groups = np.zeros((count, len(groups)))
    np.add.at(similarity_to_groups.T, group_of_row, similarity)  # similarity of each row to each group, without itself
    for _ in range(ROUNDS):
        within = float(similarity_to_groups[np.arange(count), group_of_row].sum())
        gains, partners = _best_exchanges(similarity, similarity_to_groups, group_of_row)
        if _apply_exchanges(gains, partners, similarity, similarity_to_groups, group_of_row) <= SMALLEST_GAIN * within:
            break
    return [np.flatnonzero(group_of_row == group) for group in range(len(groups))]


def _best_exchanges(similarity: Values, similarity_to_groups: Values, group_of_row: Indices) -> tuple[Values, Indices]:
    """Return, for each row, the gain of its best exchange with another row, and the index of that other row.

    Args:
        similarity: inner products of all pairs of rows, 0 on the diagonal.
        similarity_to_groups: [rows, groups]: sum of a row's similarities to the other rows of each group.
        group_of_row: index of the group of each row.
    """
    group = torch.from_numpy(group_of_row)
    places = torch.from_numpy(similarity_to_groups)
    moving = places - places.gather(1, group[:, None])  # [rows, groups]: gain of a row by moving
    turned = moving.T.contiguous()
    likeness = torch.from_numpy(similarity)
    gains = torch.empty(len(group_of_row), dtype=moving.dtype)
    partners = torch.empty(len(group_of_row), dtype=torch.int64)
    for start in range(0, len(group_of_row), BLOCK):
        here = slice(start, start + BLOCK)
        gain = moving[here].index_select(1, group)
        gain += turned[group[here]]
        gain.sub_(likeness[here], alpha=2)  # the similarity of the two rows themselves does not count
        torch.max(gain, 1, out=(gains[here], partners[here]))
    return gains.numpy(), partners.numpy()


def _apply_exchanges(
    gains: Values, partners: Indices, similarity: Values, similarity_to_groups: Values, group_of_row: Indices
) -> float:
    """Apply exchanges of rows, the best first and each row at most once; return the total gain of similarity.

    An exchange changes the gains of the remaining exchanges. So each gain is computed again before the exchange is
    applied, and exchanges with half of their original gain or less are skipped.

    `similarity_to_groups` and `group_of_row` are updated, see `_best_exchanges`.
    """
    free = np.ones(len(group_of_row), dtype=bool)
    total = 0.0
    for row in (-gains).argsort(kind="stable").tolist():
        other, promised = int(partners[row]), float(gains[row])
        if promised <= 0:
            break
        one, two = group_of_row[row], group_of_row[other]
        if not (free[row] and free[other]) or one == two:
            continue
        gain = (
            similarity_to_groups[row, two]
            + similarity_to_groups[other, one]
            - similarity_to_groups[row, one]
            - similarity_to_groups[other, two]
            - 2 * similarity[row, other]
        )
        if gain <= promised / 2:
            continue
        free[row] = free[other] = False
        group_of_row[row], group_of_row[other] = two, one
        moved = similarity[other] - similarity[row]
        similarity_to_groups[:, one] += moved
        similarity_to_groups[:, two] -= moved
        total += gain
    return 2 * total


def partition_rows(kept: Tensor, sizes: Sequence[int], seed: int) -> list[Indices]:
    """Divide the rows of `kept`, a mask [rows, columns], into parts of these `sizes`; rows of a part share columns.

    Mt-KaHyPar (Gottesbüren et al. 2021), in its deterministic preset with one thread, minimises the sum over columns of
    (number of parts that retain weights of the column - 1). No size may be 0.
    """
    if len(sizes) == 1:
        return [np.arange(len(kept))]
    try:
        mtkahypar: Any = importlib.import_module("mtkahypar")
    except ImportError as error:
        raise MissingExtraError("mtkahypar", "hypergraph", "grouping rows by a hypergraph") from error
    made = mtkahypar.initialize(1, print_warnings=False)
    mtkahypar.set_seed(seed % 2**31)
    context = made.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(len(sizes), 0.0, mtkahypar.Objective.KM1)
    context.set_individual_target_block_weights(list(sizes))
    edges = [rows for rows in (column.nonzero()[0].tolist() for column in kept.numpy().T) if len(rows) > 1]
    if not edges:  # no two rows share a column
        return np.split(np.arange(len(kept)), np.cumsum(sizes)[:-1])
    parts = np.array(made.create_hypergraph(context, len(kept), len(edges), edges).partition(context).get_partition())
    found = np.bincount(parts, minlength=len(sizes)).tolist()
    if found != list(sizes):
        raise StructureError(
            f"the partitioner put {len(kept)} rows into parts of {found} where {list(sizes)} were asked for: take"
            " another method or another number of rows"
        )
    return [np.flatnonzero(parts == part) for part in range(len(sizes))]


def split_group_sizes(count: int, rows: int) -> list[int]:
    """Return the sizes of the groups when `count` rows are divided into groups of `rows`; the last may be smaller."""
    whole, rest = divmod(count, rows)
    return [rows] * whole + [rest] * (rest > 0)


@dataclass
class PaperBlocks:
    """Finds dense blocks in a mask by the heuristic of Chen et al. (2022, section 3.2, after Rumi et al. 2020).

    The paper's parameters are t1, the number of parts; t2, the least number of rows that retain a column of a block;
    b1 and b2, the least numbers of rows and columns of a block. Here the number of rows of a group determines t1, and
    the number of weights to retain determines t2.

    Rows are divided into parts by `partition_rows`. In each part of at least b1 rows, the columns that at least t2 rows
    retain become a dense block, if these are at least b2 columns. Rows without a block are divided again, until no
    block is found; the remaining rows are removed.
    """

    kept: Tensor
    """bool [rows, columns]; no row is empty."""
    rows: int
    """Number of rows of a group."""
    b1: int
    """Smallest number of rows of a block."""
    b2: int
    """Smallest number of columns of a block."""
    seed: int
    _parts: dict[tuple[int, ...], list[Indices]] = field(default_factory=dict)

    def select_blocks(self, budget: int) -> Tensor:
        """Return a mask of blocks, bool [rows, columns], with about `budget` weights.

        The threshold t2 is the largest whose blocks have at least `budget` weights, or 1 if none does. If the blocks
        exceed the budget, later columns that exactly t2 rows retain are left out.
        """
        found: list[tuple[Indices, Tensor]] = []
        for threshold in range(min(self.rows, len(self.kept)), 0, -1):
            found = self._find_dense_blocks(threshold)
            if sum(len(rows) * int((counts >= threshold).sum()) for rows, counts in found) >= budget:
                return self._build_mask(found, threshold, budget)
        return self._build_mask(found, 1, budget)

    def _find_dense_blocks(self, threshold: int) -> list[tuple[Indices, Tensor]]:
        """Return, for each block, its rows and, for each column, how many of these rows retain it.

        `threshold` is t2, the number of rows that must retain a column of a block.
        """
        left, blocks = np.arange(len(self.kept)), []
        while len(left):
            without, key = [], tuple(left.tolist())
            if key not in self._parts:
                sizes = split_group_sizes(len(left), self.rows)
                self._parts[key] = partition_rows(self.kept[list(key)], sizes, self.seed)
            for part in self._parts[key]:
                rows = left[part]
                counts = self.kept[torch.as_tensor(rows)].sum(0)
                if len(rows) >= self.b1 and int((counts >= threshold).sum()) >= self.b2:
                    blocks.append((rows, counts))
                else:
                    without.append(rows)
            rest = np.sort(np.concatenate(without)) if without else left[:0]
            if len(rest) == len(left):
                break
            left = rest
        return blocks

    def _build_mask(self, found: list[tuple[Indices, Tensor]], threshold: int, budget: int) -> Tensor:
        dense = torch.zeros_like(self.kept)
        excess = sum(len(rows) * int((counts >= threshold).sum()) for rows, counts in found) - budget
        for rows, counts in reversed(found):
            columns = counts >= threshold
            tied = (counts == threshold).nonzero().flatten()
            fewer = min(max(excess, 0) // len(rows), len(tied), int(columns.sum()) - self.b2)
            columns[tied[len(tied) - fewer :]] = False
            excess -= fewer * len(rows)
            dense[torch.as_tensor(rows)] = columns
        return dense


BUDGETS = ("layer", "global")


@entry_point()
def regroup(
    model: nn.Module,
    mask: Mask,
    density: float | None = None,
    rows: int = 16,
    *,
    sparsity: float | None = None,
    method: str = "similarity",
    budget: str = "layer",
    by: str | None = None,
    spare: Patterns = (),
    first_conv: bool = True,
    output: bool = True,
    collapse: str = "raise",
    block_rows: int = 1,
    block_columns: int = 1,
    seed: int = 0,
) -> Mask:
    """Return a mask close to an unstructured mask, in which the rows of each group of `rows` retain the same columns.

    Rows are a layer's outputs; columns are (input channel, kernel height, kernel width). The rows of each layer are
    divided into groups; the last may be smaller. Then columns are chosen for each group by their worth, summed
    over the group's rows. A layer has a single threshold, so groups of higher worth retain more columns. This follows
    Chen et al. 2022, "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets", section 3.2, except for
    the choice of columns.

    Empty rows stay empty; no other row becomes empty. In a grouped convolution, rows are only grouped with rows of the
    same convolution group, so a depthwise convolution is unchanged. Transposed convolutions have their outputs in
    dimension 1; the function `groups`, which takes rows from dimension 0, does not show their groups. Biases and norms
    are unchanged.

    Args:
        model: the model with the weights by which the mask was chosen, not those it is rewound to.
        mask: the unstructured mask.
        density: fraction retained of all elements in the mask, including unchanged layers. The numbers of weights of
            the layers are scaled in proportion, up to dense layers. By default each layer keeps its number of weights.
        rows: number of rows of a group, 1 or more.
        sparsity: fraction removed, instead of density.
        method: how rows are grouped. ``similarity``: by cosine similarity of retained weights, then exchanges (see
            `group_masks.group_similar_rows`). ``hypergraph``: by Mt-KaHyPar, so that groups share retained columns
            (needs the extra `hypergraph`; slow). ``paper``: as ``hypergraph``, but a column is chosen if enough rows of
            the group retain it, and rows without a block are removed. ``random``: random groups, as a control.
        budget: ``layer``: each layer keeps its number of weights, up to half a column of a group; ``global``: all
            layers have a common threshold, and only the whole mask keeps its number of weights.
        by: worth of columns: ``kept`` (the default), ``all``, ``squares`` or ``count``, see
            `group_masks.compute_weight_worth`.
        spare, first_conv, output: select layers that are unchanged, as in `ticketry.scope`.
        collapse: what to do if a layer has too few weights for a column in each group: ``raise`` an error, or ``keep``
            as many columns as its weights permit, at least one; the other groups become empty.
        block_rows, block_columns: for the method ``paper``: smallest number of rows and of columns of a block (b1, b2).
        seed: seed of the methods ``random``, ``hypergraph`` and ``paper``.

    Raises:
        UsageError: for contradictory options.
        MaskError: if the mask does not fit the model, or the density cannot be met.
        LayerCollapseError: if a layer is empty, or too sparse for its groups.
        MissingExtraError: if the method needs mtkahypar and it is not installed.

    Examples:
        >>> model = nn.Linear(32, 32, bias=False)
        >>> mask = tk.prune(model, density=0.25)
        >>> grouped = tk.structure.regroup(model, mask, rows=8)
        >>> [len(group.rows) for group in tk.structure.groups(grouped)["weight"]]
        [8, 8, 8, 8]
        >>> grouped.density
        0.25
    """
    by = _check_regroup_options(method, budget, by, rows, collapse, (block_rows, block_columns))
    views = matrix_views(model, mask, spare=spare, first_conv=first_conv, output=output)
    layers = {
        name: LayerMatrix(
            name, views[name], size, views[name].to_matrix(mask[name].cpu()), mix_seeds(seed, "regroup", name)
        )
        for name, size in weight_magnitudes(model, mask, views).items()
    }
    for name, layer in layers.items():
        if not len(layer.nonempty_rows):
            raise LayerCollapseError(
                f"the mask keeps nothing in {name!r}, which leaves no rows to group: spare the layer"
            )
    budgets = layer_budgets(mask, layers, density, sparsity)
    if method == "paper":
        new = {
            name: _regroup_by_paper(layer, budgets[name], rows, block_rows, block_columns)
            for name, layer in layers.items()
        }
    else:
        grouped = {name: layer.group_rows(method, rows) for name, layer in layers.items()}
        new = choose_layer_masks(layers, grouped, budgets, by, budget, collapse)
    made = {name: views[name].to_weight(kept).to(mask[name].device) for name, kept in new.items()}
    return Mask({name: made.get(name, kept) for name, kept in mask.items()})


@dataclass(frozen=True)
class LayerMatrix:
    """Contains the absolute weights of a layer and its mask, as matrices."""

    name: str
    view: MatrixView
    size: Tensor
    """Absolute weights [rows, columns]."""
    kept: Tensor
    """The unstructured mask [rows, columns]."""
    seed: int

    @property
    def nonempty_rows(self) -> Tensor:
        """Indices of the rows in which the mask retains weights, ascending."""
        return self.kept.any(1).nonzero().flatten()

    def group_rows(self, method: str, rows: int) -> list[Indices]:
        """Divide the rows in which the mask retains weights into groups of `rows` rows.

        Args:
            method: ``random``; ``hypergraph``: by `partition_rows`; anything else: by `group_similar_rows`.
            rows: size of the groups; the last may be smaller. In a grouped convolution, no group of rows contains
                rows of several convolution groups.
        """
        if rows == 1 or len(self.view.row_ranges[0]) == 1:
            return list(self.nonempty_rows[:, None].numpy())
        nonempty = self.nonempty_rows.numpy()
        found = []
        for number, run in enumerate(self.view.row_ranges):
            members = nonempty[(nonempty >= run.start) & (nonempty < run.stop)]
            if not len(members):
                continue
            size, kept = self.size[members], self.kept[members]
            sizes = split_group_sizes(len(members), rows)
            if method == "random":
                order = torch.randperm(len(members), generator=generator(self.seed, number)).numpy()
                local = [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]
            elif method == "hypergraph":
                local = partition_rows(kept, sizes, mix_seeds(self.seed, number))
            else:
                local = group_similar_rows(torch.where(kept, size, 0.0), sizes)
            found += [members[part] for part in local]
        return found


def layer_budgets(
    mask: Mask, layers: Mapping[str, LayerMatrix], density: float | str | None, sparsity: float | str | None = None
) -> dict[str, int]:
    """Return the number of weights that each layer is to retain.

    Without a density or sparsity, it is the number that `mask` retains. Otherwise these numbers are scaled in
    proportion, so that the whole mask has the density.
    """
    own = {name: int(layer.kept.sum()) for name, layer in layers.items()}
    if density is None and sparsity is None:
        return own
    wanted = count_retained(check_density(density, sparsity), mask.total)
    fixed = mask.kept - sum(own.values())
    room = {name: len(layer.nonempty_rows) * layer.view.column_count for name, layer in layers.items()}
    if not fixed < wanted <= fixed + sum(room.values()):
        raise MaskError(
            f"density {wanted / mask.total:.4g} cannot be met: layers that are left as they are keep"
            f" {fixed / mask.total:.4g} of all weights, and rows that keep something have at most"
            f" {(fixed + sum(room.values())) / mask.total:.4g} with those; ask for something between"
        )
    return apportion(wanted - fixed, {name: Fraction(count) for name, count in own.items()}, room)


def choose_layer_masks(
    layers: Mapping[str, LayerMatrix],
    grouped: Mapping[str, Sequence[Indices]],
    budgets: Mapping[str, int],
    by: str,
    budget: str,
    collapse: str,
) -> dict[str, Tensor]:
    """Choose the columns that each row group retains, and return the mask of each layer: bool [rows, columns].

    `grouped` contains the row indices of each group, and `budgets` the number of weights that each layer is to retain.
    For the other arguments see `regroup`.
    """
    made = {
        name: sum_group_worth(compute_weight_worth(layer.size, layer.kept, by), layer.size, grouped[name])
        for name, layer in layers.items()
    }
    together = [list(layers)] if budget == "global" else [[name] for name in layers]
    new = {}
    for names in together:
        pays = sum(budgets[name] for name in names)
        least = sum(int(made[name].sizes.sum()) for name in names)  # weights of one column in each group
        if least > pays and collapse == "raise":
            which = repr(names[0]) if len(names) == 1 else f"{len(names)} layers together"
            raise LayerCollapseError(
                f"{pays} weights of {which} do not pay for one column of each group of rows ({least}), so that"
                " groups would vanish: choose a higher density or fewer rows, spare the layer, or collapse=keep"
            )
        chosen = choose_columns([made[name] for name in names], pays, every_group=least <= pays)
        for name, columns in zip(names, chosen, strict=True):
            new[name] = torch.zeros_like(layers[name].kept)
            for rows, kept in zip(grouped[name], columns, strict=True):
                new[name][torch.as_tensor(rows)] = kept
    return new


def _regroup_by_paper(layer: LayerMatrix, budget: int, rows: int, b1: int, b2: int) -> Tensor:
    new = torch.zeros_like(layer.kept)
    total = int(layer.kept.sum())
    for number, run in enumerate(layer.view.row_ranges):
        members = layer.nonempty_rows[(layer.nonempty_rows >= run.start) & (layer.nonempty_rows < run.stop)]
        if len(members):
            kept = layer.kept[members]
            heuristic = PaperBlocks(kept, rows, b1, b2, mix_seeds(layer.seed, number))
            new[members] = heuristic.select_blocks(round(budget * int(kept.sum()) / total))
    if not new.any():
        raise LayerCollapseError(
            f"no group of {layer.name!r} makes a block of {b1} rows and {b2} columns: lower block_rows= and"
            " block_columns=, or spare the layer"
        )
    return new


def _check_regroup_options(
    method: str, budget: str, by: str | None, rows: int, collapse: str, least: tuple[int, int]
) -> str:
    """Return `by`, or its default, after checking the options of `regroup`; raise `UsageError` if they are invalid."""
    for what, word, known in (
        ("method", method, REGROUP_METHODS),
        ("budget", budget, BUDGETS),
        ("by", by, (*WORTHS, None)),
    ):
        check_choice(what, word, known)
    check_collapse(collapse)
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise UsageError(f"rows= is the number of rows in a group, 1 or more, not {rows!r}")
    if min(least) < 1:
        raise UsageError(f"block_rows= and block_columns= are 1 or more, not {least[0]} and {least[1]}")
    if method == "paper" and (budget != "layer" or by not in (None, "count")):
        raise UsageError("the method paper chooses columns by count within each layer: leave out budget= and by=")
    if method != "paper" and least != (1, 1):
        raise UsageError("block_rows= and block_columns= are of the method paper")
    return by or "kept"
