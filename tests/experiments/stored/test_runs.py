"""Runs as files: what they share, what removing one frees, and a store that moved."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call
from ticketry.errors import StoreError
from ticketry.experiments.options import LabOptions, open_lab
from ticketry.experiments.run import Run
from ticketry.experiments.stores import copy_store, disk_usage, move_store, remove_run, stored_runs
from ticketry.lab.store.locks import is_running, mark_running
from ticketry.lab.store.maintenance import Usage, check
from ticketry.lab.store.store import Store


def searched(store: Path, density: float) -> Run:
    """A dense network and one ticket; the dense one is the same whatever the density."""
    options: dict[str, Any] = {"controls": (), "replicates": 1, "recipe": {"length": "4it"}, "workers": 0}
    return tk.run("oneshot", "digits", density=density, store=store, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("trained") / "store"
    for density in (0.5, 0.2):
        searched(store, density)
    return store


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """Two runs, in a store that a test may change."""
    copy_store(str(trained), str(tmp_path / "store"))
    for age, name in enumerate(reversed(names(trained)), start=1):  # the order of a list is that of its changes
        folder = tmp_path / "store" / "runs" / name
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (time.time() - age,) * 2)
    return tmp_path / "store"


def names(store: Path) -> list[str]:
    return [one.name for one in stored_runs(store)]


def on_disk(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def test_a_run_that_is_removed_takes_with_it_what_only_it_stands_on(store: Path) -> None:
    first, second = stored_runs(store)
    assert (first.state, second.state) == ("done", "done")
    assert 0 < first.own_bytes < first.bytes  # the dense network is both runs'
    before = on_disk(store)
    told = remove_run(store, first.name, dry_run=True)
    assert on_disk(store) == before
    done = remove_run(store, first.name)
    assert done.bytes == told.bytes == first.own_bytes == before - on_disk(store)
    assert names(store) == [second.name]
    assert check(Store(store)).is_undamaged
    assert searched(store, 0.2).now["segments_trained"] == 0
    again = searched(store, 0.5)
    assert again.name == first.name
    assert again.now["steps_trained"] == 4  # the ticket's; the dense network was the other's too


def test_ended_on_the_way_the_store_is_sound(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = stored_runs(store)
    metrics = [ticket.value for ticket in searched(store, 0.5).tickets]
    left, unlink = [2], Path.unlink

    def ended(path: Path, missing_ok: bool = False) -> None:
        if {"results", "memo", "blobs"} & set(path.parts):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", ended)
        with pytest.raises(KeyboardInterrupt):
            remove_run(store, first.name)
    assert check(Store(store)).is_undamaged
    assert [ticket.value for ticket in searched(store, 0.5).tickets] == metrics
    remove_run(store, first.name)
    assert check(Store(store)).is_undamaged
    assert len(names(store)) == 1


def test_a_run_that_begins_while_another_is_measured_is_left_alone(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stored_runs(store)
    before = on_disk(store)
    with contextlib.ExitStack() as began:

        def of(self: Usage, records: Iterable[Mapping[str, Any]]) -> set[Path]:
            began.enter_context(mark_running(Store(store).paths.run(second.name)))
            return real(self, records)

        real = Usage.find_referenced_files
        monkeypatch.setattr(Usage, "find_referenced_files", of)
        with pytest.raises(StoreError, match=f"the run {second.name} is being carried out"):
            remove_run(store, first.name)
    assert on_disk(store) == before
    assert names(store) == [first.name, second.name]


def test_while_a_command_trains_no_run_is_removed_and_no_store_moved(store: Path) -> None:
    """A verification, say, which stands on a run's weights and is no run itself."""
    first, _ = stored_runs(store)
    with open_lab(LabOptions(store=store, workers=0), None):
        for forbidden in (lambda: remove_run(store, first.name), lambda: move_store(store, store.with_name("new"))):
            with pytest.raises(StoreError, match="something is being trained in"):
                forbidden()
    assert remove_run(store, first.name).files


