"""Threads are kept on the cores that were chosen, and let go afterwards."""

from __future__ import annotations

import os
import threading

import pytest

from ticketry.errors import UsageError
from ticketry_engine.bench import timing as machine

pinning = pytest.mark.skipif(not machine.can_pin(), reason="this system cannot keep threads on cores")


def test_the_idlest_cores_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: (0, 1, 2, 3))
    monkeypatch.setattr(machine, "_read_siblings", str)
    busy = {0: 0.9, 1: 0.04, 2: 0.5, 3: 0.01}
    assert machine.choose_cores(1, busy) == (1,)  # as idle as 3, and first
    assert machine.choose_cores(2, busy) == (1, 3)
    assert machine.choose_cores(3, busy) == (1, 2, 3)
    with pytest.raises(UsageError, match="5 threads need as many cores, but this process may use 4"):
        machine.choose_cores(5, busy)


def test_twins_of_one_physical_core_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: (0, 1, 2, 3))
    monkeypatch.setattr(machine, "_read_siblings", lambda core: str(core % 2))
    assert machine.choose_cores(2, {}) == (0, 1)
    assert machine.choose_cores(2, {1: 0.9}) == (0, 3)
    assert machine.choose_cores(3, {}) == (0, 1, 2)


@pinning
def test_all_threads_are_kept_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    found: dict[str, set[int]] = {}
    go, stop = threading.Event(), threading.Event()

    def old() -> None:
        go.wait()
        found["old"] = os.sched_getaffinity(0)
        stop.wait()
        found["old afterwards"] = os.sched_getaffinity(0)

    def new() -> None:
        found["new"] = os.sched_getaffinity(0)
        stop.wait()
        found["new afterwards"] = os.sched_getaffinity(0)

    threads = [threading.Thread(target=old)]
    threads[0].start()
    with machine.pin_for_block([one]):
        threads.append(threading.Thread(target=new))
        threads[1].start()
        go.set()
        while len(found) < 2:
            pass
        assert os.sched_getaffinity(0) == {one}
    stop.set()
    for thread in threads:
        thread.join()
    assert found == {"old": {one}, "new": {one}, "old afterwards": before, "new afterwards": before}
    assert os.sched_getaffinity(0) == before


def test_cores_that_are_asked_for_are_ours_and_each_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: (0, 2))
    machine.check_cores([])
    machine.check_cores([2, 0])
    for wrong in ([1], [-1], [0, 99]):
        with pytest.raises(UsageError, match=r"core -?\d+ is not available to this process: choose among 0, 2"):
            machine.check_cores(wrong)
    with pytest.raises(UsageError, match="cores must differ, got 2, 2"):
        machine.check_cores([2, 2])


@pinning
def test_load_is_told_for_every_core() -> None:
    busy = machine._measure_load()
    assert set(machine.available_cores()) <= set(busy)
    assert all(-0.01 <= share <= 1.01 for share in busy.values())
