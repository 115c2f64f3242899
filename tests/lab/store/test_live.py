"""What a driver and its workers tell each other through files of the store."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ticketry.errors import OutsideError
from ticketry.lab.store.live import live_at
from ticketry.lab.store.maintenance import check, collect
from ticketry.lab.store.opening import open_store


def test_a_driver_and_a_worker(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    driver, worker = live_at(store.address, "one"), live_at(store.address, "one")
    assert not worker.begun()
    driver.begin()
    assert worker.begun()
    assert not worker.stop_asked()
    assert driver.told("a@3") == {}
    worker.tell("a@3", {"kind": "progress", "step": 2})
    worker.tell("b@3", {"kind": "waiting", "step": 0})
    assert driver.told("a@3") == {"kind": "progress", "step": 2}
    driver.forget("a@3")
    assert driver.told("a@3") == {}
    driver.ask_to_stop()
    assert worker.stop_asked()
    assert not live_at(store.address, "another").begun()
    driver.end()
    assert not (store.paths.live / "one").exists()


def test_a_driver_that_has_ended_is_told_nothing(tmp_path: Path) -> None:
    """Else a worker that goes on for a while would make its folder again."""
    store = open_store(tmp_path / "store")
    live = live_at(store.address, "one")
    live.begin()
    live.end()
    live.tell("a@3", {"step": 2})
    assert live.stop_asked()
    assert not (store.paths.live / "one").exists()


def test_what_is_no_word_of_a_worker(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    live = live_at(store.address, "one")
    live.begin()
    live.tell("a@3", {"step": 2})
    (file,) = (store.paths.live / "one").glob("*.json")
    for text in ("", "[1]", "{", "\xff"):
        file.write_text(text, encoding="latin-1")
        assert live.told("a@3") == {}
    with pytest.raises(OutsideError):
        live_at(store.address, "../elsewhere").begin()


def test_what_a_killed_driver_left_is_freed(tmp_path: Path) -> None:
    """Once it is old: a driver that lives gives signs of life."""
    store = open_store(tmp_path / "store")
    for name in ("old", "new"):
        live = live_at(store.address, name)
        live.begin()
        live.tell("a@3", {"step": 2})
    for path in (store.paths.live / "old").iterdir():
        os.utime(path, (time.time() - 7200,) * 2)
    assert check(store).sound
    assert collect(store)[0] == 2
    assert not list((store.paths.live / "old").iterdir())
    assert live_at(store.address, "new").begun()
