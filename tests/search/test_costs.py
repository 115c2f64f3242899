"""Searches for a share of what costs of the network tell: by their digest, wherever the file lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from search.known_costs import COMMON, costs, slowly, task
from ticketry.errors import CostError, UsageError
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.request import request_of

_OTHERS: list[dict[str, Any]] = [{"unweighed": True}, {"distribution": "erk"}, {"keep_at_least": 3}]


@pytest.mark.parametrize("rule", [{}, *(pytest.param(rule, marks=pytest.mark.slow) for rule in _OTHERS)])
def test_tickets_and_controls_cost_what_was_asked_for(rule: dict[str, Any], tmp_path: Path) -> None:
    model, file = costs(), tmp_path / "costs.json"
    model.save(file)
    controls = ["random_prune", "shuffled"]
    run = tk.run(
        "iterative",
        task(),
        time="50%",
        base="engine",
        rate=0.5,
        profile=str(file),
        store=tmp_path / "store",
        controls=controls,
        **rule,
        **COMMON,
    )
    mask = run.tickets[0].load().mask
    assert 0.49 < slowly(mask, model) / model.dense <= 0.5
    with tk.Lab(tmp_path / "store") as lab:
        for point in run.record.points:
            if point.role in controls:
                held = lab.store.trained(*_place(point.key))["segment"]
                assert slowly(lab.store.get_mask(_mask_of(held)), model) <= 0.5 * model.dense + 1e-12


def _place(key: str) -> tuple[str, int]:
    trajectory, _, step = key.partition("@")
    return trajectory, int(step)


def _mask_of(segment: Any) -> str:
    found = [one for one in _walk(segment) if isinstance(one, dict) and "mask" in one and isinstance(one["mask"], str)]
    return str(found[0]["mask"])


def _walk(value: Any) -> Any:
    yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _walk(one)


def test_the_digest_of_the_costs_names_the_run_and_not_their_place(tmp_path: Path) -> None:
    costs().save(tmp_path / "one.json")
    shutil.copy(tmp_path / "one.json", tmp_path / "two.json")
    costs(each=2e-5).save(tmp_path / "other.json")
    names = [
        request_of(
            "oneshot",
            task(),
            decode_settings(
                {"time": "50%", "base": "engine", "profile": str(tmp_path / file)}, tk.search.oneshot.Settings, what=""
            )[0],
        ).name
        for file in ("one.json", "two.json", "other.json")
    ]
    assert names[0] == names[1] != names[2]


def test_amounts_are_read_by_the_costs(tmp_path: Path) -> None:
    model, file = costs("bytes", 40.0), str(tmp_path / "bytes.json")
    model.save(file)
    settings = tk.search.oneshot.Settings(bytes=("40kB", 0.3), profile=file)
    assert settings.targets == pytest.approx((40_000 / model.dense, 0.3))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"time": "50%", "flops": 0.5}, "one budget: flops or time"),
        ({"bytes": "2MB", "profile": "FILE"}, "are in seconds, and bytes is asked for"),
        ({"time": "1%", "base": "engine", "profile": "FILE"}, "below the floor"),
        ({"density": 0.5, "profile": "FILE"}, "profile has costs for a budget"),
        ({"time": "quick", "base": "engine", "profile": "FILE"}, "a share of the dense network's"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    costs().save(tmp_path / "costs.json")
    given = {name: str(tmp_path / "costs.json") if value == "FILE" else value for name, value in settings.items()}
    with pytest.raises(UsageError, match=said):
        tk.run("oneshot", task(), store=tmp_path / "store", **given, **COMMON)


def test_costs_of_another_network_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    costs().save(tmp_path / "costs.json")
    with pytest.raises(CostError, match="of another network"):
        tk.run(
            "oneshot",
            "digits",
            time=0.5,
            base="engine",
            profile=str(tmp_path / "costs.json"),
            store=tmp_path / "store",
            **COMMON,
        )
    assert not list((tmp_path / "store" / "results").rglob("*.json"))
