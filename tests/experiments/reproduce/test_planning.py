"""How much work a run is, against what a search in an empty store trains."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from made_records import search_record
from ticketry.cli import main
from ticketry.core.sparse_training.schedule import cuts_within
from ticketry.errors import NotStoredError, StoreError
from ticketry.experiments.reproduce import forecast as pace_module
from ticketry.experiments.reproduce.blocks import Block, blocks_done, blocks_of
from ticketry.experiments.reproduce.campaign_file import Campaign, read_campaign
from ticketry.experiments.reproduce.forecast import (
    Clock,
    Pace,
    Work,
    dense,
    first_gates,
    mean_density,
    measure_pace,
    work_of,
)
from ticketry.experiments.reproduce.forecast import _timed as timed
from ticketry.experiments.request import request_of
from ticketry.experiments.search import execute
from ticketry.lab.store.files import write_sealed
from ticketry.lab.store.paths import Paths
from ticketry.lab.training.job import Work as TimedWork
from ticketry.lab.training.segment import Segment
from ticketry.lab.training.variants import Shrunk
from ticketry.search.gating.gating import Gating
from ticketry_engine.support.seeds import mix

ASKED: dict[str, Any] = {"recipe": {"length": "10it"}, "replicates": 1, "workers": 0, "device": "cpu"}


@pytest.mark.parametrize(
    ("method", "settings", "controls"),
    [
        ("iterative", {"densities": [0.5, 0.3], "rewind": "3it"}, ["shuffled", "random_reinit"]),
        (
            "iterative",
            {"densities": [0.6, 0.5, 0.4], "structure": "2:4", "structured_levels": 1, "rewind": "2it"},
            ["shuffled"],
        ),
        ("concrete", {"density": [0.5, 0.3], "rewind": "2it"}, []),
        ("l0", {"density": [0.5, 0.3], "until": "6it"}, []),
        ("continuous", {"rounds": 2, "rewind": "2it"}, []),
        ("acdc", {"density": [0.5, 0.3], "warmup": "2it", "phase": "2it", "end": "8it"}, ["shuffled"]),
        ("dynamic", {"density": [0.5, 0.3], "grow": "random", "frequency": "3it"}, ["shuffled"]),
        ("gradual", {"density": [0.5, 0.3], "begin": "2it", "end": "8it", "frequency": "2it"}, ["shuffled"]),
    ],
)
def test_work_is_what_is_trained(tmp_path: Path, method: str, settings: dict[str, Any], controls: list[str]) -> None:
    run = tk.run(method, "digits", controls=controls, store=tmp_path, **settings, **ASKED)
    lab = tk.Lab(tmp_path, device="cpu")
    work = work_of(lab, run.request)
    whole = dense(lab, run.request)
    assert run.record.cost.steps_trained == pytest.approx(
        whole.total + work.steps, abs=3
    )  # random_reinit trains to step 3
    assert run.record.cost.segments_trained == pytest.approx(1 + work.trainings, abs=1)


NEW_METHOD = '''"""Prune the trained network, and train on from a third of the schedule."""

from dataclasses import dataclass

from ticketry.search import Found, Training
from ticketry.search.common.method import on_replicate


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the new method."""

    density: tuple[float, ...] = (0.5, 0.25)
    """Fraction of weights retained by each ticket."""


def plan(settings):
    """Plan a ticket for each density."""
    return [Training(level=n, density=one, first="30%") for n, one in enumerate(settings.density, start=1)]


@on_replicate
def search(replicate, settings):
    """Yield the dense network, then a ticket for each density."""
    import ticketry as tk

    dense = replicate.dense(replicate.whole.at("30%"), retrain="continue")
    yield dense
    for level, density in enumerate(settings.density, start=1):
        model = replicate.lab.model(replicate.task, dense.result)
        mask = replicate.lab.store.put_mask(tk.prune(model, density))
        how = {"retrain": "continue", "rewound": dense.rewound, "trained": dense.result}
        result = replicate.lab.train(replicate.retrained(mask, **how))
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
        work = work_of(lab, request := campaign.runs["new"])
    assert (work.steps, work.trainings, work.masked) == (4 * 7, 4, 4 * 7)
    assert request.expected == request.replicates * (1 + 2 + 2)
    run = tk.run("new_method", "digits", controls=["shuffled"], store=tmp_path / "run", **ASKED)
    assert run.record.cost.steps_trained == 10 + work.steps
    words = ["reproduce", str(file), "--plan", "--trust", "--workers", "0", "--store", str(tmp_path / "run")]
    assert main(words) == 0
    assert "new" in capsys.readouterr().out


