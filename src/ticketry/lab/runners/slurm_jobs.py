"""Train in Slurm jobs, through submitit; each job trains one segment after another.

A new segment goes to a job that has just finished another segment, or to a new job. So Python and torch start once for
many segments. At its time limit, or when it is preempted, a job stores the state of its training and returns to the
queue (submitit's checkpoint). If a job is lost, the runner sends its segment to another job.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, raise_signal
from typing import Any

from ticketry.errors import RunnerError, UsageError, needs
from ticketry.files import delete_tree_if_possible, write_atomically
from ticketry.lab.runners.executor_runner import ExecutorRunner, Pool
from ticketry.lab.runners.runner import RESOURCES, Needs, OnEvent, Place, default_workers
from ticketry.lab.runners.worker import execute

LOCAL = "local"
FOLDER = Path(".ticketry-slurm")
"""Folder for requests, answers and logs, inside the current folder; all nodes must have access to it."""
_PASSED_ON = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "gres", "comment")
_OPTIONS = (*_PASSED_ON, *RESOURCES, "time", "jobs", "signal", "linger", "folder")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?")
_CLOSED = "closed"
"""Name of the file by which a job says that it accepts no more requests."""
_POLL_SECONDS = 0.1
_FAILURES = 100
"""Number of successive errors of a network file system after which the search ends; fewer errors are ignored."""
_LEAVE_SECONDS = 5.0
"""Seconds that local jobs have to end after their folder was deleted."""
_QUEUE_SECONDS = 5.0
"""Seconds between two calls of squeue."""
_GONE_SECONDS = 15.0
"""Seconds after which a job without a result counts as lost if squeue does not list it."""


class SlurmRunner(ExecutorRunner):
    """Trains in Slurm jobs: ``slurm:partition=NAME,time=4:00:00,gpus=1``; ``slurm:local`` starts jobs here, for tests.

    Options are ``cpus``, ``gpus`` and ``memory`` (for one training), ``time`` (time limit of a job), ``jobs`` (maximum
    number of jobs), ``signal`` (seconds before the time limit at which a job stores its state), ``linger`` (seconds for
    which a job waits for another segment), ``folder`` (for requests and logs), and options of sbatch.
    """

    def __init__(self, workers: int, on_event: OnEvent, place: Place) -> None:
        super().__init__(_Jobs(place), place, on_event)

    @staticmethod
    def check(place: Place) -> None:
        """Raise an error if an option is invalid, or if submitit or sbatch is missing."""
        place.check(_OPTIONS)
        if place.address not in ("", LOCAL):
            raise UsageError(f"--on slurm: takes options or local, got {place.address!r}")
        parse_minutes(place.options.get("time", "60"))
        for option in ("jobs", "signal", "linger"):
            place.parse_count(option, 1)
        place.resources_per_training()
        if place.address == LOCAL and (own := [name for name in place.options if name in _PASSED_ON]):
            raise UsageError(f"--on slurm:local has no {own[0]}")
        needs("submitit", "slurm", "training on Slurm")
        if place.address != LOCAL and shutil.which("sbatch") is None:
            raise UsageError("--on slurm: this machine has no sbatch: begin the search on a node from which jobs are"
                             " submitted, or try it here with slurm:local")  # fmt: skip


def parse_minutes(text: str) -> float:
    """Return the minutes of a time in Slurm's notation: 90 (minutes), 4:00:00, or 2-12:00:00."""
    found = _TIME.fullmatch(text)
    if not found:
        raise UsageError(f"--on slurm: time must be 90 (minutes), 4:00:00 or 2-00:00:00, got {text!r}")
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[4] is not None or found[1] is not None:
        return days * 1440 + first * 60 + second + third / 60
    return first + second / 60


class LostJobError(Exception):
    """Raised if a job ended without an answer."""


# -- in a job ----------------------------------------------------------------------------------------------------------


