"""What settings say of masks, told before anything is trained if it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.errors import TicketryError
from ticketry.search import method

SCORED = ("acdc", "early", "gradual", "iterative", "oneshot", "regularised")


def refused(folder: Path, name: str, **settings: Any) -> str:
    """The error of a search on digits, in which nothing was trained before."""
    task, search = tk.task("digits"), method(name)
    with tk.Lab(folder) as lab:
        with pytest.raises(TicketryError) as error:
            search(lab, task, search.Settings(**settings), recipe=task.recipe.changed(length="20it"))
        assert lab.ledger.segments_trained == 0
    return f"{type(error.value).__name__}: {error.value}"


def of_density(name: str, density: float) -> dict[str, Any]:
    return {"density": density if name == "iterative" else (density,)}


@pytest.mark.parametrize("name", SCORED)
def test_half_rates_of_no_layer(tmp_path: Path, name: str) -> None:
    told = refused(tmp_path, name, **of_density(name, 0.5), spare=("fc3",), half_rate=("fc3",))
    assert "UsageError: half_rate names 'fc3'" in told
    assert "fc1.weight, fc2.weight" in told


@pytest.mark.parametrize("name", SCORED)
def test_more_weights_than_the_density_has(tmp_path: Path, name: str) -> None:
    """59 weights, and three layers of 20."""
    size = tk.scope(tk.task("digits").build()).total
    told = refused(tmp_path, name, **of_density(name, 59.4 / size), keep_at_least=20)
    assert "is too low to keep 20 weights in each of 3 layers: choose a higher one, keep fewer" in told


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("score", ["grasp", "grasp200", "inverted:magnitude", "inverted:snip"])
def test_scores_below_0_under_a_budget(tmp_path: Path, name: str, score: str) -> None:
    told = refused(tmp_path, name, flops=(0.5,), score=score)
    assert f"UsageError: score {score!r} may be below 0" in told
    assert "unweighed" in told


@pytest.mark.parametrize("more", [{"unweighed": True}, {"distribution": "uniform"}])
def test_scores_below_0_where_none_is_weighed(tmp_path: Path, more: dict[str, Any]) -> None:
    task, search = tk.task("digits"), tk.search.oneshot
    settings = search.Settings(flops=(0.5,), score="inverted:magnitude", **more)
    with tk.Lab(tmp_path) as lab:
        (found,) = search(lab, task, settings, recipe=task.recipe.changed(length="4it"))
        assert lab.store.get_mask(found[1].mask).density == pytest.approx(0.5, abs=1e-3)
