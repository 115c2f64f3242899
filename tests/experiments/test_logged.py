"""Searches and verifications as dashboards see them."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

import ticketry as tk
from recorded_logger import Recorded
from ticketry.evidence.settings import VerifySettings
from ticketry.experiments.request import build_request
from ticketry.experiments.search import execute
from ticketry.experiments.verify import execute_verify
from ticketry.records.run import RunRecord
from ticketry.search import method


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logged") / "store"


@pytest.fixture(scope="module")
def searched(store: Path) -> tuple[Recorded, RunRecord]:
    told, chosen = Recorded(), method("iterative")
    settings = chosen.Settings(densities=(0.5, 0.2))
    request = build_request(chosen, "digits", settings, replicates=2, controls=["shuffled"], recipe={"length": "5it"})
    with tk.Lab(store, loggers=[told]) as lab:
        return told, execute(lab, request)


def test_a_search_is_a_group(searched: tuple[Recorded, RunRecord]) -> None:
    told, record = searched
    of_replicate = ("00 dense", "01 ticket", "01 shuffled", "02 ticket", "02 shuffled")
    names = [f"replicate {number} level {network}" for number in (0, 1) for network in of_replicate]
    assert next(iter(told.runs)) == record.name
    assert set(told.runs) == {record.name, *names}
    assert all(one["finished"] and not one["failed"] for one in told.runs.values())
    assert all(one["run"].group == record.name for one in told.runs.values())
    assert told.runs[record.name]["run"].kind == "search"
    assert {one["run"].kind for one in told.runs.values()} == {"search", "dense", "ticket", "shuffled"}


def test_its_levels_are_the_steps_of_the_whole(searched: tuple[Recorded, RunRecord]) -> None:
    told, record = searched
    whole = told.runs[record.name]
    assert [step for step, _ in whole["metrics"]] == [0, 1, 2]
    for level, values in whole["metrics"]:
        points = [point for point in record.points if point.level == level]
        for role in {point.role for point in points}:
            mean = fmean(one.metric("accuracy") for one in points if one.role == role)
            assert values[f"test/accuracy/{role}"] == pytest.approx(mean)
        assert values["density"] == pytest.approx((1, 0.5, 0.2)[level], rel=1e-3)
    assert {(path.name, kind) for path, kind in whole["artifacts"]} == {
        ("run.json", "verdicts"),
        ("run.toml", "config"),
    }


def test_a_ticket_is_an_artifact_of_its_training(searched: tuple[Recorded, RunRecord]) -> None:
    told, record = searched
    point = next(one for one in record.points if (one.replicate, one.level, one.role) == (1, 2, "ticket"))
    run = told.runs["replicate 1 level 02 ticket"]
    assert run["artifacts"] == [(Path(point.ticket), "ticket")]
    assert {name: run["run"].config[name] for name in ("level", "replicate", "role", "density")} == {
        "level": 2,
        "replicate": 1,
        "role": "ticket",
        "density": point.density,
    }
    assert run["metrics"][-1][0] == record.steps.total
    assert run["metrics"][-1][1]["test/accuracy"] == point.metric("accuracy")


def test_a_verification_is_a_group_by_seed(store: Path, searched: tuple[Recorded, RunRecord]) -> None:
    told, ticket = Recorded(), next(one.ticket for one in searched[1].points if one.level == 2 and one.ticket)
    settings = VerifySettings(controls=("shuffled",), seeds=2, noise=False, references=False)
    with tk.Lab(store, loggers=[told]) as lab:
        record = execute_verify(lab, ticket, settings)
    names = [f"seed {seed} {role}" for seed in (0, 1) for role in ("ticket", "dense", "shuffled")]
    assert set(told.runs) == {record.name, *names}
    assert told.runs["seed 1 shuffled"]["run"].kind == "shuffled"
    whole = told.runs[record.name]
    assert [step for step, _ in whole["metrics"]] == [0, 1, 2]
    shuffled = next(one for one in record.networks if one.role == "shuffled")
    assert [values["test/accuracy/shuffled"] for _, values in whole["metrics"][:2]] == list(shuffled.values)
    assert whole["metrics"][2][1] == {"p": record.p, "margin": record.margin, "wins": record.verdict == "wins"}
    assert [kind for _, kind in whole["artifacts"]] == ["verdict"]


def test_trainings_that_masks_come_from(tmp_path: Path) -> None:
    told, chosen = Recorded(), method("continuous")
    settings = chosen.Settings(rewind="0", rounds=2)
    request = build_request(chosen, "digits", settings, replicates=1, controls=[], recipe={"length": "5it"})
    with tk.Lab(tmp_path / "store", loggers=[told]) as lab:
        record = execute(lab, request)
    masks = [one for one in told.runs.values() if one["run"].kind == "mask"]
    assert len(masks) == len(record.rounds) > 0
    assert {one["run"].config["key"] for one in masks} == {one.key for one in record.rounds}
