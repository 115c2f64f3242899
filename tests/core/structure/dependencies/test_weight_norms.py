"""Channels around layers whose weight is computed: gone where that is exact, and else a reason that says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ticketry as tk
from halving import check, example, groups_of, without
from ticketry.errors import StructureError

Wrap = Callable[[nn.Module], nn.Module]

WRAPS: dict[str, Wrap] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of the whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "old weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
}


def network(wrap: Wrap) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), wrap(nn.Conv2d(8, 6, 3, padding=1)), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 36, 5)),
    ).eval()


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_what_enters_a_computed_weight_goes(name: str) -> None:
    model, x = network(WRAPS[name]), example(2, 3, 6, 6)
    groups = groups_of(model, x)
    assert groups["0"].prunable
    with torch.no_grad():
        model(x)  # for `check`: copy.deepcopy refuses the old weight_norm's weight with its history
    small = check(model, x, without(model, groups.values()))
    assert small[0].out_channels == small[3].in_channels == 4
    rows = groups["3"]
    assert rows.prunable == (small[3].out_channels == 3)
    if name in ("weight_norm", "old weight_norm"):  # a row without weights has the norm 0, by which it is divided
        assert "remove_parametrizations" in rows.reason


def test_nothing_but_rows_of_weight_norm_is_an_error_that_says_what_to_do() -> None:
    wrap = parametrizations.weight_norm
    model = nn.Sequential(wrap(nn.Linear(4, 6)), nn.ReLU(), wrap(nn.Linear(6, 3)))
    with pytest.raises(StructureError, match=r"divides by its norm.*remove_parametrizations"):
        tk.structure.channels(model, example(2, 4), 0.5)


def test_a_reader_whose_weight_is_computed_is_no_maker() -> None:
    """Of a plain layer and of one with weight_norm behind it as many channels are refilled, by the same scores."""
    found = []
    for wrap in (parametrizations.weight_norm, lambda layer: layer):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 5))
        mask = {name: torch.ones(shape) for name, shape in tk.scope(model).shapes.items()}
        mask["0.weight"][2:] = 0
        filled = tk.structure.refill(model, tk.Mask(mask), example(4, 6))
        batches, loss = [example(8, 6)], lambda model, batch: model(batch).square().sum()
        scores = {"batches": batches, "loss": loss}
        kept = [
            tk.structure.channels(model, example(4, 6), 0.7, scope=tk.scope(model, spare=["2"]), score=score, **scores)
            for score in ("activation", "snap")
        ][:1]  # snap's gradients are of what the weight is computed from: other numbers, and no error
        found.append([filled["0.weight"].any(1).tolist(), *(one["0.weight"].any(1).tolist() for one in kept)])
    assert found[0] == found[1]
    assert sum(found[0][0]) == 2
