"""What runs of dynamic sparse training and of AC/DC cost, their tickets, and their controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.cli import main
from ticketry.errors import UsageError
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.search_result import DYNAMIC
from ticketry.records.schema import as_json

TOTAL = 60
TASK = tk.task("digits")
RECIPE = TASK.recipe.changed(length=f"{TOTAL}it")
MOVES, FIRST, LAST = 3, 10, 40
SETTINGS = {
    "dynamic": tk.search.dynamic.Settings(density=(0.5, 0.2), frequency="10it", end="35it"),
    "acdc": tk.search.acdc.Settings(density=(0.5, 0.2), warmup=f"{FIRST}it", phase="10it", end=f"{LAST}it"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with tk.Lab(tmp_path_factory.mktemp("store")) as found:
        yield found


def made(lab: tk.Lab, name: str) -> dict[str, Any]:
    controls = ("random_reinit", "shuffled")
    return as_json(
        execute(
            lab, SearchRequest(tk.search.method(name), TASK, SETTINGS[name], RECIPE, replicates=2, controls=controls)
        )
    )


def rows(record: dict[str, Any], role: str) -> list[dict[str, Any]]:
    return [point for point in record["points"] if point["role"] == role]


@pytest.mark.slow
def test_dynamic_sparse_training_costs_one_training_a_density(lab: tk.Lab) -> None:
    record = made(lab, "dynamic")
    cost, own = record["cost"], TOTAL - 31  # the batch of the move at step 30 trains nothing
    assert cost["dense_steps"] == TOTAL
    assert cost["search_steps_per_replicate"] == 2 * TOTAL, "gradients are counted as steps, the dense network is not"
    assert cost["control_steps"] == 2 * 2 * 2 * TOTAL
    assert cost["steps_trained"] == 2 * (TOTAL + 2 * (TOTAL - MOVES) + 2 * 2 * TOTAL)
    first = [point for point in rows(record, "ticket") if point["replicate"] == 0]
    assert [(p["level"], p["density"], p["search_steps"], p["steps"], p["budget"]) for p in first] == [
        (1, 0.5, TOTAL - own, own, TOTAL),
        (2, 0.2, TOTAL - own, own, TOTAL),
    ]
    for control in ("random_reinit", "shuffled"):
        assert {(point["steps"], point["budget"]) for point in rows(record, control)} == {(TOTAL, TOTAL)}
    assert record["settings"]["retrain"] == DYNAMIC
    saved = tk.Ticket.load(first[1]["ticket"])
    assert (saved.info["rewind_step"], saved.info["search_steps"]) == (0, TOTAL)
    fresh = lab.state(lab.train(lab.segment(TASK, start=0, last=0), measure=False))
    for name, kept in saved.mask.items():
        assert torch.equal(saved.start[name] * kept, fresh[name] * kept), "a ticket's start is the initialisation"
    with pytest.raises(UsageError, match=r"keeps trained weights \(retrain dynamic\)"):
        tk.evidence.verify(lab, saved)


@pytest.mark.slow
def test_controls_of_a_mask_that_moved_hold_one_from_the_first_step(lab: tk.Lab) -> None:
    record = made(lab, "dynamic")
    for role, own in (("shuffled", True), ("random_reinit", False)):
        for point in rows(record, role):
            segment = lab.store.result(*_key(point["key"]))["segment"]
            assert (segment["first"], segment["last"], segment["start"]["optimizer"]) == (0, TOTAL, None)
            begun = lab.store.get_tensors(segment["start"]["state"])
            seed = point["replicate"] if own else None
            fresh = lab.state(lab.train(lab.segment(TASK, start=point["replicate"], last=0), measure=False))
            same = all(torch.equal(begun[name], fresh[name]) for name in fresh)
            assert same == (seed is not None)


def test_acdc_costs_one_training_a_density(lab: tk.Lab) -> None:
    record = made(lab, "acdc")
    cost, own = record["cost"], TOTAL - FIRST
    assert cost["search_steps_per_replicate"] == FIRST + 2 * own  # the warm-up is the dense network's
    first = [point for point in rows(record, "ticket") if point["replicate"] == 0]
    assert [(p["search_steps"], p["steps"], p["budget"]) for p in first] == [(LAST, TOTAL - LAST, TOTAL)] * 2
    for control in ("random_reinit", "shuffled"):
        assert {(point["steps"], point["budget"]) for point in rows(record, control)} == {(TOTAL - LAST, TOTAL)}
    saved = tk.Ticket.load(first[1]["ticket"])
    assert (saved.info["rewind_step"], saved.info["search_steps"]) == (LAST, TOTAL)
    segment = lab.store.result(*_key(rows(record, "shuffled")[0]["key"]))["segment"]
    start = lab.store.get_tensors(segment["start"]["state"])
    nonzero = sum(int((start[name] != 0).sum()) for name in saved.mask)
    assert nonzero > 0.5 * saved.mask.total, "they go on from a network of which all is trained (some pixels are dark)"


def _key(key: str) -> tuple[str, int]:
    trajectory, _, step = key.partition("@")
    return trajectory, int(step)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dynamic", "--frequency", "8it"], "once, sparse from step 0 on"),
        pytest.param(
            *(["dynamic", "--frequency", "8it", "--grow", "random", "--regrow"], "once, sparse from step 0 on"),
            marks=pytest.mark.slow,
        ),
        pytest.param(*(["acdc", "--phase", "10%"], "on from the last cut"), marks=pytest.mark.slow),
    ],
)
def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    more = ["--density", "0.5,0.2", "--replicates", "1", "--recipe.length", "40it", "--workers", "0", "--json"]
    assert main(["search", *words, "--store", str(tmp_path), "--controls", "shuffled", *more]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(t["level"], t["density"]) for t in result["tickets"]] == [(1, 0.5), (2, 0.2)]
    assert told in Path(result["report"]).read_text(encoding="utf-8")
    again = ["search", "--config", str(tmp_path / "runs" / result["run"] / "run.toml"), "--store", str(tmp_path)]
    assert main([*again, "--workers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["now"]["segments_trained"] == 0


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--json"]) == 0
    titles = {row["name"]: row["description"] for row in json.loads(capsys.readouterr().out)}
    assert titles["dynamic"] == "Dynamic sparse training (RigL, SET): sparse from the first step, while the mask moves"
    assert titles["acdc"] == "AC/DC: compressed and decompressed phases take turns"
