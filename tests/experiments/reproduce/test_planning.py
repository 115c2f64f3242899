"""How much work a run is, against what a search in an empty store trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.errors import NotStoredError
from ticketry.experiments.reproduce.planning import dense, work_of
from ticketry.experiments.reproduce.stored import stored_work

ASKED: dict[str, Any] = {"recipe": {"length": "10it"}, "replicates": 1, "workers": 0, "device": "cpu"}


@pytest.mark.parametrize(
    ("method", "settings", "controls"),
    [
        ("iterative", {"densities": [0.5, 0.3], "rewind": "3it"}, ["shuffled", "random_reinit"]),
        ("iterative", {"densities": [0.6, 0.5, 0.4], "structure": "regroup", "rows": 4}, []),
        ("concrete", {"density": [0.5, 0.3], "rewind": "2it"}, []),
        ("early", {"density": [0.5, 0.3], "when": "0"}, []),
    ],
)
def test_work_is_what_is_trained(tmp_path: Path, method: str, settings: dict[str, Any], controls: list[str]) -> None:
    run = tk.run(method, "digits", controls=controls, store=tmp_path, **settings, **ASKED)
    lab = tk.Lab(tmp_path, device="cpu")
    steps, trainings = work_of(lab, run.request)
    whole = dense(lab, run.request)
    assert run.record.cost.steps_trained == pytest.approx(whole.total + steps, abs=3)  # random_reinit trains to step 3
    assert run.record.cost.segments_trained == pytest.approx(1 + trainings, abs=1)


def test_what_the_store_has_is_not_planned_again(tmp_path: Path) -> None:
    """A search of two levels, then the same of three: the third level and its controls are left."""
    settings = {"rate": 0.5, "levels": 2, "rewind": "3it"}
    run = tk.run("iterative", "digits", controls=["shuffled", "random_reinit"], store=tmp_path, **settings, **ASKED)
    lab = tk.Lab(tmp_path, device="cpu")
    longer = replace(run.request, settings=replace(run.request.settings, levels=3), replicates=2)
    steps, trainings = stored_work(lab, longer)
    whole = dense(lab, run.request)
    own = whole.total - 3
    assert (steps, trainings) == (2 * 3 * own, 2 * 3)
    assert steps == pytest.approx(work_of(lab, run.request)[0], abs=3)
    assert lab.ledger.segments_asked == 0
    with pytest.raises(NotStoredError, match="not in the store"), lab.training_nothing():
        lab.train(dense(lab, longer, 1))
    assert lab.train(dense(lab, longer, 1).until(2)).segment.last == 2
