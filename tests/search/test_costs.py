"""Searches for a share of the costs in a profile, and the latency that a share of the time refers to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call
from search.known_costs import COMMON, costs, slowly, task
from ticketry.errors import CostError, UsageError
from ticketry.experiments.request import build_request
from ticketry.experiments.run import RunTicket, relative_base_latency, tickets_within_cost
from ticketry.experiments.verify import read_search
from ticketry.records.settings import upgrade_settings
from ticketry.search.oneshot import Settings

_OTHERS: list[dict[str, Any]] = [{"unweighed": True}, {"distribution": "erk"}, {"keep_at_least": 3}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Costs with the latency of eager, twice that of the compiled network, and of ONNX Runtime, 1.25 times."""
    known = costs()
    bases = {"eager": 2 * known.dense, "onnxruntime": 1.25 * known.dense}
    return known.scaled(1.0, bases=bases).save(tmp_path / "bases.json")


@pytest.mark.parametrize("rule", [{}, *(pytest.param(rule, marks=pytest.mark.slow) for rule in _OTHERS)])
def test_tickets_and_controls_cost_what_was_asked_for(rule: dict[str, Any], tmp_path: Path) -> None:
    model, file = costs(), tmp_path / "costs.json"
    model.save(file)
    controls = ["random_prune", "shuffled"]
    options: dict[str, Any] = {"base": "engine", "profile": str(file), "store": tmp_path / "store", **rule, **COMMON}
    run = tk.run("iterative", task(), time="50%", rate=0.5, controls=controls, **options)
    mask = run.tickets[0].load().mask
    assert 0.49 < slowly(mask, model) / model.dense <= 0.5
    with tk.Lab(tmp_path / "store") as lab:
        for point in run.record.points:
            if point.role in controls:
                trajectory, _, step = point.key.partition("@")
                variants = lab.store.load_valid_result(trajectory, int(step))["segment"]["variants"]
                held = lab.store.get_mask(next(one["mask"] for one in variants if "mask" in one))
                assert slowly(held, model) <= 0.5 * model.dense + 1e-12


def test_the_digest_of_the_costs_names_the_run_and_not_their_place(tmp_path: Path) -> None:
    costs().save(tmp_path / "one.json")
    shutil.copy(tmp_path / "one.json", tmp_path / "two.json")
    costs(each=2e-5).save(tmp_path / "other.json")
    names = [
        build_request("oneshot", task(), Settings(time=("50%",), base="engine", profile=str(tmp_path / file))).name
        for file in ("one.json", "two.json", "other.json")
    ]
    assert names[0] == names[1] != names[2]


def test_amounts_are_read_by_the_costs(tmp_path: Path) -> None:
    model, file = costs("bytes", 40.0), str(tmp_path / "bytes.json")
    model.save(file)
    settings = tk.search.oneshot.Settings(bytes=("40kB", 0.3), profile=file)
    assert settings.targets == pytest.approx((40_000 / model.dense, 0.3))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"time": "50%", "flops": 0.5}, UsageError, "one budget: flops or time"),
        ({"bytes": "2MB", "profile": "FILE"}, UsageError, "are in seconds, and bytes is asked for"),
        ({"time": "1%", "base": "engine", "profile": "FILE"}, UsageError, "below the floor"),
        ({"density": 0.5, "profile": "FILE"}, UsageError, "profile has costs for a budget"),
        ({"time": "quick", "base": "engine", "profile": "FILE"}, UsageError, "a share of the dense network's"),
        ({"density": 0.5, "base": "openvino"}, UsageError, "base openvino says what a share in time refers to"),
        ({"flops": 0.5, "base": "engine"}, UsageError, "give time too"),
        (
            {"time": 0.3, "base": "openvino", "profile": "FILE"},
            CostError,
            "do not have the latency of openvino.*--base",
        ),
        ({"time": 0.3, "base": "tflite", "profile": "FILE"}, UsageError, "base 'tflite' is not known"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    settings: dict[str, Any], error: type[Exception], said: str, file: Path, tmp_path: Path
) -> None:
    given = {name: str(file) if value == "FILE" else value for name, value in settings.items()}
    with pytest.raises(error, match=said):
        tk.run("oneshot", task(), store=tmp_path / "store", **given, **COMMON)


def test_costs_of_another_network_are_refused_before_anything_is_trained(file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"base": "engine", "profile": str(file), "store": tmp_path / "store", **COMMON}
    with pytest.raises(CostError, match="of another network"):
        tk.run("oneshot", "digits", time=0.5, **options)
    assert not list((tmp_path / "store" / "results").rglob("*.json"))


