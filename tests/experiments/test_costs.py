"""What a run and each of its networks cost, recomputed by hand from the settings of each method."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.errors import UsageError
from ticketry.evidence.controls import train_control
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab import lab as lab_module
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.lab.store.files import read_with_digest, write_with_digest
from ticketry.records.schema import as_json

TOTAL, BATCH = 40, 64
TASK = tk.task("digits")
RECIPE = TASK.recipe.changed(length=f"{TOTAL}it", batch=BATCH)
LAYERS = {"fc1.weight": 64 * 300, "fc2.weight": 300 * 100, "fc3.weight": 100 * 10}
NOTHING = {"steps": 0, "flops": 0.0, "seconds": 0.0, "memory": 0}


def step(shares: dict[str, float] | None = None) -> float:
    """FLOPs of a step by layer sizes: forward, the weight's gradient, and the input's but for the first layer."""
    passes = dict(zip(LAYERS, (2, 3, 3), strict=True))
    return sum(2 * BATCH * passes[name] * size * (shares or {}).get(name, 1) for name, size in LAYERS.items())


def shares(row: dict[str, Any]) -> dict[str, float]:
    return {layer["name"]: layer["kept"] / layer["total"] for layer in row["layers"]}


def search(lab: Lab, name: str, *, controls: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    method = tk.search.method(name)
    request = SearchRequest(method, TASK, method.Settings(**settings), RECIPE, replicates=1, controls=controls)
    return as_json(execute(lab, request))


def rows_of(record: dict[str, Any]) -> dict[tuple[int, str], Any]:
    rows = {(row["level"], row["role"]): row for row in record["points"]}
    dense = rows[0, "dense"]["cost"]
    assert (dense["dense"]["steps"], dense["dense"]["flops"]) == (TOTAL, TOTAL * step())
    assert dense["search"] == dense["sparse"] == NOTHING
    return rows


def made(lab: Lab, name: str, *, controls: tuple[str, ...] = (), **settings: Any) -> dict[tuple[int, str], Any]:
    return rows_of(search(lab, name, controls=controls, **settings))


def cost_of(record: dict[str, Any]) -> tuple[int, int, int]:
    """Return the steps of the search, of its controls, and those that were trained."""
    cost = record["cost"]
    assert cost["dense_steps"] == TOTAL
    return cost["search_steps_per_replicate"], cost["control_steps"], cost["steps_trained"]


def steps(row: dict[str, Any]) -> list[int]:
    return [row["cost"][phase]["steps"] for phase in ("dense", "search", "sparse")]


def key_of(row: dict[str, Any]) -> tuple[str, int]:
    trajectory, _, step = row["key"].partition("@")
    return trajectory, int(step)


def flops(row: dict[str, Any]) -> list[float]:
    return [row["cost"][phase]["flops"] for phase in ("dense", "search", "sparse")]


def test_iterative(lab: Lab) -> None:
    rows = made(lab, "iterative", levels=2, rewind="25%", controls=("random_reinit", "random_prune", "shuffled"))
    own = TOTAL - TOTAL // 4
    cost = 0.0
    for level in (1, 2):
        row = rows[level, "ticket"]
        assert steps(row) == [TOTAL, (level - 1) * own, own]
        assert flops(row) == pytest.approx([TOTAL * step(), cost, own * step(shares(row))])
        cost += own * step(shares(row))
    assert steps(rows[2, "shuffled"]) == [TOTAL, own, own]
    assert flops(rows[2, "shuffled"]) == flops(rows[2, "ticket"])
    # A fresh start is trained densely up to the rewind step, beside what the ticket's mask needed.
    assert steps(rows[2, "random_reinit"]) == [TOTAL + TOTAL // 4, own, own]
    # A random mask needs no search, only the early weights.
    assert steps(rows[2, "random_prune"]) == [TOTAL // 4, 0, own]
    heights = {rows[2, "ticket"]["cost"][phase]["memory"] for phase in ("search", "sparse")}
    assert len(heights) == 1
    more = heights.pop() - rows[0, "dense"]["cost"]["dense"]["memory"]
    assert more == pytest.approx(4 * sum(LAYERS.values()), abs=64)
    first, second = rows[1, "ticket"]["cost"], rows[2, "ticket"]["cost"]
    assert first["dense"]["seconds"] == rows[0, "dense"]["seconds"]
    assert first["sparse"]["seconds"] == rows[1, "ticket"]["seconds"]
    assert second["search"]["seconds"] >= rows[1, "ticket"]["seconds"], "the level before, and making both masks"


@pytest.mark.parametrize(("retrain", "own"), [("finetune", 30), ("continue", 30), ("restart", TOTAL)])
def test_oneshot(lab: Lab, retrain: str, own: int) -> None:
    rows = made(lab, "oneshot", rewind="25%", retrain=retrain, controls=("random_prune",))
    row = rows[1, "ticket"]
    assert steps(row) == [TOTAL, 0, own]
    assert flops(row) == pytest.approx([TOTAL * step(), 0, own * step(shares(row))])
    assert row["cost"]["search"]["memory"] is None  # scoring is no training step
    assert (row["search_steps"], row["steps"]) == (TOTAL, own)
    assert steps(rows[1, "random_prune"]) == [TOTAL if retrain == "finetune" else 10, 0, own]


def test_one_shot_pruning_costs_the_dense_training_once(tmp_path: Path) -> None:
    with Lab(tmp_path, device="cpu") as lab:
        record = search(lab, "oneshot", density=(0.5, 0.2), rewind="50%")
    assert cost_of(record) == (2 * TOTAL, 0, 2 * TOTAL)
    assert record["cost"]["train_seconds"] == pytest.approx(sum(row["seconds"] for row in record["points"]), rel=0.01)


@pytest.mark.slow
def test_controls_beside_final_weights_have_the_steps_that_their_rows_tell(lab: Lab) -> None:
    """A ticket of level 2 has been trained twice behind the dense network, and so are its controls."""
    controls = ("shuffled", "random_prune", "random_reinit")
    rows = made(lab, "iterative", levels=2, rewind="25%", retrain="rewind_lr", controls=controls)
    own = TOTAL - TOTAL // 4
    for level in (1, 2):
        assert rows[level, "ticket"]["budget"] == TOTAL + level * own
        for role in controls:
            row = rows[level, role]
            assert (row["steps"], row["budget"]) == (level * own, TOTAL + level * own)
            assert row["cost"]["sparse"]["steps"] == level * own
    assert steps(rows[2, "random_prune"]) == [TOTAL, 0, 2 * own]


def test_early_with_its_scoring(lab: Lab) -> None:
    rows = made(lab, "early", density=(0.3, 0.1), when="25%", score="snip", iterations=3, batches=2, batch=32)
    for level in (1, 2):
        row = rows[level, "ticket"]
        assert steps(row) == [10, 0, 30]
        scoring = 3 * 2 * 32 / BATCH * step()  # three times a forward and a backward pass of two batches
        assert flops(row) == pytest.approx([10 * step(), scoring, 30 * step(shares(row))])


@pytest.mark.parametrize("detector", ["distance", "masks"])
def test_looks_of_a_detector_take_time_that_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: str
) -> None:
    """By a clock that goes on by a second each time it is read: a look and a mask take one each."""
    seconds = itertools.count()
    monkeypatch.setattr(lab_module, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    for _ in range(2):  # the second time nothing is looked at anew
        with Lab(tmp_path, device="cpu") as lab:
            settings = {"detector": detector, "every": "4it", "latest": "16it", "threshold": 1e-6}
            rows = made(lab, "early", density=(0.1,), score="random", iterations=1, controls=("shuffled",), **settings)
        row = rows[1, "ticket"]
        assert (row["moment"]["step"], row["moment"]["seconds"]) == (16, 4)
        assert steps(row) == [16, 0, TOTAL - 16]
        assert row["cost"]["search"]["seconds"] == 4 + 1
        assert rows[1, "shuffled"]["cost"]["search"]["seconds"] == 4 + 1


GRADUAL: dict[str, Any] = {"begin": "5it", "end": "25it", "frequency": "10it"}  # a cut at 15 and one at 25


def test_gradual(tmp_path: Path) -> None:
    controls = ("random_reinit", "shuffled")
    with Lab(tmp_path, device="cpu") as lab:
        record = search(lab, "gradual", density=(0.5, 0.2), controls=controls, **GRADUAL)
        rows = rows_of(record)
        # Up to the first cut tickets are the dense network. A fresh start is dense up to the last cut, once for both.
        assert cost_of(record) == (15 + 2 * 25, 2 * 2 * 15, TOTAL + 2 * 25 + 25 + 2 * 2 * 15)
        assert record["settings"]["retrain"] == "gradual"
        saved = tk.Ticket.load(rows[2, "ticket"]["ticket"])
        assert (saved.info["rewind_step"], saved.info["search_steps"]) == (25, TOTAL)
        with pytest.raises(UsageError, match=r"keeps trained weights \(retrain gradual\)"):
            tk.evidence.verify(lab, saved)
    for point in record["points"]:
        if point["level"]:
            assert (point["steps"], point["budget"]) == (15, TOTAL)
    row = rows[1, "ticket"]
    assert steps(row) == [15, 10, 15]
    cost, (final,) = flops(row), [step(shares(row))]
    assert (cost[0], cost[2]) == pytest.approx((15 * step(), 15 * final))
    assert 10 * final < cost[1] < 10 * step()
    assert steps(rows[1, "random_reinit"]) == [25 + 15, 10, 15]
    # Goes on from the dense network at the last cut, ten steps behind the ticket's first.
    assert steps(rows[1, "shuffled"]) == [25, 10, 15]


@pytest.mark.parametrize("control", ["random_reinit", "shuffled"])
def test_controls_go_on_from_a_dense_network_at_the_last_cut(lab: Lab, control: str) -> None:
    """The ticket's own weights are 0 wherever an earlier mask was, which a shuffled mask would keep as weights."""
    method = tk.search.gradual
    found = method(lab, TASK, method.Settings(**GRADUAL), recipe=RECIPE)[0]
    ticket = found[1]
    segment = train_control(lab, TASK, RECIPE, control, ticket, Seeds()).segment
    assert (segment.first, segment.last) == (25, TOTAL)
    assert segment.start.optimizer is not None
    if control != "random_reinit":
        at_cut = lab.at(found[0].result, 25)
        assert (segment.start.state, segment.start.optimizer) == (at_cut.model, at_cut.training)
        assert segment.mask != ticket.mask
    start = lab.store.get_tensors(segment.start.state)
    assert all(bool(start[name].all()) for name in lab.store.get_mask(ticket.mask))
    assert lab.store.get_mask(segment.mask).kept == lab.store.get_mask(ticket.mask).kept