def test_gradual_pruning_is_timed_at_the_densities_that_it_goes_through(tmp_path: Path) -> None:
    """Not at its last one: 5 % is had from the last of many cuts on."""
    settings = {"density": 0.05, "begin": "2it", "end": "8it", "frequency": "2it"}
    run = tk.run("gradual", "digits", controls=[], store=tmp_path, **settings, **ASKED)
    whole = dense(tk.Lab(tmp_path, device="cpu"), run.request)
    cuts = cuts_within(0.05, begin="2it", end="8it", frequency="2it", total=10, per_epoch=whole.per_epoch)
    assert list(cuts) == [4, 6, 8]
    mean = sum(2 * density for density in cuts.values()) / 6
    assert mean_density(run.request, whole) == pytest.approx(mean)
    assert mean > 0.1


@pytest.mark.parametrize(
    ("levels", "trained"), [(0, [0.6, 0.6, 0.5, 0.5, 0.4]), (1, [0.6, 0.5, 0.4])], ids=["all", "the last"]
)
def test_masks_that_a_search_goes_on_from_are_timed_too(tmp_path: Path, levels: int, trained: list[float]) -> None:
    settings = {"densities": [0.6, 0.5, 0.4], "structure": "regroup:4", "structured_levels": levels}
    run = tk.run("iterative", "digits", controls=[], store=tmp_path, **settings, **ASKED)
    mean = mean_density(run.request, dense(tk.Lab(tmp_path, device="cpu"), run.request))
    assert mean == pytest.approx(sum(trained) / len(trained))


CAMPAIGN = """
title = "Structure"
paper = "none"

[scales.demo]
interim = [2]
densities = { half = 0.5 }

[scales.demo.base]
method = "iterative"
task = "digits"
recipe = { length = "40it" }
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


def clock_of(lab: tk.Lab, campaign: Campaign, seconds: float, masked: float | None = None, **more: Any) -> Clock:
    """One by which each step takes so many seconds, under a mask `masked`, and nothing else any time."""
    clock = Clock(lab, campaign, twins=lambda _: ())
    clock._measured = lambda _: Pace(seconds, 0.0, masked, **more)  # type: ignore[method-assign]
    return clock


def test_what_runs_share_is_planned_once(tmp_path: Path, campaign: Campaign) -> None:
    """Two replicates: dense, three tickets, and three with a structure, whose search goes on from the first two."""
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        clock, single, groups = clock_of(lab, campaign, 1.0), Block("single", 0, 0, 2), Block("groups", 0, 0, 2)
        assert clock.estimate(single) == 2 * (1 + 3) * 40
        assert clock.estimate(groups) == 2 * (1 + 2 + 3) * 40
        counted = set[str]()
        assert sum(clock.estimate(block, counted) for block in (single, groups)) == 2 * (1 + 3 + 3) * 40


def test_steps_under_a_mask_have_a_pace_of_their_own(tmp_path: Path, campaign: Campaign) -> None:
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        assert clock_of(lab, campaign, 1.0, 0.25).estimate(Block("single", 0, 0, 2)) == 2 * (1 + 3 * 0.25) * 40


GATED = """
[scales.demo.bases.gates]
method = "l0"
task = "digits"
recipe = { length = "40it" }
settings = { density = [0.5, 0.3], until = "10it" }

[scales.demo.runs.gated]
base = "gates"

