"""A cluster of many workers in virtual time: how much of it a search uses, and what its driver takes.

    python benchmarks/cluster_simulation.py --workers 10 100 1000 --segments 100000

The lab, the frontier, the retries and the store are the real ones; a worker of the simulated cluster sleeps in virtual
time in place of training, and then writes a real result into the store. The search has the shape of an iterative one:
chains of 14 levels, and beside each level three controls that nothing waits for. A segment takes 20 to 40 minutes;
5 % of the workers are lost an hour, each with what it trained since its last checkpoint (60 s), which is noticed 30 s
later; another machine takes its place after ten minutes.

The limit of the frontier is, at each moment, the smaller of the workers that are there and the segments that could be
trained: utilisation is useful work over that. Processor seconds are the driver's: those of the simulation itself, the
writing of results among them, are taken off.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import heapq
import itertools
import json
import random
import resource
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ticketry.lab.lab import Lab
from ticketry.lab.runners.choice import Chosen, Needs, Place
from ticketry.lab.runners.executor_runner import Remote
from ticketry.lab.runners.request import done
from ticketry.lab.training.job import Work
from ticketry.tasks import catalogue

LEVELS, CONTROLS = 14, 3
SHORTEST, LONGEST = 1200.0, 2400.0
CHECKPOINT, NOTICED, REPLACED = 60.0, 30.0, 600.0


class LostWorkerError(Exception):
    """What the simulated cluster says of a worker that went away."""


class Counter:
    """Threads of the driver that have something to do now; virtual time stands still until there is none."""

    def __init__(self) -> None:
        self._busy, self._changed = 0, threading.Condition()

    def add(self, count: int) -> None:
        with self._changed:
            self._busy += count
            if self._busy == 0:
                self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            while self._busy:
                if not self._changed.wait(timeout=120):
                    raise SystemExit(f"the driver does nothing, and {self._busy} of its threads should")


class Cluster:
    """Workers in virtual time."""

    name = "the simulated cluster"

    def __init__(self, lab: Lab, workers: int, lost_an_hour: float, busy: Counter, seed: int) -> None:
        self.lab, self.busy, self.draw = lab, busy, random.Random(seed)
        self.now, self.there, self.rate = 0.0, workers, lost_an_hour / 3600
        self.running = 0
        self.useful = self.limit = 0.0
        self.ready: Callable[[], int] = lambda: 0
        self.segments = self.losses = 0
        self.own_seconds = 0.0
        """Processor seconds of the simulation itself."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._done: dict[str, float] = {}
        """Share of a segment that is in its last checkpoint."""
        self._queue: deque[tuple[Future[str], dict[str, Any]]] = deque()
        self._guard = threading.Lock()

    # -- what a runner asks of it ------------------------------------------------------------------------------------

    def submit(self, request: str, needs: Needs) -> Future[str]:
        began = time.thread_time()
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()
        with self._guard:
            self._queue.append((future, json.loads(request)))
            self._begin()
            self.own_seconds += time.thread_time() - began
        return future

    def _begin(self) -> None:
        """What was sent, as far as there are workers for it: one that is sent again may have to wait for one."""
        while self._queue and self.running < self.there:
            future, read = self._queue.popleft()
            length = SHORTEST + (LONGEST - SHORTEST) * random.Random(read["key"]).random()
            left = length * (1 - self._done.get(read["key"], 0.0))
            loss = self.draw.expovariate(self.rate) if self.rate else float("inf")
            self.running += 1
            if loss < left:
                self._at(loss, partial(self._lose, future, read, length, loss))
            else:
                self._at(left, partial(self._finish, future, read, length))

    def room(self) -> int:
        return self.there

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, LostWorkerError)

    def give_up(self, future: Future[str]) -> None:
        raise AssertionError("nobody is stopped here")

    def close(self) -> None:
        """Nothing is held."""

    # -- what happens in virtual time --------------------------------------------------------------------------------

    def _at(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while True:
            self.busy.wait()
            began = time.thread_time()
            with self._guard:
                if not self._events:
                    return
                moment, _, what = heapq.heappop(self._events)
                self.limit += (moment - self.now) * min(self.there, self.running + len(self._queue) + self.ready())
                self.now = moment
            what()
            self.own_seconds += time.thread_time() - began

    def _finish(self, future: Future[str], read: dict[str, Any], length: float) -> None:
        trajectory, _, last = read["key"].partition("@")
        record = {
            "segment": {**read["segment"], "blobs": []},
            "step": int(last),
            "model": "0" * 64,
            "training": None,
            "variants": {},
            "metrics": {"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.5}},
            "loss": [],
            "cost": {"steps": int(last), "train_seconds": length},
            "environment": {},
        }
        self.lab.store.put_result(trajectory, int(last), record)
        self._leave()
        self.segments += 1
        self.useful += length
        self.busy.add(2)  # who judges the answer, and who waits for it
        future.set_result(done(Work(int(last), length, 0.0)))

    def _lose(self, future: Future[str], read: dict[str, Any], length: float, after: float) -> None:
        """It stops now; that is seen a little later, and its place is empty for longer."""
        before = self._done.get(read["key"], 0.0)
        kept = after - after % CHECKPOINT
        self._done[read["key"]] = share = before + kept / length
        if kept:
            trajectory, _, last = read["key"].partition("@")
            self.lab.store.put_partial(trajectory, max(1, int(int(last) * share)), {"weights": torch.zeros(1)})
        self.losses += 1
        self.there -= 1
        self.running -= 1
        self._at(NOTICED, partial(self._notice, future))
        self._at(REPLACED, self._replace)

    def _leave(self) -> None:
        with self._guard:
            self.running -= 1
            self._begin()

    def _notice(self, future: Future[str]) -> None:
        self.busy.add(1)
        future.set_exception(LostWorkerError("it went away"))

    def _replace(self) -> None:
        self.there += 1
        with self._guard:
            self._begin()
        self.fill()

    fill: Callable[[], None] = staticmethod(lambda: None)


class Counted(Remote):
    """The real runner, of whose threads is told when they have nothing more to do."""

    def __init__(self, cluster: Cluster, on_event: Any) -> None:
        super().__init__(cluster, Place("executor"), on_event)
        self._counted = cluster.busy
        cluster.fill = self._frontier.fill

    def submit(self, *work: Any) -> Any:
        try:
            return super().submit(*work)
        finally:
            self._counted.add(-1)

    def _judge(self, *come: Any) -> None:
        try:
            super()._judge(*come)
        finally:
            self._counted.add(-1)


class Search:
    """Chains of levels, with controls beside them as `experiments.search` has them: in as many threads as workers."""

    def __init__(self, lab: Lab, busy: Counter, chains: int) -> None:
        self.lab, self.busy, self.chains = lab, busy, chains
        self.task = catalogue.get("digits")
        self._pool = ThreadPoolExecutor(lab.workers)
        self._active = self.waiting = 0
        self._guard = threading.Lock()
        self._futures: list[Future[Any]] = []

    def chain(self, number: int) -> None:
        segment = self.lab.segment(self.task, start=number, last=1000)
        for level in range(LEVELS):
            own = replace(segment, order_seed=level)
            self.lab.train(own, ahead=(LEVELS - level - 1) * segment.steps)
            for control in range(1, CONTROLS + 1):
                self._beside(replace(segment, order_seed=1000 * control + level))
        self.busy.add(-1)

    def _beside(self, segment: Any) -> None:
        with self._guard:
            if self._active < self.lab.workers:
                self._active += 1
                self.busy.add(1)
            else:
                self.waiting += 1
        self._futures.append(self._pool.submit(self._control, segment))

    def _control(self, segment: Any) -> None:
        self.lab.train(segment)
        with self._guard:
            if self.waiting:
                self.waiting -= 1
            else:
                self._active -= 1
                self.busy.add(-1)

    def run(self) -> None:
        self.busy.add(self.chains)
        try:
            self.lab.gather([partial(self.chain, number) for number in range(self.chains)])
            concurrent.futures.wait(self._futures)
        finally:
            self._pool.shutdown()


def simulate(workers: int, segments: int, lost_an_hour: float, folder: Path) -> dict[str, float]:
    """One search; what it used and took."""
    shutil.rmtree(folder, ignore_errors=True)
    busy, chains = Counter(), max(1, round(segments / LEVELS / (1 + CONTROLS)))
    with ThreadPoolExecutor(1) as unused, Lab(folder, executor=unused, device="cpu") as lab:
        cluster = Cluster(lab, workers, lost_an_hour, busy, seed=workers)
        lab._chosen = Chosen("simulated", lab.workers, True, lambda on_event: Counted(cluster, on_event))
        runner: Any = lab._running()
        search = Search(lab, busy, chains)
        search.lab.segment(search.task, start=0, last=1000).key  # noqa: B018  # data and model are read once
        cluster.ready = lambda: len(runner._frontier._heap) + search.waiting
        began, processor = time.perf_counter(), time.process_time()
        driver = threading.Thread(target=search.run)
        busy.add(1)  # until the chains have begun
        driver.start()
        while not lab.ledger.segments_asked:
            time.sleep(0.01)
        busy.add(-1)
        cluster.run()
        driver.join()
        seconds = time.process_time() - processor - cluster.own_seconds
        elapsed = time.perf_counter() - began
        assert cluster.segments == lab.ledger.segments_asked == chains * LEVELS * (1 + CONTROLS)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "workers": workers,
        "segments": cluster.segments,
        "virtual hours": cluster.now / 3600,
        "workers lost": cluster.losses,
        "utilisation of the limit": cluster.useful / cluster.limit,
        "driver's processor ms a segment": 1000 * seconds / cluster.segments,
        "driver's cores": seconds / cluster.now,
        "memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "real seconds": elapsed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--each", type=int, default=0, help="segments for each worker, in the place of --segments")
    parser.add_argument("--lost", type=float, default=0.05, help="share of the workers that is lost an hour")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/cluster-simulation"))
    arguments = parser.parse_args()
    threading.stack_size(512 << 10)
    torch.set_num_threads(1)
    for workers in arguments.workers:
        found = simulate(workers, arguments.each * workers or arguments.segments, arguments.lost, arguments.folder)
        print("  ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
