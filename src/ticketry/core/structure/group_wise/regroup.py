"""A group-wise mask from an unstructured one: rows of a group keep exactly the same columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.choices import check_choice
from ticketry.core.allocate import apportion
from ticketry.core.mask import Mask
from ticketry.core.pattern import check_collapse, check_density, kept_elements
from ticketry.core.scope import Patterns
from ticketry.core.structure.group_wise.columns import WORTHS, choose, group_worth, worth_of
from ticketry.core.structure.group_wise.matrices import Indices, MatrixView, magnitudes, matrix_views
from ticketry.core.structure.group_wise.similarity import PaperBlocks, partitioned_rows, similar_rows, sizes_of
from ticketry.core.structuring import REGROUP_METHODS
from ticketry.errors import LayerCollapseError, MaskError, UsageError
from ticketry_engine.support.entry_points import entry_point
from ticketry_engine.support.seeds import generator, mix

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
    """The mask whose layers consist of groups of `rows` rows that keep the same columns, near to an unstructured one.

    Rows are a layer's outputs; columns are (input channel, kernel height, kernel width). The rows of each layer are put
    into groups, the last of which has what remains; then columns are chosen for each group by what its rows together
    have there, with one threshold a layer: groups that hold more keep more columns (Chen et al. 2022, "Coarsening the
    Granularity: Towards Structurally Sparse Lottery Tickets", section 3.2; columns are chosen anew here).

    Rows that keep nothing stay empty; every other row keeps something. Outputs of a grouped convolution are grouped
    within its groups, as others read other inputs: a depthwise one, which has one output each, stays as it is. Of
    transposed convolutions outputs lie in dimension 1, where `groups` does not look. Biases and norms stay as they are.

    Args:
        model: whose weights tell magnitudes: those by which the mask was chosen, not those it is rewound to.
        mask: the unstructured mask.
        density: fraction kept of all that the mask is of; layers keep their proportions, up to their dense size, and
            what is left as it is counts too. By default each layer keeps as many weights as it has.
        rows: rows of a group, 1 or more.
        sparsity: share removed, instead of density.
        method: how rows are grouped. ``similarity``: by the cosine similarity of what they keep, then exchanged (see
            `similarity.similar_rows`); ``hypergraph``: by Mt-KaHyPar over the columns they keep (extra `hypergraph`;
            slow); ``paper``: the same and columns by counts, as in the paper, where rows without a block are removed;
            ``random``: at random, a control.
        budget: ``layer``: each layer keeps its number of weights, but for half a column of a group; ``global``: one
            threshold over all layers, the whole keeps its number.
        by: what chooses columns: ``kept`` (the default), ``all``, ``squares``, ``count`` (see `columns.worth_of`).
        spare, first_conv, output: layers left as they are, as in `ticketry.scope`.
        collapse: where a layer's weights do not pay for one column of each group: ``raise``, or ``keep`` what they pay
            for, one column at least; the other groups vanish.
        block_rows, block_columns: of the method ``paper``: fewer rows or columns make no block (b1, b2).
        seed: of the methods ``random``, ``hypergraph`` and ``paper``.

    Raises:
        UsageError: for a request that cannot be meant.
        MaskError: if the mask does not fit the model, or the density cannot be met.
        LayerCollapseError: if a layer keeps nothing, or too little for its groups.
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
    by = _checked(method, budget, by, rows, collapse, (block_rows, block_columns))
    views = matrix_views(model, mask, spare=spare, first_conv=first_conv, output=output)
    layers = {
        name: Layer(name, views[name], size, views[name].matrix(mask[name].cpu()), mix(seed, "regroup", name))
        for name, size in magnitudes(model, mask, views).items()
    }
    for name, layer in layers.items():
        if not len(layer.alive):
            raise LayerCollapseError(
                f"the mask keeps nothing in {name!r}, which leaves no rows to group: spare the layer"
            )
    budgets = budgets_of(mask, layers, density, sparsity)
    if method == "paper":
        new = {name: _paper(layer, budgets[name], rows, block_rows, block_columns) for name, layer in layers.items()}
    else:
        grouped = {name: layer.grouped(method, rows) for name, layer in layers.items()}
        new = with_columns(layers, grouped, budgets, by, budget, collapse)
    made = {name: views[name].weight(kept).to(mask[name].device) for name, kept in new.items()}
    return Mask({name: made.get(name, kept) for name, kept in mask.items()})


@dataclass(frozen=True)
class Layer:
    """A weight and its mask as matrices."""

    name: str
    view: MatrixView
    size: Tensor
    """|w| [rows, columns]."""
    kept: Tensor
    """[rows, columns]"""
    seed: int

    @property
    def alive(self) -> Tensor:
        """Rows that keep something, ascending."""
        return self.kept.any(1).nonzero().flatten()

    def grouped(self, method: str, rows: int) -> list[Indices]:
        """All rows that are alive, in groups of `rows` within each run of rows that read the same inputs."""
        if rows == 1 or len(self.view.runs[0]) == 1:
            return list(self.alive[:, None].numpy())
        alive = self.alive.numpy()
        found = []
        for number, run in enumerate(self.view.runs):
            members = alive[(alive >= run.start) & (alive < run.stop)]
            if not len(members):
                continue
            size, kept = self.size[members], self.kept[members]
            sizes = sizes_of(len(members), rows)
            if method == "random":
                order = torch.randperm(len(members), generator=generator(self.seed, number)).numpy()
                local = [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]
            elif method == "hypergraph":
                local = partitioned_rows(kept, sizes, mix(self.seed, number))
            else:
                local = similar_rows(torch.where(kept, size, 0.0), sizes)
            found += [members[part] for part in local]
        return found


def budgets_of(
    mask: Mask, layers: Mapping[str, Layer], density: float | str | None, sparsity: float | str | None = None
) -> dict[str, int]:
    """How many weights each layer is to keep: as many as it does, or in proportion so that the mask has a density."""
    own = {name: int(layer.kept.sum()) for name, layer in layers.items()}
    if density is None and sparsity is None:
        return own
    wanted = kept_elements(check_density(density, sparsity), mask.total)
    fixed = mask.kept - sum(own.values())
    room = {name: len(layer.alive) * layer.view.columns for name, layer in layers.items()}
    if not fixed < wanted <= fixed + sum(room.values()):
        raise MaskError(
            f"density {wanted / mask.total:.4g} cannot be met: layers that are left as they are keep"
            f" {fixed / mask.total:.4g} of all weights, and rows that keep something have at most"
            f" {(fixed + sum(room.values())) / mask.total:.4g} with those; ask for something between"
        )
    return apportion(wanted - fixed, {name: Fraction(count) for name, count in own.items()}, room)


def with_columns(
    layers: Mapping[str, Layer],
    grouped: Mapping[str, Sequence[Indices]],
    budgets: Mapping[str, int],
    by: str,
    budget: str,
    collapse: str,
) -> dict[str, Tensor]:
    """Boolean [rows, columns] of each layer: its groups with the columns that their budgets pay for."""
    made = {
        name: group_worth(worth_of(layer.size, layer.kept, by), layer.size, grouped[name])
        for name, layer in layers.items()
    }
    together = [list(layers)] if budget == "global" else [[name] for name in layers]
    new = {}
    for names in together:
        pays, least = sum(budgets[name] for name in names), sum(made[name].least for name in names)
        if least > pays and collapse == "raise":
            which = repr(names[0]) if len(names) == 1 else f"{len(names)} layers together"
            raise LayerCollapseError(
                f"{pays} weights of {which} do not pay for one column of each group of rows ({least}), so that"
                " groups would vanish: choose a higher density or fewer rows, spare the layer, or collapse=keep"
            )
        chosen = choose([made[name] for name in names], pays, every_group=least <= pays)
        for name, columns in zip(names, chosen, strict=True):
            new[name] = torch.zeros_like(layers[name].kept)
            for rows, kept in zip(grouped[name], columns, strict=True):
                new[name][torch.as_tensor(rows)] = kept
    return new


def _paper(layer: Layer, budget: int, rows: int, b1: int, b2: int) -> Tensor:
    new = torch.zeros_like(layer.kept)
    total = int(layer.kept.sum())
    for number, run in enumerate(layer.view.runs):
        members = layer.alive[(layer.alive >= run.start) & (layer.alive < run.stop)]
        if len(members):
            kept = layer.kept[members]
            heuristic = PaperBlocks(kept, rows, b1, b2, mix(layer.seed, number))
            new[members] = heuristic.within(round(budget * int(kept.sum()) / total))
    if not new.any():
        raise LayerCollapseError(
            f"no group of {layer.name!r} makes a block of {b1} rows and {b2} columns: lower block_rows= and"
            " block_columns=, or spare the layer"
        )
    return new


def _checked(method: str, budget: str, by: str | None, rows: int, collapse: str, least: tuple[int, int]) -> str:
    """What chooses columns."""
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
