"""Workers, schedulers and drivers killed at random moments: are all results those of undisturbed runs?

    python benchmarks/kills_elsewhere.py --on in-process processes:2 dask:cluster slurm:local,jobs=2 --kills 100
    python benchmarks/kills_elsewhere.py --on in-process --drivers 2 --kills 100

One trial is a search (two replicates, two levels) whose workers, whose own process, the driver, and whose scheduler,
where there is one, get SIGKILL, SIGTERM or SIGSTOP (for `--stopped` seconds, then SIGCONT) at random moments,
`--most` times at most. A search that ends so is begun again on the same store. ``dask:cluster`` is a scheduler and two
workers, ``ray:cluster`` three nodes, ``slurm:`` Slurm itself, begun here (see `kills_places`). With ``--drivers 2`` the
search is begun twice at once, on one store that has leases of a second, less than a process is stopped for.

When a search ends, its store has to hold what an undisturbed search in one process leaves
there, records without timings, tickets and tensors to the last byte, and the store has to be sound. Results that were
there already may not be written again. The task itself writes down each step of each training with a digest of its
outputs: each has to be one of the undisturbed search's, and duplicates are lost work, which
checkpoints, every `--checkpoint` seconds, bound (see `kills_losses`). Runners take turns, and the counts are kept after
each trial: the same command resumes and adds to them.

``--search resnet-20`` is one of 14 levels on CIFAR-10 of 16 x 16 pixels, ``--store bucket`` one in moto's S3 server:

    python benchmarks/kills_elsewhere.py --search resnet-20 --store bucket --length 120it --batch 32 --checkpoint 2 \\
        --on ray:cluster slurm:partition=all,time=30 --kills 10 --most 10 --pause 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kills_losses import losses, own, steps_of
from kills_places import Place, place, preload_workers

from buckets import environment, made_bucket, moto_server
from counted_task import FILE
from faults.disturbed import Child, difference, finished, fresh, left_behind, preloaded
from ticketry.files import write_atomically

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
_MOST_ATTEMPTS = 80
_LATELY = 0.5
_DRIVER, _SCHEDULER = 0.2, 0.1
"""Shares of signals that they get; workers get the others."""
_PATIENCE = 900.0
"""Seconds that a search may take to finish after the last kill."""


class Settings(NamedTuple):
    """Settings of all trials."""

    search: str
    length: str
    batch: int
    checkpoint: float
    pause: float
    stopped: float
    most: int
    drivers: int
    store: str

    def name(self, on: str) -> str:
        """Under which trials are counted."""
        parts = [
            on,
            *([self.search] if self.search != "digits" else []),
            *([self.store] if self.store != "folder" else []),
        ]
        return ", ".join([*parts, *([f"{self.drivers} drivers"] if self.drivers > 1 else [])])


SEARCHES = {
    "digits": ["--task", "counted_task:counted_digits", "--levels", "2", "--rewind", "3it", "--replicates", "2"],
    "resnet-20": ["--task", "counted_task:counted_resnet", "--levels", "14", "--rewind", "20it", "--replicates", "1"],
}


def words(settings: Settings, on: str, store: str) -> list[str]:
    """Return the command line of the search."""
    return [
        *("search", "iterative", *SEARCHES[settings.search], "--controls", "none", "--store", store, "--json"),
        *("--checkpoint-seconds", str(settings.checkpoint), "--recipe.length", settings.length, "--on", on),
        *(("--recipe.batch", str(settings.batch)) if settings.batch else ()),
    ]


def stored_results(work: Path) -> dict[str, str]:
    """Return results, tensors and tickets in the store at the end."""
    found = left_behind(work)
    return {name: one for name, one in found.items() if name.startswith(("store/results/", "store/blobs/"))
            or "/tickets/" in name}  # fmt: skip


class Trial:
    """One search under kills."""

    def __init__(self, where: Place, folder: Path, draw: random.Random, settings: Settings, begin: Callable[[], None]):
        self._where, self._folder, self._draw, self._settings, self._begin = where, folder, draw, settings, begin
        self.counts, self.wrong = Counter[str](trials=1), list[str]()
        self.work = fresh(folder)
        (folder / "steps").unlink(missing_ok=True)
        self._shared = folder / "shared"
        for one in (self._shared, *folder.glob("cache-*")):
            shutil.rmtree(one, ignore_errors=True)
        self._shared.mkdir()
        self._store = "store" if settings.store == "folder" else f"file://{self._shared}/store"
        if settings.store == "bucket":
            self._store = f"s3://{made_bucket(os.environ['AWS_ENDPOINT_URL'], f'trial-{uuid.uuid4().hex[:12]}')}/of/us"
        self._drivers: dict[int, Child] = {}
        self.pids = set[int]()
        """Process ids of all drivers so far."""

    def run(self, wanted: Mapping[str, str]) -> None:
        """The search, to its end."""
        number, done = self._settings.drivers, set[int]()
        results = self._results()
        last = time.monotonic()
        while len(done) < number:
            for at in set(range(number)) - done:
                if at not in self._drivers or self._drivers[at].wait(0):
                    if at in self._drivers and self._has_ended(at):
                        done.add(at)
                    elif self.counts["begun again"] > _MOST_ATTEMPTS:
                        self.wrong.append("it never ended")
                        return
                    else:
                        self._drivers[at] = self._driver(at)
            self._where.mend()
            self._look(results)
            if self.counts["kills"] < self._settings.most:
                time.sleep(self._draw.uniform(0, self._settings.pause))
                self.counts.update(self._harm())
                last = time.monotonic()
            else:
                time.sleep(0.02)
            if time.monotonic() - last > _PATIENCE:
                self.wrong.append("it hung")
                return
        self._judge(wanted)

    def _driver(self, at: int) -> Child:
        logs = self._folder / f"logs-{at}"
        logs.mkdir(exist_ok=True)

        def begin() -> None:
            self._begin()
            if self._settings.store != "folder":
                os.environ["TICKETRY_CACHE"] = str(self._folder / f"cache-{at}")

        child = Child(words(self._settings, self._where.on, self._store), self.work, begin, logs)
        self.pids.add(child.pid)
        return child

    def _has_ended(self, at: int) -> bool:
        """Whether a driver that is gone has come to its end."""
        child = self._drivers[at]
        if child.code == 0:
            return True
        self.counts["begun again"] += 1
        told = child.read_output()[1]
        if "Traceback" in told and "\nticketry: " not in told.rpartition("Traceback")[2]:
            self.wrong.append(told[-1500:])
        return False

    def _results(self) -> dict[Path, int]:
        """When each was written."""
        found = [*self.work.glob("store/results/*/*/*.json"), *self._shared.glob("store/results/*/*/*.json")]
        return {path: path.stat().st_mtime_ns for path in found}

    def _look(self, known: dict[Path, int]) -> None:
        """Whether a result that was there was written again."""
        now = self._results()
        self.counts["trained again"] += sum(now.get(path) != moment for path, moment in known.items())
        known.update(now)

    def _harm(self) -> Counter[str]:
        """Send one signal to a process while a training runs; return the counts."""
        alive = [child for child in self._drivers.values() if not child.wait(0)]
        workers = [pid for pid in self._training() if not any(pid == child.pid for child in alive)]
        schedulers, drawn = self._where.schedulers(), self._draw.random()
        if not alive or not self._training():
            return Counter()
        if schedulers and drawn < _SCHEDULER:
            who, pid = self._draw.choice(sorted(schedulers.items()))
        elif drawn < _SCHEDULER + _DRIVER or not workers:
            who, pid = "driver", self._draw.choice(alive).pid
        else:
            who, pid = "worker", self._draw.choice(workers)
        number = self._draw.choice(_SIGNALS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(self._settings.stopped)
                os.kill(pid, signal.SIGCONT)
            return Counter({"kills": 1, f"{number.name} of a {who.partition(' ')[0]}": 1})
        return Counter()

    def _training(self) -> list[int]:
        """Processes that trained a step within the last `_LATELY` seconds and are there."""
        with contextlib.suppress(OSError):
            with open(self._folder / "steps", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8000))
                lines = [line.split() for line in file.read().splitlines()[1:]]
            late = {int(pid) for pid, moment, _ in lines if time.monotonic() - float(moment) < _LATELY}
            return [pid for pid in late if Path(f"/proc/{pid}").exists()]
        return []

    def _judge(self, wanted: Mapping[str, str]) -> None:
        if self._settings.store != "folder":
            finished(["store", "copy", self._store, "store", "--json"], self.work)
        self.wrong += difference(stored_results(self.work), wanted)
        try:
            finished(["store", "check", "--store", "store"], self.work)
        except AssertionError as error:
            self.wrong.append(str(error)[-1500:])

    def close(self) -> None:
        """End what is left of it."""
        for child in self._drivers.values():
            if child.code is None:
                kill_with_children(child.pid)
                child.wait()


def kill_with_children(pid: int) -> None:
    """Kill a process and everything that it started, the parent first, so that it starts nothing else."""
    children: dict[int, list[int]] = {}
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def added(known: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Counts of two times; of those that are of a longest one the larger."""
    return {
        name: max(known.get(name, 0), more.get(name, 0))
        if name.startswith("longest")
        else round(known.get(name, 0) + more.get(name, 0), 4)
        for name in sorted({*known, *more})
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", required=True)
    parser.add_argument("--kills", type=int, default=100, help="of each runner, those counted before among them")
    parser.add_argument("--drivers", type=int, default=1, help="searches at once on one store")
    parser.add_argument("--store", choices=("folder", "leases", "bucket"), help="by default leases for two drivers")
    parser.add_argument("--search", choices=tuple(SEARCHES), default="digits")
    parser.add_argument("--batch", type=int, default=0, help="of a training; 0: as the task has it")
    parser.add_argument("--checkpoint", type=float, default=0.2, help="seconds between two")
    parser.add_argument("--counts", type=Path, default=Path("kills-elsewhere.json"))
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/kills-elsewhere"))
    parser.add_argument("--length", default="3000it", help="of a training")
    parser.add_argument("--pause", type=float, default=1.0, help="the longest between two kills, in seconds")
    parser.add_argument("--stopped", type=float, default=1.6, help="seconds between SIGSTOP and SIGCONT")
    parser.add_argument("--most", type=int, default=25, help="kills of one search")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after so long")
    parser.add_argument("--seed", type=int, default=os.getpid())
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        *(getattr(arguments, name) for name in Settings._fields[:-1]),
        store=arguments.store or ("folder" if arguments.drivers == 1 else "leases"),
    )
    os.environ.update({FILE: str(folder / "steps"), "TICKETRY_LEASE_SECONDS": "1"})
    os.environ["TICKETRY_CACHE"] = str(folder / "cache")  # of workers elsewhere; drivers have their own
    for name in ("distributed", "ray", "submitit"):
        with contextlib.suppress(ImportError):
            __import__(name)
    preloaded()
    (folder / "steps").unlink(missing_ok=True)
    seconds = finished(words(settings, "in-process", "store"), fresh(folder))
    needed = own(steps_of(folder / "steps"))
    print(f"undisturbed: {seconds:.0f} s, {len(needed)} steps", flush=True)
    with contextlib.ExitStack() as stack:
        if settings.store == "bucket":
            os.environ.update(environment(stack.enter_context(moto_server())))
        wrong = run_trials(arguments, settings, stored_results(folder / "work"), needed)
    raise SystemExit(wrong)


