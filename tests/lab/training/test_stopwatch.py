"""What counts as training: a process that is really stopped, and steps that take long."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from ticketry.lab.training import job
from ticketry.lab.training.job import Stopwatch

BUSY = """
import time
from ticketry.lab.training import job

job.STANDSTILL = 0.5
watch, told, began = job.Stopwatch(), 0.0, time.monotonic()
watch.start(began)
end = time.process_time() + 2
print("began", flush=True)
while time.process_time() < end:
    until = time.process_time() + 0.01
    while time.process_time() < until:
        pass
    told += watch.lap(time.monotonic())
print(told, time.monotonic() - began)
"""


def test_a_process_that_is_stopped_does_not_train() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        told, passed = map(float, process.stdout.readline().split())
    assert told <= passed - 1.8


@pytest.mark.parametrize(
    ("passed", "worked", "counted"),
    [
        (0.5, 0.0, 0.5),  # a short wait, for a disk say
        (29.0, 0.1, 29.0),
        (300.0, 290.0, 300.0),  # a step that takes long
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
