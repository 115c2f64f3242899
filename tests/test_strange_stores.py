"""Stores of other people, damaged disks and missing rights: commands change nothing outside and end in one message."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from cli.calling import call, printed
from experiments.conftest import no_figures
from flips import KEY, RUN, make_store
from other_users import as_user, close, contents, hand_over, make_read_only, place_of_users
from samples import sample
from strangers import Attack, Watch, changed_json, watch
from ticketry.errors import StoreError
from ticketry.experiments.record_files import read_earlier_record
from ticketry.lab.store.locks import is_running, mark_running
from ticketry.lab.store.maintenance import check, collect_garbage, describe_activity
from ticketry.lab.store.store import Store
from ticketry.records.run import RunRecord
from ticketry.report import page
from ticketry.report.figures import draw_figures

__all__ = ["no_figures", "watch"]  # fixtures

ACTING = {
    "gc": "store gc --store {0} --grace-seconds 0",
    "copy": "store copy {0} {1}/copied",
    "check": "store check --store {0}",
    "repair": "store check --store {0} --repair",
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
REPORTS = ("report --store {0} --figures", "report --all --store {0} --export {1}/files --output {1}/page.html")


@pytest.fixture(autouse=True, scope="module")
def sound_store(no_figures: None) -> None:
    """Every command succeeds on a sound store; this imports what another user may not be allowed to read."""
    with place_of_users() as folder:
        make_store(folder / "store")
        for number, command in enumerate((*READING.values(), *ACTING.values())):
            place = folder / str(number)
            place.mkdir()
            printed(*command.format(folder / "store", place).split())


# -- hostile contents --------------------------------------------------------------------------------------------------


def _run(store: Path) -> Path:
    return next(store.glob("runs/*/run.json"))


def _rename(name: str) -> Attack:
    def attack(store: Path) -> None:
        with changed_json(_run(store)) as record:
            record["run"] = name

    return attack


def _replace_texts(text: str) -> Attack:
    """Replace every text of every record."""

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(part) for key, part in value.items()}
        if isinstance(value, list):
            return [replaced(part) for part in value]
        return text if isinstance(value, str) else value

    def attack(store: Path) -> None:
        for path in (_run(store), *store.glob("evidence/*.json"), *store.glob("memo/*/*/*.json")):
            with changed_json(path) as record:
                record.update(replaced(record))

    return attack


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(place: str, target: str) -> Attack:
    """Replace a part of the store by a link; a relative target is a file or folder beside the store."""

    def attack(store: Path) -> None:
        for path in sorted(store.glob(place))[:1] or [store / place] * ("*" not in place):
            _remove(path)
            path.symlink_to(target if target.startswith("/") else store.parent / "outside" / target)

    return attack


def _pipe(place: str) -> Attack:
    def attack(store: Path) -> None:
        path = next(store.glob(place))
        _remove(path)
        os.mkfifo(path)

    return attack


def _content(place: str, data: bytes) -> Attack:
    return lambda store: next(store.glob(place)).write_bytes(data)


def _named(name: str) -> Attack:
    """Add a file of that name, with the content of a result."""

    def attack(store: Path) -> None:
        place = store.joinpath(*name.split("/"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(next(store.glob("results/*/*/*.json")).read_bytes())

    return attack


def _nested(place: str, depth: int) -> Attack:
    """Nest a value of a valid record more deeply than Python can walk by recursion."""

    def attack(store: Path) -> None:
        with changed_json(next(store.glob(place))) as record:
            value: list[Any] = []
            for _ in range(depth):
                value = [value]
            record["more"] = value

    return attack


def _digest_that_is_a_path(store: Path) -> None:
    with changed_json(next(store.glob("results/*/*/*.json"))) as record:
        record["model"] = "../../../../outside/secret"


CLEAR = "\x1b[2Jcleared"
NAMES = ("../../../evil", "..", "", "/tmp/evil", "a\\b", "a\0b", "a\nb", CLEAR, "x" * 3000)
PLACES = ("runs/*/run.json", "evidence/*.json", "results/*/*/*.json", "memo/*/*/*.json", "store.json")
TEXTS = ("../../../evil", CLEAR, "=HYPERLINK(1)", "<script>evil()</script>")
STORES: dict[str, Attack] = {
    **{f"a run called {name[:20]!r}": _rename(name) for name in NAMES},
    **{f"every text is {text[:20]!r}": _replace_texts(text) for text in TEXTS},
    **{f"{place} is a link to another's": _link(place, "secret.json") for place in PLACES},
    **{f"{place} is a link to what never ends": _link(place, "/dev/zero") for place in PLACES},
    **{f"{place} is a pipe": _pipe(place) for place in (*PLACES, "blobs/*/*", "partial/*", "runs/*/run.toml",
                                                        "runs/*/tickets/*/ticket.json")},
    **{f"{place} is a link to a folder": _link(place, ".") for place in
       ("runs", "runs/*", "evidence", "results/*", "blobs", "memo", "partial", "damaged", "runs/*/tickets/*")},
    **{f"{place} is a link to a file": _link(place, "precious.safetensors") for place in
       ("blobs/*/*", "partial/*", "runs/*/report.html", "runs/*/tickets/*/*")},
    **{f"{place} is nested deeply": _content(place, b"[" * 100_000) for place in PLACES},
    **{f"{place} has a number without an end": _content(place, b'{"a": ' + b"9" * 10_000 + b"}") for place in PLACES},
    **{f"{place} is empty": _content(place, b"") for place in PLACES},
    **{f"a file is called {name!r}": _named(name) for name in
       (f"blobs/ab/{CLEAR}.safetensors", f"evidence/{CLEAR}.json", f"memo/{CLEAR}/ab/x.json", f"campaigns/{CLEAR}.json",
        f"runs/{CLEAR}/run.json", "runs/\u202eab/run.json", f"results/ab/{KEY}/²²².json", f"results/ab/{KEY}/x.json")},
    **{f"{place} is nested {depth} deep": _nested(place, depth) for depth in (150, 400) for place in
       ("runs/*/run.json", "results/*/*/*.json")},
    "a digest is a path": _digest_that_is_a_path,
}  # fmt: skip


@pytest.mark.parametrize("name", sample(STORES, list(STORES)[::16]))
def test_a_hostile_store_harms_nothing(
    watch: Watch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if "text" in name:  # figures take a second, and show texts of records alone
        monkeypatch.setattr(page, "draw_figures", draw_figures)
    outside, allowed = watch.folder / "outside", watch.folder / "made"
    for file in ("secret.json", "precious.safetensors", "00/precious.safetensors", ".left.tmp"):
        (outside / file).parent.mkdir(exist_ok=True, parents=True)
        (outside / file).write_text('{"secret": 1}')
    allowed.mkdir()
    store = make_store(watch.folder / "stranger")
    STORES[name](store)
    before = contents(outside)
    of_records = not any(place in name for place in ("results", "memo", "blobs", "partial", "damaged", "ticket"))
    reports = [command for command, wanted in zip(REPORTS, (of_records, "text" in name), strict=True) if wanted]
    for command in (*reports, READING["list runs"], READING["list tickets"], READING["pack"], *ACTING.values()):
        code, out, err = call(capsys, *shlex.split(command.format(store, allowed)))
        assert code in (0, 1, 2), command
        assert "Traceback" not in out + err
        assert "secret" not in out.replace(str(outside), "").replace("secret.json", ""), "what is outside is not shown"
        assert all(letter.isprintable() for letter in (out + err).replace("\n", "")), command
        assert contents(outside) == before, command
    watch.expect()
    watch.untouched()
    pages = [path.read_text() for path in (*store.glob("**/*.html"), *allowed.glob("*.html")) if path.is_file()]
    assert not any("<script>evil" in page for page in pages)


# -- what cannot be read -----------------------------------------------------------------------------------------------

NEEDED = {
    "gc": {"results", "memo", "blobs", "partial", "runs", "evidence", "live"},
    "copy": {"blobs", "results", "memo", "runs", "evidence"},
    "check": {"blobs", "results", "memo", "partial", "runs", "evidence", "store.json"},
}
NEEDED["repair"] = NEEDED["check"]
needs_rights = pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")


@pytest.fixture
def place() -> Iterator[Path]:
    with place_of_users() as folder:
        yield folder


@pytest.fixture
def store(place: Path) -> Path:
    """A store with a driver that is running, and a partial state beyond its last result."""
    found = make_store(place / "store")
    (found / "live" / "a-driver").mkdir(parents=True)
    Store(found).put_checkpoint(KEY, 7, {"w": torch.ones(3)})
    return found


def _called(capsys: pytest.CaptureFixture[str], command: str, place: Path) -> tuple[int, str, str]:
    output = place / "made"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    hand_over(output)
    with as_user():
        return call(capsys, *command.format(place / "store", output).split())


@needs_rights
@pytest.mark.parametrize("name", ACTING)
def test_a_part_that_may_not_be_read_changes_nothing(
    place: Path, store: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    hand_over(store)
    whole = contents(store)
    for path in sorted(store.rglob("*")):
        if path.name in ("lock", "run.toml") or path.name[0] == ".":
            continue
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


@needs_rights
@pytest.mark.parametrize("name", READING)
def test_a_store_that_may_only_be_read(place: Path, store: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (store / "runs" / RUN / "running").touch()  # of another user's, which was killed
    (store / "results" / KEY[:2] / KEY / "lock").touch()
    make_read_only(store)
    before = {path: path.stat().st_mtime_ns for path in (store, *store.rglob("*"))}
    code, out, err = _called(capsys, READING[name], place)
    assert code == 0, out + err
    assert {path: path.stat().st_mtime_ns for path in (store, *store.rglob("*"))} == before


def _fail(monkeypatch: pytest.MonkeyPatch, broken: Path, code: int) -> None:
    """Let system calls on paths below a folder fail."""
    for name in ("open", "scandir", "stat", "lstat"):
        real = getattr(os, name)

        def fail(path: Any = ".", *more: Any, real: Any = real, **named: Any) -> Any:
            text = os.fspath(path) if not isinstance(path, int) else ""
            if f"{text}/".startswith(f"{broken}/"):
                raise OSError(code, os.strerror(code), text)
            return real(path, *more, **named)

        monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("part", ["results", f"results/{KEY[:2]}/{KEY}", "blobs", "memo", "partial", "runs"])
def test_a_broken_disk(store: Path, monkeypatch: pytest.MonkeyPatch, code: int, part: str) -> None:
    opened, whole = Store(store), contents(store)
    words = os.strerror(code) if code != errno.EMFILE else "too many files are open"
    with monkeypatch.context() as patch:
        _fail(patch, store / part, code)
        with pytest.raises(StoreError, match=words):
            collect_garbage(opened, grace_seconds=0)
        if part != "runs":  # `check` gets the runs from its caller
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


def test_a_missing_result_keeps_its_tensors(store: Path) -> None:
    """A dangling link in the place of a result."""
    result = store / "results" / KEY[:2] / KEY / "5.json"
    result.unlink()
    result.symlink_to(store / "gone.json")
    blobs = contents(store / "blobs")
    with pytest.raises(StoreError, match=r"5\.json"):
        collect_garbage(Store(store), grace_seconds=0)
    assert contents(store / "blobs") == blobs


# -- marks of running searches -----------------------------------------------------------------------------------------


@needs_rights
def test_a_mark_of_another_user_is_read(place: Path, store: Path) -> None:
    run = store / "runs" / RUN
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
        assert describe_activity(Store(store)).startswith("the run ")
    assert mark.read_text() == ""


def test_asking_whether_a_run_is_running_changes_nothing(store: Path) -> None:
    run = store / "runs" / RUN
    mark = run / "running"
    mark.write_text("whose")
    assert not any(is_running(run) for _ in range(3))
    with mark_running(run):
        assert all(is_running(run) for _ in range(3))
    mark.write_text("whose")
    assert not is_running(run)
    assert mark.read_text() == "whose"


@needs_rights
def test_a_mark_of_another_user_does_not_leave_a_run_unmarked(place: Path) -> None:
    """Else `store gc` would delete what the run needs."""
    run = place / "run"
    run.mkdir()
    run.chmod(0o777)
    (run / "running").touch()
    make_read_only(run)
    run.chmod(0o777)
    with as_user(), mark_running(run):
        assert is_running(run)
        assert (run / "running-2").exists()
    assert not is_running(run)


@needs_rights
def test_an_unreadable_record_is_not_overwritten(place: Path) -> None:
    file = place / "run.json"
    file.write_text("{}")
    assert read_earlier_record(file, RunRecord) is None  # damaged
    close(file)
    with as_user(), pytest.raises(StoreError, match="may not be read"):
        read_earlier_record(file, RunRecord)
