"""Pilots: requests are taken once, in their order, and none is lost when a pilot is told to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ticketry.lab.runners import pilot
from ticketry.lab.runners.pilot import Box, Pilot

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform == "win32", reason="jobs of Slurm run on Linux"),
]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """An empty one."""
    made = Box(tmp_path / "box")
    made.make()
    return made


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Lets the pilot of this process be job 7, and its trainings a function; gives what it was asked to train."""

    def with_work(work: Callable[[str], Any]) -> list[str]:
        asked: list[str] = []

        def worked(request: str, leaving: Callable[[], bool]) -> str:
            asked.append(request)
            return str(work(request))

        monkeypatch.setattr(pilot, "work", worked)
        monkeypatch.setattr(pilot, "_job", lambda: "7")
        return asked

    return with_work


def test_requests_are_taken_once_and_in_their_order(box: Box) -> None:
    for number in range(40):
        box.put(f"{number:09d}", f"request {number}")
    taken: dict[str, list[str]] = {"a": [], "b": [], "c": []}

    def take(name: str) -> None:
        while found := box.take(name):
            assert found[1] == f"request {int(found[0])}"
            taken[name].append(found[0])
            box.answer(found[0], name, "done")

    threads = [threading.Thread(target=take, args=(name,)) for name in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for found in taken.values() for name in found) == [f"{number:09d}" for number in range(40)]
    assert all(found == sorted(found) for found in taken.values())
    assert len(box.answered()) == 40
    assert not box.taken()


def test_what_is_taken_can_not_be_withdrawn_and_what_is_given_back_can(box: Box) -> None:
    box.put("1", "first")
    box.put("2", "second")
    assert box.take("a") == ("1", "first")
    assert not box.withdraw("1")
    assert box.taken() == {"a": "1"}
    box.give_back("b")
    assert box.taken() == {"a": "1"}, "another pilot's"
    box.give_back("a")
    assert not box.taken()
    assert box.withdraw("1")
    assert box.take("b") == ("2", "second")


def test_a_pilot_trains_what_comes_and_ends_when_nothing_does(box: Box, trains: Callable[..., list[str]]) -> None:
    asked = trains(lambda request: box.put("2", "later") if request == "first" else None)
    box.put("1", "first")
    began = time.monotonic()
    assert Pilot(box.root, patience=0.4, seconds=1000)() == 2
    assert 0.4 <= time.monotonic() - began < 20
    assert asked == ["first", "later"]
    assert sorted(box.answered()) == ["1", "2"]


def test_a_pilot_leaves_what_its_time_is_not_long_enough_for(box: Box, trains: Callable[..., list[str]]) -> None:
    asked = trains(lambda request: time.sleep(0.3))
    for name in "123":
        box.put(name, name)
    assert Pilot(box.root, patience=30, seconds=0.5)() == 1
    assert asked == ["1"]
    assert box.take("another") == ("2", "2")


def test_a_job_that_was_begun_again_takes_up_what_it_had(box: Box, trains: Callable[..., list[str]]) -> None:
    """As after its node went away, which Slurm does by itself and tells nobody."""
    box.put("1", "first")
    box.put("2", "second")
    assert box.take("7") == ("1", "first")
    asked = trains(lambda request: None)
    Pilot(box.root, patience=0.2, seconds=1000)()
    assert asked == ["first", "second"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=lambda number: number.name)
def test_told_to_end_while_it_waits_it_ends(box: Box, trains: Callable[..., list[str]], number: signal.Signals) -> None:
    trains(lambda request: None)
    before = signal.signal(number, signal.SIG_IGN)  # should it come between two waits
    timers = [threading.Timer(0.3 + 0.05 * number_of, os.kill, (os.getpid(), number)) for number_of in range(9)]
    began = time.monotonic()
    try:
        for timer in timers:
            timer.start()
        assert Pilot(box.root, patience=30, seconds=1000)() == 0
        assert time.monotonic() - began < 20
    finally:
        for timer in timers:
            timer.join()
        signal.signal(number, before)


def test_told_to_end_in_a_training_it_answers_and_takes_no_other(box: Box, trains: Callable[..., list[str]]) -> None:
    box.put("1", "first")
    box.put("2", "second")
    trains(lambda request: os.kill(os.getpid(), signal.SIGTERM))
    assert Pilot(box.root, patience=30, seconds=1000)() == 1
    assert box.answered() == ["1"]
    assert box.take("another") == ("2", "second")


def test_a_pilot_whose_search_is_over_ends(box: Box, trains: Callable[..., list[str]]) -> None:
    trains(lambda request: None)
    threading.Timer(0.5, box.remove).start()
    began = time.monotonic()
    assert Pilot(box.root, patience=60, seconds=1000)() == 0
    assert time.monotonic() - began < 30


def test_what_goes_back_into_the_queue_of_slurm_leaves_its_request_to_any(
    box: Box, trains: Callable[..., list[str]]
) -> None:
    submitit_helpers = pytest.importorskip("submitit.helpers", reason="submitit is not installed")
    trains(lambda request: None)
    box.put("1", "first")
    one = Pilot(box.root, patience=0.2, seconds=1000)
    assert box.take("7")
    again = one.checkpoint()
    assert isinstance(again, submitit_helpers.DelayedSubmission)
    assert again.function == one
    assert box.take("another") == ("1", "first")
