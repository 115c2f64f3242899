"""Synthetic masks have the density and the structure that they are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ticketry.core.synthetic_masks import Pattern, split_rows, synthetic
from ticketry.errors import UsageError


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 40, 1), nn.Flatten(), nn.Linear(40 * 36, 10))


def distinct(rows: torch.Tensor) -> dict[tuple[bool, ...], int]:
    found: dict[tuple[bool, ...], int] = {}
    for row in rows.flatten(1).tolist():
        found[tuple(row)] = found.get(tuple(row), 0) + 1
    return found


@pytest.mark.parametrize("density", [0.02, 0.26, 0.5, 1.0])
def test_unstructured_masks_meet_the_density_in_every_weight(model: nn.Module, density: float) -> None:
    mask = synthetic(model, "unstructured", density)
    for row in mask.table():
        assert row.kept == max(1, round(density * row.total))
    if density < 1:
        assert len(distinct(mask["2.weight"])) > 20


@pytest.mark.parametrize("text", ["groups:16", "groups:16:any", "groups:5", "groups:5:any", "groups:100"])
def test_rows_of_a_group_share_their_columns(model: nn.Module, text: str) -> None:
    pattern = Pattern.parse(text)
    mask = synthetic(model, pattern, 0.3, seed=5)
    for name, kept in mask.items():
        rows = kept.flatten(1)
        count = max(1, len(rows) // pattern.rows)
        found = distinct(rows)
        assert len(found) <= count
        if rows.shape[1] > 20:  # so many columns that no two groups are alike
            assert len(found) == count
            assert min(found.values()) >= min(pattern.rows, len(rows))
        assert (rows.sum(1) == max(1, round(0.3 * rows.shape[1]))).all(), name
    neighbours = mask["0.weight"].flatten(1)
    changes = int((neighbours[1:] != neighbours[:-1]).any(1).sum())
    if pattern.any_order:
        assert changes > len(neighbours) // 2
    else:
        assert changes == max(1, 48 // pattern.rows) - 1


@pytest.mark.parametrize(
    ("rows", "text", "sizes"),
    [
        (64, "groups:48", [64]),
        (128, "groups:48", [64, 64]),
        (256, "groups:48", [48, 48, 48, 48, 64]),
        (64, "groups:32", [32, 32]),
        (10, "groups:4", [5, 5]),
        (3, "groups:16", [3]),
        (40, "groups:16", [20, 20]),
    ],
)
def test_sizes(rows: int, text: str, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = split_rows(rows, Pattern.parse(text), generator)
    assert sorted(len(group) for group in groups) == sizes
    assert torch.equal(torch.cat(groups), torch.arange(rows))
    anywhere = torch.cat(split_rows(rows, Pattern.parse(f"{text}:any"), generator))
    assert torch.equal(anywhere.sort().values, torch.arange(rows))


def test_the_seed_decides(model: nn.Module) -> None:
    for text in ("unstructured", "groups:8:any"):
        assert synthetic(model, text, 0.3, seed=1) == synthetic(model, text, 0.3, seed=1)
        assert synthetic(model, text, 0.3, seed=1) != synthetic(model, text, 0.3, seed=2)


@pytest.mark.parametrize("text", ["", "groups", "groups:0", "groups:x", "groups:4:some", "unstructured:3", "2:4"])
def test_other_words(text: str) -> None:
    with pytest.raises(UsageError, match="pattern of a synthetic mask"):
        Pattern.parse(text)


def test_what_is_no_synthetic_mask(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="use structure"):
        synthetic(model, "channels", 0.3)
    for density in (0.0, 1.5):
        with pytest.raises(UsageError, match="density"):
            synthetic(model, "unstructured", density)


@pytest.mark.parametrize("text", ["groups:16:pairs", "groups:16:any:pairs"])
def test_neighbouring_inputs_are_kept_together(model: nn.Module, text: str) -> None:
    pattern = Pattern.parse(text)
    assert str(pattern) == text
    mask = synthetic(model, pattern, 0.3)
    for name, kept in mask.items():
        inputs = kept.shape[1] // 2 * 2
        assert torch.equal(kept[:, 0:inputs:2], kept[:, 1:inputs:2]), name
    for name in ("2.weight", "4.weight"):
        assert mask[name].double().mean() == pytest.approx(0.3, abs=0.02)
    assert len(distinct(mask["2.weight"])) == 2


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_of_a_transposed_convolution_are_its_outputs(groups: int) -> None:
    """Its weight has them in dimension 1: those of a group share inputs and taps."""
    model = nn.Sequential(nn.ConvTranspose2d(12, 32, 3, groups=groups))
    kept = synthetic(model, "groups:8", 0.3)["0.weight"]
    assert kept.shape == (12, 32 // groups, 3, 3)
    for inputs in kept.chunk(groups):
        rows = inputs.transpose(0, 1)
        assert sorted(distinct(rows).values()) == [8] * (4 // groups)
        assert int(rows[0].sum()) == round(0.3 * rows[0].numel())
