"""What a command could not read is reported; nothing is deleted, moved or left out because of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from cli.calling import call, printed
from other_users import as_user, close, contents, hand_over, make_read_only, place_of_users
from test_strange_stores import made_store
from ticketry.errors import StoreError
from ticketry.lab.store.maintenance import check, collect, under_way
from ticketry.lab.store.marks import is_running, marked_running
from ticketry.lab.store.store import Store

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
KEY = "ab" * 32
ACTING = {
    "gc": "store gc --store {0} --grace-seconds 0",
    "repair": "store check --repair --store {0}",
    "copy": "store copy {0} {1}/copied",
    "check": "store check --store {0}",
}
"""Commands that need all of a store to do what they promise."""
READING = {
    "list runs": "list runs --store {0}",
    "list tickets": "list tickets --store {0}",
    "check": "store check --store {0}",
    "gc --dry-run": "store gc --dry-run --grace-seconds 0 --store {0}",
    "du": "store du --store {0}",
    "pack": "store pack --store {0} -o {1}/packed.tkz",
    "copy": "store copy {0} {1}/copied",
    "report": "report --all --store {0} --output {1}/page.html",
}
"""Commands that write nothing into the store that they read."""
NEEDED = {
    "gc": {"results", "memo", "blobs", "partial", "runs", "evidence", "live"},
    "copy": {"blobs", "results", "memo", "runs", "evidence"},
    "check": {"blobs", "results", "memo", "partial", "runs", "evidence", "store.json"},
}
NEEDED["repair"] = NEEDED["check"]


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """Import what the commands need, which another user may not be allowed to read."""
    with place_of_users() as folder:
        made_store(folder / "store")
        for command in (*READING.values(), *ACTING.values()):
            printed(*command.format(folder / "store", folder).replace("/copied", f"/{len(command)}").split())


@pytest.fixture
def place() -> Iterator[Path]:
    with place_of_users() as folder:
        yield folder


@pytest.fixture
def store(place: Path) -> Path:
    found = made_store(place / "store")
    (found / "live" / "a-driver").mkdir(parents=True)
    Store(found).put_partial(KEY, 7, {"w": torch.ones(3)})  # in place of one that is no longer needed
    return found


def _called(capsys: pytest.CaptureFixture[str], command: str, place: Path) -> tuple[int, str, str]:
    made = place / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    hand_over(made)
    with as_user():
        return call(capsys, *command.format(place / "store", made).split())


def _paths(store: Path) -> list[Path]:
    return [path for path in sorted(store.rglob("*")) if path.name not in ("lock", "run.toml") and path.name[0] != "."]


@pytest.mark.parametrize("name", ACTING)
def test_nothing_is_done_for_want_of_what_cannot_be_read(
    place: Path, store: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    hand_over(store)
    whole = contents(store)
    for path in _paths(store):
        about = path.stat()
        close(path)
        code, out, err = _called(capsys, ACTING[name], place)
        os.chown(path, about.st_uid, about.st_gid)
        path.chmod(about.st_mode & 0o777)
        kind = path.relative_to(store).parts[0]
        assert contents(store) == whole, f"{path}: {out}{err}"
        assert "Traceback" not in err
        if kind in NEEDED[name] and not (name == "copy" and path.suffix == ".html"):
            needed = name != "gc" or path.is_dir() or kind in ("results", "memo")  # it reads no tensors
            assert (code != 0) == needed, f"{path}: {out}{err}"
        if code:
            assert "may not be read" in err or "Permission denied" in err, err


@pytest.mark.parametrize("name", READING)
def test_a_store_that_may_only_be_read(place: Path, store: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (next(store.glob("runs/*")) / "running").touch()  # of another user's, which was killed
    (store / "results" / KEY[:2] / KEY / "lock").touch()
    make_read_only(store)
    before = {path: path.stat().st_mtime_ns for path in (store, *store.rglob("*"))}
    code, out, err = _called(capsys, READING[name], place)
    assert code == 0, out + err
    assert {path: path.stat().st_mtime_ns for path in (store, *store.rglob("*"))} == before


class _Failing:
    """Calls of the system that fail below a folder, as those of a broken disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: Path, code: int) -> None:
        for name in ("open", "scandir", "stat", "lstat"):
            real = getattr(os, name)

            def fail(path: Any = ".", *more: Any, real: Any = real, **named: Any) -> Any:
                text = os.fspath(path) if not isinstance(path, int) else ""
                if f"{text}/".startswith(f"{broken}/"):
                    raise OSError(code, os.strerror(code), text)
                return real(path, *more, **named)

            monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("part", ["results", f"results/{KEY[:2]}/{KEY}", "blobs", "memo", "partial", "runs"])