@dataclass
class Chain:
    """Runs in a Slurm job as a function that answers the numbered request files in the job's folder, one by one.

    The function returns when the folder is deleted, when no request came for `linger` seconds, when less time is left
    than the last segment took, or after SIGTERM. The answer to the request in the file ``N`` is the file ``N.answer``.
    """

    folder: Path
    """The job's folder."""
    linger: float
    seconds: float
    """Time limit of the job in seconds, minus the advance notice of its end."""

    def __call__(self) -> int:
        began = idle_since = time.monotonic()
        answered, left = 0, list[int]()
        with contextlib.suppress(OSError):  # the folder is gone: the search has ended
            while not left and time.monotonic() - idle_since < self.linger:
                if (request := next_request_file(self.folder)) is None:
                    time.sleep(_POLL_SECONDS)
                    continue
                taken = time.monotonic()
                # SIGTERM ends the job; submitit's own signal, delivered again, puts it back into the queue.
                text = execute(
                    request.read_text(), pass_signal_on=lambda n: left.append(n) if n == SIGTERM else raise_signal(n)
                )
                write_atomically(request.with_suffix(".answer"), text.encode(), parents=False)
                answered += 1
                idle_since = time.monotonic()
                if idle_since - began + (idle_since - taken) > self.seconds:
                    break
            write_atomically(self.folder / _CLOSED, b"", parents=False)
        return answered

    def checkpoint(self) -> Any:
        """Return this function for submitit, which puts it back into the queue when the job reaches its time limit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def next_request_file(folder: Path) -> Path | None:
    """Return the first unanswered request file in a job's folder, or None; `OSError` if the folder was deleted."""
    names = _list_file_names(folder)
    waiting = sorted(name for name in names if name.isdecimal() and f"{name}.answer" not in names)
    return folder / waiting[0] if waiting else None


def _list_file_names(folder: Path) -> set[str]:
    """Return the names of the files in a folder; on a network file system this is more up to date than `exists`."""
    with os.scandir(folder) as found:
        return {one.name for one in found}


# -- in the driver -----------------------------------------------------------------------------------------------------


