"""The contract of a search, where a method breaks it: of what each of its tickets took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from lab_fixtures import PointsTask
from ticketry.lab.costs.ledger import training_phases_of
from ticketry.lab.lab import Lab
from ticketry.lab.retrain import retraining
from ticketry.lab.search_result import Found, search_cost
from ticketry.search import Method
from ticketry.testing import _check_searched_trainings, _Trial, check_search

SHORT = PointsTask().recipe.changed(length="12it")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of magnitude pruning."""

    density: tuple[float, ...] = (0.3,)
    """Fractions of weights kept, a ticket each."""
    from_before: bool = False
    """Whether each ticket's mask is from the one before it."""
    tells: bool = False
    """Whether tickets tell `searched`."""


def search(lab: Any, task: Any, recipe: Any, settings: Any, seeds: Any) -> Iterator[Found]:
    """Tickets from the dense network, or each from the one before."""
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    dense = lab.train(whole, keep=(0,))
    early, source = lab.at(dense, 0), dense
    yield Found(0, None, early, dense, "continue", dense)
    for level, density in enumerate(sorted(settings.density, reverse=True), start=1):
        state = lab.state(source)
        mask = lab.store.put_mask(tk.allocate({n: state[n].abs() for n in tk.scope(lab.model(task))}, density))
        how = {"retrain": "continue", "rewound": early, "trained": dense, "order_seed": seeds.order}
        ticket = lab.train(retraining(lab, task, recipe, mask=mask, **how))
        yield Found(level, mask, early, dense, "continue", ticket, searched=(dense,) if settings.tells else ())
        source = ticket if settings.from_before else dense


MINE = Method("mine", "Mine", "", Settings, search)


def test_tickets_that_need_no_other_name_what_they_need(tmp_path: Path) -> None:
    settings = Settings(density=(0.6, 0.3))
    with pytest.raises(AssertionError, match=r"density 0\.3 names in `searched` .* searched=\(dense,\)"):
        check_search(MINE, tmp_path, settings=settings, task=PointsTask(), recipe=SHORT)


@pytest.mark.parametrize("allowed", [{"tells": True}, {"from_before": True}])
def test_those_that_do_and_those_that_come_from_one_another_pass(allowed: dict[str, bool], tmp_path: Path) -> None:
    settings = Settings(density=(0.6, 0.3), **allowed)
    trial = _Trial(MINE, settings, PointsTask(), SHORT)
    with Lab(tmp_path) as lab:
        _check_searched_trainings(lab, trial, trial.run(lab))


def test_what_is_asked_for_is_what_one_shot_pruning_of_the_same_trainings_tells(tmp_path: Path) -> None:
    task, settings = PointsTask(), Settings(density=(0.6, 0.3), tells=True)
    with Lab(tmp_path) as lab:
        mine = MINE(lab, task, settings, recipe=SHORT)[0]
        wrong = MINE(lab, task, replace(settings, tells=False), recipe=SHORT)[0]
        oneshot = tk.search.oneshot.Settings(density=(0.6, 0.3), rewind="0", retrain="continue")
        known = tk.search.oneshot(lab, task, oneshot, recipe=SHORT)[0]
    assert [search_cost(one) for one in mine] == [search_cost(one) for one in known] == [12, 24, 24]
    assert training_phases_of(mine[2], mine[:2]).steps == training_phases_of(known[2], known[:2]).steps == 24
    assert training_phases_of(wrong[2], wrong[:2]).steps == search_cost(wrong[2]) == 36  # as of iterative pruning


def test_a_task_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(tk.errors.TaskError, match="there is no task 'digit'"):
        check_search(MINE, tmp_path, task="digit")
    with pytest.raises(AssertionError, match="names in `searched`"):
        check_search(MINE, tmp_path, task="digits")