@pytest.mark.parametrize(
    ("base", "asked", "shares"),
    [
        ("eager", (0.25, 0.1), (0.5, 0.2)),
        ("onnxruntime", ("40%",), (0.5,)),
        ("engine", (0.5,), (0.5,)),
        ("eager", ("8.6ms",), (8.6e-3 / costs().dense,)),
    ],
)
def test_a_share_is_of_the_base(base: Any, asked: tuple[Any, ...], shares: tuple[float, ...], file: Path) -> None:
    assert Settings(time=asked, base=base, profile=str(file)).targets == pytest.approx(shares)


def test_names_from_before_bases_are_those_of_the_engine(tmp_path: Path) -> None:
    known = str(costs().save(tmp_path / "costs.json"))

    def name(**settings: Any) -> str:
        return build_request("oneshot", task(), Settings(**settings), replicates=3).name

    assert name(time=("50%",), base="engine", profile=known) == "oneshot-digits-5d84dbd3"
    assert name(time=(0.5, 0.25), base="engine", profile=known) == "oneshot-digits-86c0ba72"
    assert (
        name(time=("8ms",), profile=known)
        == name(time=("8ms",), base="engine", profile=known)
        == "oneshot-digits-b3f2daaf"
    )
    assert name() == "oneshot-digits-58d948ca"


def test_a_search_that_needs_no_pruning_is_refused(file: Path, tmp_path: Path) -> None:
    said = r"time 0\.6: now 34\.\d ms \(eager\), compiled without pruning 17\.\d ms, requested .* no pruning needed"
    with pytest.raises(UsageError, match=said):
        tk.run("oneshot", task(), time=0.6, profile=str(file), store=tmp_path / "store", **COMMON)
    with pytest.raises(UsageError, match=r"time 1s: compiled without pruning 17\.\d ms, requested 1 s: no pruning"):
        tk.run("oneshot", task(), time="1s", profile=str(file), store=tmp_path / "store", **COMMON)
    assert not (tmp_path / "store" / "results").exists()


def test_stored_settings_without_a_base_are_of_the_engine() -> None:
    assert upgrade_settings({"time": [0.5]}) == {"time": [0.5], "base": "engine"}
    assert upgrade_settings({"time": [0.5], "base": "eager"}) == {"time": [0.5], "base": "eager"}
    assert upgrade_settings({"time": [], "density": 0.5}) == {"time": [], "density": 0.5}


def test_run_files_and_tickets_from_before_open_with_their_meaning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, store = costs().save(tmp_path / "costs.json"), tmp_path / "store"
    run = tk.run("oneshot", task(), time=0.5, base="engine", profile=str(known), store=store, controls=(), **COMMON)
    config = store / "runs" / run.name / "run.toml"
    text = config.read_text()
    assert 'base = "engine"\n' in text
    config.write_text(text.replace('base = "engine"\n', ""))
    words = ["search", "--config", str(config), "--store", str(store), "--workers", "0", "--trust", "--json"]
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert (json.loads(out)["run"], json.loads(out)["now"]["segments_trained"]) == (run.name, 0)
    ticket = run.tickets[0].load()
    del ticket.info["settings"]["base"]
    assert read_search(ticket, trust=True).settings == run.request.settings


def test_the_best_ticket_is_one_of_a_share_of_the_base(file: Path) -> None:
    """Tickets measured at 0.5 and 0.2 of the compiled network's latency take 0.25 and 0.1 of eager's."""
    share = relative_base_latency({"time": [0.25, 0.1], "base": "eager", "profile": str(file)})
    assert share == pytest.approx(2.0)
    assert relative_base_latency({"time": [0.5], "base": "engine"}) == relative_base_latency({"time": [0.5]}) == 1.0
    tickets = tuple(
        RunTicket(Path(name), 0.5, level, 0, "accuracy", 0.5, 0.5, 0.5, time=time)
        for level, (name, time) in enumerate([("a", 0.5), ("b", 0.2)], start=1)
    )
    assert tickets_within_cost(tickets, "time", 0.25, "run", base=share) == tickets
    assert tickets_within_cost(tickets, "time", "12%", "run", base=share) == tickets[1:]
    with pytest.raises(UsageError, match=r"no ticket within 0\.05 of the time; there are: 0\.1, 0\.25"):
        tickets_within_cost(tickets, "time", 0.05, "run", base=share)


def test_another_base_is_another_run(file: Path) -> None:
    names = {
        build_request("oneshot", task(), Settings(time=(0.3,), base=base, profile=str(file))).name
        for base in ("eager", "onnxruntime", "engine")
    }
    assert len(names) == 3


def test_bases_are_scaled_with_the_costs(file: Path) -> None:
    known = tk.cost.load(file)
    assert known.scaled(3.0).base_seconds("eager") == pytest.approx(6 * known.dense)
    assert known.scaled(3.0).base_seconds("engine") == pytest.approx(3 * known.dense)
