"""Group-wise masks, against slow and obvious references."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from group_wise import Bank, in_groups, linear, planted, random_tensor, share_inside
from ticketry.core.structure import group_masks as similarity
from ticketry.core.structure.group_masks import group_similar_rows
from ticketry.errors import LayerCollapseError, MaskError, MissingExtraError, ScopeError, UsageError

NAME = "layer.weight"
regroup = tk.structure.regroup


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    rows=st.integers(1, 50),
    density=st.floats(0.05, 1),
    method=st.sampled_from(["similarity", "random"]),
    seed=st.integers(0, 1000),
)
def test_masks_have_groups_and_the_number_of_weights_of_each_layer(
    shape: tuple[int, int], rows: int, density: float, method: str, seed: int
) -> None:
    weight = random_tensor(*shape, seed=seed)
    mask = tk.allocate({NAME: weight.abs()}, max(density, 1 / weight.numel()))
    made = regroup(linear(weight), mask, rows=rows, method=method, seed=seed)
    assert in_groups(made[NAME], rows)
    assert abs(made.kept - mask.kept) <= min(rows, shape[0]) / 2
    assert torch.equal(made[NAME].any(1), mask[NAME].any(1))  # the same rows are empty
    if rows == 1:
        assert made == mask


@pytest.mark.parametrize("method", ["similarity", "hypergraph", "paper"])
@pytest.mark.parametrize("rows", [2, 8])
def test_a_planted_structure_is_found(method: str, rows: int) -> None:
    weight = planted(32, 60, rows, 12)
    mask = tk.Mask({NAME: weight != 0})
    assert regroup(linear(weight), mask, rows=rows, method=method) == mask


def test_a_planted_structure_is_found_in_noise() -> None:
    weight = planted(128, 300, 16, 60)
    noisy = weight + 0.6 * random_tensor(128, 300, seed=1).abs()
    mask = tk.prune(linear(noisy), 0.2)
    assert mask.overlap(tk.Mask({NAME: weight != 0})) < 0.95
    found = regroup(linear(noisy), mask, rows=16)
    together = {frozenset(group.rows.tolist()) for group in tk.structure.groups(found)[NAME]}
    assert together == {frozenset(group.rows.tolist()) for group in tk.structure.row_groups(weight)}


@pytest.mark.parametrize("budget", ["layer", "global"])
def test_order_of_rows_and_columns_does_not_matter(budget: str) -> None:
    weight = random_tensor(48, 90).double()
    mask = tk.prune(linear(weight), 0.2)
    rows, columns = random_tensor(48, seed=1).argsort(), random_tensor(90, seed=2).argsort()
    moved = tk.Mask({NAME: mask[NAME][rows][:, columns]})
    made = regroup(linear(weight), mask, rows=8, budget=budget)
    assert torch.equal(
        regroup(linear(weight[rows][:, columns]), moved, rows=8, budget=budget)[NAME],
        made[NAME][rows][:, columns],
    )


# -- columns -----------------------------------------------------------------------------------------------------------


def test_columns_have_the_greatest_mean_magnitude() -> None:
    weight = random_tensor(30, 40)
    mask = tk.prune(linear(weight), 0.3)
    made = regroup(linear(weight), mask, rows=4)[NAME]
    inside, outside = [], []
    for group in tk.structure.row_groups(made):
        widest = []
        for column in range(40):
            mean = sum(abs(float(weight[row, column])) * bool(mask[NAME][row, column]) for row in group.rows)
            mean /= len(group.rows)
            (widest if column in group.columns else outside).append(mean)
        inside += sorted(widest)[:-1]  # a group has its best column below the threshold too
    assert min(inside) >= max(outside) - 1e-6


def test_the_default_retains_most_magnitude() -> None:
    weight, generator = random_tensor(64, 100), torch.Generator().manual_seed(3)
    mask = tk.Mask({NAME: torch.rand(64, 100, generator=generator) < 0.3})
    covered = {
        by: share_inside(weight, mask[NAME], regroup(linear(weight), mask, rows=8, method="random", by=by)[NAME])
        for by in ("kept", "all", "squares", "count")
    }
    assert max(covered, key=lambda by: covered[by]) == "kept"
    assert len(set(covered.values())) == 4


def test_empty_columns_come_last_by_magnitude() -> None:
    weight = torch.tensor([[3.0, 2.0, 1.0, 5.0, 4.0]] * 2)
    mask = tk.Mask({NAME: torch.tensor([[True, False, False, False, False]] * 2)})
    assert regroup(linear(weight), mask, 0.6, rows=2)[NAME][0].tolist() == [True, False, False, True, True]


def test_similar_rows_cover_nearly_as_much_as_the_best_groups() -> None:
    """Against all 105 ways to make four pairs of eight rows."""
    places = []
    for seed in range(4):
        weight = random_tensor(8, 40, seed=seed)
        mask = tk.prune(linear(weight), 0.3)
        worth = torch.where(mask[NAME], weight.abs(), 0.0)
        covered = [covered_by(worth, pairs, mask.kept) for pairs in all_pairs(tuple(range(8)))]
        assert len(covered) == 105
        found = [tuple(rows.tolist()) for rows in group_similar_rows(worth.double(), [2, 2, 2, 2])]
        places.append(sum(other > covered_by(worth, found, mask.kept) for other in covered))
    assert sum(places) / len(places) < 10
    assert max(places) < 50


def all_pairs(rows: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    if not rows:
        return [[]]
    first, *rest = rows
    return [
        [(first, other), *pairs] for other in rest for pairs in all_pairs(tuple(row for row in rest if row != other))
    ]


def covered_by(worth: Tensor, groups: list[tuple[int, ...]], weights: int) -> float:
    """Return the most that columns of these groups of two retain."""
    sums = torch.stack([worth[list(rows)].sum(0) for rows in groups])
    return float(sums.flatten().sort(descending=True).values[: weights // 2].sum())


def test_exchanges_raise_likeness_and_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    gained = []
    for seed in range(2):
        weight = random_tensor(48, 100, seed=seed) * random_tensor(100, seed=seed + 50).exp()
        model, mask = linear(weight), tk.prune(linear(weight), 0.25)
        worth = torch.where(mask[NAME], weight.abs(), 0.0).double()
        after = group_similar_rows(worth, [8] * 6), share_inside(weight, mask[NAME], regroup(model, mask, rows=8)[NAME])
        with monkeypatch.context() as patch:
            patch.setattr(similarity, "ROUNDS", 0)
            before = (
                group_similar_rows(worth, [8] * 6),
                share_inside(weight, mask[NAME], regroup(model, mask, rows=8)[NAME]),
            )
        assert likeness(worth, after[0]) > likeness(worth, before[0])
        gained.append(after[1] - before[1])
    assert sum(gained) / 2 > 0.001


def likeness(worth: Tensor, groups: list[np.ndarray]) -> float:
    return sum(float(worth[a] @ worth[b]) for rows in groups for a in rows for b in rows if a != b)


def test_no_exchange_gains_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "SMALLEST_GAIN", 0.0)
    monkeypatch.setattr(similarity, "ROUNDS", 1000)
    worth = random_tensor(24, 50).double().abs()
    groups = group_similar_rows(worth, [5, 5, 5, 5, 4])
    best = likeness(worth, groups)
    for one, two in itertools.combinations(range(5), 2):
        for a, b in itertools.product(range(len(groups[one])), range(len(groups[two]))):
            other = [rows.copy() for rows in groups]
            other[one][a], other[two][b] = groups[two][b], groups[one][a]
            assert likeness(worth, other) <= best + 1e-9


# -- budgets -----------------------------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 64))
    with torch.no_grad():
        model[0].weight.copy_(3 * random_tensor(32, 40))
        model[2].weight.copy_(random_tensor(64, 32, seed=1))
    return model


def test_a_density_keeps_the_proportions_of_layers() -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3)
    made = regroup(model, mask, 0.15, rows=4)
    for before, after in zip(mask.table(), made.table(), strict=True):
        assert abs(after.kept - before.kept / 2) <= 3
    assert regroup(model, mask, sparsity=0.85, rows=4) == made
    full = regroup(model, mask, 0.9, rows=4)  # more than the first layer's proportion
    assert full.table()[0].density == 1
    assert abs(full.density - 0.9) < 0.001


def test_a_global_budget_has_one_threshold_over_all_layers() -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3, distribution="uniform")
    made = regroup(model, mask, rows=4, budget="global")
    assert abs(made.kept - mask.kept) <= 2
    assert made.table()[0].density > 0.4  # its weights are three times as large
    inside, outside = [], []
    for name, kept in made.items():
        worth = torch.where(mask[name], model.get_parameter(name).detach().abs(), 0.0)
        for group in tk.structure.row_groups(kept):
            mean = worth[group.rows].mean(0)
            inside += mean[group.columns].sort().values[:-1].tolist()
            outside += [float(mean[column]) for column in range(kept.shape[1]) if column not in group.columns]
    assert min(inside) >= max(outside) - 1e-6


def test_spared_layers_count_in_the_density() -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3)
    made = regroup(model, mask, 0.2, rows=8, spare=["2"])
    assert torch.equal(made["2.weight"], mask["2.weight"])
    assert in_groups(made["0.weight"], 8)
    assert abs(made.kept - 0.2 * mask.total) <= 4.5
    assert torch.equal(regroup(model, mask, rows=8, output=False)["2.weight"], mask["2.weight"])
    with pytest.raises(MaskError, match="cannot be met"):
        regroup(model, mask, 0.05, rows=8, spare=["2"])
    with pytest.raises(MaskError, match="cannot be met"):
        regroup(model, mask, 0.9, rows=8, spare=["2"])


def test_vectors_are_not_changed() -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3, scope=tk.scope(model, biases=True), keep_at_least=5)
    made = regroup(model, mask, rows=8)
    assert torch.equal(made["0.bias"], mask["0.bias"])
    assert list(made) == list(mask)


# -- layers ------------------------------------------------------------------------------------------------------------


def test_outputs_of_a_grouped_convolution_are_grouped_within_its_groups() -> None:
    model = Bank(nn.Conv2d(8, 24, 3, groups=2), random_tensor(24, 4, 3, 3))
    mask = tk.prune(model, 0.3)
    made = regroup(model, mask, rows=5)[NAME]
    assert in_groups(made[:12], 5)
    assert in_groups(made[12:], 5)
    assert abs(int(made.sum()) - mask.kept) <= 2.5


def test_depthwise_convolutions_are_not_changed() -> None:
    model = Bank(nn.Conv2d(24, 24, 3, groups=24))
    mask = tk.prune(model, 0.4)
    assert regroup(model, mask, rows=8) == mask


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_have_outputs_in_dimension_1(groups: int) -> None:
    model = Bank(nn.ConvTranspose2d(6, 16 // groups * groups, 3, groups=groups))
    mask = tk.prune(model, 0.3)
    made = regroup(model, mask, rows=4)[NAME]
    inputs = 6 // groups
    for group in range(groups):  # [inputs, outputs, 3, 3] of one group, outputs first
        assert in_groups(made[group * inputs : (group + 1) * inputs].transpose(0, 1).contiguous(), 4)
    assert abs(int(made.sum()) - mask.kept) <= 2


def test_a_convolution_is_a_matrix() -> None:
    weight = random_tensor(20, 5, 3, 2)
    model = Bank(nn.Conv2d(5, 20, (3, 2)), weight)
    mask = tk.prune(model, 0.3)
    flat = regroup(linear(weight.flatten(1)), tk.Mask({NAME: mask[NAME].flatten(1)}), rows=4)
    assert torch.equal(regroup(model, mask, rows=4)[NAME].flatten(1), flat[NAME])


def test_recurrent_and_attention_weights_have_outputs_in_dimension_0() -> None:
    for layer in (
        nn.LSTM(10, 8),
        nn.GRU(10, 8, bidirectional=True),
        nn.MultiheadAttention(12, 3),
        nn.Bilinear(3, 4, 9),
    ):
        model = Bank(layer)
        mask = tk.prune(model, 0.3)
        made = regroup(model, mask, rows=4)
        for name, kept in made.items():
            assert in_groups(kept, 4)
            assert abs(int(kept.sum()) - int(mask[name].sum())) <= 2


def test_tied_weights() -> None:
    model = nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 30, bias=False))
    model[1].weight = model[0].weight
    kept = tk.prune(model, 0.3)["0.weight"]
    made = [regroup(model, tk.Mask({name: kept}), rows=4)[name] for name in ("0.weight", "1.weight")]
    assert torch.equal(*made)
    assert in_groups(made[0], 4)


def test_the_model_and_the_mask_are_not_changed() -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3)
    before, digest = [p.clone() for p in model.parameters()], mask.digest
    regroup(model, mask)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert tk.Mask(dict(mask)).digest == digest


# -- methods -----------------------------------------------------------------------------------------------------------


def test_only_the_random_method_depends_on_the_seed() -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3)
    assert regroup(model, mask, rows=4, seed=1) == regroup(model, mask, rows=4, seed=2)
    first, again, other = (regroup(model, mask, rows=4, method="random", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("method", ["hypergraph", "paper"])
def test_partitions_are_reproducible(method: str) -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3)
    first, again = (regroup(model, mask, rows=6, method=method, seed=3) for _ in range(2))
    assert first == again
    for before, after in zip(mask.table(), first.table(), strict=True):
        assert in_groups(first[after.name], 6)
        assert abs(after.kept - before.kept) < 6


def test_blocks_of_the_paper_against_plain_loops() -> None:
    """Given the partition: in each part the columns that most rows retain, by one threshold for all parts."""
    weight = random_tensor(24, 30)
    mask = tk.prune(linear(weight), 0.3)
    made = regroup(linear(weight), mask, rows=8, method="paper")[NAME]
    counts = []
    for group in tk.structure.row_groups(made):
        assert len(group.rows) == 8
        for column in range(30):
            count = sum(bool(mask[NAME][row, column]) for row in group.rows)
            counts.append((count, column in group.columns))
    kept, left = [n for n, inside in counts if inside], [n for n, inside in counts if not inside]
    assert min(kept) >= max(left)
    assert 0 <= 8 * len(kept) - mask.kept < 8


def test_too_small_blocks_of_the_paper_are_dropped() -> None:
    weight = random_tensor(20, 30)
    mask = tk.prune(linear(weight), 0.3)
    made = regroup(linear(weight), mask, rows=8, method="paper", block_rows=8)[NAME]
    assert int(made.any(1).sum()) == 16  # the other four rows make no block
    with pytest.raises(LayerCollapseError, match=r"layer\.weight.*block_rows"):
        regroup(linear(weight), mask, rows=8, method="paper", block_rows=9)
    with pytest.raises(LayerCollapseError, match=r"layer\.weight.*block_columns"):
        regroup(linear(weight), mask, rows=8, method="paper", block_columns=31)


def test_without_mtkahypar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtkahypar", None)
    model = two_layers()
    mask = tk.prune(model, 0.3)
    with pytest.raises(MissingExtraError, match=r"ticketry\[hypergraph\]"):
        regroup(model, mask, rows=4, method="hypergraph")
    regroup(model, mask, rows=4)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rows": 0}, "rows="),
        ({"rows": True}, "rows="),
        ({"method": "best"}, "method 'best'.*similarity"),
        ({"budget": "all"}, "budget 'all'"),
        ({"by": "norm"}, "by 'norm'.*squares"),
        ({"collapse": "ignore"}, "collapse"),
        ({"density": 0.1, "sparsity": 0.9}, "density="),
        ({"method": "paper", "by": "kept"}, "paper"),
        ({"method": "paper", "budget": "global"}, "paper"),
        ({"block_rows": 4}, "paper"),
        ({"method": "paper", "block_rows": 0}, "block_rows"),
        ({"spare": ["nothing"]}, "nothing"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], match: str) -> None:
    model = two_layers()
    with pytest.raises(UsageError, match=match):
        regroup(model, tk.prune(model, 0.3), **options)


def test_masks_of_other_models_are_refused() -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3)
    with pytest.raises(MaskError, match=r"0\.weight"):
        regroup(nn.Sequential(nn.Linear(40, 31), nn.ReLU(), nn.Linear(31, 64)), mask)
    with pytest.raises(ScopeError, match="no layer is left"):
        regroup(model, tk.Mask({"0.bias": torch.ones(32)}))
    with torch.no_grad():
        model[2].weight[3, 4] = torch.nan
    with pytest.raises(MaskError, match=r"2\.weight"):
        regroup(model, mask)


def test_a_layer_is_never_left_empty() -> None:
    model = two_layers()
    mask = tk.prune(model, 0.3)
    nothing = tk.Mask({**mask, "2.weight": torch.zeros(64, 32)})
    with pytest.raises(LayerCollapseError, match=r"2\.weight.*spare"):
        regroup(model, nothing)
    assert in_groups(regroup(model, nothing, spare=["2.weight"])["0.weight"], 16)
    with pytest.raises(LayerCollapseError, match=r"'0\.weight'.*collapse=keep"):
        regroup(model, mask, 0.01, rows=16)
    kept = regroup(model, mask, 0.01, rows=16, collapse="keep")
    assert all(row.kept and row.kept % 16 == 0 for row in kept.table())
    assert abs(kept.density - 0.01) < 0.006
    with pytest.raises(LayerCollapseError, match="2 layers together"):
        regroup(model, mask, 0.01, rows=16, budget="global")
    assert all(row.kept for row in regroup(model, mask, 0.01, budget="global", collapse="keep").table())


def test_rows_are_grouped_by_the_weights_that_layers_use() -> None:
    """weight_norm with rows of very different lengths is grouped as the plain layer with the same weights."""
    torch.manual_seed(0)
    wrapped = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32, bias=False))
    with torch.no_grad():
        scale = torch.logspace(-1, 1, 32)[torch.randperm(32)]
        wrapped.parametrizations.weight.original0.mul_(scale[:, None])
    plain = nn.Linear(32, 32, bias=False)
    plain.weight.data.copy_(wrapped.weight.detach())
    (name,) = tk.scope(wrapped)
    one, other = (
        tk.structure.regroup(model, tk.prune(model, 0.3), rows=8, collapse="keep") for model in (wrapped, plain)
    )
    assert torch.equal(one[name], other["weight"])
