"""Workers and drivers of a runner killed at random moments, again and again: is all as if nobody had?

    python benchmarks/kills_elsewhere.py --on processes:2 slurm:local,jobs=2 dask:local,workers=2 --kills 100

One trial is a search (two replicates, two levels) whose workers and whose own process, the driver, get SIGKILL, SIGTERM
or SIGSTOP (for `--stopped` seconds, then SIGCONT) at random moments, twelve times at most. A search that ends so is
begun again on the same store. When it comes to its end, all that lies in the store has to be what an undisturbed search
in one process leaves there, records without timings, tickets and tensors to the last byte, and the store has to be
sound. Each step of each training is counted by the task itself: those beyond an undisturbed search's are work that was
lost, which kills at checkpoints of `CHECKPOINT` seconds bound. Results that were there already may not be written
again. Runners take turns, and the counts are kept after each trial: the same command goes on, and adds to them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from counted_task import FILE
from faults.disturbed import Child, difference, finished, fresh, left_behind, preloaded
from ticketry.files import write_atomically
from ticketry.lab.runners.process_guard import kill_with_children

CHECKPOINT = 0.2
WORDS = (
    *("search", "iterative", "--task", "counted_task:counted", "--levels", "2", "--rewind", "3it"),
    *("--replicates", "2", "--controls", "none", "--store", "store", "--json"),
    *("--checkpoint-seconds", str(CHECKPOINT)),
)
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
_MOST_KILLS, _MOST_ATTEMPTS = 12, 40
_LATELY = 0.5
_DRIVER = 0.2
"""Share of signals that the driver gets."""


class Settings(NamedTuple):
    """Of all trials."""

    length: str
    pause: float
    stopped: float


def words(on: str, settings: Settings) -> list[str]:
    return [*WORDS, "--recipe.length", settings.length, "--on", on]


def kept(work: Path) -> dict[str, str]:
    """What lies in the store in the end: results, tensors and tickets, whatever runner trained them."""
    found = left_behind(work)
    return {name: one for name, one in found.items() if name.startswith(("store/results/", "store/blobs/"))
            or "/tickets/" in name}  # fmt: skip


def workers_of(place: Path) -> list[int]:
    """Processes that trained a step within the last `_LATELY` seconds and are there, by the steps that are counted."""
    with contextlib.suppress(OSError):
        with open(place / "steps", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            lines = [line.split() for line in file.read().splitlines()[1:]]
        late = {int(pid) for pid, moment in lines if time.monotonic() - float(moment) < _LATELY}
        return [pid for pid in late if Path(f"/proc/{pid}").exists()]
    return []


def harm(child: Child, place: Path, draw: random.Random, settings: Settings) -> Counter[str]:
    """One signal to somebody; what was counted."""
    while not workers_of(place):
        if child.wait(0.005):
            return Counter()
    if child.wait(draw.uniform(0, 3 * CHECKPOINT)) or not (workers := workers_of(place)):  # not at first steps alone
        return Counter()
    number = draw.choice(_SIGNALS)
    driver = draw.random() < _DRIVER
    pid = child.pid if driver else draw.choice(workers)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            child.wait(settings.stopped)
            os.kill(pid, signal.SIGCONT)
        who = "driver" if pid == child.pid else "worker"
        return Counter({"kills": 1, f"{number.name} of a {who}": 1})
    return Counter()


class Driver(Child):
    """The command, and what it was begun with."""

    def __init__(self, on: str, work: Path, settings: Settings) -> None:
        self.words = words(on, settings)
        super().__init__(self.words, work)


def steps_of(place: Path) -> list[tuple[int, float]]:
    """Process and moment of each step that was trained."""
    lines = (place / "steps").read_text().splitlines()
    return [(int(pid), float(moment)) for pid, moment in (line.split() for line in lines)]


def seconds_a_step(steps: list[tuple[int, float]]) -> float:
    """The median between two of one process."""
    last: dict[int, float] = {}
    pauses = []
    for pid, moment in steps:
        if pid in last:
            pauses.append(moment - last[pid])
        last[pid] = moment
    return statistics.median(pauses)


def trial(on: str, place: Path, wanted: Mapping[str, str], draw: random.Random, settings: Settings) -> Counter[str]:
    """One search under kills; what was counted."""
    counts, work = Counter[str](trials=1), fresh(place)
    (place / "steps").unlink(missing_ok=True)
    wrong: list[str] = []
    for _ in range(_MOST_ATTEMPTS):
        before = {path: path.stat().st_mtime_ns for path in work.glob("store/results/*/*/*.json")}
        child = Driver(on, work, settings)
        while counts["kills"] < _MOST_KILLS and not child.wait(draw.uniform(0, settings.pause)):
            counts.update(harm(child, place, draw, settings))
        child.wait(900)
        counts["trained again"] += sum(path.stat().st_mtime_ns != moment for path, moment in before.items())
        if child.code is None:
            kill_with_children(child.pid)
            child.wait()
            wrong.append("it hung")
        if child.code == 0:
            break
        counts["begun again"] += 1
        if "Traceback" in child.told()[1]:
            wrong.append(child.told()[1][-1500:])
    else:
        wrong.append("it never ended")
    wrong += difference(kept(work), wanted)
    if not wrong:
        finished(["store", "check", "--store", "store"], work)
    if wrong:
        counts["wrong"] += 1
        print(f"WRONG {on}: {wrong[:4]}", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", required=True)
    parser.add_argument("--kills", type=int, default=100, help="of each runner, those counted before among them")
    parser.add_argument("--counts", type=Path, default=Path("kills-elsewhere.json"))
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/kills-elsewhere"))
    parser.add_argument("--length", default="600it", help="of a training")
    parser.add_argument("--pause", type=float, default=6.0, help="the longest between two kills, in seconds")
    parser.add_argument("--stopped", type=float, default=3.0, help="seconds between SIGSTOP and SIGCONT")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after so long")
    parser.add_argument("--seed", type=int, default=os.getpid())
    arguments = parser.parse_args()
    preloaded()
    draw, began = random.Random(arguments.seed), time.monotonic()
    settings = Settings(arguments.length, arguments.pause, arguments.stopped)
    place = arguments.folder
    place.mkdir(parents=True, exist_ok=True)
    os.environ[FILE] = str(place / "steps")
    (place / "steps").unlink(missing_ok=True)
    finished(words("in-process", settings), fresh(place))
    wanted, needed = kept(place / "work"), len(steps_of(place))
    known: dict[str, dict[str, Any]] = json.loads(arguments.counts.read_text()) if arguments.counts.exists() else {}
    counts_file = arguments.counts.resolve()
    while (left := [on for on in arguments.on if known.get(on, {}).get("kills", 0) < arguments.kills]) and (
        time.monotonic() - began < arguments.seconds
    ):
        on = min(left, key=lambda one: known.get(one, {}).get("kills", 0))
        counts = trial(on, place, wanted, draw, settings)
        steps = steps_of(place)
        counts["steps"], counts["steps lost"] = len(steps), len(steps) - needed
        lost = known.get(on, {}).get("seconds lost", 0.0) + (len(steps) - needed) * seconds_a_step(steps)
        known[on] = {**(Counter(known.get(on, {})) + counts), "seconds lost": round(lost, 3)}
        write_atomically(counts_file, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
        print(f"{on} {known[on]}", flush=True)
    raise SystemExit(any(one.get("wrong") for one in known.values()))


if __name__ == "__main__":
    main()