def run_trials(
    arguments: argparse.Namespace, settings: Settings, wanted: Mapping[str, str], needed: frozenset[str]
) -> bool:
    """Trials of all runners in turns, until there are enough kills of each; whether anything was wrong."""
    draw, began, path = random.Random(arguments.seed), time.monotonic(), arguments.counts.resolve()
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    names = {on: settings.name(on) for on in arguments.on}
    # Forks of a server start faster, but do not end once they have used the thread that reports to a shared store.
    preload = settings.store == "folder" and any(on.startswith("processes") for on in arguments.on)
    begin = preload_workers() if preload else lambda: None
    wrong = False
    with contextlib.ExitStack() as stack:
        places = {on: stack.enter_context(place(on, arguments.folder / f"place-{at}")) for at, on in enumerate(names)}
        while time.monotonic() - began < arguments.seconds:
            left = [on for on, name in names.items() if known.get(name, {}).get("kills", 0) < arguments.kills]
            if not left:
                break
            on = min(left, key=lambda one: known.get(names[one], {}).get("kills", 0))
            trial, since = Trial(places[on], arguments.folder, draw, settings, begin), time.monotonic()
            try:
                trial.run(wanted)
            finally:
                trial.close()
            steps = steps_of(arguments.folder / "steps")
            if on != "in-process":  # drivers train nothing; they measure what steps cost
                steps = [step for step in steps if step.pid not in trial.pids]
            lost = losses(steps, needed, settings.checkpoint)
            if strange := lost.pop("steps of other bits"):
                trial.wrong.append(f"{strange} steps of other bits")
            if trial.wrong:
                wrong = True
                trial.counts["wrong"] += 1
                print(f"WRONG {on}: {trial.wrong[:4]}", flush=True)
            trial.counts["seconds"] = round(time.monotonic() - since)
            known[names[on]] = added(known.get(names[on], {}), {**trial.counts, **lost})
            write_atomically(path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
            print(f"{names[on]} {known[names[on]]}", flush=True)
    return wrong


if __name__ == "__main__":
    main()
