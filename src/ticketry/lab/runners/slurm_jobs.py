"""Training on Slurm: jobs, through submitit, each of which is a pilot that trains segment after segment.

There are as many jobs as segments that could be trained at once; those that are needed together are one job array.
When its time is over, or it is preempted, a job gets a signal, stores its state, and is put back into the queue by
submitit. What a job trained that is gone without an answer (killed, its node lost) is sent again by the runner.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ticketry.errors import RunnerError, UsageError, needs
from ticketry.lab.runners.chosen import default_workers
from ticketry.lab.runners.job_folder import JobFolder
from ticketry.lab.runners.pilot import Box, Pilot
from ticketry.lab.runners.places import RESOURCES, Needs, Place, needs_of
from ticketry.lab.runners.process_guard import kill_with_children
from ticketry.lab.runners.remote import Remote
from ticketry.lab.runners.runner import OnEvent

LOCAL = "local"
FOLDER = Path(".ticketry-slurm")
"""Where requests, answers and logs of jobs are, in the current folder, which all nodes have to see."""
_PASSED_ON = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "gres", "comment")
_OPTIONS = (*_PASSED_ON, *RESOURCES, "time", "jobs", "signal", "linger", "folder")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?")
_TOGETHER_SECONDS = 0.3
"""For which jobs are missing before they are submitted: a pilot that has just ended a training takes the next."""
_LOOK_SECONDS = 0.1
_LINGER_SECONDS = 30
"""For which a pilot without anything to do stays, by default."""
_CANCELLED_AT_ONCE = 500
_LEAVE_SECONDS = 5.0
"""That jobs of this machine have to end by themselves once their box is gone."""
_QUEUE_SECONDS = 5.0
"""Between two questions for the queue's state."""
_GONE_SECONDS = 15.0
"""A job that the queue does not know for so long, and that has no answer, is lost."""


