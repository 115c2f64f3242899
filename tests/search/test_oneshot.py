"""One-shot pruning is iterative pruning with a single level, density by density; what is left to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from samples import sample
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.lab.search_result import trained_steps
from ticketry.search.oneshot import Settings

TOTAL, REWIND = 20, 6


def found_by(lab: tk.Lab, method: Any, **settings: Any) -> list[tk.search.Found]:
    task = tk.task("digits")
    return method(lab, task, method.Settings(**settings), recipe=task.recipe.changed(length=f"{TOTAL}it"))[0]


@pytest.mark.parametrize("retrain", sample(["finetune", "rewind_lr", "restart"], 1))
def test_each_density_is_iterative_pruning_with_one_level(tmp_path: Path, retrain: str) -> None:
    words = {"rewind": f"{REWIND}it", "retrain": retrain, "distribution": "erk"}
    with tk.Lab(tmp_path) as lab:
        found = found_by(lab, tk.search.oneshot, density=(0.2, 0.5), **words)
        trained = lab.ledger.segments_trained
        for item, density in zip(found[1:], (0.5, 0.2), strict=True):
            single = found_by(lab, tk.search.iterative, densities=(density,), **words)[1]
            assert (item.mask, item.result.segment.key) == (single.mask, single.result.segment.key)
            assert item.result.model == single.result.model
            assert item.retrain == single.retrain == retrain
            assert trained_steps(item) == trained_steps(single), "two densities side by side are not two levels"
        assert lab.ledger.segments_trained == trained


@pytest.mark.parametrize("written", ["20it", "99.9%"])
def test_nothing_is_left_to_train_at_the_end_however_it_is_written(tmp_path: Path, written: str) -> None:
    """Else a ticket would be the dense network, cut, and judged beside itself."""
    rewound = {tk.search.iterative: "continue", tk.search.oneshot: "rewind_lr", tk.search.concrete: "continue"}
    with tk.Lab(tmp_path) as lab:
        for method, retrain in rewound.items():
            with pytest.raises(UsageError, match="rewound to step 20 of 20 nothing is left to train"):
                found_by(lab, method, rewind=written, retrain=retrain)
        for method in (tk.search.early, tk.search.oneshot):
            with pytest.raises(UsageError, match="cut at step 20 of 20 nothing is left to train"):
                found_by(lab, method, when=written)
        assert lab.ledger.segments_trained == 0


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_a_schedule_that_ends_at_zero_is_gone_through_again(tmp_path: Path, schedule: str) -> None:
    """At its last learning rate nothing would change: tickets would be the cut network as it is."""
    recipe = tk.task("digits").recipe.changed(length="12it", schedule=schedule)
    with tk.Lab(tmp_path) as lab:
        task, seeds = tk.task("digits"), tk.search.Seeds.of(0)
        ticket = tk.search.oneshot(lab, task, Settings(density=(0.5,)), recipe=recipe, seeds=seeds)[0][1]
        assert (ticket.retrain, ticket.result.segment.first, ticket.result.segment.last) == ("rewind_lr", 0, 12)
        for search, settings in (
            (tk.search.oneshot, Settings(density=(0.5,), retrain="finetune")),
            (tk.search.oneshot, Settings(density=(0.5,), rewind="end")),
            (tk.search.iterative, tk.search.iterative.Settings(densities=(0.5,), rewind="end")),
            (tk.search.continuous, tk.search.continuous.Settings(rounds=1, rewind="end")),
        ):
            with pytest.raises(UsageError, match=f"{schedule} ends at a learning rate of 0"):
                search(lab, task, settings, recipe=recipe, seeds=seeds)


@pytest.mark.parametrize("method", sample(["oneshot", "gradual", "acdc", "iterative", "early"], 3))
def test_a_density_that_empties_a_layer_may_keep_some_of_each(tmp_path: Path, method: str) -> None:
    """Five weights of 50,000: the small layers' are not among the best, unless each layer keeps one."""
    search = getattr(tk.search, method)
    densities = {"densities" if method == "iterative" else "density": (0.0001,)}
    recipe = tk.task("digits").recipe.changed(length="8it")
    own = {"early": {"score": "magnitude", "when": "4it"}, "acdc": {"warmup": "2it", "phase": "2it", "end": "6it"}}
    more: dict[str, Any] = own.get(method, {})
    with tk.Lab(tmp_path) as lab:
        with pytest.raises(LayerCollapseError, match="keep"):
            search(lab, tk.task("digits"), search.Settings(**densities, **more), recipe=recipe)
        settings = search.Settings(**densities, **more, keep_at_least=1)
        ((_, ticket),) = search(lab, tk.task("digits"), settings, recipe=recipe)
        kept = [layer.kept for layer in lab.store.get_mask(ticket.mask).table()]
    assert min(kept) == 1
    assert sum(kept) == 5
