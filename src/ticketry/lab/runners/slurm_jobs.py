"""Training on Slurm: a job for each segment, through submitit; those that come together are one job array.

When its time is over, or it is pre-empted, a job gets a signal, stores its state, and is put back into the queue by
submitit. A job that is gone without an answer (killed, its node lost) is sent again by the runner.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticketry.errors import RunnerError, UsageError
from ticketry.lab.runners.chosen import default_workers
from ticketry.lab.runners.places import RESOURCES, Needs, Place, needs, needs_of
from ticketry.lab.runners.remote import Remote
from ticketry.lab.runners.remote_worker import work
from ticketry.lab.runners.runner import OnEvent

LOCAL = "local"
FOLDER = Path(".ticketry-slurm")
"""Where requests, answers and logs of jobs are, in the current folder, which all nodes have to see."""
_PASSED_ON = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "gres", "comment")
_OPTIONS = (*_PASSED_ON, *RESOURCES, "time", "jobs", "signal", "folder")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?")
_TOGETHER_SECONDS = 0.3
_POLL_SECONDS = 0.5
_QUEUE_SECONDS = 5.0
"""Between two questions for the queue's state."""
_GONE_SECONDS = 15.0
"""A job that the queue does not know for so long, and that has no answer, is lost."""


class SlurmRunner(Remote):
    """Trains in jobs of Slurm: ``slurm:partition=NAME,time=4:00:00,gpus=1``, or ``slurm:local`` to try it here.

    ``time``, ``cpus``, ``gpus`` and ``memory`` are of one training; ``jobs`` says how many may run at once, ``signal``
    how many seconds before its end a job is told, ``folder`` where jobs and their logs are kept.
    """

    def __init__(self, workers: int, on_event: OnEvent, place: Place) -> None:
        super().__init__(_Jobs(place), place, on_event)

    @staticmethod
    def check(place: Place) -> None:
        """Raise for what can be told to be wrong before a job is submitted."""
        place.check(_OPTIONS)
        if place.address not in ("", LOCAL):
            raise UsageError(f"--on slurm: has options alone, or local, and not {place.address!r}")
        minutes(place.options.get("time", "60"))
        place.count("jobs", 1)
        place.count("signal", 1)
        needs_of(place, 1, "cpu")
        if place.address == LOCAL and (own := [name for name in place.options if name in _PASSED_ON]):
            raise UsageError(f"--on slurm:local has no {own[0]}")
        needs("submitit", "slurm", "training on Slurm")
        if place.address != LOCAL and shutil.which("sbatch") is None:
            raise UsageError("--on slurm: this machine has no sbatch: begin the search on a node from which jobs are"
                             " submitted, or try it here with slurm:local")  # fmt: skip


def minutes(text: str) -> float:
    """Minutes of a time as Slurm writes it: 90 (minutes), 4:00:00, 2-12:00:00; `UsageError` for another text."""
    found = _TIME.fullmatch(text)
    if not found:
        raise UsageError(f"--on slurm: time is written 90 (minutes), 4:00:00 or 2-00:00:00, not {text!r}")
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[4] is not None or found[1] is not None:
        return days * 1440 + first * 60 + second + third / 60
    return first + second / 60


