"""One interface for the objects of a store, in a folder and in a bucket; and how long requests are repeated."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ticketry.errors import OutsideError, StoreError
from ticketry.lab.store import objects
from ticketry.lab.store.mirror import Mirror
from ticketry.lab.store.objects import Folder, Objects, SharedFolder
from ticketry.lab.store.store import local_folder, open_remote

KINDS = ["folder", "file", "s3", pytest.param("az", marks=pytest.mark.slow), "mirror"]


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """Empty objects of each kind."""
    if request.param == "folder":
        return Folder(tmp_path / "store")
    if request.param in ("s3", "az"):
        return open_remote(str(request.getfixturevalue({"s3": "cloud", "az": "container"}[request.param])))
    address = f"file://{tmp_path}/shared"
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))
    return (
        SharedFolder(address)
        if request.param == "file"
        else Mirror(SharedFolder(address), local_folder(address), lease_seconds=30)
    )


def test_objects_of_every_backend(backend: Objects) -> None:
    names = ["memo/masks/ab/ab.json", "partial/ab-3-cd.safetensors", "partial/ab-6.parts/one", "partial/abc-3"]
    assert backend.get(names[0]) is None
    assert not list(backend.list())
    for name in names:
        assert backend.create_if_absent(name, name.encode())
        assert not backend.create_if_absent(name, b"other")
    for fresh in (False, True):
        assert [backend.get(name, fresh=fresh) for name in names] == [name.encode() for name in names]
    backend.put(names[0], b"replaced")
    assert backend.get(names[0]) == b"replaced"
    found = {one.name: one for one in backend.list()}
    assert sorted(found) == sorted(names)
    assert found[names[0]].size == len(b"replaced")
    assert abs(backend.now() - found[names[0]].modified) < 60
    assert {one.name for one in backend.list("partial/ab-")} == set(names[1:3])
    assert {one.name for one in backend.list("partial/ab-6.parts/")} == {names[2]}
    assert not list(backend.list("missing/"))
    version = found[names[0]].version
    backend.put(names[0], b"replaced again")
    assert next(iter(backend.list(names[0]))).version != version
    backend.delete([*names[:2], "missing"])
    assert {one.name for one in backend.list()} == set(names[2:])
    assert backend.get(names[0], fresh=True) is None


def test_of_many_at_once_one_creates_an_object(backend: Objects) -> None:
    created: list[int] = []
    barrier = threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait()
        if backend.create_if_absent("trajectories/ab/ab.json@1", f"{number}".encode()):
            created.append(number)

    if isinstance(backend, (Folder, Mirror)) and not isinstance(backend, SharedFolder):
        pytest.skip("processes of one machine hold a lock")
    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert backend.get("trajectories/ab/ab.json@1") == f"{created[0]}".encode()


@pytest.mark.parametrize("name", ["../out", "a/../../out", "link/out", "a\\b"])
def test_no_name_leads_out_of_a_folder(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path / "store")
    folder.root.mkdir()
    (folder.root / "link").symlink_to(tmp_path)
    for action in (folder.get, lambda name: folder.put(name, b""), lambda name: folder.delete([name])):
        with pytest.raises(OutsideError):
            action(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert [one.name for one in folder.list()] == []


class _Server:
    """A server that answers from some time on, with a clock; this process is suspended before one try."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, answers_at: float, suspended: float, before: int) -> None:
        self.now, self.tries = 0.0, 0
        self._answers_at, self._suspended, self._before = answers_at, suspended, before
        monkeypatch.setattr(objects.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(objects.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def request(self, tries: int) -> str:
        assert tries == self.tries
        self.tries += 1
        if self.tries == self._before:
            self.now += self._suspended
        if self.now < self._answers_at:
            raise objects.TransientError("nobody is there")
        return "answer"


@pytest.mark.parametrize(("seconds", "least", "most"), [(None, 160, 180), (20.0, 10, 20)])
def test_requests_are_repeated_for_three_minutes_or_less(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, least: float, most: float
) -> None:
    server = _Server(monkeypatch, answers_at=1e9, suspended=0, before=0)
    with (
        objects.limit_retry_time(seconds or 1e9),
        pytest.raises(StoreError, match=r"x: no success in \d+ s and \d+ tries"),
    ):
        objects.retry("x", server.request)
    assert least < server.now <= most


@pytest.mark.parametrize("before", [1, 5])
def test_the_time_for_which_this_process_was_suspended_does_not_count(
    monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """It is suspended for an hour while it waits, and the first answer after that is one more failure."""
    server = _Server(monkeypatch, answers_at=3650.0, suspended=3600.0, before=before)
    assert objects.retry("x", server.request) == "answer"
