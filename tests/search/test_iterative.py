"""Iterative magnitude pruning: bare PyTorch, levels, what is shared, and what is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from lab_fixtures import PointsTask
from search.bare import SEED, SGD, TOTAL, Training, largest
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.search.iterative import Settings

QUICK = {"length": "40it"}
REWIND, LEVELS = 6, 2


def run(lab: tk.Lab, **settings: Any) -> list[tk.search.Found]:
    task = tk.task("digits")
    return tk.search.iterative(lab, task, Settings(**settings), recipe=task.recipe.changed(**QUICK))[0]


@functools.cache
def bare_dense() -> tuple[dict[str, torch.Tensor], Training]:
    """State at the rewind step, and the dense training at its end."""
    training = Training(tk.task("digits"))
    for step in range(TOTAL):
        if step == REWIND:
            early = {name: value.clone() for name, value in training.model.state_dict().items()}
        training.step(step)
    return early, training


def bare_imp(retrain: str) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """(mask, final state) of each level."""

    def train(start: dict[str, torch.Tensor], mask: dict[str, torch.Tensor], first: int) -> Training:
        training = Training(tk.task("digits"))
        training.model.load_state_dict(start)
        training.cut(mask)
        for step in range(first, TOTAL):
            training.step(step)
        return training

    early, trained = bare_dense()
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in trained.weights.items()}
    size = sum(keep.numel() for keep in mask.values())
    levels = [(mask, trained.model.state_dict())]
    for level in range(1, LEVELS + 1):
        sizes = {name: weight.abs() for name, weight in trained.weights.items()}
        mask = largest(sizes, round(0.6**level * size), mask)
        start = trained.model.state_dict() if retrain == "rewind_lr" else early
        trained = train(start, mask, 0 if retrain == "restart" else REWIND)
        levels.append((mask, trained.model.state_dict()))
    return levels


@pytest.mark.parametrize("retrain", ["continue", "restart", "rewind_lr"])
def test_same_masks_and_weights_as_bare_pytorch(shared_store: Path, retrain: str) -> None:
    settings = Settings(rate=0.4, levels=LEVELS, rewind=f"{REWIND}it", retrain=retrain)
    with tk.Lab(shared_store) as lab:
        seeds = tk.search.Seeds.of(SEED)
        (found,) = tk.search.iterative(lab, tk.task("digits"), settings, recipe=SGD, seeds=seeds)
        for item, (mask, state) in zip(found, bare_imp(retrain), strict=True):
            if item.mask is not None:
                assert lab.store.get_mask(item.mask) == tk.Mask(mask)
            mine = lab.state(item.result)
            assert mine.keys() == state.keys()
            for name, tensor in state.items():
                assert torch.equal(mine[name], tensor), (item.level, name)


def test_levels_are_powers_of_the_rate_and_end_at_the_density() -> None:
    assert Settings(rate=0.2, levels=3).targets == pytest.approx((0.8, 0.64, 0.512), abs=1e-12)
    densities = Settings(rate=0.2, density=0.05).targets
    assert (densities[-1], len(densities)) == (0.05, 14)  # 0.8^13 = 0.055, 0.8^14 = 0.044
    assert Settings(rate=0.2, sparsity=0.95).targets[-1] == 0.05
    assert Settings(rate=0.2, density=0.64).targets == (0.8, 0.64), "a power is not visited twice"


def test_rewind_points_share_the_dense_training(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        first = run(lab, densities=(0.5,), rewind="0")
        assert lab.ledger.segments_trained == 2
        second = run(lab, densities=(0.5,), rewind="50%")
        assert second[0].result.model == first[0].result.model
        # The dense network is there; only its state at the new rewind step and the new ticket are trained.
        assert lab.ledger.steps_trained == 40 + 40 + 20 + 20
        assert second[1].mask == first[1].mask


def test_spared_layers_are_not_in_the_denominator_and_half_rate_layers_lose_half(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        scope = list(tk.scope(tk.task("digits").build()))
        spared = lab.store.get_mask(run(lab, densities=(0.5,), spare_output=True)[1].mask)
        by_name = lab.store.get_mask(run(lab, densities=(0.5,), spare=(scope[-1],))[1].mask)
        half = lab.store.get_mask(run(lab, densities=(0.6,), half_rate=(scope[-1],))[1].mask)
    assert list(spared) == scope[:-1]
    assert spared == by_name
    assert spared.kept == round(0.5 * spared.total)
    assert half.kept == round(0.6 * half.total)
    assert half.table()[-1].density == pytest.approx(0.8, abs=1 / half.table()[-1].total)


def test_settings_that_replace_others_exclude_them(tmp_path: Path) -> None:
    for twice, said in (
        ({"levels": 3, "density": 0.1}, "density stands in place of levels"),
        ({"levels": 3, "time": 0.5}, "time stands in place of levels"),
        ({"rate": 0.5, "levels": 2, "densities": (0.5,)}, "densities stands in place of rate and levels"),
    ):
        with pytest.raises(UsageError, match=said):
            tk.run("iterative", store=tmp_path, **twice)


def test_layer_collapse_is_reported_before_the_ticket_is_trained(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab, pytest.raises(LayerCollapseError, match="layer collapse"):
        run(lab, densities=(0.0001,))


def test_batch_norm_statistics_are_rewound(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        (found,) = tk.search.iterative(lab, PointsTask(), Settings(densities=(0.5,), rewind="5it"))
        ticket = found[1]
        start = lab.state(lab.train(ticket.result.segment.shortened_to(5)))
        rewound, trained = lab.state(ticket.rewound), lab.state(found[0].result)
    assert torch.equal(start["1.running_mean"], rewound["1.running_mean"])
    assert not torch.equal(start["1.running_mean"], trained["1.running_mean"])
    assert int(start["1.num_batches_tracked"]) == 5
