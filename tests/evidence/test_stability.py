"""Distances against numpy and closed forms; stability against norms taken by hand from the stored states."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketry import search
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.errors import MaskError, UsageError
from ticketry.evidence.connectivity import distance, stability, train_two_data_orders
from ticketry.evidence.controls import draw_control_mask
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds
from ticketry.lab.training.segment import Start
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import mix_seeds

SHAPES = {"a.weight": (4, 5), "a.bias": (4,), "b.weight": (3, 4)}


def some_state(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def by_numpy(one, other, kept) -> tuple[float, float]:
    """L2 and angle in degrees by the textbook formulas, over `kept`: name -> boolean array."""
    a = np.concatenate([one[name].numpy().astype(np.float64)[keep] for name, keep in kept.items()])
    b = np.concatenate([other[name].numpy().astype(np.float64)[keep] for name, keep in kept.items()])
    cosine = a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b))
    return float(np.sqrt(((a - b) ** 2).sum())), float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def agrees(found, wanted) -> bool:
    return (found.l2, found.angle) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(st.integers(0, 1000), st.integers(1001, 2000), st.floats(0.2, 1))
def test_distance_is_numpys_over_the_weights_kept_whole_and_by_layer(seed, other_seed, density):
    one, other = some_state(seed), some_state(other_seed)
    draw = torch.Generator().manual_seed(seed)
    mask = {name: torch.rand(SHAPES[name], generator=draw) < density for name in ("a.weight", "b.weight")}
    for tensor in mask.values():
        tensor.view(-1)[:2] = True
    kept = {name: tensor.numpy() for name, tensor in mask.items()}
    found = distance(one, other, Mask(mask))
    assert agrees(found, by_numpy(one, other, kept))
    assert found.weights == sum(int(keep.sum()) for keep in kept.values())
    assert list(found.layers) == list(mask)
    for name, layer in found.layers.items():
        assert agrees(layer, by_numpy(one, other, {name: kept[name]}))


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_closed_forms(scale):
    east, north = torch.tensor([3.0, 0.0]) * scale, torch.tensor([0.0, 4.0]) * scale

    def between(one, other):
        found = distance({"w": one}, {"w": other})
        return found.l2 / scale, found.angle

    assert between(east, east) == (0, 0)
    assert between(east, north) == pytest.approx((5, 90))
    assert between(east, -east) == pytest.approx((6, 180))
    assert between(east, 2 * east) == pytest.approx((3, 0))
    assert between(east, -3 * east) == pytest.approx((12, 180))
    assert between(east, torch.zeros(2)) == pytest.approx((3, None))


@pytest.mark.parametrize("turn", [1e-3, 1e-12])
def test_small_angles_are_not_rounded_away(turn):
    """arccos of a product in float64 gives 0 for all angles below 1e-8, and may give nan."""
    one, other = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, turn], dtype=torch.float64)
    assert np.radians(distance({"w": one}, {"w": other}).angle) == pytest.approx(np.arctan(turn), rel=1e-12)
    away = np.radians(180) - np.radians(distance({"w": one}, {"w": -other}).angle)
    assert away == pytest.approx(np.arctan(turn), abs=1e-15)


def test_states_and_masks_that_do_not_fit_are_refused():
    one, other = some_state(1), some_state(2)
    with pytest.raises(MaskError, match=r"'c.weight' is not in both"):
        distance(one, other, ["c.weight"])
    with pytest.raises(MaskError, match=r"mask of 'a.weight' has the shape \(5, 4\)"):
        distance(one, other, Mask({"a.weight": torch.ones(5, 4)}))
    with pytest.raises(UsageError, match=r"'a.bias' is \(4,\) in one state and \(5,\)"):
        distance(one, {**other, "a.bias": torch.zeros(5)})
    for pair in ((one, {**other, "c": torch.zeros(1)}), ({**one, "c": torch.zeros(1)}, other)):
        with pytest.raises(UsageError, match="'c' is not in both"):
            distance(*pair)


SEEDS = Seeds(initialisation=1, order=2, mask=3)


@dataclass
class Searched:
    lab: Lab
    task: Task
    recipe: Recipe
    dense: Found
    ticket: Found


def searched_with(lab: Lab, **settings) -> Searched:
    task = catalogue.get("digits")
    recipe = task.recipe.changed(length="20it", schedule="multistep", milestones=("50%",))
    chosen = search.iterative.Settings(**{"rewind": "6it", "densities": (0.2,), **settings})
    (found,) = search.iterative(lab, task, chosen, recipe=recipe, seeds=SEEDS)
    return Searched(lab, task, recipe, *found)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    with Lab(tmp_path_factory.mktemp("stability") / "store", device="cpu") as lab:
        yield searched_with(lab)


@pytest.mark.parametrize("control", [None, "shuffled"])
def test_stability_is_the_papers_two_norms(searched, tmp_path, control):
    """Trained again in an empty store from the definitions alone."""
    found = stability(searched.lab, searched.task, searched.recipe, searched.ticket, SEEDS, control=control)
    mask = searched.lab.store.get_mask(searched.ticket.mask)
    mask = draw_control_mask(control, mask, SEEDS) if control else mask
    with Lab(tmp_path / "store", device="cpu") as lab:
        task, recipe = searched.task, searched.recipe
        whole = lab.segment(task, start=SEEDS.initialisation, order_seed=SEEDS.order, recipe=recipe)
        dense = lab.train(whole, keep=(6,))
        start = Start(state=lab.at(dense, 6).model)
        trained = [
            lab.state(lab.train(lab.segment(task, start=start, mask=mask, first=6, order_seed=order, recipe=recipe)))
            for order in (SEEDS.order, mix_seeds(SEEDS.order, "second order"))
        ]
        before = lab.state(dense)
    kept = {name: mask[name].numpy() for name in mask}
    assert agrees(found.pruning, by_numpy(before, trained[0], kept))
    assert agrees(found.data_order, by_numpy(trained[0], trained[1], kept))
    for name, keep in kept.items():
        assert agrees(found.pruning.layers[name], by_numpy(before, trained[0], {name: keep}))
    assert found.pruning.weights == found.data_order.weights == mask.kept
    assert found.data_order.l2 > 0


def test_children_differ_in_the_data_order_alone(searched):
    for control in (None, "random_reinit", "shuffled", "random_prune"):
        one, other = train_two_data_orders(
            searched.lab, searched.task, searched.recipe, searched.ticket, SEEDS, control=control
        )
        assert replace(one.segment, order_seed=other.segment.order_seed) == other.segment
        assert one.segment.order_seed != other.segment.order_seed
        assert one.model != other.model
    assert (
        train_two_data_orders(searched.lab, searched.task, searched.recipe, searched.ticket, SEEDS)[0]
        == searched.ticket.result
    )


def test_dense_children_part_at_the_rewind_step(searched):
    """The second child's segment, under the first order, is the rest of the dense training to the bit."""
    lab = searched.lab
    one, other = train_two_data_orders(lab, searched.task, searched.recipe, searched.dense, SEEDS)
    assert one == searched.dense.result
    assert (other.segment.first, other.segment.last, other.segment.mask) == (6, 20, None)
    assert lab.train(replace(other.segment, order_seed=SEEDS.order)).model == one.model != other.model


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"rewind": "0", "retrain": "restart"}, True),
        ({"rewind": "6it", "retrain": "restart"}, False),
        ({"rewind": "end"}, False),
    ],
)
def test_only_the_same_steps_from_the_same_weights_are_compared(tmp_path, settings, fits):
    with Lab(tmp_path / "store", device="cpu") as lab:
        given = searched_with(lab, **settings)
        if fits:
            assert stability(lab, given.task, given.recipe, given.ticket, SEEDS).pruning.l2 > 0
        else:
            with pytest.raises(UsageError, match="search with retrain continue"):
                stability(lab, given.task, given.recipe, given.ticket, SEEDS)