def test_a_broken_disk(store: Path, monkeypatch: pytest.MonkeyPatch, code: int, part: str) -> None:
    opened, whole = Store(store), contents(store)
    words = os.strerror(code) if code != errno.EMFILE else "too many files are open"
    with monkeypatch.context() as patch:
        _Failing(patch, store / part, code)
        with pytest.raises(StoreError, match=words):
            collect(opened, grace_seconds=0)
        if part != "runs":  # of which `check` is told by its caller
            with pytest.raises(StoreError, match=words):
                check(opened, repair=True)
    assert contents(store) == whole


def test_a_link_to_a_disk_that_is_not_mounted(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = contents(store / "blobs")
    (store / "results").rename(store / "elsewhere")
    (store / "results").symlink_to(store / "mounted" / "results")
    for name in ("gc", "repair"):
        code, _, err = call(capsys, *ACTING[name].format(store, "").split())
        assert code == 1
        assert "a link to a place that is missing" in err
    assert contents(store / "blobs") == whole


def test_a_mark_of_another_users_is_read_and_not_taken(place: Path, store: Path) -> None:
    run = next((store / "runs").iterdir())
    hand_over(store)
    mark = run / "running"
    mark.write_text("")
    make_read_only(mark.parent)
    hand_over(run.parent)
    with as_user():
        assert not is_running(run)
    held = filelock.FileLock(mark)
    with held, as_user():
        assert is_running(run)
        assert under_way(Store(store)).startswith("the run ")
    assert mark.read_text() == ""


def test_who_asks_whether_a_run_is_under_way_disturbs_nobody(store: Path) -> None:
    """Many that ask at once do not see one another, and the mark stays as it is."""
    run = next((store / "runs").iterdir())
    mark = run / "running"
    mark.write_text("whose")
    before = mark.stat()
    assert not any(is_running(run) for _ in range(3))
    with marked_running(run):
        assert all(is_running(run) for _ in range(3))
    mark.write_text("whose")
    assert not is_running(run)
    assert before.st_size == mark.stat().st_size


def test_another_users_mark_does_not_leave_a_run_unmarked(place: Path) -> None:
    """Else `store gc` would delete what the run needs."""
    run = place / "run"
    run.mkdir()
    run.chmod(0o777)
    (run / "running").touch()
    make_read_only(run)
    run.chmod(0o777)
    with as_user(), marked_running(run):
        assert is_running(run)
        assert (run / "running-2").exists()
    assert not is_running(run)


def test_a_record_that_cannot_be_read_is_not_written_over(place: Path) -> None:
    from ticketry.experiments.record_files import read_earlier_record
    from ticketry.records.run import RunRecord

    file = place / "run.json"
    file.write_text("{}")
    assert read_earlier_record(file, RunRecord) is None  # damaged
    close(file)
    with as_user(), pytest.raises(StoreError, match="may not be read"):
        read_earlier_record(file, RunRecord)


def test_tensors_of_a_result_that_went_away_while_it_was_read_stay(store: Path) -> None:
    """A link in the place of a result, to what is not there, names nothing that is known."""
    result = store / "results" / KEY[:2] / KEY / "5.json"
    result.rename(store / "5.json")
    result.symlink_to(store / "gone.json")
    blobs = contents(store / "blobs")
    with pytest.raises(StoreError, match=r"5\.json"):
        collect(Store(store), grace_seconds=0)
    assert contents(store / "blobs") == blobs
    assert torch.equal(Store(store).get_tensors(next(store.glob("blobs/*/*")).stem)["w"], torch.ones(3))