def test_a_run_that_is_carried_out_is_told_and_left_alone(store: Path) -> None:
    first, second = stored_runs(store)
    folder = store / "runs" / first.name
    (folder / "run.json").unlink()
    assert {one.name: one.state for one in stored_runs(store)} == {first.name: "half", second.name: "done"}
    with mark_running(folder):
        assert {one.name: one.state for one in stored_runs(store)}[first.name] == "running"
        with mark_running(folder):  # a second process is not held up
            pass
        assert {one.name: one.state for one in stored_runs(store)}[first.name] == "running"
        for forbidden in (lambda: remove_run(store, second.name), lambda: move_store(store, store.with_name("new"))):
            with pytest.raises(StoreError, match=f"the run {first.name} is being carried out"):
                forbidden()
    assert {one.name: one.state for one in stored_runs(store)}[first.name] == "half"
    assert not (folder / "running").exists()


MARKED = """
import sys, time
from pathlib import Path
from ticketry.lab.store.locks import mark_running
with mark_running(Path(sys.argv[1])):
    print("marked", flush=True)
    sys.stdin.readline()
"""


def test_a_run_is_carried_out_as_long_as_any_process_does(store: Path) -> None:
    """However the one that began first ends."""
    folder = store / "runs" / names(store)[0]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", MARKED, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for one in both:
        assert one.stdout
        assert one.stdout.readline() == "marked\n"
    first, second = both
    first.kill()
    first.wait()
    assert is_running(folder)
    with pytest.raises(StoreError, match="is being carried out"):
        remove_run(store, folder.name)
    second.communicate("\n")
    assert not is_running(folder)
    with mark_running(folder):  # in the place of what a killed one left
        assert is_running(folder)
    assert not is_running(folder)
    assert remove_run(store, folder.name).files


def test_nothing_else_is_removed(store: Path) -> None:
    name = names(store)[0]
    with pytest.raises(StoreError, match=f"there is no run .*did you mean .*{name}"):
        remove_run(store, name[:-1])
    with pytest.raises(StoreError, match="there is no run"):
        remove_run(store, "../runs")
    assert len(names(store)) == 2
    assert sum(kind["bytes"] for kind in disk_usage(store)) == on_disk(store)


def test_a_store_that_moved_goes_on(store: Path) -> None:
    known = names(store)
    target = store.parent / "deep" / "new"
    with pytest.raises(StoreError, match="is there already"):
        move_store(store, store.parent)
    with pytest.raises(StoreError, match="lies in the store itself"):
        move_store(store, store / "inner")
    assert move_store(store, target) == target
    assert not store.exists()
    assert sorted(names(target)) == sorted(known)
    assert check(Store(target)).is_undamaged
    for density in (0.5, 0.2):
        again = searched(target, density)
        assert again.now["segments_trained"] == 0
        assert all(Path(point.ticket).is_relative_to(target) for point in again.record.points if point.ticket)
        assert all(tk.Ticket.load(one.path).density == pytest.approx(density, abs=1e-4) for one in again.tickets)


def test_commands(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = names(store)
    where = ("--store", str(store))
    rows = json.loads(call(capsys, "list", "runs", *where, "--json")[1])
    assert [(row["run"], row["state"]) for row in rows] == [(first, "done"), (second, "done")]
    assert "just now" in call(capsys, "list", "runs", *where)[1]
    told = json.loads(call(capsys, "store", "du", *where, "--json")[1])
    assert told["bytes"] == on_disk(store)
    assert [row["own_bytes"] for row in told["runs"]] == [row["own_bytes"] for row in rows]
    code, _, error = call(capsys, "rm", first, *where)
    assert code == 2
    assert "--yes" in error
    assert json.loads(call(capsys, "rm", first, *where, "--dry-run", "--json")[1])["bytes"] == rows[0]["own_bytes"]
    assert len(names(store)) == 2
    assert call(capsys, "rm", first, *where, "--yes")[0] == 0
    assert names(store) == [second]
    target = store.with_name("new")
    assert call(capsys, "store", "mv", str(target), *where)[0] == 0
    assert names(target) == [second]


def test_a_link_in_the_place_of_the_mark_is_left_alone(store: Path) -> None:
    secret = store.with_name("secret")
    secret.write_text("kept")
    name = names(store)[0]
    (store / "runs" / name / "running").symlink_to(secret)
    assert {one.state for one in stored_runs(store)} == {"done"}
    with mark_running(store / "runs" / name):
        pass
    assert secret.read_text() == "kept"
    remove_run(store, name)
    assert secret.read_text() == "kept"