def test_what_has_no_stability_is_refused_before_training(searched):
    lab, task, recipe = searched.lab, searched.task, searched.recipe
    asked = lab.ledger.segments_asked
    for found, seeds, control, said in (
        (searched.dense, SEEDS, None, "dense network has no mask"),
        (searched.ticket, SEEDS, "random_reinit", "other weights"),
        (searched.ticket, SEEDS, "placebo", "'placebo' is not known"),
        (searched.ticket, SEEDS.replicate(1), None, "seeds.order is 3, but the search had 2"),
    ):
        with pytest.raises(UsageError, match=said):
            stability(lab, task, recipe, found, seeds, control=control)
    with pytest.raises(UsageError, match="shuffled is a control of a ticket"):
        train_two_data_orders(lab, task, recipe, searched.dense, SEEDS, control="shuffled")
    assert lab.ledger.segments_asked == asked


@pytest.mark.slow
def test_public_names_stay_what_they_are_whatever_is_imported_first():
    code = (
        "import sys, ticketry.evidence as e; assert not {'torch', 'scipy'} & sys.modules.keys()\n"
        "import ticketry.evidence.connectivity, ticketry.evidence.connectivity, ticketry.evidence.controls\n"
        "assert all(callable(getattr(e, n)) for n in dir(e) if n != 'CONTROLS'), e.stability\n"
        "assert set(e.CONTROLS) >= {'random_reinit', 'shuffled', 'random_prune'} and not hasattr(e, 'nonsense')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_compared():
    one, other = some_state(1), some_state(2)
    everything = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    weights = {name: everything[name] for name in ("a.weight", "b.weight")}
    scope = Scope({name: SHAPES[name] for name in weights}, 36)
    assert agrees(distance(one, other, scope), by_numpy(one, other, weights))
    assert agrees(distance(one, other, ["a.weight", "b.weight"]), by_numpy(one, other, weights))
    counted = {**one, "steps": torch.tensor(3)}, {**other, "steps": torch.tensor(7)}
    assert agrees(distance(*counted), by_numpy(one, other, everything))
