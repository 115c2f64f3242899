"""A repeated search against trainings written out by hand: pairs, budgets, and what controls keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import ticketry as tk
from ticketry.core.structure.controls import random_mask
from ticketry.evidence.controls import draw_control_mask
from ticketry.evidence.rivals import Procedure, ProcedureRivals, Rivals, load_tested_ticket
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.verification import Verification, verify_procedure
from ticketry.lab.search_result import Seeds
from ticketry.lab.training.segment import Result, Start
from ticketry_engine.support.seeds import mix_seeds

TASK = tk.task("digits")
TOTAL = 20
RECIPE = TASK.recipe.changed(length=f"{TOTAL}it", schedule="multistep", milestones=("50%",))
RUN = Seeds(4, 5, 6)
LAYERS = {"fc1.weight": (300, 64), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
TWO = VerifySettings(seeds=2, references=False)


def procedure(lab: tk.Lab, method: str, level: int | None = 1, bounded: bool = False, **settings: Any) -> Procedure:
    chosen = tk.search.method(method)
    return Procedure(
        lab=lab,
        search=chosen.search,
        task_of=lambda number: TASK,
        settings=chosen.Settings(**settings),
        recipe=RECIPE,
        level=level,
        seeds=RUN,
        bounded=bounded,
    )


def fresh(number: int) -> Seeds:
    return Seeds.of(mix_seeds(4, 5, 6, "procedure", number))


def accuracies(results: list[Result]) -> list[float]:
    return [float(one.metrics["test"]["accuracy"]) for one in results]


@pytest.fixture(scope="module")
def oneshot(lab: tk.Lab) -> Verification:
    """Cut at the end and fine-tuned for as long again: the ticket has two trainings behind it."""
    return verify_procedure(procedure(lab, "oneshot", density=(0.1,)), TWO)


def test_every_network_is_trained_as_it_says(lab: tk.Lab, oneshot: Verification) -> None:
    longer = RECIPE.changed(length=f"{2 * TOTAL}it", milestones=("50%",))
    made: dict[str, list[Result]] = {role: [] for role in ("ticket", "dense", "shuffled", "uniform", "erk")}
    for number in range(2):
        seeds = fresh(number)
        settings = tk.search.oneshot.Settings(density=(0.1,))
        ((dense, ticket),) = tk.search.oneshot(lab, TASK, settings, recipe=RECIPE, seeds=seeds)
        assert ticket.mask is not None
        mask = lab.store.get_mask(ticket.mask)
        made["ticket"].append(ticket.result)
        begun = {"start": seeds.initialisation, "order_seed": seeds.order, "recipe": longer}
        made["dense"].append(lab.train(lab.segment(TASK, **begun)))
        for role in ("uniform", "erk"):
            drawn = random_mask(mask, mix_seeds(seeds.mask, role), role)
            made[role].append(lab.train(lab.segment(TASK, mask=drawn, **begun)))
        finetuned = lab.segment(
            TASK,
            start=Start(state=dense.result.model),
            mask=draw_control_mask("shuffled", mask, seeds),
            first=TOTAL,
            last=2 * TOTAL,
            order_seed=seeds.order,
            recipe=RECIPE,
        )
        made["shuffled"].append(lab.train(finetuned))
    assert oneshot.values == {role: accuracies(results) for role, results in made.items()}
    assert oneshot.budgets == dict.fromkeys(made, 2 * TOTAL)
    assert (oneshot.about, oneshot.verdict.groups) == ("procedure", 2)


def test_pairs_share_their_seeds_and_no_seed_is_of_a_run(lab: tk.Lab, oneshot: Verification) -> None:
    used = {getattr(RUN.replicate(n), which) for n in range(1000) for which in ("initialisation", "order", "mask")}
    begun = []
    for number in range(2):
        found = oneshot.compared.train_all_roles(number)
        seeds = fresh(number)
        assert not {seeds.initialisation, seeds.order, seeds.mask} & used
        assert all(one.result.segment.order_seed == seeds.order for one in found.values())
        from_seed = {
            role: one.result.segment.start.seed for role, one in found.items() if role not in ("ticket", "shuffled")
        }
        assert from_seed == dict.fromkeys(("dense", "uniform", "erk"), seeds.initialisation)
        assert found["ticket"].result.segment.start == found["shuffled"].result.segment.start
        begun.append(seeds.initialisation)
    assert len(set(begun)) == 2


def test_controls_keep_what_they_say(lab: tk.Lab, oneshot: Verification) -> None:
    found = oneshot.compared.train_all_roles(0)
    masks = {role: lab.store.get_mask(str(one.result.segment.mask)) for role, one in found.items() if role != "dense"}
    kept = {role: {layer.name: layer.kept for layer in mask.table()} for role, mask in masks.items()}
    total = sum(a * b for a, b in LAYERS.values())
    assert {mask.kept for mask in masks.values()} == {round(0.1 * total)}
    assert kept["shuffled"] == kept["ticket"]
    assert masks["shuffled"].overlap(masks["ticket"]) < 0.3
    sides = sum(a + b for a, b in LAYERS.values())
    for name, (a, b) in LAYERS.items():
        assert abs(kept["uniform"][name] - 0.1 * a * b) <= 1
        assert abs(kept["erk"][name] - round(0.1 * total) * (a + b) / sides) <= 1


def test_the_recipe_s_own_dense_network_and_that_of_the_whole_cost_are_shown(lab: tk.Lab) -> None:
    settings = VerifySettings(seeds=1, controls=("none",))
    found = verify_procedure(procedure(lab, "oneshot", density=(0.1,), rewind="50%", retrain="finetune"), settings)
    assert found.budgets == {"ticket": TOTAL + TOTAL // 2, "dense": TOTAL + TOTAL // 2}
    (recipe,) = found.references  # its cost is what is in its weights: no other reference
    assert (recipe.role, recipe.steps) == ("dense_by_recipe", TOTAL)
    own = lab.train(lab.segment(TASK, start=fresh(0).initialisation, order_seed=fresh(0).order, recipe=RECIPE))
    assert list(recipe.values) == accuracies([own])
    rewound = verify_procedure(procedure(lab, "iterative", level=2, densities=(0.5, 0.2), rewind="0"), settings)
    assert rewound.budgets == {"ticket": TOTAL, "dense": TOTAL}
    assert [(one.role, one.steps) for one in rewound.references] == [("dense_at_cost", 3 * TOTAL)]


def test_a_budget_of_the_whole_search_is_that_of_the_dense_network(lab: tk.Lab) -> None:
    settings = VerifySettings(seeds=1, controls=("erk", "shuffled"), references=False)
    found = verify_procedure(procedure(lab, "iterative", bounded=True, density=0.5, equal_cost="steps"), settings)
    assert found.budgets["dense"] == TOTAL
    assert found.budgets["ticket"] == found.budgets["erk"] == found.budgets["shuffled"] < TOTAL


def test_a_budget_of_flops_costs_what_the_dense_training_does(lab: tk.Lab) -> None:
    """The ticket has many more steps, which are no cost to compare with."""
    settings = VerifySettings(seeds=1, controls=("none",), dense_at="cost")
    found = verify_procedure(procedure(lab, "gradual", bounded=True, density=(0.2,), equal_cost="flops"), settings)
    assert found.budgets["dense"] == TOTAL < found.budgets["ticket"]
    assert not found.references


def test_what_cannot_be_made_as_long_is_left_out(lab: tk.Lab) -> None:
    gates = procedure(lab, "continuous", level=2, rounds=2, gate_lr=10.0, rewind="50%", retrain="none")
    found = verify_procedure(gates, VerifySettings(seeds=1, controls=("shuffled", "erk"), references=False))
    assert set(found.values) == {"ticket", "dense", "erk"}
    assert f"it never reaches a ticket's {2 * TOTAL}" in found.left_out["shuffled"]
    assert set(found.budgets.values()) == {2 * TOTAL}


def test_a_control_that_one_seed_has_none_of_is_left_out_of_all(lab: tk.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticket of one seed may keep so few weights that no narrower network has as few: it was unequal values."""
    there = ProcedureRivals._narrower_task
    monkeypatch.setattr(
        ProcedureRivals, "_narrower_task", lambda self, one: None if one.seeds == fresh(1) else there(self, one)
    )
    settings = replace(TWO, controls=("shuffled", "small_dense"))
    found = verify_procedure(procedure(lab, "oneshot", density=(0.1,)), settings)
    assert set(found.values) == set(found.budgets) == {"ticket", "dense", "shuffled"}
    assert "narrower" in found.left_out["small_dense"]


def test_what_is_pruned_before_the_first_step_is_trained_again_like_the_ticket(lab: tk.Lab, tmp_path: Any) -> None:
    """The same seeds give the bits that the search has saved."""
    options: dict[str, Any] = {"when": "0", "score": "snip", "density": 0.2, "store": tmp_path, "workers": 0}
    run = tk.run("early", TASK, replicates=1, controls=(), recipe={"length": "20it"}, **options)
    saved = run.tickets[0].load()
    with tk.Lab(tmp_path) as own:
        about = load_tested_ticket(own, saved)
        again = Rivals(about, VerifySettings(controls=("none",))).train_role("ticket", about.seeds)
    assert again.result.model == saved.info["trained_state"]
    assert (again.total_steps, about.step) == (20, 0)
