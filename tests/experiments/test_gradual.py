"""What runs of one-shot and gradual pruning cost, and the controls of networks that train on at their last cut."""

from __future__ import annotations

from typing import Any

import pytest

import ticketry as tk
from ticketry.errors import UsageError
from ticketry.evidence.controls import train_control
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.search_result import Seeds
from ticketry.records.schema import as_json

TOTAL, FIRST, LAST = 60, 20, 40
TASK = tk.task("digits")
RECIPE = TASK.recipe.changed(length=f"{TOTAL}it")
GRADUAL, ONESHOT = tk.search.gradual, tk.search.oneshot
SETTINGS = {
    "gradual": GRADUAL.Settings(density=(0.5, 0.2), begin="10it", end=f"{LAST}it", frequency="10it"),
    "oneshot": ONESHOT.Settings(density=(0.5, 0.2), rewind="50%"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with tk.Lab(tmp_path_factory.mktemp("store")) as found:
        yield found


def made(lab: tk.Lab, name: str) -> dict[str, Any]:
    run = SearchRequest(tk.search.method(name), TASK, SETTINGS[name], RECIPE, replicates=2, controls=("random_reinit",))
    return as_json(execute(lab, run))


def test_gradual_pruning_costs_one_training_a_density(lab: tk.Lab) -> None:
    record = made(lab, "gradual")
    cost, own = record["cost"], TOTAL - FIRST
    assert cost["dense_steps"] == TOTAL
    assert cost["search_steps_per_replicate"] == FIRST + 2 * own  # up to the first cut they are the dense network's
    # Controls: a fresh start, dense up to the last cut, which both densities share; then the rest.
    assert cost["control_steps"] == 2 * 2 * (TOTAL - LAST)
    assert cost["steps_trained"] == 2 * (TOTAL + 2 * own + LAST + 2 * (TOTAL - LAST))
    tickets = [point for point in record["points"] if point["role"] == "ticket" and point["replicate"] == 0]
    assert [(p["level"], p["density"], p["search_steps"], p["steps"], p["budget"]) for p in tickets] == [
        (1, 0.5, LAST, TOTAL - LAST, TOTAL),
        (2, 0.2, LAST, TOTAL - LAST, TOTAL),
    ]
    controls = [point for point in record["points"] if point["role"] == "random_reinit"]
    assert {(point["steps"], point["budget"]) for point in controls} == {(TOTAL - LAST, TOTAL)}
    assert record["settings"]["retrain"] == "gradual"
    saved = tk.Ticket.load(tickets[1]["ticket"])
    assert (saved.info["rewind_step"], saved.info["search_steps"]) == (LAST, TOTAL)
    with pytest.raises(UsageError, match=r"keeps trained weights \(retrain gradual\)"):
        tk.evidence.verify(lab, saved)


def test_one_shot_pruning_costs_the_dense_training_once(lab: tk.Lab) -> None:
    record = made(lab, "oneshot")
    cost, own = record["cost"], TOTAL // 2
    assert cost["search_steps_per_replicate"] == TOTAL + 2 * own
    tickets = [point for point in record["points"] if point["role"] == "ticket" and point["replicate"] == 0]
    assert [(p["search_steps"], p["steps"], p["budget"]) for p in tickets] == [(TOTAL, own, TOTAL + own)] * 2
    seconds = sum(point["seconds"] for point in record["points"] if point["role"] in ("dense", "ticket"))
    fresh = cost["train_seconds"] - sum(p["seconds"] for p in record["points"])
    assert abs(fresh) < 1e-2 * max(1.0, seconds), "the dense training is counted once"


@pytest.mark.parametrize("control", ["random_reinit", "shuffled", "random_prune"])
def test_controls_go_on_from_a_dense_network_at_the_last_cut(lab: tk.Lab, control: str) -> None:
    """The ticket's own weights are 0 wherever an earlier mask was, which a shuffled mask would keep as weights."""
    found = GRADUAL(lab, TASK, SETTINGS["gradual"], recipe=RECIPE)[0]
    ticket = found[2]
    result = train_control(lab, TASK, RECIPE, control, ticket, Seeds())
    assert (result.segment.first, result.segment.last) == (LAST, TOTAL)
    assert result.segment.start.optimizer is not None
    if control != "random_reinit":
        at_cut = lab.at(found[0].result, LAST)
        assert (result.segment.start.state, result.segment.start.optimizer) == (at_cut.model, at_cut.training)
        assert result.segment.mask != ticket.mask
    start = lab.store.get_tensors(result.segment.start.state)
    assert all(bool(start[name].all()) for name in lab.store.get_mask(ticket.mask))
    assert lab.store.get_mask(result.segment.mask).kept == lab.store.get_mask(ticket.mask).kept