def test_dynamic(lab: Lab) -> None:
    rows = made(lab, "dynamic", frequency="10it", end="75%", controls=("random_prune",))
    row = rows[1, "ticket"]
    moves, sparse = 2, step(shares(row))  # at 10 and 20; at 30 the mask stays
    assert steps(row) == [0, 21, 19]
    # Where the mask moves the weights' gradient is dense: Evci et al., appendix H.
    looks = moves * (2 * sparse + step()) / 3
    assert flops(row) == pytest.approx([0, (21 - moves) * sparse + looks, 19 * sparse])
    assert steps(rows[1, "random_prune"]) == [0, 0, TOTAL]


@pytest.mark.parametrize(("control", "own"), [("shuffled", True), ("random_reinit", False)])
def test_controls_of_a_mask_that_moved_hold_one_from_the_first_step(lab: Lab, control: str, own: bool) -> None:
    row = made(lab, "dynamic", frequency="10it", end="75%", controls=(control,))[1, control]
    segment = lab.store.load_result(*key_of(row))["segment"]
    assert (segment["first"], segment["last"], segment["start"]["optimizer"]) == (0, TOTAL, None)
    begun = lab.store.get_tensors(segment["start"]["state"])
    fresh = lab.state(lab.train(lab.segment(TASK, start=0, last=0), measure=False))
    assert all(torch.equal(begun[name], fresh[name]) for name in fresh) == own


