"""What a runner takes beside training: one search on each, in turns, on an empty store each time.

    python benchmarks/runners.py --on processes:1 ray:,cpus=1 dask:local,workers=1 slurm:local,jobs=1
    python benchmarks/runners.py --state

The segments are trainings of LeNet-300-100 on digits, one after the other, of --length each. Told is, for each runner,
what a segment takes: in processor seconds of this process and of all that it started (a machine that others use makes
the wall clock useless), and, by the wall clock, beside the steps of its training, which the worker times itself. The
first segment, with which workers are started, is told alone. ``--state`` times what a cache of states in workers could
save: reading a segment's start from the store.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

import torch

from ticketry.lab.lab import Lab
from ticketry.lab.store import open_store
from ticketry.tasks import catalogue


def searched(on: str, folder: Path, length: str, segments: int) -> dict[str, float]:
    """Segments one after the other: seconds of the first beside its training, and of the others."""
    shutil.rmtree(folder, ignore_errors=True)
    task = catalogue.get("digits")
    recipe = task.recipe.changed(length=length)
    with Lab(folder, runner=on, device="cpu") as lab:
        walls, trained, processor = [], [], []
        for number in range(segments + 1):
            segment = lab.segment(task, start=number, recipe=recipe)
            began = time.perf_counter()
            result = lab.train(segment)
            walls.append(time.perf_counter() - began)
            trained.append(result.train_seconds)
            processor.append(processor_seconds())
    shutil.rmtree(folder, ignore_errors=True)
    beside = [wall - own for wall, own in zip(walls, trained, strict=True)]
    return {
        "start": beside[0],
        "beside": statistics.median(beside[1:]),
        "processor": (processor[-1] - processor[0]) / segments,
    }


def processor_seconds() -> float:
    """Of this process, of those below it that live, and of those that they have waited for."""
    waited = os.times()
    return waited.user + waited.system + waited.children_user + waited.children_system + _below(os.getpid())


def _below(pid: int) -> float:
    parents: dict[int, list[tuple[int, float]]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        seconds = sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")  # own and waited for, user and system
        parents.setdefault(int(words[1]), []).append((int(file.parent.name), seconds))
    waiting, found = [pid], 0.0
    while waiting:
        for child, seconds in parents.get(waiting.pop(), []):
            found += seconds
            waiting.append(child)
    return found


def state(folder: Path) -> None:
    """Reading a state again that was just written, whose file is in the page cache."""
    for name, sizes in {"LeNet-300-100": [266_610], "ResNet-20": [272_474], "ResNet-18": [11_173_962]}.items():
        for what, copies in (("weights", 1), ("with a momentum", 2)):
            store = open_store(folder)
            tensors = {str(part): torch.randn(size) for part in range(copies) for size in sizes}
            digest, times = store.put_tensors(tensors), []
            for _ in range(9):
                began = time.process_time()
                store.get_tensors(digest)
                times.append(time.process_time() - began)
            print(f"{name:14} {what:16} {1000 * statistics.median(times):8.2f} ms")
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["processes:1"])
    parser.add_argument("--length", default="200it")
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/runners"))
    parser.add_argument("--state", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.state:
        state(arguments.folder)
        return
    found: dict[str, list[dict[str, float]]] = {on: [] for on in arguments.on}
    for _ in range(arguments.rounds):
        for on in arguments.on:
            found[on].append(searched(on, arguments.folder, arguments.length, arguments.segments))
            print(on, {name: round(value, 3) for name, value in found[on][-1].items()}, flush=True)
    print(f"\n{'runner':28} {'first':>8} {'beside training':>16} {'processor':>10}")
    for on, rounds in found.items():
        first, beside, processor = (
            statistics.median(one[name] for one in rounds) for name in ("start", "beside", "processor")
        )
        print(f"{on:28} {first:7.2f}s {beside:15.3f}s {processor:9.3f}s")


if __name__ == "__main__":
    main()