class SlurmRunner(Remote):
    """Trains in jobs of Slurm: ``slurm:partition=NAME,time=4:00:00,gpus=1``, or ``slurm:local`` to try it here.

    ``cpus``, ``gpus`` and ``memory`` are of one training, ``time`` of a job; ``jobs`` says how many may run at once,
    ``signal`` how many seconds before its end a job is told, ``linger`` how many it waits for another training,
    ``folder`` where jobs and their logs are kept.
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
        place.count("linger", 1)
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


class LostJobError(Exception):
    """A job that left no answer."""


class _Jobs:
    """Fleets of pilots, one for each kind of needs, in folders of this driver; one thread looks after them."""

    name = "Slurm"

    def __init__(self, place: Place) -> None:
        self._place, self._local = place, place.address == LOCAL
        folder = Path(place.options.get("folder", str(FOLDER))).resolve()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise RunnerError(f"the folder of Slurm's jobs, {folder}, cannot be made: name another with folder=")
        self._folder, self._own = folder, JobFolder(folder)
        self._fleets: dict[Needs, _Fleet] = {}
        self._guard, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: str, needs: Needs) -> Future[str]:
        with self._guard:
            fleet = self._fleets.get(needs)
            if fleet is None:
                box = self._own.path / str(len(self._fleets))
                kind = _LocalFleet if self._local else _SlurmFleet
                fleet = self._fleets[needs] = kind(self._folder, box, self._place, needs)
        return fleet.submit(request)

    def room(self) -> int | None:
        """Slurm's queue holds any number, unless it was said how many run at once."""
        if self._local:
            return self._place.count("jobs", default_workers())
        return self._place.count("jobs", 1) if "jobs" in self._place.options else None

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, LostJobError)

    def give_up(self, future: Future[str]) -> None:
        for fleet in self._all():
            fleet.give_up(future)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)
        self._own.remove()  # pilots that wait see it, and end
        for fleet in self._all():
            fleet.close()

    def _all(self) -> list[_Fleet]:
        with self._guard:
            return list(self._fleets.values())

    def _run(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            for fleet in self._all():
                try:
                    fleet.look()
                except Exception as error:  # nobody else would learn of it, and the search would wait for ever
                    fleet.fail(RunnerError(f"jobs of Slurm cannot be looked after: {type(error).__name__}: {error}"))


class _Fleet:
    """Trainings with the same needs, the jobs that train them, and the box between the two."""

    def __init__(self, folder: Path, box: Path, place: Place, needs: Needs) -> None:
        self._folder, self._place, self._needs = folder, place, needs
        self._box = Box(box)
        self._box.make()
        self._time_limit = max(1, round(minutes(place.options.get("time", "60"))))
        self._notice = place.count("signal", 60)
        patience = float(place.count("linger", _LINGER_SECONDS))
        self._pilot = Pilot(box, patience, 60.0 * self._time_limit - self._notice)
        self._waiting: dict[str, Future[str]] = {}
        """Futures of requests that have no answer yet, by their names in the box."""
        self._jobs: list[Any] = []
        """That have not ended, as far as is known."""
        self._numbers = itertools.count()
        self._short_since: float | None = None
        self._guard = threading.RLock()

    def submit(self, request: str) -> Future[str]:
        """Put a request where pilots find it; whether another job is needed is seen a little later."""
        future: Future[str] = Future()
        with self._guard:
            name = f"{next(self._numbers):09d}"
            self._waiting[name] = future
        self._box.put(name, request)
        return future

    def give_up(self, future: Future[str]) -> None:
        with self._guard:
            names = [name for name, one in self._waiting.items() if one is future]
        for name in names:
            if self._box.withdraw(name):
                self._end(name)
                future.cancel()
            else:
                holding = {pilot for pilot, taken in self._box.taken().items() if taken == name}
                for job in [one for one in self._jobs if one.job_id in holding]:
                    self.cancel(job)

    def look(self) -> None:
        """Take the answers that came, see which jobs have ended, and begin as many as are missing."""
        if not self._box.root.is_dir() and self._waiting:
            self.fail(RunnerError(f"the folder of this search's jobs, {self._box.root}, was deleted while they ran"))
            return
        try:
            self._take_answers()
            if ended := self.ended(self._jobs):
                self._take_answers()  # which they gave before they ended
                for job in ended:
                    self._jobs.remove(job)
                    self._judge(job)
        except OSError:  # of the folder, for a moment: it is looked at again
            return
        missing = len(self._waiting) - len(self._jobs)
        now = time.monotonic()
        if missing <= 0:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        elif now - self._short_since > _TOGETHER_SECONDS:
            self._short_since = None
            self._begin(missing)

    def _take_answers(self) -> None:
        for name in self._box.answered():
            text = self._box.read_answer(name)
            if future := self._end(name):
                future.set_result(text)

    def _end(self, name: str) -> Future[str] | None:
        with self._guard:
            return self._waiting.pop(name, None)

    def _judge(self, job: Any) -> None:
        """What becomes of the request that a job had when it ended. Did it end by an error and had none, the oldest
        request that waits hears of it, so that jobs which cannot even begin are not begun for ever."""
        kind, told = self._outcome(job)
        name = self._box.taken().get(job.job_id)
        if name is not None:
            self._box.forget(name, job.job_id)
        elif kind != "success":
            name = next((one for one in sorted(self._waiting) if self._box.withdraw(one)), None)
        future = self._end(name) if name is not None else None
        if future and kind == "error":
            future.set_exception(RunnerError(f"the job {job.job_id} failed: {told.strip()[-600:]}"))
        elif future:
            future.set_exception(LostJobError(f"the job {job.job_id} ended without an answer: {_last(job)}"))

    @staticmethod
    def _outcome(job: Any) -> tuple[str, str]:
        """success, error (with its text) or lost."""
        try:
            kind, told = pickle.loads(job.paths.result_pickle.read_bytes())  # written by submitit, into our own folder
        except Exception:
            return "lost", ""
        return str(kind), str(told)

    def _begin(self, count: int) -> None:
        try:
            executor = self.executor()
            with executor.batch() if count > 1 else contextlib.nullcontext():
                jobs = [executor.submit(self._pilot) for _ in range(count)]
            self._jobs += jobs
        except Exception as error:
            told = RunnerError(f"Slurm takes no job: {str(error).strip()[-400:]}")
            self.fail(told, [name for name in sorted(self._waiting) if self._box.withdraw(name)])

    def fail(self, error: RunnerError, names: Sequence[str] | None = None) -> None:
        """End requests, by default all, with an error."""
        for name in list(self._waiting) if names is None else names:
            if future := self._end(name):
                future.set_exception(error)

    # -- by the kind of jobs -----------------------------------------------------------------------------------------

    def executor(self) -> Any:
        """Of submitit. That a job is at its time limit is no reason to give it up: it goes on behind it."""
        raise NotImplementedError

    def ended(self, jobs: Sequence[Any]) -> list[Any]:
        """Those that will give no answer any more."""
        raise NotImplementedError

    def cancel(self, job: Any) -> None:
        """End a job that does not stop by itself."""
        job.cancel(check=False)

    def close(self) -> None:
        """End all jobs. None of them trains anything that is waited for."""
        raise NotImplementedError


class _LocalFleet(_Fleet):
    """Jobs that are processes of this machine."""

    def executor(self) -> Any:
        import submitit

        executor = submitit.LocalExecutor(self._folder, max_num_timeout=1000)
        executor.update_parameters(
            timeout_min=self._time_limit,
            signal_delay_s=self._notice,
            gpus_per_node=round(self._needs.gpus),
            setup=["trap '' INT"],  # Ctrl-C in a terminal is the driver's, which asks them to stop
        )
        return executor

    def ended(self, jobs: Sequence[Any]) -> list[Any]:
        return [job for job in jobs if job.done()]

    def cancel(self, job: Any) -> None:
        """With SIGKILL: submitit asks by SIGINT, which is the driver's, and what is stuck hears nothing anyway."""
        kill_with_children(int(job.job_id))

    def close(self) -> None:
        end = time.monotonic() + _LEAVE_SECONDS
        while any(not job.done() for job in self._jobs) and time.monotonic() < end:
            time.sleep(0.05)
        for job in self._jobs:
            if not job.done():
                self.cancel(job)


class _SlurmFleet(_Fleet):
    """Jobs of Slurm; those that are begun together are one array."""

    def __init__(self, folder: Path, box: Path, place: Place, needs: Needs) -> None:
        super().__init__(folder, box, place, needs)
        self._asked_at = 0.0
        self._seen: dict[str, float] = {}
        """When a job was last known to the queue."""

    def executor(self) -> Any:
        import submitit

        executor = submitit.SlurmExecutor(self._folder, max_num_timeout=1000)
        options = self._place.options
        more: dict[str, Any] = {name: options[name] for name in _PASSED_ON if name in options}
        if self._needs.gpus:
            more["gpus_per_node"] = max(1, round(self._needs.gpus))
        if self._needs.memory:
            more["mem"] = f"{max(1, self._needs.memory // 2**20)}M"
        executor.update_parameters(
            time=self._time_limit,
            cpus_per_task=max(1, round(self._needs.cpus)),
            job_name="ticketry",
            array_parallelism=self._place.count("jobs", 1000),
            signal_delay_s=self._notice,
            additional_parameters={"requeue": True},
            stderr_to_stdout=True,
            **more,
        )
        return executor

    def ended(self, jobs: Sequence[Any]) -> list[Any]:
        """Those with a result, and those that the queue does not know for a while: that is asked seldom."""
        now = time.monotonic()
        if now - self._asked_at < _QUEUE_SECONDS:
            return []
        self._asked_at = now
        known = _queue()
        found = []
        for job in jobs:
            since = self._seen.setdefault(job.job_id, now)
            if job.paths.result_pickle.exists():
                found.append(job)
            elif known is not None and job.job_id in known:
                self._seen[job.job_id] = now
            elif known is not None and now - since > _GONE_SECONDS:
                found.append(job)
        for job in found:
            self._seen.pop(job.job_id)
        return found

    def close(self) -> None:
        names = [job.job_id for job in self._jobs if not job.paths.result_pickle.exists()]
        for first in range(0, len(names), _CANCELLED_AT_ONCE):
            subprocess.run(
                ["scancel", *names[first : first + _CANCELLED_AT_ONCE]], capture_output=True, check=False, timeout=60
            )


def _queue() -> set[str] | None:
    """The jobs of this user that are waiting, running or ending; None if Slurm does not answer just now."""
    words = ["squeue", "--me", "-h", "-r", "-o", "%i %T"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return None
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
