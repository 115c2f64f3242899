"""Words between a driver and workers on other machines, through a shared store."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ticketry.lab.remote.live_objects import LiveObjects
from ticketry.lab.store.live import Live, live_at
from ticketry.lab.store.opening import remote_at


def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.05)


def on(machine: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> Live:
    monkeypatch.setenv("TICKETRY_CACHE", str(machine))
    return live_at(address, "driver")


@pytest.mark.slow
def test_progress_comes_and_a_stop_goes(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, early = (on(tmp_path / name, address, monkeypatch) for name in ("one", "two"))
    assert not early.begun()
    driver.begin()
    worker = on(tmp_path / "two", address, monkeypatch)
    assert worker.begun()
    assert not worker.stop_asked()
    assert driver.told("key") == {}
    for step in range(20):
        worker.tell("key", {"kind": "progress", "step": step})
    until(lambda: driver.told("key") == {"kind": "progress", "step": 19})
    driver.ask_to_stop()
    until(worker.stop_asked)
    driver.end()
    assert not list(remote_at(address).list("live"))
    until(lambda: not worker.begun())


def test_training_never_waits_for_a_word(tmp_path: Path) -> None:
    class Slow:
        """A store that answers after a second."""

        address, count = "file:///slow", 0

        def impatient(self, seconds: float) -> Slow:
            return self

        def read(self, name: str) -> None:
            time.sleep(1)

        def replace(self, name: str, data: bytes) -> None:
            self.count += 1
            time.sleep(1)

    slow = Slow()
    files = LiveObjects(slow, "driver")  # type: ignore[arg-type]
    assert not files.exists("stop")
    began = time.monotonic()
    for _ in range(100):
        files.exists("stop")
        files.write_later("word", b"{}")
    assert time.monotonic() - began < 0.5
    until(lambda: slow.count > 0)
    assert slow.count <= 2
