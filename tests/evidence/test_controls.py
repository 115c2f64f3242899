"""Controls really lack what they are said to lack, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples import sample
from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry.core.structure.controls import random_mask
from ticketry.errors import UsageError
from ticketry.evidence.control import CONTROLS, LONGER_CONTROLS, check_controls
from ticketry.evidence.controls import draw_control_mask, train_control
from ticketry.lab.lab import Lab
from ticketry.lab.retrain import retraining
from ticketry.lab.search_result import RETRAINS, Found, Seeds
from ticketry.lab.training.segment import Result, Segment, Start
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import mix_seeds

SHAPES = {"a.weight": (40, 50), "b.weight": (40, 50), "c.weight": (10, 7, 3, 3), "d.weight": (300,)}


def some_mask(density: float, seed: int = 0) -> Mask:
    draw = torch.Generator().manual_seed(seed)
    tensors = {name: torch.rand(shape, generator=draw) < density for name, shape in SHAPES.items()}
    for tensor in tensors.values():
        tensor.view(-1)[0] = True
    return Mask(tensors)


def is_by_chance(count: int, drawn: int, marked: int, total: int) -> bool:
    """Whether `count` of the `marked` among `drawn` of `total` is within five deviations of what chance gives."""
    share = marked / total
    deviation = sqrt(drawn * share * (1 - share) * (total - drawn) / max(total - 1, 1))
    return abs(count - drawn * share) <= 5 * deviation + 1


@settings(max_examples=15, deadline=None)
@given(st.floats(0.02, 0.98), st.integers(0, 1000), st.integers(0, 1000))
def test_a_shuffled_mask_keeps_each_layers_count_and_overlaps_by_chance(density, seed, mask_seed):
    mask = some_mask(density, seed)
    control = draw_control_mask("shuffled", mask, Seeds(mask=mask_seed))
    assert control.shapes == mask.shapes
    for name in mask:
        kept, total = int(mask[name].sum()), mask[name].numel()
        assert int(control[name].sum()) == kept
        assert is_by_chance(int((mask[name] & control[name]).sum()), kept, kept, total), name


@pytest.mark.parametrize("name", ["shuffled", "random_prune"])
def test_layers_of_one_shape_get_different_masks(name):
    same = torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) < 0.3
    control = draw_control_mask(name, Mask({"a": same, "b": same.clone()}), Seeds())
    kept = [int(control[layer].sum()) for layer in ("a", "b")]
    assert is_by_chance(int((control["a"] & control["b"]).sum()), *kept, same.numel())


@settings(max_examples=15, deadline=None)
@given(st.floats(0.02, 0.98), st.integers(0, 1000), st.integers(0, 1000))
def test_a_random_mask_has_the_same_total_and_each_layer_the_overall_density(density, seed, mask_seed):
    mask = some_mask(density, seed)
    control = draw_control_mask("random_prune", mask, Seeds(mask=mask_seed))
    assert control.shapes == mask.shapes
    assert control.kept == mask.kept
    for name in mask:
        assert is_by_chance(int(control[name].sum()), control[name].numel(), mask.kept, mask.total), name
    assert is_by_chance((mask & control).kept, mask.kept, mask.kept, mask.total)


def test_no_layer_of_a_random_mask_is_empty():
    mask = Mask({"large": torch.arange(10_000) < 20, "small": torch.arange(3) < 1})
    for seed in range(20):
        control = random_mask(mask, seed)
        assert control.kept == 21
        assert all(row.kept for row in control.table())


@pytest.mark.parametrize("control", ["shuffled", "random_prune"])
def test_a_control_mask_is_a_function_of_seed_and_mask(control):
    mask, other = some_mask(0.3, 1), some_mask(0.3, 2)
    first = draw_control_mask(control, mask, Seeds(mask=5))
    torch.manual_seed(3)
    assert draw_control_mask(control, mask, Seeds(initialisation=8, order=9, mask=5)) == first
    found = {draw_control_mask(control, mask, Seeds(mask=seed)).digest for seed in range(5)}
    assert len(found) == 5
    assert draw_control_mask(control, other, Seeds(mask=5)) != first


def test_unknown_controls_are_refused():
    check_controls(tuple(CONTROLS))
    for check in (
        lambda: check_controls(("shuffled", "placebo")),
        lambda: draw_control_mask("placebo", some_mask(0.3), Seeds()),
    ):
        with pytest.raises(UsageError, match="'placebo' is not known: random_reinit, shuffled, random_prune"):
            check()


SEEDS = Seeds(initialisation=1, order=2, mask=3)
K, T = 6, 20


@dataclass
class Searched:
    """A dense network of digits and tickets of it, one for each way of retraining."""

    lab: Lab
    task: Task
    recipe: Recipe
    dense: Result
    tickets: dict[str, Found]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    task = catalogue.get("digits")
    recipe = task.recipe.changed(length=f"{T}it", schedule="cosine")
    with Lab(tmp_path_factory.mktemp("controls") / "store", device="cpu") as lab:
        dense = lab.train(
            lab.segment(task, start=SEEDS.initialisation, order_seed=SEEDS.order, recipe=recipe), keep=(K,)
        )
        rewound = lab.at(dense, K)
        mask = lab.prune(task, dense, scope(lab.model(task)), density=0.2)
        tickets = {}
        for retrain in RETRAINS:
            segment = retraining(
                lab, task, recipe, retrain=retrain, mask=mask, rewound=rewound, trained=dense, order_seed=SEEDS.order
            )
            tickets[retrain] = Found(1, mask, rewound, dense, retrain, lab.train(segment))
        yield Searched(lab, task, recipe, dense, tickets)


def unlike(one: Segment, other: Segment) -> set[str]:
    """In what two segments differ: beside the mask, also where it is held."""
    first, second = one.describe(), other.describe()
    for described in (first, second):
        described["mask"] = [variant.pop("mask", None) for variant in described["variants"]]
    return {name for name in first if first[name] != second[name]}


@pytest.mark.parametrize("retrain", sample(RETRAINS, 2))
@pytest.mark.parametrize("control", sorted(set(CONTROLS) - set(LONGER_CONTROLS)))
def test_a_control_lacks_one_thing_only(searched, control, retrain):
    lab, ticket = searched.lab, searched.tickets[retrain]
    result = train_control(lab, searched.task, searched.recipe, control, ticket, SEEDS)
    assert unlike(result.segment, ticket.result.segment) == ({"start"} if control == "random_reinit" else {"mask"})
    assert result.segment.steps == ticket.result.segment.steps
    assert result.metrics["test"].keys() == ticket.result.metrics["test"].keys()
    kept = lab.store.get_mask(result.segment.mask)
    assert kept.kept == lab.store.get_mask(ticket.mask).kept
    if control != "random_reinit":
        assert kept == draw_control_mask(control, lab.store.get_mask(ticket.mask), SEEDS)
    state = lab.state(result)
    assert all(not state[name][~kept[name]].any() for name in kept)


def test_a_fresh_start_is_trained_densely_to_the_rewind_step(searched, tmp_path):
    lab, ticket = searched.lab, searched.tickets["continue"]
    before = lab.ledger.steps_trained
    result = train_control(lab, searched.task, searched.recipe, "random_reinit", ticket, Seeds(7, 2, 3))
    assert lab.ledger.steps_trained - before == K + (T - K)
    with Lab(tmp_path / "store", device="cpu") as other:
        start = mix_seeds(7, "random_reinit")
        fresh = other.segment(searched.task, start=start, last=K, order_seed=2, recipe=searched.recipe)
        wanted = other.train(fresh)
    assert result.segment.start == Start(state=wanted.model)
    fresh_weights, theirs = lab.store.get_tensors(wanted.model), lab.state(ticket.rewound)
    for name in lab.store.get_mask(ticket.mask):
        pair = torch.stack([fresh_weights[name].flatten(), theirs[name].flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / sqrt(pair.shape[1]) + 0.1, name
