"""Checks for every runner: equal bits, also when workers are killed or stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ticketry.errors import InterruptedTrainingError
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Event
from ticketry.lab.store.maintenance import check
from ticketry.search import method
from ticketry.tasks import catalogue

LONG = "4000it"
"""Seconds that a disturbed training takes."""


def searched(lab: Lab) -> list[tuple[Any, ...]]:
    """A small search, all of its results."""
    found = method("iterative")
    task = catalogue.get("digits")
    settings = found.Settings(levels=2, rewind="3it")
    runs = found(lab, task, settings, recipe=task.recipe.changed(length="30it"), replicates=2)
    return [(one.mask, one.result.model, one.result.metrics) for run in runs for one in run]


def trained(lab: Lab) -> tuple[Any, ...]:
    """A training of some seconds."""
    task = catalogue.get("digits")
    result = lab.train(lab.segment(task, start=0, recipe=task.recipe.changed(length=LONG)))
    return result.model, result.metrics


class Disturbed:
    """A training whose worker gets a signal as soon as it has stored a state."""

    def __init__(self, number: signal.Signals, times: int = 1) -> None:
        self.number, self.times, self.kinds = number, times, list[str]()
        self.lab: Lab | None = None
        self.killed: list[int] = []

    def on_event(self, event: Event) -> None:
        self.kinds.append(event.kind)
        if event.kind != "progress" or event.step < 200 or len(self.killed) >= self.times or self.lab is None:
            return
        runner: Any = self.lab._runner
        (live,) = runner._live.values()
        worker = live.read_message(event.key).get("worker", "")
        pid = int(worker.partition("process ")[2].rstrip(")"))
        if pid not in self.killed and any((self.lab.store.paths.partial).glob("*")):
            self.killed.append(pid)
            os.kill(pid, self.number)


def disturbed(store: Path, number: signal.Signals, **options: Any) -> tuple[tuple[Any, ...], Disturbed, Lab]:
    """Return the result of a training whose worker was killed or stopped in the middle."""
    watching = Disturbed(number)
    with Lab(store, device="cpu", checkpoint_seconds=0.2, on_event=watching.on_event, **options) as lab:
        watching.lab = lab
        found = trained(lab)
        assert check(lab.store).is_undamaged
    return found, watching, lab


def stopped_and_gone_on(store: Path, make: Callable[..., Lab]) -> tuple[Any, ...]:
    """Return the result of a training that its driver stopped in the middle and another driver continued."""
    events: list[Event] = []
    with make(store, on_event=events.append) as lab:

        def stop() -> None:
            end = time.monotonic() + 120
            while not any(event.kind == "progress" and event.step for event in events) and time.monotonic() < end:
                time.sleep(0.05)
            lab.stop()

        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(InterruptedTrainingError):
            trained(lab)
        thread.join()
        assert any(lab.store.paths.partial.glob("*")), "its state was stored"
    with make(store) as lab:
        return trained(lab)


def interrupted_command(folder: Path, on: str, environment: Mapping[str, str] | None = None) -> tuple[int, float, str]:
    """Ctrl-C of a command while a worker elsewhere trains: exit code, seconds until it ended, what it said."""
    words = ["search", "iterative", "--task", "digits", "--levels", "1", "--replicates", "1", "--controls", "none"]
    words += ["--recipe.length", "100000it", "--on", on, "--store", "store"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ticketry", *words],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 150
    while not any(_trains(file) for file in (folder / "store" / "live").glob("*/*.json")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    time.sleep(1)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=120)[0]
    return process.returncode, time.monotonic() - began, told


def _trains(file: Path) -> bool:
    """Whether the file reports a training step; reports of a search or its driver have none."""
    try:
        return bool(json.loads(file.read_text()).get("step"))
    except (OSError, ValueError):
        return False  # just being replaced


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Until somebody listens there."""
    end = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.2)
        else:
            return


def ended(process: subprocess.Popen[Any]) -> None:
    """End a process that was started here."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
