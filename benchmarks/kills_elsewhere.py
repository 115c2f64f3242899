"""Workers of a runner killed at random moments, again and again: is all as if nobody had?

    python benchmarks/kills_elsewhere.py --on slurm:local,jobs=2 --kills 100 --counts kills-slurm.json

One trial is a search over digits (two replicates, two levels), during which workers that train get SIGKILL or SIGTERM
at random moments. When it comes to its end its results have to be those of an undisturbed one in this process, to the
last bit, and the store has to be sound. A search that gives up (three losses in a row without a stored state) is begun
again on the same store. Counted, too, are results that were there already and were written again: none may be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ticketry.errors import RunnerError
from ticketry.files import write_atomically
from ticketry.lab.lab import Lab
from ticketry.lab.store.maintenance import check
from ticketry.search import method
from ticketry.tasks import catalogue

CHECKPOINT = 0.2
LENGTH = "1500it"


def searched(lab: Lab) -> list[tuple[Any, ...]]:
    """All results of the search."""
    found, task = method("iterative"), catalogue.get("digits")
    settings = found.Settings(levels=2, rewind="3it")
    runs = found(lab, task, settings, recipe=task.recipe.changed(length=LENGTH), replicates=2)
    return [(one.mask, one.result.model, one.result.metrics) for run in runs for one in run]


class Killer(threading.Thread):
    """Kills workers that say that they train, at random moments."""

    def __init__(self, lab: Lab, draw: random.Random, most: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.lab, self.draw, self.most, self.pause = lab, draw, most, pause
        self.counts, self.ended = Counter[str](), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(self.draw.uniform(0, self.pause)) and self.counts["kills"] < self.most:
            runner: Any = self.lab._runner
            if runner is None:
                continue
            told = [runner._live.told(one.segment.key) for one in list(runner._sent.values()) if runner._live]
            pids = [int(one["worker"].partition("process ")[2].rstrip(")")) for one in told if one.get("step")]
            if not pids:
                continue
            number = self.draw.choice([signal.SIGKILL, signal.SIGTERM])
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.draw.choice(pids), number)
                self.counts.update(("kills", number.name))


def trial(on: str, folder: Path, wanted: object, draw: random.Random, pause: float) -> Counter[str]:
    """One search under kills; what was counted."""
    counts = Counter[str]()
    for _ in range(20):
        with Lab(folder / "store", runner=on, device="cpu", checkpoint_seconds=CHECKPOINT) as lab:
            before = {path: path.stat().st_mtime_ns for path in lab.store.paths.result_files()}
            killer = Killer(lab, draw, 12 - counts["kills"], pause)
            killer.start()
            try:
                found = searched(lab)
            except RunnerError as error:
                counts["begun again"] += 1
                print(f"begun again: {error}", flush=True)
                continue
            finally:
                killer.ended.set()
                killer.join()
                counts.update(killer.counts)
                counts["trained again"] += sum(path.stat().st_mtime_ns != moment for path, moment in before.items())
            counts["not identical"] += found != wanted
            counts["not sound"] += not check(lab.store).sound
            break
    else:
        counts["never ended"] += 1
    counts["trials"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", required=True)
    parser.add_argument("--kills", type=int, default=100, help="in all, those counted before among them")
    parser.add_argument("--counts", type=Path, default=Path("kills-elsewhere.json"))
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/kills-elsewhere"))
    parser.add_argument("--pause", type=float, default=6.0, help="the longest between two kills, in seconds")
    parser.add_argument("--seed", type=int, default=os.getpid())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place, Lab(place, device="cpu") as lab:
        wanted = searched(lab)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.folder)  # where jobs of Slurm are kept
    known = json.loads(arguments.counts.read_text()) if arguments.counts.exists() else {}
    while known.get(arguments.on, {}).get("kills", 0) < arguments.kills:
        shutil.rmtree(arguments.folder / "store", ignore_errors=True)
        began = time.monotonic()
        counts = Counter(known.get(arguments.on, {})) + trial(
            arguments.on, arguments.folder, wanted, draw, arguments.pause
        )
        known[arguments.on] = dict(counts)
        write_atomically(arguments.counts, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
        print(f"{arguments.on} {dict(counts)}, the last in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
