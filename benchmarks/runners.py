"""Overhead of runners beside training: one search on each, alternating, on an empty store each time.

    python benchmarks/runners.py --on processes:1 ray:local,cpus=1 dask:local,workers=1 slurm:local,jobs=1
    python benchmarks/runners.py --on processes:2 ray:local dask:local,workers=2 slurm:local,jobs=2 \
        --chains 2 --length 30000it --segments 3
    python benchmarks/runners.py --state

The segments are trainings of LeNet-300-100 on digits of --length each, in --chains side by side. Told is, for each
runner, what a segment takes: in processor seconds of this process and of all that it started, by the wall clock beside
the steps of its training, which the worker times itself, and how much longer than those steps the chains took. Workers
are started with a short training each before, which is reported separately. ``--state`` times what a cache of states in
workers could save: reading a segment's start from the store.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import time
from pathlib import Path

import torch

from ticketry.lab.lab import Lab
from ticketry.lab.store.store import open_store
from ticketry.tasks import catalogue

FIRST = "200it"
"""Length of the training with which a worker is started."""


def searched(on: str, folder: Path, length: str, segments: int, chains: int) -> dict[str, float]:
    """Chains of segments side by side: seconds until each worker has begun, and then of a segment and of the whole."""
    shutil.rmtree(folder, ignore_errors=True)
    task = catalogue.get("digits")

    def trained(lab: Lab, number: int, length: str) -> tuple[float, float]:
        """Seconds by the wall clock, and those of its steps alone."""
        segment = lab.segment(task, start=number, recipe=task.recipe.changed(length=length))
        began = time.perf_counter()
        result = lab.train(segment)
        return time.perf_counter() - began, result.train_seconds

    def chain(lab: Lab, number: int) -> list[tuple[float, float]]:
        return [trained(lab, number + chains * (place + 1), length) for place in range(segments)]

    with Lab(folder, runner=on, device="cpu") as lab:
        first = lab.gather([functools.partial(trained, lab, number, FIRST) for number in range(chains)])
        began, before = time.perf_counter(), processor_seconds()
        told = lab.gather([functools.partial(chain, lab, number) for number in range(chains)])
        wall, processor = time.perf_counter() - began, processor_seconds() - before
    shutil.rmtree(folder, ignore_errors=True)
    ones = [one for chain in told for one in chain]
    own = sum(steps for _, steps in ones)
    return {
        "start": max(wall - steps for wall, steps in first),
        "training": statistics.median(steps for _, steps in ones),
        "beside": statistics.median(wall - steps for wall, steps in ones),
        "share": chains * wall / own - 1,
        "processor": processor / len(ones),
    }


def processor_seconds() -> float:
    """Return the processor seconds of this process and of its live and finished descendants."""
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
    parser.add_argument("--chains", type=int, default=1, help="as many as workers")
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
            found[on].append(searched(on, arguments.folder, arguments.length, arguments.segments, arguments.chains))
            print(on, {name: round(value, 3) for name, value in found[on][-1].items()}, flush=True)
    print(f"\n{'runner':28} {'start':>8} {'training':>9} {'beside':>9} {'of the steps':>13} {'processor':>10}")
    for on, rounds in found.items():
        start, training, beside, share, processor = (
            statistics.median(one[name] for one in rounds) for name in rounds[0]
        )
        print(f"{on:28} {start:7.2f}s {training:8.2f}s {beside:8.3f}s {100 * share:12.2f}% {processor:9.3f}s")


if __name__ == "__main__":
    main()
