"""A store that moves: renamed or copied to another file system, ended at any point, it is there once and whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ticketry.errors import StoreError
from ticketry.experiments import stores as moving
from ticketry.experiments.stores import move_store
from ticketry.lab.store.files import read_with_digest, write_with_digest
from ticketry.lab.store.locks import mark_running
from ticketry.lab.store.maintenance import check
from ticketry.lab.store.store import Store

KEY = "ab" * 32
LONG_AGO = 1_600_000_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return made(tmp_path / "digits", str(tmp_path / "digits"))


def made(root: Path, spelled: str) -> Path:
    """A store with one of each kind of file, in which records spell its place so."""
    store = Store(root)
    digests = [store.put_bytes(data) for data in (b"weights", b"mask")]
    store.put_result(KEY, 3, {"model": digests[0], "training": digests[1], "variants": {}, "metrics": {}})
    with store.lock_trajectory(KEY):
        pass
    run = store.paths.run("a-run")
    (run / "tickets" / "level-01").mkdir(parents=True)
    (run / "tickets" / "level-01" / "ticket.json").write_text("{}")
    (run / "report.html").write_text("<html>")
    ticket = f"{spelled}/runs/a-run/tickets/level-01"
    write_with_digest(run / "run.json", {"store": spelled, "task": "digits", "points": [{"ticket": ticket}]})
    write_with_digest(store.paths.evidence("verify"), {"store": "", "ticket": ticket})
    for name in ("costs/a.json", "partial/x.safetensors", "damaged/results/y.json", "campaigns/running-cpu.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
        os.utime(root / name, (LONG_AGO, LONG_AGO))
    return root


def contents(root: Path) -> dict[str, bytes]:
    """All that matters of a store, but for the records that name its place."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("lock", "run.json", "verify.json")
    }


def assert_moved(store: Path, target: Path, before: dict[str, bytes]) -> None:
    assert not os.path.lexists(store)
    assert contents(target) == before
    ticket = f"{target}/runs/a-run/tickets/level-01"
    told = {"store": str(target), "task": "digits", "points": [{"ticket": ticket}]}
    assert read_with_digest(target / "runs" / "a-run" / "run.json") == told
    assert (read_with_digest(target / "evidence" / "verify.json") or {})["ticket"] == ticket
    assert (target / "costs" / "a.json").stat().st_mtime == LONG_AGO
    assert not check(Store(target)).damaged[1:]  # but for the state that is none


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def another_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", failing(errno.EXDEV))


class KilledError(BaseException):
    """Nothing catches it."""


def dying(does: Callable[..., Any], after: int) -> Callable[..., Any]:
    """A function that does as another, so many times."""
    done: list[int] = []

    def call(*args: Any, **more: Any) -> Any:
        if len(done) == after:
            raise KilledError
        done.append(0)
        return does(*args, **more)

    return call


def test_to_another_disk_all_of_it_goes(store: Path, another_disk: None, tmp_path: Path) -> None:
    before = contents(store)
    assert len(before) == 10
    for origin, target, told in (
        (store, made(tmp_path / "other", "other"), "is there already"),
        (tmp_path / "absent", tmp_path / "new", "there is no store in"),
    ):
        with pytest.raises(StoreError, match=told):
            move_store(origin, target)
    assert not (tmp_path / "new").exists()
    assert_moved(store, move_store(store, tmp_path / "new"), before)


@pytest.mark.parametrize(
    "where",
    [
        "_copy_file",
        "_replace_paths_in_records",
        "_delete_original",
        "write_with_digest",
        "delete_tree",
        "flush_to_disk",
    ],
)
def test_ended_at_any_point_the_same_call_goes_on(store: Path, another_disk: None, where: str) -> None:
    before, target = contents(store), store.with_name("new")
    for after in (0, 1, 3, 99):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moving, where, dying(getattr(moving, where), after))
            try:
                move_store(store, target)
            except KilledError:
                assert store.exists()
                assert {**contents(target), **contents(store)}.items() >= before.items()
            else:
                assert after
                break
    assert_moved(store, target, before)


def test_ended_after_it_was_renamed_its_records_are_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, target = contents(store), store.with_name("new")
    with monkeypatch.context() as patch:
        patch.setattr(moving, "write_with_digest", dying(moving.write_with_digest, 0))
        with pytest.raises(KilledError):
            move_store(store, target)
    assert not store.exists()
    assert move_store(store, target) == target
    assert_moved(store, target, before)
    with pytest.raises(StoreError, match="there is no store in"):
        move_store(store, target)


def test_a_full_disk_is_told_in_words(store: Path, another_disk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before, target = contents(store), store.with_name("new")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", failing(errno.ENOSPC))
        with pytest.raises(StoreError, match="no space is left there: free some and run the same command") as caught:
            move_store(store, target)
    assert len(str(caught.value)) < 300
    assert contents(store) == before
    move_store(store, target)
    assert_moved(store, target, before)


def test_what_was_written_meanwhile_is_not_deleted(
    store: Path, another_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = store.with_name("new"), moving._replace_paths_in_records

    def written(*args: Any) -> None:
        rename(*args)
        Store(store).put_result(KEY, 5, {"model": KEY})

    with monkeypatch.context() as patch:
        patch.setattr(moving, "_replace_paths_in_records", written)
        with pytest.raises(StoreError, match="changed while it was moved"):
            move_store(store, target)
    with mark_running(store / "live"), pytest.raises(StoreError, match="something is being trained in"):
        move_store(store, target)
    before = contents(store)
    with pytest.MonkeyPatch.context() as patch:  # the old one cannot be deleted; the new one is used already
        patch.setattr(moving, "delete_tree", dying(moving.delete_tree, 1))
        with pytest.raises(KilledError):
            move_store(store, target)
    (target / "runs" / "a-run" / "report.html").write_text("newer")
    move_store(store, target)
    assert_moved(store, target, {**before, "runs/a-run/report.html": b"newer"})


@pytest.mark.parametrize(
    ("told", "old", "new"),
    [
        ("digits", "digits", "new"),
        ("digits", "{}/digits", "new"),
        ("{}/digits", "digits", "{}/new"),
        ("elsewhere/it-was", "digits", "new"),
    ],
)
def test_however_the_place_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, old: str, new: str
) -> None:
    """Of a task that is called as the store is, the name stays."""
    monkeypatch.chdir(tmp_path)
    told, old, new = (one.format(tmp_path) for one in (told, old, new))
    made(Path("digits"), told)
    move_store(Path(old), Path(new))
    record = read_with_digest(tmp_path / "new" / "runs" / "a-run" / "run.json")
    ticket = f"{new}/runs/a-run/tickets/level-01"
    assert record == {"store": new, "task": "digits", "points": [{"ticket": ticket}]}


def test_links_are_named_and_stay(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(store)
    (tmp_path / "link").symlink_to("digits")
    with pytest.raises(StoreError, match=f"is a link to {store}: name that"):
        move_store(tmp_path / "link", tmp_path / "sub" / "new")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(StoreError, match="is there already"):
        move_store(store, tmp_path / "dangling")
    (store / "runs" / "a-run" / "figure.svg").symlink_to("report.html")
    monkeypatch.setattr(moving, "_try_rename", lambda *_: False)
    with pytest.raises(StoreError, match="but a link or a pipe: delete it"):
        move_store(store, tmp_path / "new")
    (store / "runs" / "a-run" / "figure.svg").unlink()
    assert contents(store) == before
