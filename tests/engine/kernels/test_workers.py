"""Threads that stay: each job runs once, errors come back when all have ended, and threads end with their owner."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import types
import weakref
from typing import Any

import pytest

from ticketry_engine.kernels import program as module
from ticketry_engine.kernels.program import Workers, count_cores


def _engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "ticketry-engine"}


@pytest.mark.parametrize("count", [0, 3])
def test_each_job_runs_once_on_a_thread_of_its_own(count: int) -> None:
    workers = Workers(count)
    for _ in range(50):
        ran: list[tuple[int, int]] = []
        # all have to be there at once: none waits for another's thread
        together = threading.Barrier(count + 1)

        def job(number: int, ran: list = ran, together: threading.Barrier = together) -> None:
            together.wait(10)
            ran.append((number, threading.get_ident()))

        workers.run([(job, (number,)) for number in range(count + 1)])
        assert sorted(number for number, _ in ran) == list(range(count + 1))
        assert len({thread for _, thread in ran}) == count + 1
        assert dict(ran)[0] == threading.get_ident()


def test_fewer_jobs_than_threads_are_fine_and_more_are_told() -> None:
    workers, ran = Workers(2), []
    workers.run([(ran.append, (1,))])
    workers.run([(ran.append, (2,)), (ran.append, (3,))])
    assert sorted(ran) == [1, 2, 3]
    with pytest.raises(ValueError, match="4 jobs for 3 threads"):
        workers.run([(ran.append, (4,))] * 4)


def test_interrupted_among_their_starts_those_that_have_begun_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has the workers then, so nobody else could dismiss them."""
    before, begin = _engine_threads(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        if len(_engine_threads() - before) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        Workers(3)
    begun = _engine_threads() - before
    assert len(begun) == 2
    del caught
    gc.collect()
    for thread in begun:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_is_raised_when_all_jobs_have_ended(failing: int) -> None:
    workers, ended = Workers(2), []

    def job(number: int) -> None:
        if number == failing:
            raise ZeroDivisionError(number)
        time.sleep(0.05)
        ended.append(number)

    with pytest.raises(ZeroDivisionError, match=str(failing)):
        workers.run([(job, (number,)) for number in range(3)])
    assert sorted(ended) == [number for number in range(3) if number != failing]


def test_an_interruption_waits_for_the_jobs() -> None:
    """Whose memory is freed once the call has ended."""
    workers, ended = Workers(1), []

    def long() -> None:
        time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)  # the main thread waits for this one
        time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        workers.run([(time.sleep, (0,)), (long, ())])
    assert ended


class _Interrupted:
    """Interrupts whoever runs code of the workers' module, at its n-th instruction."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.done = False

    def __call__(self, frame: types.FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left < 0 and not self.done:
                self.done = True
                raise KeyboardInterrupt
        return self


@pytest.mark.usefixtures("quick_collection")
def test_wherever_the_caller_is_interrupted_all_jobs_run_or_none() -> None:
    """They wait for each other: did only some begin, those would wait for ever."""
    number, seen = 0, set()
    while True:
        workers, interrupted = Workers(2), _Interrupted(number)
        together, ran = threading.Barrier(3), []

        def job(together: threading.Barrier = together, ran: list = ran) -> None:
            together.wait(20)
            ran.append(True)

        raised, measured = False, sys.gettrace()  # coverage's, which would see nothing more if it were lost here
        sys.settrace(interrupted)
        try:
            workers.run([(job, ())] * 3)
        except KeyboardInterrupt:
            raised = True
        finally:
            sys.settrace(measured)
        assert len(ran) in ((0, 3) if raised else (3,)), f"interrupted at instruction {number}"
        if not interrupted.done:
            break
        seen.add(len(ran))
        number += 1
        del workers
        gc.collect()  # now, not while the next ones are watched
    assert seen == {0, 3}
    assert number > 20


def test_what_jobs_use_lives_until_they_have_ended() -> None:
    """Also if the caller does not wait any more, and lets go of the workers."""

    class Used:
        pass

    used, release, ended = Used(), threading.Event(), []
    alive = weakref.ref(used)

    def job() -> None:
        release.wait(20)
        gc.collect()
        ended.append(alive() is not None)

    workers = Workers(1)
    call = module._JobBatch(used, 1)
    workers._queues[0].put(((job, ()), call))
    mine = [thread for thread in _engine_threads() if thread.is_alive()]
    del workers, used, call
    release.set()
    for thread in mine:
        thread.join(20)
    assert ended == [True]
    gc.collect()
    assert alive() is None


def test_cores_are_those_that_the_thread_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert count_cores() == len(before)
