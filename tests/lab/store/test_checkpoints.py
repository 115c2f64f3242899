"""States in parts, as files of a shared store: what one machine uploads another goes on from."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ticketry.lab.store import checkpoints
from ticketry.lab.store.maintenance import collect_garbage
from ticketry.lab.store.store import Store

KEY = "ab" * 32
Machine = Callable[[str], Store]


def made(store: Store, step: int) -> Path:
    """The folder of a state of two files."""
    folder = checkpoints.create_shard_folder(store.paths, KEY, step)
    for rank in range(2):
        (folder / f"part-{rank}.safetensors").write_bytes(bytes([rank, step]) * 1000)
    checkpoints.finish_shard_folder(folder, store.paths, KEY, step, checkpoints.digest_shards(folder, 0, 1))
    return store.paths.partial_folder(KEY, step)


def written(store: Store, step: int) -> Path:
    """One that is told as ranks tell it."""
    folder = made(store, step)
    store.upload_checkpoint(KEY, step, folder)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def objects(store: Store) -> list[str]:
    return [one.name for one in store.mirror.remote.list("partial/")]


def soon_none(store: Store) -> bool:
    """Whether no object is left; a state that was dropped on its way is deleted after it, which nobody waits for."""
    return any(not objects(store) or time.sleep(0.05) for _ in range(200))


def test_a_state_in_parts_is_gone_on_with_elsewhere(machine: Machine) -> None:
    one = machine("one")
    with one.lock_trajectory(KEY):
        for step in (2, 4, 6):
            last = content(written(one, step))
    assert len(objects(one)) == 3, "two files and their list, of the newest state alone"
    two = machine("two")
    with two.lock_trajectory(KEY):
        assert two.stored_steps(KEY) == []
        assert two.last_stored_step(KEY, 100) == 6
        assert two.newest_checkpoint(KEY, 100) is None
        found = checkpoints.find_newest_shard_folder(two.paths, KEY, 100)
        assert found is not None
        assert found[0] == 6
        assert content(found[1]) == last
        written(two, 8)
        two.drop_checkpoints(KEY, 8)
    assert soon_none(two)
    three = machine("three")
    with three.lock_trajectory(KEY):
        three.newest_checkpoint(KEY, 100)
        assert checkpoints.find_newest_shard_folder(three.paths, KEY, 100) is None
    for store in (one, two, three):
        assert not list(store.paths.partial.rglob("*.tmp"))


@pytest.mark.parametrize("what", ["file", "list", "gone", "forged"])
def test_a_damaged_state_is_none(
    what: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = machine("one")
    with one.lock_trajectory(KEY):
        written(one, 6)
    names = objects(one)
    (listed,) = [name for name in names if name.endswith(checkpoints.SHARD_LIST)]
    (first, _) = sorted(set(names) - {listed})
    remote = one.mirror.remote
    if what == "file":
        remote.put(first, b"other bytes")
    elif what == "list":
        remote.put(listed, b'{"files": {}}')
    elif what == "gone":
        remote.delete([first])
    else:
        forged = b'{"files": {"../../store.json": "00"}}'
        remote.put(listed, forged)
    two = machine("two")
    if what == "forged":  # with a digest that is right
        folder = listed.rpartition("/")[0]
        remote.put(f"{folder[:-70]}{hashlib.sha256(forged).hexdigest()}.parts/{checkpoints.SHARD_LIST}", forged)
    with two.lock_trajectory(KEY):
        assert two.newest_checkpoint(KEY, 100) is None
        assert checkpoints.find_newest_shard_folder(two.paths, KEY, 100) is None
    assert ("is damaged: it is ignored" in caplog.text) == (what in ("list", "forged"))
    assert (two.paths.root / "store.json").exists()


def test_states_that_nobody_names_are_collected(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine("one")
    with one.lock_trajectory(KEY):
        written(one, 6)
    orphan = f"partial/{KEY}-4-{'cd' * 32}.parts/part-0.safetensors"
    one.mirror.remote.create_if_absent(orphan, b"of a worker that was killed")
    now = one.mirror.remote.now()
    monkeypatch.setattr(type(one.mirror.remote), "now", lambda _: now + 4000)
    collect_garbage(one)
    left = objects(one)
    assert orphan not in left
    assert len(left) == 3


def test_a_state_that_is_replaced_while_it_is_uploaded_is_whole(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads that take longer than the time between states still come to an end."""
    one = machine("one")
    create, dropped = type(one.mirror.remote).create_if_absent, []

    def late(self: Any, name: str, data: bytes) -> bool:
        if name.startswith("partial/") and not dropped:
            dropped.append(name)
            checkpoints.delete_shard_folders(one.paths, KEY, 6)
        return create(self, name, data)

    with one.lock_trajectory(KEY):
        folder = made(one, 6)
        expected = content(folder)
        monkeypatch.setattr(type(one.mirror.remote), "create_if_absent", late)
        one.upload_checkpoint(KEY, 6, folder)
    assert dropped
    assert not folder.exists()
    two = machine("two")
    with two.lock_trajectory(KEY):
        two.newest_checkpoint(KEY, 100)
        found = checkpoints.find_newest_shard_folder(two.paths, KEY, 100)
    assert found is not None
    assert content(found[1]) == expected


def test_a_state_that_is_dropped_on_its_way_is_not_left(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its files are created."""
    one = machine("one")
    create, dropped = type(one.mirror.remote).create_if_absent, threading.Event()

    def and_dropped(self: Any, name: str, data: bytes) -> bool:
        created = create(self, name, data)
        if threading.current_thread().name == "uploads" and not dropped.is_set():
            one.drop_checkpoints(KEY, 6)
            dropped.set()
        return created

    with one.lock_trajectory(KEY):
        folder = made(one, 6)
        monkeypatch.setattr(type(one.mirror.remote), "create_if_absent", and_dropped)
        one.upload_checkpoint(KEY, 6, folder)
        assert dropped.wait(10)
    assert soon_none(one)
