"""What a driver and its workers tell each other through files of the store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ticketry.errors import OutsideError
from ticketry.lab.store.live import Messages, messages_at
from ticketry.lab.store.maintenance import check, collect_garbage
from ticketry.lab.store.store import open_remote, open_store


def test_a_driver_and_a_worker(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    driver, worker = messages_at(store.address, "one"), messages_at(store.address, "one")
    assert not worker.is_driver_active()
    driver.announce_driver()
    assert worker.is_driver_active()
    assert not worker.is_stop_requested()
    assert driver.read_message("a@3") == {}
    worker.report("a@3", {"kind": "progress", "step": 2})
    worker.report("b@3", {"kind": "waiting", "step": 0})
    assert driver.read_message("a@3") == {"kind": "progress", "step": 2}
    driver.delete_message("a@3")
    assert driver.read_message("a@3") == {}
    driver.request_stop()
    assert worker.is_stop_requested()
    assert not messages_at(store.address, "another").is_driver_active()
    driver.delete_all()
    assert not (store.paths.live / "one").exists()


def test_a_driver_that_has_ended_is_told_nothing(tmp_path: Path) -> None:
    """Else a worker that goes on for a while would make its folder again."""
    store = open_store(tmp_path / "store")
    live = messages_at(store.address, "one")
    live.announce_driver()
    live.delete_all()
    live.report("a@3", {"step": 2})
    assert live.is_stop_requested()
    assert not (store.paths.live / "one").exists()


def test_what_is_no_word_of_a_worker(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    live = messages_at(store.address, "one")
    live.announce_driver()
    live.report("a@3", {"step": 2})
    (file,) = (store.paths.live / "one").glob("*.json")
    for text in ("", "[1]", "{", "\xff"):
        file.write_text(text, encoding="latin-1")
        assert live.read_message("a@3") == {}
    with pytest.raises(OutsideError):
        messages_at(store.address, "../elsewhere").announce_driver()


def test_what_a_killed_driver_left_is_freed(tmp_path: Path) -> None:
    """Once it is old: a driver that lives gives signs of life."""
    store = open_store(tmp_path / "store")
    for name in ("old", "new"):
        live = messages_at(store.address, name)
        live.announce_driver()
        live.report("a@3", {"step": 2})
    for path in (store.paths.live / "old").iterdir():
        os.utime(path, (time.time() - 7200,) * 2)
    assert check(store).is_undamaged
    assert collect_garbage(store)[0] == 2
    assert not list((store.paths.live / "old").iterdir())
    assert messages_at(store.address, "new").is_driver_active()


def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_progress_and_a_stop_through_a_shared_store(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(machine: str) -> Messages:
        monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / machine))
        return messages_at(address, "driver")

    driver, early = on("one"), on("two")
    assert not early.is_driver_active()
    driver.announce_driver()
    worker = on("two")
    assert worker.is_driver_active()
    assert not worker.is_stop_requested()
    assert driver.read_message("key") == {}
    for step in range(20):
        worker.report("key", {"kind": "progress", "step": step})
    until(lambda: driver.read_message("key") == {"kind": "progress", "step": 19})
    driver.request_stop()
    until(worker.is_stop_requested)
    driver.delete_all()
    assert not list(open_remote(address).list("live/"))
    until(lambda: not worker.is_driver_active())


def test_training_never_waits_for_a_message() -> None:
    class Slow:
        """A store that answers late."""

        count = 0

        def get(self, name: str) -> bytes | None:
            time.sleep(0.6)
            return b"{}" if name.endswith("driver") else None

        def put(self, name: str, data: bytes) -> None:
            self.count += 1
            time.sleep(0.6)

    slow = Slow()
    live = Messages(slow, "driver", remote=True)  # type: ignore[arg-type]
    assert not live.is_stop_requested()
    began = time.monotonic()
    for _ in range(100):
        assert not live.is_stop_requested()
        live.report("key", {"step": 1})
    assert time.monotonic() - began < 0.5
    until(lambda: slow.count > 0)
    assert slow.count <= 2
