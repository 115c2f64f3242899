"""How much work a run is, against what a search in an empty store trains, and what of it a store has already."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from made_records import search_record
from samples import sample
from ticketry.cli import main
from ticketry.errors import NotStoredError, StoreError
from ticketry.experiments.reproduce.blocks import (
    Block,
    Pace,
    TimeEstimator,
    Work,
    dense_segment,
    finished_blocks,
    measure_pace,
    planned_work,
    split_run_into_blocks,
    stored_work,
)
from ticketry.experiments.reproduce.campaign_file import Campaign, read_campaign
from ticketry.lab.store.files import write_with_digest
from ticketry.lab.store.paths import Paths
from ticketry_engine.support.seeds import mix_seeds

ASKED: dict[str, Any] = {"recipe": {"length": "10it"}, "replicates": 1, "workers": 0, "device": "cpu"}


@pytest.mark.parametrize(
    ("method", "settings", "controls"),
    sample(
        [
            ("iterative", {"densities": [0.5, 0.3], "rewind": "3it"}, ["shuffled", "random_reinit"]),
            (
                "iterative",
                {"densities": [0.6, 0.5, 0.4], "structure": "2:4", "structured_levels": 1, "rewind": "2it"},
                ["shuffled"],
            ),
            ("concrete", {"density": [0.5, 0.3], "rewind": "2it"}, []),
            ("dynamic", {"density": [0.5, 0.3], "grow": "random", "frequency": "3it"}, ["shuffled"]),
            ("l0", {"density": [0.5, 0.3], "until": "6it"}, []),
            ("continuous", {"rounds": 2, "rewind": "2it"}, []),
            ("acdc", {"density": [0.5, 0.3], "warmup": "2it", "phase": "2it", "end": "8it"}, ["shuffled"]),
            ("gradual", {"density": [0.5, 0.3], "begin": "2it", "end": "8it", "frequency": "2it"}, ["shuffled"]),
        ],
        4,
    ),
)
def test_work_is_what_is_trained(tmp_path: Path, method: str, settings: dict[str, Any], controls: list[str]) -> None:
    run = tk.run(method, "digits", controls=controls, store=tmp_path, **settings, **ASKED)
    lab = tk.Lab(tmp_path, device="cpu")
    work = planned_work(lab, run.request)
    whole = dense_segment(lab, run.request)
    # A fresh start of random_reinit is trained to step 3.
    assert run.record.cost.steps_trained == pytest.approx(whole.total + work.steps, abs=3)


NEW_METHOD = '''"""Prune the trained network, and train on from a third of the schedule."""

from dataclasses import dataclass

from ticketry.search import Found, Training
from ticketry.search.common.method import search_by_replicate


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the new method."""

    density: tuple[float, ...] = (0.5, 0.25)
    """Fraction of weights retained by each ticket."""


def plan(settings):
    """Plan a ticket for each density."""
    return [Training(level=n, density=one, first="30%") for n, one in enumerate(settings.density, start=1)]


@search_by_replicate
def search(replicate, settings):
    """Yield the dense network, then a ticket for each density."""
    import ticketry as tk

    dense = replicate.train_dense(replicate.dense_training.at("30%"), retrain="continue")
    yield dense
    for level, density in enumerate(settings.density, start=1):
        model = replicate.lab.model(replicate.task, dense.result)
        mask = replicate.lab.store.put_mask(tk.prune(model, density))
        how = {"retrain": "continue", "rewound": dense.rewound, "trained": dense.result}
        result = replicate.lab.train(replicate.ticket_training(mask, **how))
        yield Found(level, mask, dense.rewound, dense.result, "continue", result, searched=(dense.result,))
