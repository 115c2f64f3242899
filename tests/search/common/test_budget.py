"""Equal budgets: what the sparsest ticket needs comes to one dense training, in steps or in FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from norms_task import NormsTask
from samples import sample
from ticketry.errors import UsageError
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.lab.training.segment import Segment
from ticketry.lab.training.state import learning_rate
from ticketry.records.schema import as_json
from ticketry.search.common.method import Replicate
from ticketry.search.common.pruning import compress_to_steps
from ticketry.tasks.recipe import Recipe

TOTAL = 60
TASK = tk.task("digits")
RECIPE = TASK.recipe.changed(length=f"{TOTAL}it", schedule="cosine", warmup="4it")
SIX = {"rounds": 3, "rewind": "10%"}
STEPS = {
    "iterative": ({"levels": 2, "rewind": "6it"}, 1 + 2 * 0.9, 5),
    "oneshot": ({"rewind": "50%"}, 1.5, 2),
    "continuous": (SIX, 3.9, 5),
    "stochastic": (SIX | {"retrain": "restart"}, 4, 5),
    "concrete": ({"rewind": "10%", "mask_length": "30it", "density": (0.5,)}, 1.5, 3),
}
ONE = {
    "early": {"when": "10it", "score": "snip", "iterations": 1, "batches": 1, "batch": 32},
    "gradual": {"frequency": "5it"},
    "dynamic": {"frequency": "10it"},
    "acdc": {},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("store"), device="cpu") as found:
        yield found


def made(lab: Lab, name: str, settings: dict[str, Any], controls: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    method = tk.search.method(name)
    record = as_json(
        execute(lab, SearchRequest(method, TASK, method.Settings(**settings), RECIPE, replicates=1, controls=controls))
    )
    assert record["settings"]["equal_cost"] == settings.get("equal_cost", "")
    rows: list[dict[str, Any]] = record["points"]
    dense = rows[0]
    assert (dense["role"], dense["steps"], dense["cost"]["dense"]["steps"]) == ("dense", TOTAL, TOTAL)
    return rows


def whole(row: dict[str, Any], figure: str) -> float:
    return float(sum(row["cost"][phase][figure] for phase in ("dense", "search", "sparse")))


@pytest.mark.parametrize("name", sample(STEPS, 1))
def test_steps_come_to_those_of_one_dense_training(lab: Lab, name: str) -> None:
    settings, trainings, rounding = STEPS[name]
    published = [row for row in made(lab, name, settings) if row["role"] == "ticket"][-1]
    assert whole(published, "steps") == pytest.approx(trainings * TOTAL)
    controls = ("shuffled", "random_reinit") if name in ("iterative", "concrete") else ()
    rows = made(lab, name, settings | {"equal_cost": "steps"}, controls=controls)
    ticket = [row for row in rows if row["role"] == "ticket"][-1]
    assert TOTAL - rounding < whole(ticket, "steps") <= TOTAL
    # Controls are trained as the ticket is, by the schedule in which it was.
    assert {row["steps"] for row in rows if row["level"] == ticket["level"]} == {ticket["steps"]}
    info = tk.Ticket.load(ticket["ticket"]).info
    assert info["recipe"] == info["segment"]["recipe"]
    assert info["segment"]["total"] == int(TOTAL / trainings)


@pytest.mark.parametrize("name", sample(ONE, 1))
def test_a_method_of_one_training_keeps_the_steps_as_it_is(lab: Lab, name: str) -> None:
    plain, kept = (made(lab, name, ONE[name] | {"equal_cost": budget}) for budget in ("", "steps"))
    assert whole(plain[-1], "steps") == TOTAL
    assert [row["key"] for row in plain] == [row["key"] for row in kept]


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(ONE, 1))
def test_flops_come_to_those_of_one_dense_training(lab: Lab, name: str) -> None:
    rows = made(lab, name, ONE[name] | {"equal_cost": "flops", "density": (0.3, 0.2)}, controls=("random_reinit",))
    dense = rows[0]["cost"]["dense"]["flops"]
    for level in (1, 2):
        ticket, control = (
            next(row for row in rows if (row["level"], row["role"]) == (level, role))
            for role in ("ticket", "random_reinit")
        )
        sparse = ticket["cost"]["sparse"]
        # One step less or, where the mask moves, one step and a batch whose gradient is dense.
        step = sparse["flops"] / sparse["steps"] + (dense / TOTAL if name == "dynamic" else 0)
        assert dense - step < whole(ticket, "flops") <= dense * (1 + 1e-9)
        assert whole(ticket, "steps") > TOTAL
        assert control["steps"] == ticket["steps"] or name == "dynamic"


def test_flops_of_a_smaller_network_come_to_those_of_the_dense_one(lab: Lab) -> None:
    """The rest is trained shrunk: what there is to spend is still a training of the whole network."""
    dense, ticket = made(
        lab, "early", ONE["early"] | {"equal_cost": "flops", "density": (0.3,), "structure": "channels"}
    )
    sparse, whole_training = ticket["cost"]["sparse"], dense["cost"]["dense"]["flops"]
    assert whole_training - sparse["flops"] / sparse["steps"] < whole(ticket, "flops") <= whole_training * (1 + 1e-9)


def test_the_stretched_schedule_is_entered_where_it_was_left(lab: Lab) -> None:
    method = tk.search.early
    settings = method.Settings(**ONE["early"], equal_cost="flops", density=(0.2,))
    found = method(lab, TASK, settings, recipe=RECIPE)[0][-1]
    segment = found.result.segment
    assert found.rewound.segment.last == 10
    assert segment.first / segment.total == pytest.approx(10 / TOTAL, abs=1 / segment.total)
    at = [
        learning_rate(one, step, total=total, per_epoch=segment.per_epoch)
        for one, step, total in ((RECIPE, 10, TOTAL), (segment.recipe, segment.first, segment.total))
    ]
    assert at[1] == pytest.approx(at[0], rel=0.01)
    assert segment.last == segment.total


def test_costs_that_cannot_be_equal_are_refused(lab: Lab) -> None:
    for name in STEPS:
        with pytest.raises(UsageError, match="use equal_cost steps, or a method that costs 1 a density"):
            tk.search.method(name).Settings(equal_cost="flops")
    for name in (*STEPS, *ONE):
        with pytest.raises(UsageError, match="equal_cost 'money' is not known: steps, flops"):
            tk.search.method(name).Settings(equal_cost="money")
    with pytest.raises(UsageError, match="not known beforehand"):
        tk.search.continuous.Settings(density=0.1, equal_cost="steps")
    settings = tk.search.iterative.Settings(levels=20, equal_cost="steps")
    with pytest.raises(UsageError, match="10 steps are too few for 21 trainings"):
        tk.search.iterative(lab, TASK, settings, recipe=RECIPE.changed(length="10it"))


def _sum(total: int, levels: int, rewind: int, length: int) -> int:
    """Steps of the dense network and of all levels, from a rewind step rounded half up."""
    return length + levels * (length - (2 * rewind * length + total) // (2 * total))


@pytest.mark.parametrize(("total", "levels", "rewind"), [(20, 4, 5), (20, 10, 2), (1000, 14, 40), (20, 2, 7)])
def test_a_rounded_rewind_step_makes_the_sum_no_more(lab: Lab, total: int, levels: int, rewind: int) -> None:
    """The longest schedule is taken that is no longer than the exact one and fits: the same one where that fits."""
    settings = tk.search.iterative.Settings(levels=levels, rewind=f"{rewind}it", equal_cost="steps")

    def needed(whole: Segment, settings: tk.search.iterative.Settings) -> int:
        return whole.total + len(settings.targets) * (whole.total - whole.at(settings.rewind))

    whole = Replicate(lab, TASK, RECIPE.changed(length=f"{total}it"), Seeds())
    own, scaled = compress_to_steps(whole, settings, needed, ("rewind",))
    exact = total * total // (total + levels * (total - rewind))
    fitting = [length for length in range(1, exact + 1) if _sum(total, levels, rewind, length) <= total]
    assert own.dense_training.total == max(fitting)
    assert needed(own.dense_training, scaled) == _sum(total, levels, rewind, max(fitting)) <= total


@pytest.mark.parametrize("length", [5, 100, 250])
def test_a_scaled_recipe_keeps_its_shape(length: int) -> None:
    recipe = Recipe(length="10ep", schedule="multistep", milestones=("5ep", "75%", "9ep"), warmup="20it")
    scaled = recipe.scaled(length, per_epoch=10)
    assert scaled.steps(10) == length
    plain = [learning_rate(recipe, step, total=100, per_epoch=10) for step in (30, 60, 80, 95)]
    points = [int(step * length / 100) for step in (30, 60, 80, 95)]
    if length >= 100:
        assert [learning_rate(scaled, step, total=length, per_epoch=10) for step in points] == plain
    assert recipe.scaled(100, per_epoch=10) is recipe


@pytest.mark.parametrize(
    ("name", "settings", "dense", "search"),
    [
        ("regularised", {"penalty": "l1_scales", "until": "50%"}, 0, 20),
        pytest.param(*("l0", {"until": "50%"}, 0, 20), marks=pytest.mark.slow),
        # Dense to the first tick at 10; two ticks of 2 steps and the tock between them; its own from the last cut on.
        ("decorators", {"rounds": 2, "tick": "2it", "begin": "10it", "end": "30it"}, 10, 20),
    ],
)
def test_steps_and_flops_add_up(tmp_path: Path, name: str, settings: Any, dense: int, search: int) -> None:
    task, method = NormsTask(), tk.search.method(name)
    recipe = task.recipe.changed(length="40it")
    own = 40 - dense - search
    settings = method.Settings(**settings, density=(0.5,))
    with Lab(tmp_path, device="cpu") as lab:
        record = as_json(execute(lab, SearchRequest(method, task, settings, recipe, 1, controls=("shuffled",))))
    whole, ticket, control = (
        next(row["cost"] for row in record["points"] if row["role"] == role) for role in ("dense", "ticket", "shuffled")
    )
    phases = ("dense", "search", "sparse")
    assert [ticket[phase]["steps"] for phase in phases] == [dense, search, own]
    assert whole["dense"]["steps"] == 40
    step = whole["dense"]["flops"] / 40
    assert ticket["dense"]["flops"] == pytest.approx(dense * step)
    assert 0 < ticket["search"]["flops"] <= search * step * (1 + 1e-9)
    assert 0 < ticket["sparse"]["flops"] < own * step
    assert all(ticket[phase]["memory"] for phase in ("search", "sparse"))
    # A control goes on from the weights at the last cut: of decorators, the dense network's at step 30.
    begun = 30 if name == "decorators" else 0
    assert [control[phase]["steps"] for phase in phases] == [begun, search, own]
