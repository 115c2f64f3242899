"""What a runner takes beside training: one search on each, in turns, on an empty store each time.

    python benchmarks/runners.py --on processes:1 ray:,cpus=1 dask:local,workers=1 slurm:local,jobs=1
    python benchmarks/runners.py --state

The segments are trainings of LeNet-300-100 on digits, one after the other, of --length each. Told is, for each runner,
what a segment takes beside the steps of its training, which the worker times itself (what else runs on the machine
slows both): of the first, with which workers are started, and of the others; and their share of segments of 30 s.
``--state`` times what a cache of states in workers could save: reading a segment's start from the store.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import torch

from ticketry.lab.lab import Lab
from ticketry.lab.store import open_store
from ticketry.tasks import catalogue


def searched(on: str, folder: Path, length: str, segments: int) -> dict[str, float]:
    """Segments one after the other; seconds of the first, of the others, and of their training."""
    shutil.rmtree(folder, ignore_errors=True)
    task = catalogue.get("digits")
    recipe = task.recipe.changed(length=length)
    with Lab(folder, runner=on, device="cpu") as lab:
        walls, trained = [], []
        for number in range(segments + 1):
            segment = lab.segment(task, start=number, recipe=recipe)
            began = time.perf_counter()
            result = lab.train(segment)
            walls.append(time.perf_counter() - began)
            trained.append(result.train_seconds)
    shutil.rmtree(folder, ignore_errors=True)
    beside = [wall - own for wall, own in zip(walls, trained, strict=True)]
    return {
        "start": beside[0],
        "a segment": statistics.median(beside[1:]),
        "training": statistics.median(trained[1:]),
    }


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
    print(f"\n{'runner':28} {'first':>8} {'each':>8} {'training':>9}  share of segments of 30 s")
    for on, rounds in found.items():
        first, each, training = (
            statistics.median(one[name] for one in rounds) for name in ("start", "a segment", "training")
        )
        print(f"{on:28} {first:7.2f}s {each:7.3f}s {training:8.2f}s  {100 * each / 30:.2f} %")


if __name__ == "__main__":
    main()