def test_acdc(lab: Lab) -> None:
    settings = {"density": (0.5, 0.2), "warmup": "10it", "phase": "5it", "end": "30it"}
    record = search(lab, "acdc", controls=("shuffled", "random_reinit"), **settings)
    rows = rows_of(record)
    assert cost_of(record)[0] == 10 + 2 * 30, "the warm-up is the dense network's"
    for (level, _), point in rows.items():
        if level:
            assert (point["steps"], point["budget"]) == (10, TOTAL)
    saved = tk.Ticket.load(rows[2, "ticket"]["ticket"])
    assert (saved.info["rewind_step"], saved.info["search_steps"]) == (30, TOTAL)
    start = lab.store.get_tensors(lab.store.load_result(*key_of(rows[2, "shuffled"]))["segment"]["start"]["state"])
    nonzero = sum(int((start[name] != 0).sum()) for name in saved.mask)
    assert nonzero > 0.5 * saved.mask.total, "controls go on from a network whose weights are all trained"
    row = rows[1, "ticket"]
    # Dense to 10, compressed to 15, decompressed to 20, compressed to 25, decompressed to 30, compressed.
    assert steps(row) == [10 + 5 + 5, 5 + 5, 10]
    cost = flops(row)
    assert (cost[0], cost[2]) == pytest.approx((20 * step(), 10 * step(shares(row))))
    assert 0 < cost[1] < 2 * 10 * step(shares(row))
    assert steps(rows[1, "shuffled"]) == steps(row)