'''

NEW_CAMPAIGN = """
title = "A new method"
[scales.demo]
interim = [2]
[scales.demo.base]
task = "digits"
recipe = { length = "10it" }
[scales.demo.runs.new]
method = "new_method"
controls = ["shuffled"]
[claims.better]
statement = "Tickets are as good as shuffled masks."
a = { run = "new" }
b = { run = "new", role = "shuffled" }
density = 0.25
"""


def test_a_new_method_in_one_file_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but its file is written, as CONTRIBUTING has it; the plan has the steps that its search trains."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new_method.py").write_text(NEW_METHOD)
    (file := tmp_path / "new.toml").write_text(NEW_CAMPAIGN)
    campaign = read_campaign(file, "demo", trust=True)
    assert campaign.claims[0].a.level == 2, "known by its density"
    with tk.Lab(tmp_path / "planned", device="cpu") as lab:
        work = planned_work(lab, request := campaign.runs["new"])
    assert work == Work(4 * 7, 4)
    assert request.expected_network_count == request.replicates * (1 + 2 + 2)
    run = tk.run("new_method", "digits", controls=["shuffled"], store=tmp_path / "run", **ASKED)
    assert run.record.cost.steps_trained == 10 + work.steps
    words = ["reproduce", str(file), "--plan", "--trust", "--workers", "0", "--store", str(tmp_path / "run")]
    assert main(words) == 0
    assert "new" in capsys.readouterr().out


CAMPAIGN = """
title = "Structure"
paper = "none"

[scales.demo]
interim = [2]
densities = { half = 0.5 }

[scales.demo.base]
method = "iterative"
task = "digits"
recipe = { length = "8it" }
settings = { densities = [0.6, 0.5, 0.4] }

[scales.demo.runs.single]

[scales.demo.runs.groups]
settings = { structure = "regroup:4" }

[claims.groups]
statement = "Groups are as good."
source = "none"
a = { run = "groups" }
b = { run = "single" }
density = "half"
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    (file := tmp_path / "structure.toml").write_text(CAMPAIGN)
    return read_campaign(file, "demo")


def clock_of(lab: tk.Lab, campaign: Campaign, seconds: float) -> TimeEstimator:
    """A clock by which each step takes so many seconds, and nothing else any time."""
    clock = TimeEstimator(lab, campaign, twins=lambda _: ())
    clock._measure_dense_pace = lambda _: Pace(seconds)  # type: ignore[method-assign]
    return clock


def test_what_runs_share_is_planned_once(tmp_path: Path, campaign: Campaign) -> None:
    """Two replicates: dense, once for both; three tickets; and three with a structure beside two without."""
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        clock, single, groups = clock_of(lab, campaign, 1.0), Block("single", 0, 0, 2), Block("groups", 0, 0, 2)
        assert clock.estimate(single) == 2 * (1 + 3) * 8
        assert clock.estimate(groups) == 2 * (1 + 2 + 3) * 8
        counted = set[str]()
        assert sum(clock.estimate(block, counted) for block in (single, groups)) == 2 * (1 + 3 + 2 + 3) * 8


CONTROLLED = """
[scales.demo.runs.controlled]
settings = { densities = [0.5, 0.3, 0.2], structure = "regroup:4" }
controls = ["random_reinit"]
control_densities = [0.5]

[claims"""


def test_a_run_with_controls_beside_some_tickets_is_planned(tmp_path: Path) -> None:
    """Two replicates: dense, three tickets, three with a structure, and one control."""
    (file := tmp_path / "structure.toml").write_text(CAMPAIGN.replace("[claims", CONTROLLED, 1))
    campaign = read_campaign(file, "demo")
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        assert clock_of(lab, campaign, 1.0).estimate(Block("controlled", 0, 0, 2)) == 2 * (1 + 2 + 3 + 1) * 8


def test_first_steps_are_timed_in_a_store_that_is_thrown_away(tmp_path: Path, campaign: Campaign) -> None:
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        whole = [dense_segment(lab, campaign.runs["single"], replicate) for replicate in (0, 1)]
        pace = measure_pace(lab, whole)
        assert 0 < pace.step < 1
        assert pace.training > 0
        assert not list(lab.store.paths.result_files())
        assert lab.ledger.segments_trained == 0


def test_first_steps_that_other_machines_train_stay_in_the_store(tmp_path: Path, campaign: Campaign) -> None:
    with ThreadPoolExecutor(1) as pool, tk.Lab(tmp_path / "store", device="cpu", runner=pool) as lab:
        whole = [dense_segment(lab, campaign.runs["single"])]
        pace = measure_pace(lab, whole)
        assert pace.step == pytest.approx(lab.train(whole[0]).train_seconds / whole[0].last)
        assert lab.ledger.segments_trained == 1


def test_the_pace_of_a_block_is_that_of_what_it_trained(tmp_path: Path, campaign: Campaign) -> None:
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        clock, block = clock_of(lab, campaign, 1.0), Block("single", 0, 0, 2)
        shared = clock.dense_work(block)
        assert shared == Work(2 * 8, 2)
        # The dense networks took 16 s of these 40; 24 s were for 48 steps.
        clock.learn_pace(block, 40.0, Work(64, 8), shared)
        assert clock.estimate(block) == 2 * 8 * 1.0 + 2 * 3 * 8 * 0.5


def test_second_orders_that_a_bundle_lacks_are_planned(tmp_path: Path, campaign: Campaign) -> None:
    """Those of earlier replicates too; what another run has trained is there."""
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        clock = TimeEstimator(lab, campaign, twins=lambda block: range(block.last))
        later = Block("single", 1, 2, 3)
        assert clock.dense_work(later) == Work((1 + 3) * 8, 1 + 3)
        first = dense_segment(lab, campaign.runs["single"])
        lab.train(replace(first, order_seed=mix_seeds(first.order_seed, "second order")))
        assert clock.dense_work(later) == Work((1 + 2) * 8, 1 + 2)


def without_dense(record: dict[str, Any]) -> None:
    record["points"] = [one for one in record["points"] if (one["role"], one["replicate"]) != ("dense", 1)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without_dense, "replicate 1 has no dense network"),
        (lambda record: record.update(replicates=3), "replicates must be 2, got 3"),
        (lambda record: record["environment"].update(kernels_used=3), "kernels_used is 3"),
        (lambda record: record["task"]["metric"].update(name="loss"), "metric must be accuracy, got loss"),
    ],
)
def test_a_record_that_is_not_the_campaigns_is_told(
    tmp_path: Path, campaign: Campaign, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    """Of a stranger's bundle, with a digest that is right."""
    run = next(iter(campaign.runs))
    paths = Paths(tmp_path / "store")
    block = split_run_into_blocks(run, campaign.plans[run])[0]
    file = paths.run(block.search_request(campaign).name) / "run.json"
    record: dict[str, Any] = search_record(levels=1, replicates=block.last)
    record["replicates"] = block.last
    record["environment"] = {"precision": campaign.precisions[run], "kernels_used": ["dense"]}
    file.parent.mkdir(parents=True)
    write_with_digest(file, record)
    assert [block.last for block, _ in finished_blocks(campaign, run, paths)] == [block.last]
    change(record)
    if "metric" in why:
        for one in record["points"]:
            one["test"], one["validation"] = {"loss": 1.0}, {"loss": 1.0}
    write_with_digest(file, record)
    with pytest.raises(StoreError, match=f"{file}.*{why}"):
        list(finished_blocks(campaign, run, paths))


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
