"""What a control has behind it, counted along the trainings that its weights come from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import ticketry as tk
from ticketry.errors import UsageError
from ticketry.evidence.control import explain_undefined_control, steps_before_control
from ticketry.evidence.controls import ControlTrainings, train_any_control, train_control
from ticketry.lab.search_result import Found, Seeds, trained_steps
from ticketry.lab.training.segment import Result

TASK = tk.task("digits")
TOTAL = 12
RECIPE = TASK.recipe.changed(length=f"{TOTAL}it")
SEEDS = Seeds(4, 5, 6)


def gates(lab: tk.Lab, **settings: Any) -> Found:
    """The dense network and the last round's ticket."""
    chosen = tk.search.continuous.Settings(gate_lr=10.0, **settings)
    return tk.search.continuous(lab, TASK, chosen, recipe=RECIPE, seeds=SEEDS)[0][-1]


def behind(made: ControlTrainings, dense: list[Result]) -> int:
    """Steps along the states that trainings start from, back to a seed."""
    by_state = {each.model: each for each in [*dense, *made.trainings[:-1]]}
    steps, each = 0, made.trainings[-1]
    while True:
        steps += each.segment.steps
        if each.segment.start.seed is not None:
            return steps
        each = by_state[cast(str, each.segment.start.state)]


@pytest.mark.parametrize("control", ["shuffled", "random_reinit"])
def test_what_a_whole_training_is_too_much_for_is_trained_over_the_schedule_s_end(lab: tk.Lab, control: str) -> None:
    found = gates(lab, rounds=2, rewind="3it", retrain="rewind_lr")
    assert trained_steps(found) == 2 * TOTAL + TOTAL - 3
    made = train_any_control(lab, TASK, control, found, SEEDS)
    assert [(each.segment.first, each.segment.last) for each in made.trainings] == [(3, 12), (3, 12), (9, 12)]
    assert len({each.segment.order_seed for each in made.trainings}) == 3
    assert made.total_steps == trained_steps(found) == behind(made, [made.fresh or found.dense])
    assert (made.fresh is None) == (control == "shuffled")


@pytest.mark.parametrize("control", ["shuffled", "random_reinit"])
def test_under_a_budget_it_begins_with_a_dense_network_of_the_tickets_schedule(lab: tk.Lab, control: str) -> None:
    rounds = 2
    found = gates(lab, rounds=rounds, rewind="0", retrain="rewind_lr", equal_cost="steps")
    short = TOTAL // (rounds + 1)
    assert trained_steps(found) == TOTAL
    made = train_any_control(lab, TASK, control, found, SEEDS)
    assert made.fresh is not None
    assert (made.fresh.segment.mask, made.fresh.segment.recipe) == (None, found.result.segment.recipe)
    assert (made.fresh.segment.start.seed == SEEDS.initialisation) == (control == "shuffled")
    assert [each.segment.steps for each in made.trainings] == [short] * rounds
    assert made.total_steps == TOTAL == behind(made, [made.fresh])


def test_what_cannot_have_as_many_steps_is_refused(lab: tk.Lab) -> None:
    found = gates(lab, rounds=2, rewind="3it", retrain="none")
    with pytest.raises(UsageError, match=r"shuffled is not defined .* 0 steps after 12, it never reaches .* 24"):
        train_control(lab, TASK, RECIPE, "shuffled", found, SEEDS)
    assert not explain_undefined_control("cyclic", found)
    assert not explain_undefined_control("dense_of_flops", found)
    first = gates(lab, rounds=1, rewind="3it", retrain="none")
    assert train_any_control(lab, TASK, "shuffled", first, SEEDS).total_steps == trained_steps(first) == TOTAL


@pytest.mark.parametrize(
    ("retrain", "rewound", "dense", "own", "level", "behind", "begun"),
    [
        ("continue", 5, 40, (5, 40), 3, None, 5),
        ("restart", 5, 40, (0, 40), 3, None, 5),
        ("continue", 5, 40, (5, 40), 1, 6, None),
        ("rewind_lr", 5, 40, (5, 40), 2, None, 40),  # twice 35 after 40
        ("finetune", 5, 40, (40, 75), 1, 80, 40),  # 35, 35 and 5
        ("finetune", 5, 40, (40, 75), 1, 41, 40),  # 35 and 1
        ("none", 5, 40, (40, 40), 1, 40, 40),
        ("none", 5, 40, (40, 40), 2, 80, None),
        ("none", 5, 40, (20, 20), 2, 40, 40),  # two rounds of a half are the dense network's steps
        ("rewind_lr", 0, 40, (0, 20), 1, 20, 20),
        ("rewind_lr", 0, 40, (0, 20), 1, 19, None),
        ("gradual", 30, 40, (30, 40), 1, 30, 30),
        ("dynamic", 0, 40, (30, 50), 1, 30, 0),
    ],
)
def test_where_it_begins(
    retrain: str, rewound: int, dense: int, own: tuple[int, int], level: int, behind: int | None, begun: int | None
) -> None:
    def result(first: int, last: int) -> Any:
        total = last if retrain in ("gradual", "dynamic") else {75: 40}.get(last, last)
        segment = SimpleNamespace(first=first, last=last, steps=last - first, total=total, variants=())
        return SimpleNamespace(segment=segment)

    found = Found(level, "mask", result(0, rewound), result(0, dense), retrain, result(*own), behind=behind)
    assert steps_before_control(found) == begun
    assert bool(explain_undefined_control("shuffled", found)) == (begun is None)