def test_gates(lab: Lab) -> None:
    rows = made(lab, "stochastic", rounds=2, rewind="25%", init=(0.3,), controls=("random_prune",))
    for number in (1, 2):
        row = rows[number, "ticket"]
        assert steps(row) == [0, number * TOTAL, 30]
        assert flops(row) == pytest.approx([0, number * TOTAL * step(), 30 * step(shares(row))])
        assert row["cost"]["search"]["memory"] > row["cost"]["sparse"]["memory"]
    assert steps(rows[2, "random_prune"]) == [0, 10, 30]  # its early weights are those of the first round


def test_concrete(lab: Lab) -> None:
    record = search(lab, "concrete", rewind="25%", mask_length="50%", density=(0.5, 0.2))
    row = rows_of(record)[1, "ticket"]
    assert cost_of(record)[0] == 10 + 2 * 20 + 2 * 30, "the early steps once"
    assert (row["search_steps"], steps(row)) == (10 + 20, [10, 20, 30])
    assert tk.Ticket.load(row["ticket"]).info["search_steps"] == TOTAL + 20
    # Each step over frozen weights has a second forward pass, of the network that is compared with.
    searching = step() + 2 * BATCH * sum(LAYERS.values())
    assert flops(row) == pytest.approx([10 * step(), 20 * searching, 30 * step(shares(row))])


def test_a_record_from_before_costs_gets_them_and_keeps_the_rest(lab: Lab) -> None:
    run = SearchRequest(tk.search.iterative, TASK, tk.search.iterative.Settings(levels=1), RECIPE, replicates=1)
    whole = as_json(execute(lab, run))
    path = lab.store.paths.run(run.name) / "run.json"
    old = read_with_digest(path)
    assert old
    for row in old["points"]:
        del row["cost"]
    old["cost"] |= {"wall_seconds": 1234.5, "energy_kwh": 2.0, "energy_by": "a meter"}
    write_with_digest(path, old)
    found = as_json(execute(lab, run))
    assert found["points"] == whole["points"]
    assert found["cost"] == old["cost"]
    assert read_with_digest(path) == found
