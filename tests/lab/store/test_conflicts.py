"""Files of one name in a store and in a bundle: what tells more stays, and what is lost by that is told in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call
from flips import KEY, RUN, campaign_values, make_store
from ticketry.lab.store.files import read_with_digest, write_with_digest
from ticketry.lab.store.store import Store


def campaign(date: str, **replicates: int) -> dict[str, Any]:
    """The record of a campaign with so many replicates of its runs."""
    values = campaign_values()
    (run,) = values["runs"]
    runs = [{**run, "name": name, "replicates": count} for name, count in replicates.items()]
    return {**values, "runs": runs, "environment": {"date": date}}


OLD, NEW = "2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"


@pytest.mark.parametrize(
    ("here", "bundled", "taken", "apart"),
    [
        (campaign(NEW, one=0), campaign(OLD, one=3), True, False),
        (campaign(OLD, one=3), campaign(NEW, one=3), True, False),
        (campaign(NEW, one=3), campaign(OLD, one=3), False, False),
        (campaign(OLD, one=3, two=5), campaign(NEW, one=5, two=0), False, True),
    ],
)
def test_the_record_of_a_campaign_that_tells_more_stays(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    here: dict[str, Any],
    bundled: dict[str, Any],
    taken: bool,
    apart: bool,
) -> None:
    for name, values in (("here", here), ("there", bundled)):
        write_with_digest(Store(make_store(tmp_path / name, page=False)).paths.campaign("small-demo"), values)
    bundle = tk.store.pack((), tmp_path / "all.tkz", weights=True, store=tmp_path / "there").path
    record = tmp_path / "here" / "campaigns" / "small-demo.json"
    code, out, _ = call(capsys, "store", "unpack", str(bundle), "--store", str(tmp_path / "here"))
    assert code == 0
    assert read_with_digest(record) == (bundled if taken else here)
    assert ("`ticketry reproduce small --scale demo --plan` tells of all" in out) is apart
    assert len(out.splitlines()) == 1 + apart, "nothing is lost: there is nothing to say"
    code, out, _ = call(capsys, "store", "unpack", str(bundle), "--store", str(tmp_path / "here"), "--json")
    told = json.loads(out)
    assert (told["differing"], told["renewed"]) == ([], [])


def _changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = read_with_digest(path)
    assert values is not None
    change(values)
    write_with_digest(path, values)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (f"runs/{RUN}/run.json", lambda run: run["points"][0]["test"].update(accuracy=12.5), f"{RUN}: the bundle"),
        (f"runs/{RUN}/run.json", lambda run: run.update(command="another", environment={"date": NEW}), ""),
        (f"results/{KEY[:2]}/{KEY}/5.json", lambda one: one["metrics"]["test"].update(loss=0.5), "1 result or answer"),
        (f"memo/masks/{KEY[:2]}/{KEY}.json", lambda memo: memo.update(seconds=9.0), ""),
    ],
)
def test_other_numbers_are_told_and_other_times_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    store = make_store(tmp_path / "store", page=False)
    bundle = tk.store.pack((), tmp_path / "all.tkz", weights=True, store=store).path
    _changed(store / name, change)
    before = (store / name).read_bytes()
    code, out, _ = call(capsys, "store", "unpack", str(bundle), "--store", str(store))
    assert code == 0
    assert (store / name).read_bytes() == before
    assert len(out.splitlines()) == 1 + bool(said)
    assert said in out
    assert tk.store.unpack(bundle, store=store).differing == ((store / name,) if said else ())


def test_a_store_that_was_moved_tells_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paths alone differ, and the weights that the bundle left out are there: there is nothing to say."""
    store = make_store(tmp_path / "store", page=False)
    ticket = str(store / "runs" / RUN / "tickets" / "level-01")
    _changed(store / "runs" / RUN / "run.json", lambda run: run.update(store=str(store)))
    _changed(store / "runs" / RUN / "run.json", lambda run: run["points"][0].update(ticket=ticket))
    bundle = tk.store.pack((), tmp_path / "all.tkz", store=store).path
    assert call(capsys, "store", "mv", str(tmp_path / "moved"), "--store", str(store))[0] == 0
    code, out, _ = call(capsys, "store", "unpack", str(bundle), "--store", str(tmp_path / "moved"))
    assert (code, len(out.splitlines())) == (0, 1), out


def test_metrics_that_the_store_lacks_are_taken(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", page=False)
    bundle = tk.store.pack((), tmp_path / "all.tkz", weights=True, store=store).path
    result = Store(store).paths.result(KEY, 5)
    whole = result.read_bytes()
    _changed(result, lambda one: one.update(metrics=None))
    lacking = tk.store.pack((), tmp_path / "lacking.tkz", weights=True, store=store).path
    done = tk.store.unpack(bundle, store=store)
    assert (done.renewed, done.differing) == ((result,), ())
    assert result.read_bytes() == whole
    done = tk.store.unpack(lacking, store=store)
    assert (done.renewed, done.differing) == ((), ())
    assert result.read_bytes() == whole


def test_what_is_damaged_is_left_to_the_check(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", page=False)
    bundle = tk.store.pack((), tmp_path / "all.tkz", weights=True, store=store).path
    record = store / "campaigns" / "small-demo.json"
    record.write_text("{}")
    assert tk.store.unpack(bundle, store=store).differing == (record,)
    assert record.read_text() == "{}"
