"""What counts as training: a process that is really stopped, and steps that take long."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection

import pytest

from ticketry.lab.training import job
from ticketry.lab.training.job import Stopwatch


def _work(results: Connection) -> None:
    job.STANDSTILL = 0.2
    watch, counted, began = Stopwatch(), 0.0, time.monotonic()
    watch.start(began)
    results.send("began")
    end = time.process_time() + 0.25
    while time.process_time() < end:
        until = time.process_time() + 0.002
        while time.process_time() < until:
            pass
        counted += watch.lap(time.monotonic())
    results.send((counted, time.monotonic() - began))


@pytest.mark.skipif(sys.platform != "linux", reason="needs signals and fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the fork of a process with threads
def test_stopped_process_does_not_train() -> None:
    results, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=[sender])
    process.start()
    assert process.pid is not None
    assert results.recv() == "began"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.6)
    os.kill(process.pid, signal.SIGCONT)
    counted, passed = results.recv()
    process.join()
    assert counted <= passed - 0.5


@pytest.mark.parametrize(
    ("passed", "worked", "counted"),
    [
        (29.0, 0.1, 29.0),  # a short wait, for a disk say
        (300.0, 8.0, 300.0),  # others' work on the same processors
        (300.0, 0.2, 0.2),  # it stood still
    ],
)
def test_only_a_standstill_is_left_out(
    passed: float, worked: float, counted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = iter([10.0, 10.0 + worked, 10.0 + worked])
    monkeypatch.setattr(job.time, "process_time", lambda: next(busy))
    watch = Stopwatch()
    watch.start(1000.0)
    assert watch.lap(1000.0 + passed) == pytest.approx(counted)
