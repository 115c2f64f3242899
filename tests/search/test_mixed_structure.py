"""Searches under a budget of time whose masks have a granularity of their own in each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from samples import sample
from search.known_costs import COMMON, task
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost, mask_granularity
from ticketry.errors import UsageError
from ticketry.evidence.control import CONTROLS, Drawing, MaskForm

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
    return all(bool((part == part[0]).all()) for part in flat.split(4))


def spent(mask: tk.Mask, model: CostModel) -> float:
    """By the definition."""
    found = model.fixed
    for name, kept in mask.items():
        share, layer = float(kept.float().mean()), model.layers[name]
        cheap = "rows:4" in layer.curves and rows_go_together(kept)
        found += layer.dense * share * (CHEAP if cheap else 1.0)
    return found


@pytest.mark.parametrize("structure", sample(["auto", "rows:4", "weights"], 1))
def test_layers_are_pruned_in_the_granularity_that_is_cheap(structure: str, tmp_path: Path) -> None:
    names = [name for name, value in task().build().named_parameters() if name.endswith("weight")]
    cheap = [name for name in names if task().build().get_parameter(name).shape[0] % 4 == 0]
    cheap = {"auto": cheap[:2], "rows:4": names, "weights": []}[structure]
    known = costs(tuple(cheap))
    file = str(known.save(tmp_path / "costs.json"))
    options: dict[str, Any] = {"base": "engine", "profile": file, "store": tmp_path / "store", **COMMON}
    mask = tk.run("oneshot", task(), time=0.2, structure=structure, **options).tickets[0].load().mask
    assert {name for name in names if rows_go_together(mask[name])} == set(cheap)
    assert 0.8 * 0.2 < spent(mask, known) / known.dense <= 0.2 + 1e-9


def test_a_shuffled_mask_keeps_the_groups_that_make_the_ticket_cheap() -> None:
    names = [name for name, value in task().build().named_parameters() if name.endswith("weight")]
    known = costs(tuple(names[:1]))
    grouped = {
        name: torch.rand(8, 20, generator=torch.Generator().manual_seed(index)).lt(0.3)
        for index, name in enumerate(names[:2])
    }
    grouped[names[0]] = grouped[names[0]][:2].repeat_interleave(4, 0)
    ticket = tk.Mask(grouped)
    mask = CONTROLS.get("shuffled").mask(ticket, Drawing(3, MaskForm(aim="time:x"), prices=known))
    assert mask.kept == ticket.kept
    assert mask != ticket
    assert {name for name, kept in mask.items() if mask_granularity(kept) == "rows:4"} == {names[0]}


def test_a_mask_whose_costs_know_no_groups_is_shuffled_weight_by_weight() -> None:
    name = next(name for name, value in task().build().named_parameters() if name.endswith("weight"))
    rows = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)).lt(0.3)
    ticket = tk.Mask({name: rows.repeat_interleave(4, 0)})  # as chance may have it
    drawing = Drawing(3, MaskForm(aim="time:x"), prices=costs(()))
    assert CONTROLS.get("shuffled").mask(ticket, drawing) == CONTROLS.get("shuffled").mask(ticket, Drawing(3))


@pytest.mark.parametrize(
    ("structure", "settings", "message"),
    [
        ("rows:4", {"time": 0.5, "base": "engine"}, r"'rows:4' has no costs here, but weights have: measure it"),
        ("auto", {"flops": 0.5}, "structure auto needs a budget of time"),
        ("auto", {"time": 0.5, "base": "engine", "unweighed": True}, "leave unweighed out"),
        ("auto", {"time": 0.5, "base": "engine", "distribution": "erk"}, "leave distribution out"),
        ("auto", {"time": 0.5, "base": "engine", "keep_at_least": 1}, "leave keep_at_least out"),
    ],
)
def test_bad_settings_are_refused_before_training(
    structure: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = costs(()).save(tmp_path / "costs.json")
    given = settings | ({"profile": str(file)} if "time" in settings else {})
    with pytest.raises(UsageError, match=message):
        tk.run("oneshot", task(), structure=structure, store=tmp_path / "store", **given, **COMMON)
    assert not (tmp_path / "store" / "runs").exists()
