"""What a structured mask keeps, against slow counts."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import ticketry as tk
from group_wise import Bank, linear, planted, random_tensor, share_inside
from ticketry.core.structure.layout import Layout, MatrixView
from ticketry.core.structure.mask_fit import shuffle_columns
from ticketry.errors import MaskError, UsageError

NAME = "layer.weight"
coverage, regroup = tk.structure.coverage, tk.structure.regroup


def test_one_layer_counted_slowly() -> None:
    weight = random_tensor(40, 6, 3, 3)
    model = Bank(nn.Conv2d(6, 40, 3), weight)
    mask = tk.prune(model, 0.3)
    made = regroup(model, mask, rows=8)
    fit = coverage(model, mask, made, null=False)[NAME]
    assert (fit.name, fit.rows, fit.columns, fit.groups, fit.rows_per_group) == (NAME, 40, 54, 5, 8)
    assert fit.coverage == pytest.approx(share_inside(weight, mask[NAME], made[NAME]))
    assert fit.magnitude == pytest.approx(float(weight[mask[NAME]].abs().sum()))
    assert fit.density_before == mask.density
    assert fit.density_after == made.density
    assert fit.fill == pytest.approx((made & ~mask).kept / made.kept)
    assert fit.null_coverage is fit.random_coverage is None
    assert tk.structure.LayerFit(**json.loads(json.dumps(fit.as_json()))) == fit


def test_structure_shows_against_null_and_random() -> None:
    weight = planted(64, 120, 8, 30) + 0.3 * random_tensor(64, 120).abs()
    mask = tk.prune(linear(weight), 0.25)
    fit = coverage(linear(weight), mask, regroup(linear(weight), mask, rows=8))[NAME]
    assert fit.null_coverage is not None
    assert fit.random_coverage is not None
    assert fit.coverage > 0.95
    assert fit.null_coverage < 0.7
    assert fit.random_coverage < 0.7


def test_without_structure_coverage_is_that_of_the_null() -> None:
    """The probe: of a mask whose rows have nothing in common, clustering covers a little more than random groups."""
    weight = random_tensor(128, 400)
    mask = tk.prune(linear(weight), 0.2)
    fit = coverage(linear(weight), mask, regroup(linear(weight), mask, rows=8))[NAME]
    assert fit.null_coverage == pytest.approx(fit.coverage, abs=0.005)
    assert fit.random_coverage is not None
    assert fit.random_coverage < fit.coverage


def test_random_coverage_is_that_of_the_random_method() -> None:
    weight = random_tensor(64, 200) * random_tensor(200, seed=1).exp()
    model, mask = linear(weight), tk.prune(linear(weight), 0.2)
    drawn_groups = coverage(model, mask, regroup(model, mask, rows=8))[NAME].random_coverage
    others = [coverage(model, mask, regroup(model, mask, method="random", rows=8, seed=s)) for s in range(20)]
    covered = [fits[NAME].coverage for fits in others]
    assert drawn_groups is not None
    assert min(covered) - 0.003 < drawn_groups < max(covered) + 0.003


def test_whole_rows() -> None:
    """As refill makes them: the null and random groups are then rows, as many."""
    weight = random_tensor(20, 30) * (1 + torch.arange(20))[:, None]
    model, mask = linear(weight), tk.prune(linear(weight), 0.3)
    kept = torch.zeros(20, 30, dtype=torch.bool)
    kept[-6:] = True
    fit = coverage(model, mask, tk.Mask({NAME: kept}))[NAME]
    assert (fit.groups, fit.rows_per_group, fit.density_after) == (1, 6, 0.3)
    worth = torch.where(mask[NAME], weight.abs(), 0.0).double()
    assert fit.coverage == pytest.approx(float(worth[-6:].sum() / worth.sum()))
    assert fit.null_coverage is not None
    assert fit.random_coverage is not None
    assert 0.3 < fit.null_coverage < fit.coverage - 0.1  # shuffled, rows are more alike
    assert fit.random_coverage < fit.coverage


def test_rows_that_share_nothing_have_no_null() -> None:
    """As of N:M masks."""
    weight = random_tensor(32, 64)
    kept = weight.abs().reshape(32, 16, 4).argsort(2).argsort(2).reshape(32, 64) >= 2
    fit = coverage(linear(weight), tk.prune(linear(weight), 0.5), tk.Mask({NAME: kept}))[NAME]
    assert (fit.groups, fit.rows_per_group, fit.density_after) == (32, 1, 0.5)
    assert fit.null_coverage is fit.random_coverage is None
    assert 0.7 < fit.coverage < 1


def test_grouped_and_transposed_convolutions() -> None:
    for layer in (nn.Conv2d(8, 24, 3, groups=2), nn.ConvTranspose2d(8, 24, 3, groups=2), nn.ConvTranspose1d(6, 24, 3)):
        model = Bank(layer)
        mask = tk.prune(model, 0.3)
        made = regroup(model, mask, rows=6)
        fit = coverage(model, mask, made)[NAME]
        assert (fit.rows, fit.groups, fit.rows_per_group) == (24, 4, 6)
        assert fit.coverage == pytest.approx(share_inside(layer.weight.detach(), mask[NAME], made[NAME]))
        assert fit.random_coverage is not None


def test_layers_together() -> None:
    model = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 64))
    mask = tk.prune(model, 0.3)
    made = regroup(model, mask, rows=8, spare=["2"])
    fits = coverage(model, mask, made)
    whole = tk.structure.together(fits)
    covered = sum(float(model.get_parameter(n).detach().abs()[mask[n] & made[n]].sum()) for n in mask)
    total = sum(float(model.get_parameter(n).detach().abs()[mask[n]].sum()) for n in mask)
    assert fits["2.weight"].coverage == 1
    assert fits["2.weight"].null_coverage is None
    assert whole.coverage == pytest.approx(covered / total)
    assert whole.density_after == pytest.approx(made.density)
    assert whole.fill == pytest.approx((made & ~mask).kept / made.kept)
    assert whole.null_coverage is not None
    assert whole.null_coverage < 1
    assert tk.structure.together(list(fits.values())[1:]).null_coverage is None


def test_a_layer_of_zeros_and_an_empty_one() -> None:
    model = linear(torch.zeros(8, 10))
    kept = tk.Mask({NAME: random_tensor(8, 10) > 0})
    fit = coverage(model, kept, regroup(model, kept, rows=4))[NAME]
    assert (fit.coverage, fit.magnitude) == (1, 0)
    empty = coverage(linear(random_tensor(8, 10)), kept, tk.Mask({NAME: torch.zeros(8, 10)}))[NAME]
    assert (empty.coverage, empty.fill, empty.groups, empty.rows_per_group) == (0, 0, 0, 0)


def test_what_is_refused() -> None:
    model = linear(random_tensor(8, 10))
    mask = tk.prune(model, 0.5)
    with pytest.raises(MaskError, match=NAME):
        coverage(model, mask, tk.Mask({"other": mask[NAME]}))
    with pytest.raises(MaskError, match=NAME):
        coverage(model, mask, tk.Mask({NAME: torch.ones(8, 9)}))
    with pytest.raises(MaskError, match="fit"):
        coverage(linear(random_tensor(8, 9)), mask, mask)
    with pytest.raises(UsageError, match="no layers"):
        tk.structure.together([])


def test_shuffled_columns_keep_their_entries_and_lose_their_rows() -> None:
    matrix = random_tensor(60, 500)
    view = MatrixView((60, 500), Layout(groups=2))
    shuffled = shuffle_columns(matrix, view, "a", 0)
    for run in (slice(0, 30), slice(30, 60)):
        assert torch.equal(shuffled[run].sort(0).values, matrix[run].sort(0).values)
        stays = (shuffled[run] == matrix[run]).float().mean()
        assert abs(float(stays) - 1 / 30) < 0.01
    assert torch.equal(shuffled, shuffle_columns(matrix, view, "a", 0))
    assert not torch.equal(shuffled, shuffle_columns(matrix, view, "a", 1))
    assert not torch.equal(shuffled, shuffle_columns(matrix, view, "b", 0))
