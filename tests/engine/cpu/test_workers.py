"""Threads that stay: each job runs once, errors come back when all have ended, and threads end with their owner."""

from __future__ import annotations

import gc
import signal
import threading
import time

import pytest

from ticketry.engine.cpu.workers import Workers


def _engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "ticketry-engine"}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_job_runs_once_on_a_thread_of_its_own(count: int) -> None:
    workers = Workers(count)
    for _ in range(200):
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


@pytest.mark.parametrize("failing", [0, 1, 2])
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


def test_threads_end_when_nobody_holds_them() -> None:
    before = _engine_threads()
    workers = Workers(3)
    workers.run([(time.sleep, (0,))] * 4)
    mine = _engine_threads() - before
    assert len(mine) == 3
    del workers
    gc.collect()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()
