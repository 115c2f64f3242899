"""A verification against trainings written out by hand, and its rules with values that are made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TicketError, TrustError, UsageError
from ticketry.evidence import rivals as rivals_module
from ticketry.evidence.control import check_controls, check_rivals
from ticketry.evidence.controls import draw_control_mask, scale_recipe
from ticketry.evidence.rivals import TrainedNetwork, build_task, compute_flops_share, load_tested_ticket
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.verification import Verification, verify
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.lab.training.segment import Start
from ticketry.records.schema import as_json
from ticketry.search import method
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Split, Splits
from ticketry_engine.support.seeds import mix_seeds

REWIND, TOTAL = 4, 14


@pytest.fixture(scope="module")
def saved(lab: Lab) -> dict[str, Path]:
    """Tickets of a short search, rewound to step 10 and to step 0."""
    task, chosen = catalogue.get("digits"), method("iterative")
    paths = {}
    for rewind in (f"{REWIND}it", "0"):
        settings = chosen.Settings(rewind=rewind, densities=(0.5, 0.1))
        record = as_json(
            execute(lab, SearchRequest(chosen, task, settings, task.recipe.changed(length="14it"), replicates=1))
        )
        paths[rewind] = Path(next(row["ticket"] for row in record["points"] if row["level"] == 2))
    return paths


@pytest.fixture(scope="module")
def ticket(saved: dict[str, Path]) -> Ticket:
    return Ticket.load(saved[f"{REWIND}it"])


@pytest.fixture(scope="module")
def made(lab: Lab, ticket: Ticket) -> Verification:
    return verify(lab, ticket, VerifySettings(seeds=2))


def by_hand(lab: Lab, ticket: Ticket, role: str, number: int) -> float:
    """The test accuracy of a network of a verification, its training written out."""
    task, info = catalogue.get("digits"), ticket.info
    recipe = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in info["recipe"].items()})
    seed = mix_seeds(info["seeds"]["order"], "verify", number)
    start: Start = Start(state=lab.store.put_tensors(ticket.start))
    mask: Mask | None = None if role == "dense" else ticket.mask
    if role in ("shuffled", "random_prune"):
        mask = draw_control_mask(role, ticket.mask, Seeds.of(seed))
    if role == "random_reinit":
        fresh = lab.segment(task, start=mix_seeds(seed, "random_reinit"), last=REWIND, order_seed=seed, recipe=recipe)
        start = Start(state=lab.train(fresh).model)
    segment = lab.segment(task, start=start, mask=mask, first=REWIND, last=TOTAL, order_seed=seed, recipe=recipe)
    assert segment.total == TOTAL
    return lab.train(segment).metrics["test"]["accuracy"]


def test_every_network_is_trained_as_it_says(lab: Lab, ticket: Ticket, made: Verification) -> None:
    for role in ("ticket", "dense", "random_reinit", "shuffled", "random_prune"):
        assert list(made.values[role]) == [by_hand(lab, ticket, role, number) for number in range(2)]


def test_budgets_are_equal_and_parameters_are_counted(ticket: Ticket, made: Verification) -> None:
    assert set(made.budgets.values()) == {TOTAL}
    dense = 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    assert made.parameters["dense"] == dense
    biases = 300 + 100 + 10
    assert made.parameters["ticket"] == ticket.mask.kept + biases
    assert made.parameters["small_dense"] <= made.parameters["ticket"]


def test_seeds_are_those_of_no_search_and_of_no_second_purpose(lab: Lab, ticket: Ticket) -> None:
    about = load_tested_ticket(lab, ticket)
    orders = [about.fresh_seeds(n, purpose).order for purpose in ("verify", "again") for n in range(50)]
    assert len(set(orders)) == 100
    assert not set(orders) & {Seeds().replicate(n).order for n in range(1000)}


def test_seeds_that_were_judged_can_be_passed_over(lab: Lab, ticket: Ticket) -> None:
    """The limit of a plan is not moved by its own seeds: those after them are other ones, of A/A too."""
    first, later = (
        verify(lab, ticket, VerifySettings(controls=("none",), seeds=2, after=after, references=False))
        for after in (0, 2)
    )
    four = verify(lab, ticket, VerifySettings(controls=("none",), seeds=4, references=False))
    assert [*first.values["ticket"], *later.values["ticket"]] == four.values["ticket"]
    assert [*first.values["dense"], *later.values["dense"]] == four.values["dense"]
    assert [*first.again, *later.again] == four.again
    assert len(set(four.values["ticket"])) > 1


def test_the_noise_floor_is_ticket_minus_ticket(made: Verification) -> None:
    assert made.noise is not None
    pairs = zip(made.values["ticket"], made.again, strict=True)
    assert made.noise.mean == pytest.approx(sum(a - b for a, b in pairs) / 2)
    assert list(made.again) != list(made.values["ticket"])


def test_references_have_the_budgets_that_they_name(lab: Lab, ticket: Ticket, made: Verification) -> None:
    shown = {reference.role: reference for reference in made.references}
    assert shown["dense_at_cost"].steps == TOTAL + 2 * (TOTAL - REWIND) == ticket.info["search_steps"]
    share = sum(layer.kept for layer in ticket.mask.table()) / (64 * 300 + 300 * 100 + 100 * 10)
    assert shown["dense_at_flops"].steps == REWIND + round(share * (TOTAL - REWIND))
    assert all(len(reference.values) == 2 for reference in made.references)


def test_flops_of_convolutions_count_their_positions(lab: Lab) -> None:
    task = catalogue.get("fashion-mnist", model="lenet-5")
    model = task.build()
    shapes = {name: p.shape for name, p in model.named_parameters() if name.endswith("weight")}
    kept = {"conv1.weight": 0.5, "conv2.weight": 0.1, "fc1.weight": 0.02, "fc2.weight": 1.0}
    mask = Mask({name: _first(shape, kept[name]) for name, shape in shapes.items()})
    places = {"conv1.weight": 24 * 24, "conv2.weight": 8 * 8, "fc1.weight": 1, "fc2.weight": 1}
    work = {name: shape.numel() * places[name] for name, shape in shapes.items()}
    lab.store.put_memo("sizes", "unused", {})
    with pytest.MonkeyPatch.context() as patch:
        split = Split(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
        example = Splits(split, split, split)
        patch.setattr(type(task), "load", lambda self, data=None: example)
        found = compute_flops_share(lab, task, mask)
    assert found == pytest.approx(sum(work[n] * kept[n] for n in work) / sum(work.values()))


def _first(shape: torch.Size, share: float) -> torch.Tensor:
    return (torch.arange(shape.numel()) < share * shape.numel()).view(shape)


def test_a_stretched_recipe_keeps_its_proportions() -> None:
    recipe = Recipe(length="10ep", schedule="multistep", milestones=("50%", "8ep"), warmup="100it")
    long = scale_recipe(recipe, per_epoch=100, steps=3000)
    assert (long.steps(100), long.milestones, long.warmup) == (3000, ("50%", "2400it"), "300it")
    assert scale_recipe(recipe, per_epoch=100, steps=1000) == recipe.changed(
        length="1000it", milestones=("50%", "800it"), warmup="100it"
    )


def test_seeds_are_added_until_it_is_decided(lab: Lab, ticket: Ticket, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"ticket": 95.0, "dense": 90.0, "shuffled": 90.0}
    asked = pretend(monkeypatch, values)
    looked: list[int] = []
    found = verify(
        lab,
        ticket,
        VerifySettings(controls=("shuffled",), noise=False, references=False),
        on_interim=lambda v: looked.append(v.n),
    )
    assert (found.verdict.outcome, looked, len(asked)) == ("wins", [3, 5], 15)  # three do not prove a small spread


def test_it_ends_at_the_last_interim_analysis(lab: Lab, ticket: Ticket, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {"ticket": 95.0, "dense": 95.5, "shuffled": 95.0})
    looked: list[int] = []
    found = verify(
        lab,
        ticket,
        VerifySettings(controls=("shuffled",), interim=(2, 4), noise=False, references=False),
        on_interim=lambda v: looked.append(v.n),
    )
    assert (found.verdict.outcome, looked, len(asked)) == ("undecided", [2, 4], 12)
    assert found.verdict.reasons[-1].startswith("likely to decide") or "not be likely" in found.verdict.reasons[-1]


def pretend(monkeypatch: pytest.MonkeyPatch, values: dict[str, float], budgets: dict[str, int] | None = None) -> list:
    """Make up what each network reaches, give or take a little; returns what is asked for."""
    asked: list[tuple[str, int]] = []

    def train(self, role: str, seeds: Seeds) -> TrainedNetwork:
        asked.append((role, seeds.order))
        wobble = (seeds.order % 7 + len(role)) % 5 / 20
        result = SimpleNamespace(metrics={"test": {"accuracy": values[role] + wobble}})
        return TrainedNetwork(result, (budgets or {}).get(role, TOTAL))

    monkeypatch.setattr(rivals_module.Rivals, "train_role", train)
    return asked


def test_unequal_budgets_are_refused(lab: Lab, ticket: Ticket, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"ticket": 95.0, "dense": 95.0, "shuffled": 90.0}, budgets={"dense": 30})
    with pytest.raises(UsageError, match=r"unequal budgets .*dense: 30 steps"):
        verify(lab, ticket, VerifySettings(controls=("shuffled",)))


def test_tickets_that_cannot_be_judged_are_refused(lab: Lab, ticket: Ticket) -> None:
    for task in (catalogue.get("digits", model="conv-4-16"), catalogue.get("mnist")):
        said = "model 'lenet-300-100' .here 'conv-4-16'" if task.name == "digits" else "name 'digits'"
        with pytest.raises(TicketError, match=f"another task or network: .*{said}"):
            verify(lab, ticket, task=task)
    foreign = Ticket(Mask({"weight": torch.ones(2, 3, dtype=torch.bool)}), nn.Linear(3, 2).state_dict(), ticket.info)
    with pytest.raises(TicketError, match="does not fit the network lenet-300-100"):
        verify(lab, foreign)
    with pytest.raises(TicketError, match="lacks its task, recipe, seeds, segment, retrain, rewind_step"):
        verify(lab, Ticket(ticket.mask, ticket.start, {"method": "mine"}))
    with pytest.raises(UsageError, match=r"keeps trained weights .retrain finetune"):
        verify(lab, Ticket(ticket.mask, ticket.start, {**ticket.info, "retrain": "finetune"}))


def test_an_old_ticket_s_task_is_made_by_its_name(ticket: Ticket) -> None:
    def of(task: dict[str, Any]) -> Ticket:
        return Ticket(ticket.mask, ticket.start, {"task": task})

    described = {name: value for name, value in ticket.info["task"].items() if name != "spec"}
    assert build_task(of(described)).key() == build_task(ticket).key() == catalogue.get("digits").key()
    with pytest.raises(TrustError, match="names the task 'nothing', which is not one of the built-in ones"):
        build_task(of({"name": "nothing", "key": {}}))
    with pytest.raises(TicketError, match="'nothing' of this ticket cannot be built: there is no task"):
        build_task(of({"name": "nothing", "key": {}}), trust=True)


def test_rewinding_to_step_0_starts_controls_from_an_initialisation(lab: Lab, saved: dict[str, Path]) -> None:
    settings = VerifySettings(seeds=2, controls=("random_reinit",), noise=False, references=False)
    found = verify(lab, Ticket.load(saved["0"]), settings)
    assert set(found.budgets.values()) == {TOTAL}
    assert found.verdict.n == 2


def test_without_a_narrower_network_the_control_is_left_out_and_this_is_told(
    lab: Lab, ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(catalogue.get("digits")), "narrower", lambda self, parameters: None)
    settings = VerifySettings(seeds=1, controls=("shuffled", "small_dense"), noise=False, references=False)
    found = verify(lab, ticket, settings)
    assert "small_dense" not in found.values
    assert "defines no narrower form of lenet-300-100" in found.left_out["small_dense"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"margin": 0.0}, "a margin of 0.0: it must be above 0"),
        ({"margin": -1.0}, "a margin of -1.0"),
        ({"confidence": 95.0}, "a confidence of 95.0: it must lie between 0.5 and 1"),
        ({"least_spread": 0.0}, "a least spread of 0.0"),
        ({"claim": "wins", "controls": ("none",)}, "'wins' needs a control"),
        ({"seeds": 0}, "give at least 1"),
        ({"seeds": 3, "interim": (2, 3)}, "either interim or seeds"),
        ({"after": -1}, "after -1 seeds: give the number of seeds to skip"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        VerifySettings(**settings)


def test_a_control_that_no_record_could_name() -> None:
    with pytest.raises(UsageError, match=r"dense_of_flops:lenet-300-100@0\.5: .* remove @0\.5"):
        check_controls(("shuffled", "dense_of_flops:lenet-300-100@0.5"))
    with pytest.raises(UsageError, match=r"remove @0\.5"):
        check_rivals(("dense_of_time:lenet-300-100@0.5",))
    check_controls(("dense_of_flops:lenet-300-100", "dense_of_time"))
    check_rivals(("dense_of_flops:lenet-300-100", "dense_of_time"))