[claims"""


def test_steps_of_gates_have_a_pace_of_their_own(tmp_path: Path) -> None:
    """Two replicates: dense, ten steps with gates, and thirty more of each of two tickets."""
    (file := tmp_path / "gated.toml").write_text(CAMPAIGN.replace("[claims", GATED, 1))
    campaign = read_campaign(file, "demo")
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        clock = clock_of(lab, campaign, 1.0, 0.25, gated_step=3.0)
        assert clock.estimate(Block("gated", 0, 0, 2)) == 2 * (40 * 1.0 + 10 * 3.0 + 2 * 30 * 0.25)
        assert clock_of(lab, campaign, 1.0).estimate(Block("gated", 0, 0, 2)) == 2 * (40 + 10 + 2 * 30)


def test_the_time_of_processors_is_planned_too(tmp_path: Path, campaign: Campaign) -> None:
    """Of a machine half of whose time goes to others: by steps that were timed, then by the block before."""
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        block = Block("single", 0, 0, 2)
        assert clock_of(lab, campaign, 1.0).processor(block, 100.0) is None
        clock = clock_of(lab, campaign, 1.0, processor=0.5)
        assert clock.processor(block, 100.0) == 50.0
        clock.add(block, 140.0, Work(200, 5), Work(0, 0), 0.25)
        assert clock.processor(block, 100.0) == 25.0


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
        assert clock_of(lab, campaign, 1.0).estimate(Block("controlled", 0, 0, 2)) == 2 * (1 + 2 + 3 + 1) * 40


@pytest.mark.slow
def test_what_another_run_has_trained_is_not_planned(tmp_path: Path, campaign: Campaign) -> None:
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        execute(lab, Block("single", 0, 0, 2).request(campaign))
        clock, groups = clock_of(lab, campaign, 1.0), Block("groups", 0, 0, 2)
        assert clock.estimate(groups) == 2 * 3 * 40
        before = lab.ledger.copy()
        execute(lab, groups.request(campaign))
        assert lab.ledger.since(before).steps_trained == 2 * 3 * 40


def test_the_pace_of_a_block_is_that_of_what_it_trained(tmp_path: Path, campaign: Campaign) -> None:
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        clock, block = clock_of(lab, campaign, 1.0), Block("single", 0, 0, 2)
        shared = clock.shared(block)
        assert shared == Work(2 * 40, 2)
        # The dense networks took 80 s of these 140; 60 s were for 120 steps, for the rest was in the store.
        clock.add(block, 140.0, Work(200, 5), shared)
        assert clock.estimate(block) == 2 * 40 * 1.0 + 2 * 3 * 40 * 0.5


def test_steps_are_timed_in_a_store_that_is_thrown_away(tmp_path: Path, campaign: Campaign) -> None:
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        request = campaign.runs["single"]
        opened: list[Path] = []

        @contextlib.contextmanager
        def elsewhere(folder: Path) -> Iterator[tk.Lab]:
            opened.append(folder)
            with tk.Lab(folder, device="cpu") as other:
                yield other
                trajectories = {path.parent.name for path in other.store.paths.result_files()}
                assert len(trajectories) == 2, "as many as are trained side by side"

        pace = measure_pace(lab, request, "dense", "fp32", None, elsewhere, side_by_side=2)
        assert pace.step > 0
        assert pace.training > 0
        assert pace.masked_step is None
        assert pace.gated_step is None
        assert 0 < pace.processor < 1.5
        (folder,) = opened
        assert not folder.exists()
        assert not list(lab.store.paths.result_files())
        assert lab.ledger.segments_trained == 0
        # of workers that are elsewhere the store tells, as they trained in it
        assert measure_pace(lab, request, "dense", "fp32", None, None).step > 0
        assert lab.ledger.segments_trained > 0


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_steps_in_sparse_kernels_are_timed_by_themselves(tmp_path: Path, kernels: str) -> None:
    pytest.importorskip("llvmlite")
    (file := tmp_path / "structure.toml").write_text(CAMPAIGN.replace('"digits"', '"norms_task:norms"'))
    request = read_campaign(file, "demo", trust=True).runs["single"]
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        assert mean_density(request, dense(lab, request)) == pytest.approx(0.5)

    def elsewhere(folder: Path) -> tk.Lab:
        return tk.Lab(folder, device="cpu", precision="fp32")

    with tk.Lab(tmp_path / "store", device="cpu", precision="fp32") as lab:
        density = 0.2 if kernels == "sparse" else None
        pace = measure_pace(lab, request, kernels, "fp32", density, elsewhere)
        assert (pace.masked_step is None) == (kernels == "dense")
        assert pace.gated_step is None
        assert not list(lab.store.paths.blob_files())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("continuous", {"rounds": 1, "init": [0.1, 0.0], "rewind": "0"}),
        ("l0", {"density": 0.5, "until": "6it", "structure": "channels"}),
    ],
)
def test_steps_with_a_searchs_own_gates_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, settings: dict[str, Any]
) -> None:
    """They cost what they cost: LeNet's take half as long again as those of the dense network."""
    made = tk.search.method(method).Settings(**settings)
    asked = request_of(method, "digits", made, recipe={"length": "10it"}, replicates=1)
    trained: list[Segment] = []

    def aside(lab: tk.Lab, segments: Sequence[Segment], address: str, *, measure: bool) -> list[TimedWork]:
        trained.extend(segments)
        steps = [3.0 if one.variant(Gating) else 1.0 for one in segments]
        seconds = [each * one.steps for each, one in zip(steps, segments, strict=True)]
        return [TimedWork(train_seconds=took, other_seconds=0.0, processor_seconds=took) for took in seconds]

    monkeypatch.setattr(tk.Lab, "train_aside", aside)
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        gates = first_gates(lab, asked)
        pace = measure_pace(
            lab, asked, "dense", "fp32", None, lambda folder: tk.Lab(folder, device="cpu"), gates=gates, side_by_side=2
        )
    assert pace.gated_step == pytest.approx(3 * pace.step)
    timed_gates = {one.variant(Gating) for one in trained} - {None}
    assert len({one.trajectory for one in trained if one.variant(Gating)}) == 2, "as many as are trained side by side"
    monkeypatch.undo()
    searched: list[Segment] = []
    with tk.Lab(tmp_path / "store", device="cpu", workers=0) as lab:
        asked.method(
            lab,
            asked.task,
            asked.settings,
            recipe=asked.recipe,
            replicates=1,
            seeds=asked.seeds,
            on_found=lambda _, found: searched.extend(one.segment for one in found.searched),
        )
    assert timed_gates & {one.variant(Gating) for one in searched}, "those of the search itself"


SMALLER = """
[scales.demo.bases.smaller]
method = "oneshot"
task = "digits"
model = "conv-2"
recipe = { length = "40it", batch = 32 }

[scales.demo.runs.weights]
base = "smaller"
settings = { density = 0.5 }

[scales.demo.runs.fewer]
base = "smaller"
settings = { density = 0.05, structured = true, score = "l1" }

[scales.demo.runs.half]
base = "smaller"
settings = { density = 0.5, structured = true, score = "l1" }

[claims"""


def test_of_whole_channels_smaller_networks_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as dense as its run's tickets are; weights alone, held at 0 in torch, take as long as without a mask."""
    (file := tmp_path / "smaller.toml").write_text(CAMPAIGN.replace("[claims", SMALLER, 1))
    campaign, timed, opened = read_campaign(file, "demo"), list[float](), list[tk.Lab]()

    def elsewhere(folder: Path) -> tk.Lab:
        opened.append(tk.Lab(folder, device="cpu", precision="fp32"))
        return opened[-1]

    def seconds(_: tk.Lab, whole: Sequence[Segment], __: Callable[..., object]) -> tuple[float, float, float]:
        masks = [opened[-1].store.get_mask(one.mask) for one in whole[0].variants if isinstance(one, Shrunk)]
        timed.append(math.prod(mask.density for mask in masks))
        return timed[-1], 0.0, 0.0

    monkeypatch.setattr(pace_module, "_timed", seconds)
    with tk.Lab(tmp_path / "store", device="cpu", precision="fp32") as lab:
        clock = Clock(lab, campaign, lambda _: (), elsewhere)
        assert [clock._measured(name).masked_step for name in ("weights", "fewer", "half")] == [
            None,
            pytest.approx(0.05, abs=0.01),
            pytest.approx(0.5, abs=0.02),
        ]
        assert len(timed) == 5, "two dense networks beside the smaller ones, and one without"


ANOTHER = """
[scales.demo.runs.oneshot]
settings = { densities = [0.5] }
recipe = { length = "40it" }

[claims.at-once]
statement = "Pruning at once is as good."
a = { run = "oneshot" }
b = { run = "single" }
density = "half"

[claims"""


@pytest.mark.slow
def test_weights_that_a_bundle_left_out_are_planned_and_not_trained(tmp_path: Path) -> None:
    """Another search goes on from two dense networks that are told without weights: both are to be trained again."""
    (file := tmp_path / "structure.toml").write_text(CAMPAIGN.replace("[claims", ANOTHER, 1))
    campaign, block = read_campaign(file, "demo"), Block("oneshot", 0, 0, 2)
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        name = execute(lab, Block("single", 0, 0, 2).request(campaign)).name
        assert clock_of(lab, campaign, 1.0).estimate(block) == 2 * 40
    tk.store.pack(name, tmp_path / "small.tkz", store=tmp_path / "store")
    tk.store.unpack(tmp_path / "small.tkz", store=tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*.safetensors"))
    with tk.Lab(tmp_path / "elsewhere", device="cpu") as lab:
        clock = clock_of(lab, campaign, 1.0)
        assert clock.estimate(block) == 2 * (40 + 40)
        assert clock.estimate(Block("single", 0, 0, 2)) == 0
        assert sorted((tmp_path / "elsewhere").rglob("*.safetensors")) == before, "something was trained"
        request = block.request(campaign)
        with lab.training_nothing() as nothing, pytest.raises(NotStoredError, match="a bundle left"):
            lab.state(lab.train(dense(lab, request)))
        assert nothing.wanted == [(dense(lab, request).trajectory, 40)]
        execute(lab, request)  # afterwards they are trained again as ever
    assert len(list((tmp_path / "elsewhere").rglob("*.safetensors"))) > len(before)


def test_second_orders_that_a_bundle_lacks_are_planned(tmp_path: Path, campaign: Campaign) -> None:
    """Those of earlier replicates too; what another run has trained is there."""
    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        clock = Clock(lab, campaign, twins=lambda block: range(block.last))
        later = Block("single", 1, 2, 3)
        assert clock.shared(later) == Work((1 + 3) * 40, 1 + 3)
        first = dense(lab, campaign.runs["single"])
        lab.train(replace(first, order_seed=mix(first.order_seed, "second order")))
        assert clock.shared(later) == Work((1 + 2) * 40, 1 + 2)


@pytest.mark.parametrize(("once", "step"), [(0.5, 0.02), (0.0, 0.5)])
def test_what_pieces_take_once_is_no_part_of_a_step(
    tmp_path: Path, campaign: Campaign, once: float, step: float
) -> None:
    """Of trainings that take exactly so long; they need not be long to tell it."""
    taken: list[tuple[int, float]] = []

    def train(segments: Sequence[Segment], measure: bool) -> list[TimedWork]:
        (at,) = {one.last for one in segments}
        done = at - (taken[-1][0] if taken else 0)
        taken.append((at, once + step * done))
        return [TimedWork(steps=done, train_seconds=taken[-1][1], other_seconds=0.25) for _ in segments]

    with tk.Lab(tmp_path / "store", device="cpu") as lab:
        whole = replace(dense(lab, campaign.runs["single"]), last=4000, total=4000)
        seconds, beside, _ = timed(lab, [whole, whole], train)
    assert seconds == pytest.approx(step)
    assert beside == pytest.approx(once + 0.25)
    assert sum(took for _, took in taken) < 8


def test_between_two_cuts_no_metrics_are_measured(tmp_path: Path) -> None:
    """Of two densities with three cuts each, the last stretch of each alone."""
    settings = {"density": [0.5, 0.05], "begin": "2it", "end": "8it", "frequency": "2it"}
    run = tk.run("gradual", "digits", controls=[], store=tmp_path, **settings, **ASKED)
    work = work_of(tk.Lab(tmp_path, device="cpu"), run.request)
    assert (work.trainings, work.unmeasured) == (6, 4)
    assert Pace(0.0, 5.0, evaluation=4.0).seconds(work) == 6 * 1.0 + 2 * 4.0


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
    block = blocks_of(run, campaign.plans[run])[0]
    file = paths.run(block.request(campaign).name) / "run.json"
    record: dict[str, Any] = search_record(levels=1, replicates=block.last)
    record["replicates"] = block.last
    record["environment"] = {"precision": campaign.precisions[run], "kernels_used": ["dense"]}
    file.parent.mkdir(parents=True)
    write_sealed(file, record)
    assert [block.last for block, _ in blocks_done(campaign, run, paths)] == [block.last]
    change(record)
    if "metric" in why:
        for one in record["points"]:
            one["test"], one["validation"] = {"loss": 1.0}, {"loss": 1.0}
    write_sealed(file, record)
    with pytest.raises(StoreError, match=f"{file}.*{why}"):
        list(blocks_done(campaign, run, paths))
