"""Densities and budgets that masks cannot have are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from search.known_costs import costs
from search.known_costs import task as small_task
from ticketry.errors import TicketryError
from ticketry.search import method

SCORED = ("acdc", "iterative", "regularised")


BLOCKS = ("early", "iterative", "regularised")
CHANNELS = ("gradual", "iterative")


def refused(folder: Path, name: str, of: tk.Task | None = None, **settings: Any) -> str:
    """The error of a search on digits, in which nothing was trained before."""
    task, search = of or tk.task("digits"), method(name)
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
    assert "is too low to keep 20 weights in each of 3 layers: it is 59 weights, and those would be 60, 20 of" in told
    assert "choose a higher one, keep fewer in each" in told


@pytest.mark.parametrize("name", BLOCKS)
def test_more_weights_in_blocks_than_the_density_has(tmp_path: Path, name: str) -> None:
    """30 weights of each of three layers are more than 70, by more than half a block."""
    size = tk.scope(tk.task("digits").build()).total
    more = {"penalty": "group_lasso"} if name == "regularised" else {}
    told = refused(tmp_path, name, **of_density(name, 70.4 / size), keep_at_least=30, structure="rows:16", **more)
    assert "it is 70 weights, and those would be" in told
    assert "in whole blocks of 16x1" in told


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("aim", ["time", "bytes"])
def test_more_weights_than_the_costs_in_a_profile_pay_for(tmp_path: Path, name: str, aim: str) -> None:
    """With all weights kept in each layer a network costs all that it did."""
    model = costs("seconds" if aim == "time" else "bytes")
    file, sizes = model.save(tmp_path / "costs.json"), {name: one.weights for name, one in model.layers.items()}
    dearest = max(sizes, key=lambda name: sizes[name])
    given: dict[str, Any] = {aim: (0.5,), "profile": str(file), "keep_at_least": max(sizes.values())}
    if aim == "time":
        given["base"] = "engine"  # the costs in the profile have no other latency
    told = refused(tmp_path / "store", name, of=small_task(), **given)
    assert "LayerCollapseError: a budget of" in told
    assert f"(1 of dense) that the network costs with {max(sizes.values())} weights in each of {len(sizes)} la" in told
    assert f"of which {dearest} takes" in told


@pytest.mark.parametrize("name", [*CHANNELS, "l0", "decorators"])
def test_more_channels_than_the_density_has_weights_for(tmp_path: Path, name: str) -> None:
    more: dict[str, Any] = {} if name == "decorators" else {"structure": "channels"}
    task = tk.task("digits", model="resnet-20@0.25") if name == "decorators" else None
    told = refused(tmp_path, name, of=task, **of_density(name, 0.05), keep_at_least=4 if task else 40, **more)
    assert "LayerCollapseError: density 0.05 cannot be reached by removing channels: with" in told


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("score", ["grasp", "inverted:snip"])
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