class Job:
    """What a job runs. After a signal that its time is over it is put back, with the same request."""

    def __call__(self, request: str) -> str:
        return work(request)

    def checkpoint(self, request: str) -> Any:
        """Called by submitit once the state is stored."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(), request)


class LostJobError(Exception):
    """A job that left no answer."""


@dataclass
class _Submitted:
    job: Any
    future: Future[str]
    since: float
    seen: float


class _Jobs:
    """Segments as jobs; one thread submits what came together, and looks for answers."""

    name = "Slurm"

    def __init__(self, place: Place) -> None:
        self._place, self._local = place, place.address == LOCAL
        folder = Path(place.options.get("folder", str(FOLDER))).resolve()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise RunnerError(f"the folder of Slurm's jobs, {folder}, cannot be made: name another with folder=")
        self._folder = folder
        self._waiting: list[tuple[str, Needs, Future[str]]] = []
        self._jobs: dict[Future[str], _Submitted] = {}
        self._guard, self._closed = threading.Lock(), threading.Event()
        self._ending: list[Any] = []
        """Local jobs that have answered, whose processes are still to be waited for."""
        self._asked_at = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: str, needs: Needs) -> Future[str]:
        future: Future[str] = Future()
        with self._guard:
            self._waiting.append((request, needs, future))
        return future

    def room(self) -> int | None:
        """Slurm's queue holds any number, unless it was said how many run at once."""
        if self._local:
            return self._place.count("jobs", default_workers())
        return self._place.count("jobs", 1) if "jobs" in self._place.options else None

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, LostJobError)

    def give_up(self, future: Future[str]) -> None:
        with self._guard:
            submitted = self._jobs.get(future)
        if submitted:
            submitted.job.cancel(check=False)
        else:
            future.cancel()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)
        for submitted in self._jobs.values():
            submitted.job.cancel(check=False)
            self._ending += [submitted.job] if self._local else []
        end = time.monotonic() + 5
        while any(not job.done() for job in self._ending) and time.monotonic() < end:
            time.sleep(0.05)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = _TOGETHER_SECONDS
        while not self._closed.wait(pause):
            self._submit_waiting()
            self._look()
            pause = _TOGETHER_SECONDS if self._waiting else _POLL_SECONDS

    def _submit_waiting(self) -> None:
        with self._guard:
            waiting, self._waiting = self._waiting, []
        waiting = [one for one in waiting if one[2].set_running_or_notify_cancel()]
        for each in dict.fromkeys(one[1] for one in waiting):
            same = [one for one in waiting if one[1] == each]
            try:
                jobs = self._submitted([request for request, *_ in same], each)
            except Exception as error:
                told = RunnerError(f"Slurm takes no job: {str(error).strip()[-400:]}")
                for *_, future in same:
                    future.set_exception(told)
                continue
            now = time.monotonic()
            with self._guard:
                self._jobs |= {one[2]: _Submitted(job, one[2], now, now) for one, job in zip(same, jobs, strict=True)}

    def _submitted(self, requests: list[str], needs: Needs) -> list[Any]:
        executor = self._executor(needs)
        if len(requests) == 1 or self._local:
            return [executor.submit(Job(), request) for request in requests]
        with executor.batch():
            return [executor.submit(Job(), request) for request in requests]

    def _executor(self, needs: Needs) -> Any:
        """For trainings with the same needs. A time limit is no reason to give up: the training goes on behind it."""
        import submitit

        options = self._place.options
        time_limit = max(1, round(minutes(options.get("time", "60"))))
        notice = self._place.count("signal", 60)
        if self._local:
            executor: Any = submitit.LocalExecutor(self._folder, max_num_timeout=1000)
            executor.update_parameters(
                timeout_min=time_limit,
                signal_delay_s=notice,
                gpus_per_node=round(needs.gpus),
                setup=["trap '' INT"],  # Ctrl-C in a terminal is the driver's, which asks them to stop
            )
            return executor
        executor = submitit.SlurmExecutor(self._folder, max_num_timeout=1000)
        more: dict[str, Any] = {name: options[name] for name in _PASSED_ON if name in options}
        if needs.gpus:
            more["gpus_per_node"] = max(1, round(needs.gpus))
        if needs.memory:
            more["mem"] = f"{max(1, needs.memory // 2**20)}M"
        executor.update_parameters(
            time=time_limit,
            cpus_per_task=max(1, round(needs.cpus)),
            job_name="ticketry",
            array_parallelism=self._place.count("jobs", 1000),
            signal_delay_s=notice,
            additional_parameters={"requeue": True},
            stderr_to_stdout=True,
            **more,
        )
        return executor

    def _look(self) -> None:
        with self._guard:
            jobs = list(self._jobs.values())
        missing = [one for one in jobs if not self._answered(one)]
        if self._local:
            lost = [one for one in missing if one.job.done() and not self._answered(one)]
        else:
            lost = self._not_in_the_queue(missing)
        for one in lost:
            self._end(one)
            one.future.set_exception(
                LostJobError(f"the job {one.job.job_id} ended without an answer: {_last(one.job)}")
            )

    def _answered(self, one: _Submitted) -> bool:
        """Take the answer of a job, if it has one."""
        if one.future.done():
            return True
        path = one.job.paths.result_pickle
        if not path.exists():
            return False
        self._end(one)
        try:
            kind, told = pickle.loads(path.read_bytes())  # written by `Job`, into our own folder
        except Exception as error:
            one.future.set_exception(LostJobError(f"the answer of job {one.job.job_id} cannot be read: {error}"))
            return True
        if kind == "success":
            one.future.set_result(told)
        else:
            one.future.set_exception(RunnerError(f"the job {one.job.job_id} failed: {str(told).strip()[-600:]}"))
        return True

    def _end(self, one: _Submitted) -> None:
        with self._guard:
            self._jobs.pop(one.future, None)
        if self._local:
            self._ending = [job for job in (*self._ending, one.job) if not job.done()]

    def _not_in_the_queue(self, jobs: Iterable[_Submitted]) -> list[_Submitted]:
        now, lost = time.monotonic(), list[_Submitted]()
        if now - self._asked_at < _QUEUE_SECONDS:
            return []
        self._asked_at = now
        known = _queue()
        if known is None:
            return []
        for one in jobs:
            if one.job.job_id in known:
                one.seen = now
            elif now - max(one.seen, one.since) > _GONE_SECONDS:
                lost.append(one)
        return [one for one in lost if not self._answered(one)]


def _queue() -> set[str] | None:
    """The jobs of this user that are waiting, running or ending; None if Slurm does not answer just now."""
    told = subprocess.run(
        ["squeue", "--me", "-h", "-r", "-o", "%i %T"], capture_output=True, text=True, check=False, timeout=60
    )
    if told.returncode:
        return None
    lines = [line.split() for line in told.stdout.splitlines()]
    return {words[0] for words in lines if words}


def _last(job: Any) -> str:
    """The last of a job's log."""
    for path in (job.paths.stderr, job.paths.stdout):
        with contextlib.suppress(OSError):
            text: str = path.read_text(encoding="utf-8", errors="replace").strip()
            if text:
                return text[-300:]
    return "it has no log"