@dataclass
class _Item:
    """Holds a request, the resources that it needs, and the future for its answer."""

    text: str
    needs: Needs
    future: Future[str] = field(default_factory=Future)

    def set_result(self, result: str | Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # the request was given up
            if isinstance(result, str):
                self.future.set_result(result)
            else:
                self.future.set_exception(result)


@dataclass
class _Job:
    """Holds a job of submitit, its current request, and the time `seen` when squeue last listed the job."""

    folder: Path
    needs: Needs
    job: Any
    item: _Item | None = None
    number: int = 0
    seen: float = field(default_factory=time.monotonic)

    def send(self, item: _Item) -> None:
        self.item, self.number = item, self.number + 1
        write_atomically(self.folder / f"{self.number:09d}", item.text.encode(), parents=False)

    def set_result(self, result: str | Exception) -> None:
        if self.item:
            self.item.set_result(result)
        self.item = None


class _Jobs(Pool):
    """Distributes requests to Slurm jobs; a thread reads the answers and notices when jobs have ended."""

    def __init__(self, place: Place) -> None:
        self.name, self._place, self._local = "Slurm", place, place.address == LOCAL
        self._folder = Path(place.options.get("folder", str(FOLDER))).resolve()
        self._own = self._folder / f"search-{uuid.uuid4().hex}"
        try:
            self._own.mkdir(parents=True)
        except OSError as error:
            raise RunnerError(
                f"the folder of Slurm's jobs, {self._folder}, cannot be made ({error}): name another with folder="
            ) from None
        self._limit = place.parse_count("jobs", default_workers() if self._local else 100_000)
        self._waiting: deque[_Item] = deque()
        self._jobs: list[_Job] = []
        self._queue: set[str] | None = None
        self._next_queue = 0.0
        self._guard, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._poll_until_closed, daemon=True)
        self._thread.start()

    def submit(self, request: str, needs: Needs) -> Future[str]:
        item = _Item(request, needs)
        self._waiting.append(item)
        return item.future

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, LostJobError)

    def give_up(self, future: Future[str]) -> None:
        with self._guard:
            for item in [item for item in self._waiting if item.future is future]:
                self._waiting.remove(item)
            for one in self._jobs:
                if one.item and one.item.future is future:
                    one.job.cancel(check=False)
        future.cancel()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)
        delete_tree_if_possible(self._own)  # jobs see it and end
        if self._local:
            end = time.monotonic() + _LEAVE_SECONDS
            while any(not one.job.done() for one in self._jobs) and time.monotonic() < end:
                time.sleep(0.05)
        elif names := [one.job.job_id for one in self._jobs if not one.job.paths.result_pickle.exists()]:
            subprocess.run(["scancel", *names], capture_output=True, check=False, timeout=60)

    def _poll_until_closed(self) -> None:
        failures = 0
        while not self._closed.wait(_POLL_SECONDS):
            try:
                with self._guard:
                    self._poll_once()
                failures = 0
            except Exception as error:
                failures += 1
                if not (isinstance(error, OSError) and self._own.is_dir() and failures < _FAILURES):
                    message = f"Slurm's jobs cannot be managed: {type(error).__name__}: {str(error).strip()[-400:]}"
                    while self._waiting:
                        self._waiting.popleft().set_result(RunnerError(message))
                    for one in self._jobs:
                        one.set_result(RunnerError(message))

    def _poll_once(self) -> None:
        """Read new answers, handle jobs that have ended, and send waiting requests to free or new jobs."""
        if not self._local and time.monotonic() > self._next_queue:
            self._queue, self._next_queue = _list_queued_job_ids(), time.monotonic() + _QUEUE_SECONDS
        for one in list(self._jobs):
            ended = self._has_ended(one)  # asked before the last answer is read
            names = _list_file_names(one.folder)
            if one.item and (answer := f"{one.number:09d}.answer") in names:
                one.set_result((one.folder / answer).read_text())
            if ended or _CLOSED in names:
                self._jobs.remove(one)
                if one.item and _CLOSED in names:
                    self._waiting.appendleft(one.item)  # the job closed before it saw the request
                elif one.item:
                    one.set_result(_build_lost_job_error(one.job))
        for item in list(self._waiting):
            if free := next((one for one in self._jobs if one.item is None and one.needs == item.needs), None):
                self._waiting.remove(item)
                free.send(item)
        new = list(self._waiting)[: max(self._limit - len(self._jobs), 0)]
        for each in {item.needs for item in new}:
            self._submit_jobs([item for item in new if item.needs == each], each)

    def _submit_jobs(self, items: list[_Item], needs: Needs) -> None:
        """Submit a job for each request in `items`, all jobs as one job array."""
        limit = max(1, round(parse_minutes(self._place.options.get("time", "60"))))
        notice = self._place.parse_count("signal", 60)
        executor, linger = self._build_executor(limit, notice, needs), float(self._place.parse_count("linger", 30))
        folders = [self._own / uuid.uuid4().hex for _ in items]
        for folder in folders:
            folder.mkdir()
        with executor.batch() if len(items) > 1 else contextlib.nullcontext():
            jobs = [executor.submit(Chain(folder, linger, 60.0 * limit - notice)) for folder in folders]
        for item, folder, job in zip(items, folders, jobs, strict=True):
            self._waiting.remove(item)
            self._jobs.append(one := _Job(folder, needs, job))
            one.send(item)

    def _build_executor(self, limit: int, notice: int, needs: Needs) -> Any:
        import submitit

        if self._local:
            executor: Any = submitit.LocalExecutor(self._folder, max_num_timeout=1000)
            executor.update_parameters(
                timeout_min=limit,
                signal_delay_s=notice,
                gpus_per_node=round(needs.gpus),
                setup=["trap '' INT"],  # Ctrl-C in a terminal is the driver's, which asks jobs to stop
            )
            return executor
        options = self._place.options
        more: dict[str, Any] = {name: options[name] for name in _PASSED_ON if name in options}
        if needs.gpus:
            more["gpus_per_node"] = max(1, round(needs.gpus))
        if needs.memory:
            more["mem"] = f"{max(1, needs.memory // 2**20)}M"
        executor = submitit.SlurmExecutor(self._folder, max_num_timeout=1000)
        executor.update_parameters(
            time=limit,
            cpus_per_task=max(1, round(needs.cpus)),
            job_name="ticketry",
            array_parallelism=min(self._limit, 1000),
            signal_delay_s=notice,
            additional_parameters={"requeue": True},
            stderr_to_stdout=True,
            **more,
        )
        return executor

    def _has_ended(self, submitted: _Job) -> bool:
        if submitted.job.paths.result_pickle.exists():
            return True
        if self._local:
            return bool(submitted.job.done())
        if self._queue is None or submitted.job.job_id in self._queue:
            submitted.seen = time.monotonic()
        return time.monotonic() - submitted.seen > _GONE_SECONDS


def _list_queued_job_ids() -> set[str] | None:
    """Return the ids of this user's jobs in Slurm's queue; None if Slurm does not answer."""
    words = ["squeue", "--me", "-h", "-r", "-o", "%i"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return None if found.returncode else set(found.stdout.split())


def _build_lost_job_error(job: Any) -> Exception:
    """Return the error for a job that ended without an answer: the job's own error, or a `LostJobError`."""
    if job.paths.result_pickle.exists() and (error := job.exception()):
        return RunnerError(f"the job {job.job_id} failed: {str(error).strip()[-600:]}")
    for path in (job.paths.stderr, job.paths.stdout):
        with contextlib.suppress(OSError):
            if text := path.read_text(encoding="utf-8", errors="replace").strip():
                return LostJobError(f"the job {job.job_id} ended without an answer: {text[-300:]}")
    return LostJobError(f"the job {job.job_id} ended without an answer, and has no log")
