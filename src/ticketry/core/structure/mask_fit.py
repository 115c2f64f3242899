"""Measure how much of an unstructured mask a structured mask retains, and compare with masks without structure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.structure.group_masks import choose_columns, group_similar_rows, sum_group_worth
from ticketry.core.structure.layout import Indices, MatrixView, matrix_views, row_groups, weight_magnitudes
from ticketry.core.structure.pattern import LayerFit
from ticketry.errors import MaskError, UsageError
from ticketry_engine.support.entry_points import entry_point
from ticketry_engine.support.seeds import generator


@entry_point()
def coverage(
    model: nn.Module, mask: Mask, structured: Mask, *, null: bool = True, seed: int = 0
) -> dict[str, LayerFit]:
    """Return how much of a mask a structured mask retains, for each parameter with two or more dimensions.

    The coverage is the fraction of the total |w| retained by `mask` that `structured` retains too. Two references help
    to interpret it. For `null_coverage`, the entries of each column are shuffled among the layer's rows, in mask and
    weights alike, so that rows have no structure in common. Then rows are grouped by similarity and columns are chosen,
    with the group sizes and the number of weights of `structured`, and the coverage is measured. `random_coverage` is
    the coverage of the original mask by random groups of these sizes. In layers where rows share no columns, such as
    those of N:M masks, both references are None.

    Args:
        model: the model with the weights.
        mask: the unstructured mask.
        structured: the structured mask derived from `mask`, by `regroup`, `refill` or otherwise. It must contain all
            tensors of `mask`.
        null: whether to measure the two references.
        seed: seed of the shuffling and of the random groups.

    Raises:
        MaskError: if a mask does not fit the model, or `structured` lacks a tensor of `mask`.
        UsageError: if `mask` or `structured` is not a mask.

    Examples:
        >>> model = nn.Linear(32, 32, bias=False)
        >>> mask = tk.prune(model, density=0.25)
        >>> fit = tk.structure.coverage(model, mask, tk.structure.regroup(model, mask, rows=8))["weight"]
        >>> fit.rows_per_group, fit.density_before, fit.density_after
        (8, 0.25, 0.25)
        >>> fit.null_coverage < fit.coverage < 1
        True
    """
    views = matrix_views(model, mask)
    for name in views:
        if name not in structured or structured[name].shape != mask[name].shape:
            raise MaskError(f"the structured mask has no tensor {name!r} of the shape {tuple(mask[name].shape)}")
    sizes = weight_magnitudes(model, mask, views)
    found = {}
    for name, view in views.items():
        kept, new = (view.to_matrix(one[name].cpu()) for one in (mask, structured))
        layer = _LayerComparison(name, view, torch.where(kept, sizes[name], 0.0), new)
        compared = null and layer.rows_per_group > 1  # the median row shares its columns with other rows
        references = (layer.null_coverage(seed), layer.random_coverage(seed)) if compared else (None, None)
        found[name] = layer.to_layer_fit(kept, *references)
    return found


@entry_point()
def together(fits: Mapping[str, LayerFit] | Iterable[LayerFit], name: str = "all layers") -> LayerFit:
    """Combine the fits of several layers into a single fit.

    Numbers of rows, columns and groups are added up. Averages are weighted: densities by the size of the layers, fill
    by the number of retained weights, coverage by magnitude. If a layer has no measured reference, its coverage is used
    instead.

    Args:
        fits: fits of layers, from `coverage`.
        name: name of the combined fit.

    Raises:
        UsageError: if `fits` is empty, or contains anything other than `LayerFit`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        >>> mask = tk.prune(model, density=0.5)
        >>> fits = tk.structure.coverage(model, mask, mask, null=False)
        >>> everything = tk.structure.together(fits)
        >>> everything.name, everything.rows, everything.coverage
        ('all layers', 32, 1.0)
    """
    layers = list(fits.values()) if isinstance(fits, Mapping) else list(fits)
    if not layers:
        raise UsageError("there are no layers to put together")
    if other := [type(one).__name__ for one in layers if not isinstance(one, LayerFit)]:
        raise UsageError(
            f"fits= are LayerFits, and a {other[0]} is none: tk.structure.coverage(model, mask, structured) finds them"
        )
    total = sum(one.rows * one.columns for one in layers)
    after = sum(one.density_after * one.rows * one.columns for one in layers)
    magnitude = sum(one.magnitude for one in layers)

    def average_share(field: str) -> float | None:
        values = [getattr(one, field) for one in layers]
        if all(value is None for value in values):
            return None
        used = [one.coverage if value is None else value for one, value in zip(layers, values, strict=True)]
        whole = sum(value * one.magnitude for value, one in zip(used, layers, strict=True))
        return whole / magnitude if magnitude else 1.0

    covered = average_share("coverage")
    assert covered is not None
    return LayerFit(
        name=name,
        rows=sum(one.rows for one in layers),
        columns=sum(one.columns for one in layers),
        groups=sum(one.groups for one in layers),
        rows_per_group=int(np.median(np.repeat([one.rows_per_group for one in layers], [one.rows for one in layers]))),
        density_before=sum(one.density_before * one.rows * one.columns for one in layers) / total,
        density_after=after / total,
        magnitude=magnitude,
        coverage=covered,
        fill=sum(one.fill * one.density_after * one.rows * one.columns for one in layers) / after if after else 0.0,
        null_coverage=average_share("null_coverage"),
        random_coverage=average_share("random_coverage"),
    )


class _LayerComparison:
    """Computes how much of a layer's unstructured mask its structured mask retains, and references for comparison."""

    def __init__(self, name: str, view: MatrixView, worth: Tensor, new: Tensor) -> None:
        self._name, self._view, self._worth, self._new = name, view, worth, new
        found = [row_groups(new[run.start : run.stop]) for run in view.row_ranges]
        self._sizes = [[len(group.rows) for group in groups if group.width] for groups in found]
        """For each run of rows that read the same inputs: the sizes of its row groups."""
        flat = sorted(size for sizes in self._sizes for size in sizes)
        self._group_count = len(flat)
        self.rows_per_group = int(np.median(np.repeat(flat, flat))) if flat else 0
        """Median number of rows in a row's group, over all rows that are not empty."""

    def to_layer_fit(self, kept: Tensor, null: float | None, random: float | None) -> LayerFit:
        after, magnitude = int(self._new.sum()), float(self._worth.sum())
        return LayerFit(
            name=self._name,
            rows=self._view.row_count,
            columns=self._view.column_count,
            groups=self._group_count,
            rows_per_group=self.rows_per_group,
            density_before=int(kept.sum()) / kept.numel(),
            density_after=after / kept.numel(),
            magnitude=magnitude,
            coverage=float(self._worth[self._new].sum()) / magnitude if magnitude else 1.0,
            fill=int((self._new & ~kept).sum()) / after if after else 0.0,
            null_coverage=null,
            random_coverage=random,
        )

    def null_coverage(self, seed: int) -> float:
        """Return the share of magnitude that groups of similar rows retain if each column is shuffled first.

        The groups have the sizes of the structured mask's groups.
        """
        worth = shuffle_columns(self._worth, self._view, self._name, seed)
        grouped: list[Indices] = []
        for run, sizes in zip(self._view.row_ranges, self._sizes, strict=True):
            part = worth[run.start : run.stop]
            rows = part.sum(1).argsort(descending=True, stable=True)[: sum(sizes)].sort().values
            groups = group_similar_rows(part[rows], sizes) if sizes else []
            grouped += [rows.numpy()[group] + run.start for group in groups]
        return self._coverage_of_row_groups(worth, grouped)

    def random_coverage(self, seed: int) -> float:
        """Return the share of magnitude that random groups of rows retain with their best columns.

        The groups have the sizes of the structured mask's groups.
        """
        grouped: list[Indices] = []
        for number, (run, sizes) in enumerate(zip(self._view.row_ranges, self._sizes, strict=True)):
            rows = self._worth[run.start : run.stop].any(1).nonzero().flatten().numpy() + run.start
            if len(rows) < sum(sizes):
                rows = np.arange(run.start, run.stop)
            order = torch.randperm(len(rows), generator=generator(seed, "random", self._name, number)).numpy()
            grouped += np.split(rows[order[: sum(sizes)]], np.cumsum(sizes)[:-1]) if sizes else []
        return self._coverage_of_row_groups(self._worth, grouped)

    def _coverage_of_row_groups(self, worth: Tensor, grouped: list[Indices]) -> float:
        made = sum_group_worth(worth, worth, grouped)
        (columns,) = choose_columns([made], int(self._new.sum()))
        total = float(worth.sum())
        return float(made.worth[columns].sum()) / total if total else 1.0


def shuffle_columns(matrix: Tensor, view: MatrixView, name: str, seed: int) -> Tensor:
    """Return a matrix [rows, columns] in which each column is shuffled among rows that read the same inputs."""
    shuffled = torch.empty_like(matrix)
    for number, run in enumerate(view.row_ranges):
        keys = torch.rand(len(run), matrix.shape[1], generator=generator(seed, "null", name, number))
        shuffled[run.start : run.stop] = matrix[run.start : run.stop].gather(0, keys.argsort(dim=0, stable=True))
    return shuffled
