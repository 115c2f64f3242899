"""Searches under a budget of time whose masks have a granularity of their own in each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from search.known_costs import COMMON, task
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost, mask_granularity
from ticketry.errors import UsageError
from ticketry.evidence.control import CONTROLS, Drawing, Form
from ticketry.lab.scoring_sample import Sample

CHEAP = 0.3
"""Of the time of single weights, which groups of 4 rows take in the layers that have cheap ones."""


def costs(cheap: tuple[str, ...]) -> CostModel:
    """Straight lines: single weights in proportion to what is kept, groups of 4 rows for less in some layers."""
    layers = {}
    for name, value in task().build().named_parameters():
        if name.endswith("weight"):
            whole = 1e-5 * value.numel()
            known = {"weights": Curve((0.0, 1.0), (0.0, whole))}
            if name in cheap:
                known["rows:4"] = Curve((0.0, 1.0), (0.0, CHEAP * whole))
            layers[name] = LayerCost(value.numel(), whole, known)
    return CostModel("seconds", layers, fixed=1e-5)


def rows_go_together(kept: torch.Tensor) -> bool:
    flat = kept.flatten(1)
    return len(flat) % 4 == 0 and all(bool((part == part[0]).all()) for part in flat.split(4))


def spent(mask: tk.Mask, model: CostModel) -> float:
    """By the definition."""
    found = model.fixed
    for name, kept in mask.items():
        share, layer = float(kept.float().mean()), model.layers[name]
        cheap = "rows:4" in layer.curves and rows_go_together(kept)
        found += layer.dense * share * (CHEAP if cheap else 1.0)
    return found


@pytest.mark.slow
def test_layers_with_cheap_groups_are_pruned_in_them_and_others_in_single_weights(tmp_path: Path) -> None:
    names = [name for name, value in task().build().named_parameters() if name.endswith("weight")]
    cheap = tuple(name for name in names if task().build().get_parameter(name).shape[0] % 4 == 0)[:2]
    model, file = costs(cheap), tmp_path / "costs.json"
    model.save(file)
    asked: dict[str, Any] = {"profile": str(file), "store": tmp_path / "store", "controls": ("random_prune",), **COMMON}
    run = tk.run("iterative", task(), time=(0.3, 0.08), base="engine", structure="auto", rewind="1it", **asked)
    masks = [ticket.load().mask for ticket in run.tickets]
    for mask, share in zip(masks, (0.3, 0.08), strict=True):
        assert 0.8 * share < spent(mask, model) / model.dense <= share + 1e-9
        assert {name for name in names if rows_go_together(mask[name])} == set(cheap)
    assert any(float(masks[1][name].float().mean()) < 1 for name in cheap)
    singles = tk.run("iterative", task(), time=(0.3, 0.08), base="engine", rewind="1it", **asked)
    assert [ticket.load().mask for ticket in singles.tickets] != masks
    assert singles.record.name != run.record.name
    with tk.Lab(tmp_path / "store") as lab:  # of the first level, whose scores are those of the dense network
        dense = next(point for point in run.record.points if point.role == "dense")
        trajectory, _, step = dense.key.partition("@")
        trained = task().build()
        trained.load_state_dict(lab.store.get_tensors(lab.store.trained(trajectory, int(step))["model"]))
        course, sample = lab.course(task()), Sample(seed=0)
        batches = sample.limit_to(task()).draw(course, trained)
        change = tk.score.kfac(trained, tk.scope(trained), batches=batches, loss=course.loss)
    kept, alone = (
        sum(float(change[name].sum() * (change[name][mask[name]].sum() / change[name].sum()).log()) for name in names)
        for mask in (masks[0], singles.tickets[0].load().mask)
    )
    assert kept > alone
    again = tk.run("iterative", task(), time=(0.3, 0.08), base="engine", structure="auto", rewind="1it", **asked)
    assert again.now["segments_trained"] == 0


@pytest.mark.parametrize("structure", ["rows:4", pytest.param("weights", marks=pytest.mark.slow)])
def test_one_granularity_is_had_in_all_layers(structure: str, tmp_path: Path) -> None:
    names = tuple(name for name, value in task().build().named_parameters() if name.endswith("weight"))
    known, file = costs(names), tmp_path / "costs.json"
    known.save(file)
    run = tk.run(
        "oneshot",
        task(),
        time=0.2,
        base="engine",
        structure=structure,
        profile=str(file),
        store=tmp_path / "store",
        **COMMON,
    )
    mask = run.tickets[0].load().mask
    grouped = {name for name in names if all(bool((part == part[0]).all()) for part in mask[name].flatten(1).split(4))}
    assert grouped == (set(names) if structure == "rows:4" else set())
    price = CHEAP if structure == "rows:4" else 1.0
    taken = known.fixed + sum(known.layers[name].dense * price * float(mask[name].float().mean()) for name in names)
    assert 0.8 * 0.2 < taken / known.dense <= 0.2 + 1e-9


def test_a_shuffled_mask_keeps_the_groups_that_make_the_ticket_cheap() -> None:
    names = [name for name, value in task().build().named_parameters() if name.endswith("weight")]
    known = costs(tuple(names[:1]))
    grouped = {
        name: torch.rand(8, 20, generator=torch.Generator().manual_seed(index)).lt(0.3)
        for index, name in enumerate(names[:2])
    }
    grouped[names[0]] = grouped[names[0]][:2].repeat_interleave(4, 0)
    ticket = tk.Mask(grouped)
    mask = CONTROLS.get("shuffled").mask(ticket, Drawing(3, Form(aim="time:x"), prices=known))
    assert mask.kept == ticket.kept
    assert mask != ticket
    assert {name for name, kept in mask.items() if mask_granularity(kept) == "rows:4"} == {names[0]}


def test_a_mask_whose_costs_know_no_groups_is_shuffled_weight_by_weight() -> None:
    name = next(name for name, value in task().build().named_parameters() if name.endswith("weight"))
    rows = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)).lt(0.3)
    ticket = tk.Mask({name: rows.repeat_interleave(4, 0)})  # as chance may have it
    drawing = Drawing(3, Form(aim="time:x"), prices=costs(()))
    assert CONTROLS.get("shuffled").mask(ticket, drawing) == CONTROLS.get("shuffled").mask(ticket, Drawing(3))


def test_a_granularity_without_costs_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    file = costs(()).save(tmp_path / "costs.json")
    with pytest.raises(UsageError, match=r"'rows:4' has no costs here, but weights have: measure it"):
        tk.run(
            "oneshot",
            task(),
            time=0.5,
            base="engine",
            structure="rows:4",
            profile=str(file),
            store=tmp_path / "store",
            **COMMON,
        )
    assert not (tmp_path / "store" / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.5}, "structure auto needs a budget of time"),
        ({"flops": 0.5}, "structure auto needs a budget of time"),
        ({"time": 0.5, "base": "engine", "unweighed": True}, "leave unweighed out"),
        ({"time": 0.5, "base": "engine", "distribution": "erk"}, "leave distribution out"),
        ({"time": 0.5, "base": "engine", "keep_at_least": 1}, "leave keep_at_least out"),
    ],
)
@pytest.mark.parametrize("method", ["iterative", "oneshot"])
def test_what_does_not_go_with_it_is_told_before_anything_is_trained(
    method: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = costs(()).save(tmp_path / "costs.json")
    given = settings | ({"profile": str(file)} if "time" in settings else {})
    with pytest.raises(UsageError, match=message):
        tk.run(method, task(), structure="auto", store=tmp_path / "store", **given, **COMMON)
    assert not (tmp_path / "store" / "runs").exists()
