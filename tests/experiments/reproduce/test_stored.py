"""What of a search a store has already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.errors import NotStoredError
from ticketry.experiments.reproduce.blocks import Work, dense_segment, planned_work, stored_work

ASKED: dict[str, Any] = {"recipe": {"length": "10it"}, "replicates": 1, "workers": 0, "device": "cpu"}


def test_what_the_store_has_is_not_planned_again(tmp_path: Path) -> None:
    """A search of two levels, then the same of three: the third level and its controls are left."""
    settings = {"rate": 0.5, "levels": 2, "rewind": "3it"}
    run = tk.run("iterative", "digits", controls=["shuffled", "random_reinit"], store=tmp_path, **settings, **ASKED)
    lab = tk.Lab(tmp_path, device="cpu")
    longer = replace(run.request, settings=replace(run.request.settings, levels=3), replicates=2)
    found = stored_work(lab, longer)
    # Both tickets with two controls each, and the fresh start of random_reinit.
    assert found == Work(2 * 3 * 7 + 3, 2 * 3 + 1)
    assert found.steps == planned_work(lab, run.request).steps + 3
    assert lab.ledger.segments_asked == 0
    with pytest.raises(NotStoredError, match="not in the store"), lab.training_nothing():
        lab.train(dense_segment(lab, longer, 1))
    assert lab.train(dense_segment(lab, longer, 1).shortened_to(2)).segment.last == 2


def test_gates_that_tickets_have_in_common_are_there_once(tmp_path: Path) -> None:
    settings = {"density": [0.5, 0.3], "until": "6it"}
    run = tk.run("l0", "digits", controls=[], store=tmp_path, **settings, **ASKED)
    lab = tk.Lab(tmp_path, device="cpu")
    found = stored_work(lab, replace(run.request, replicates=2))
    assert found == Work(6 + 2 * 4, 3)
    assert planned_work(lab, run.request).subtract(found) == Work(), "one replicate of two is there"


def test_of_a_parallel_search_all_members_are_looked_for(tmp_path: Path) -> None:
    """The second of three was searched alone; the first is missing, and hides nothing."""
    settings = {"rounds": 1, "rewind": "3it"}
    alone = tk.run("continuous", "digits", controls=[], store=tmp_path, init=0.0, **settings, **ASKED)
    lab = tk.Lab(tmp_path, device="cpu")
    wider = replace(alone.request, settings=replace(alone.request.settings, init=(0.1, 0.0, -0.01)))
    found = stored_work(lab, wider)
    assert found == Work(10 + 7, 2), "a training with gates and a ticket"
    both = tk.run("continuous", "digits", controls=[], store=tmp_path, init=[0.1, 0.0, -0.01], **settings, **ASKED)
    assert both.record.cost.steps_trained == planned_work(lab, wider).subtract(found).steps
