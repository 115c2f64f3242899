"""The first steps of the preset resnet-50-imagenet, from shards of made-up images: their time and memory.

ResNet-50 on images of 500 x 375 pixels as JPEG (noise, smoothed), randomly cropped and resized to
224 x 224, as the preset trains it. Its batch of 1,024 does not fit a small machine: batches of 8 and 16 are measured,
each in a separate process, and the memory of an image of a batch is the difference over 8. Also how long the order
of an epoch takes for ImageNet's number of images.

Then the same steps as `ticketry search --devices 2` makes them: two processes over gloo with half of the batch each,
from the same shards, with norms of each rank's own (as the papers have them) and synchronised.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Row, main, parser, seconds_row

BATCHES, STEPS, QUICK_STEPS = (8, 16), 5, 2
RANKS, NORMS = 2, ("own", "synchronised")
IMAGES, SHARDS = 1_281_167, 1_100
"""Number of ImageNet's training images, and of shards."""
CLASSES = 10


def measure(arguments: argparse.Namespace) -> list[Row]:
    steps = QUICK_STEPS if arguments.quick else STEPS
    with tempfile.TemporaryDirectory() as folder:
        root = made_up(Path(folder))
        words = [sys.executable, __file__, "--of", str(root), "--steps", str(steps), "--batch"]
        ranks = {
            norms: json.loads(subprocess.check_output([*words, str(BATCHES[1]), "--norms", norms])) for norms in NORMS
        }
        told = {batch: json.loads(subprocess.check_output([*words, str(batch)])) for batch in BATCHES}
    small, large = (told[batch] for batch in BATCHES)
    image = (large["peak"] - small["peak"]) / (BATCHES[1] - BATCHES[0])
    fixed = large["peak"] - BATCHES[1] * image
    how = f"{steps} steps after the first, batch {BATCHES[1]}, one thread, {large['precision']}, processor time"
    train = [seconds / BATCHES[1] for seconds in large["train"]]
    read = [seconds / BATCHES[1] for seconds in large["read"]]
    return [
        seconds_row("ResNet-50 at 224 x 224: an image of a training step", train, how=how),
        seconds_row("an image read from a shard, cut out and resized", read, how=how),
        Row(
            "memory of an image of a batch",
            image / 1e6,
            "MB",
            how=f"peak of batch {BATCHES[1]} less that of {BATCHES[0]}",
        ),
        Row("memory besides", fixed / 1e9, "GB", how="Python, torch, weights, optimiser"),
        Row("so a batch of 1,024 needs", (fixed + 1024 * image) / 1e9, "GB"),
        Row("order of an epoch of ImageNet", order_seconds(), "s", how="processor time, once an epoch"),
        *(row for norms, each in ranks.items() for row in rows_of_ranks(norms, each)),
    ]


def rows_of_ranks(norms: str, told: dict[str, Any]) -> list[Row]:
    after = f"{told['steps']} steps after the first, load {told['load']}"
    how = f"{RANKS} ranks over gloo, global batch {BATCHES[1]}, {after}"
    return [
        Row(
            f"norms {norms}: an image of a training step, read and trained",
            told["processor"] / told["steps"] / BATCHES[1],
            "s",
            how=f"processor time of all ranks, {how}",
        ),
        Row(f"norms {norms}: a step", told["wall"] / told["steps"], "s", how=f"wall time, {how}"),
        Row(f"norms {norms}: peak memory of a rank", max(told["peaks"]) / 1e9, "GB", how=how),
    ]


def order_seconds() -> float:
    """Return the seconds to shuffle ImageNet's images in their shards."""
    import torch

    from ticketry.lab.training.data_loading import DataOrder

    order = DataOrder(0, IMAGES, 1024, shards=torch.arange(IMAGES) * SHARDS // IMAGES, window=16)
    began = time.process_time()
    order.batch(0)
    return time.process_time() - began


def made_up(folder: Path) -> Path:
    """Shards of 200 images, of CLASSES classes."""
    import numpy as np
    from PIL import Image

    from ticketry.tasks.data.shards import write_shards

    draw = np.random.Generator(np.random.PCG64(0))
    for part, count in (("train", 18), ("val", 2)):
        for number in range(CLASSES):
            images = folder / "images" / part / f"class-{number}"
            images.mkdir(parents=True)
            for index in range(count):
                coarse = Image.fromarray(draw.integers(0, 256, (12, 15, 3), dtype=np.uint8))
                coarse.resize((500, 375), Image.Resampling.BICUBIC).save(images / f"{index}.jpg", quality=90)
    return write_shards(folder / "images", folder / "shards", megabytes=0.7)


def first_steps(root: str, batch: int, steps: int) -> dict[str, Any]:
    """Seconds of each step, to read and to train, and the peak of memory in bytes."""
    import torch

    from ticketry.lab.training.precision import choose_arithmetic
    from ticketry.lab.training.state import make_optimizer
    from ticketry.lab.training.supervised import course_of
    from ticketry.tasks import catalogue
    from ticketry.tasks.catalogue import experiment
    from ticketry.tasks.recipe import recipe_from_dict

    tables = experiment("resnet-50-imagenet")
    task = catalogue.get(tables["task"], model=tables["model"], options={"path": root, "workers": "0"})
    recipe = recipe_from_dict(tables["recipe"]).changed(batch=batch)
    model = task.build()
    arithmetic = choose_arithmetic(model)
    train, read = [], []
    with arithmetic.active():
        model = arithmetic.place(model).train()
        optimizer = make_optimizer(recipe, model)
        session = course_of(task).session(recipe, 0, arithmetic)
        batches = session.batches(range(steps + 1))
        for _ in range(steps + 1):
            began = time.process_time()
            examples = next(batches)
            has = time.process_time()
            loss = session.loss(model, examples)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert torch.isfinite(loss)
            read.append(has - began)
            train.append(time.process_time() - has)
        batches.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"train": train[1:], "read": read[1:], "peak": peak, "precision": arithmetic.precision}


def steps_of_ranks(root: str, batch: int, steps: int, norms: str) -> dict[str, Any]:
    """Train the first steps of the preset; return wall time, processor time and peak memory of its ranks."""
    import multiprocessing
    import os

    from ticketry.lab.lab import Lab
    from ticketry.lab.training.execute import execute
    from ticketry.lab.training.job import Watch
    from ticketry.tasks import catalogue
    from ticketry.tasks.catalogue import experiment
    from ticketry.tasks.recipe import recipe_from_dict

    class Looking(Watch):
        """Looks at the processes of ranks; the last look is behind the last step."""

        def __init__(self) -> None:
            super().__init__(checkpoint_seconds=1e9)
            self.seen: dict[int, tuple[float, float]] = {}
            self.peaks: list[int] = []

        def report_progress(self, segment: Any, step: int) -> None:
            pids = [process.pid for process in multiprocessing.active_children()]
            tick = os.sysconf("SC_CLK_TCK")
            stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
            processor = sum(int(stat[11]) + int(stat[12]) for stat in stats) / tick
            self.seen.setdefault(step, (time.perf_counter(), processor))
            lines = (Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2] for pid in pids)
            self.peaks = [int(line.split()[0]) * 1024 for line in lines]

    tables = experiment("resnet-50-imagenet")
    task = catalogue.get(tables["task"], model=tables["model"], options={"path": root, "workers": "0"})
    recipe = recipe_from_dict(tables["recipe"]).changed(batch=batch)
    watch = Looking()
    with tempfile.TemporaryDirectory() as store, Lab(store, devices=RANKS, norms=norms, device="cpu") as lab:
        segment = lab.segment(task, start=0, recipe=recipe, last=steps + 1)
        execute(lab.store, None, segment, (), watch, measure=False)
        losses = lab.store.load_valid_result(segment.trajectory, segment.last)["loss"]
    assert len(losses) == steps + 1
    first, last = min(step for step in watch.seen if step), max(watch.seen)
    wall, processor = (after - before for before, after in zip(watch.seen[first], watch.seen[last], strict=True))
    load = round(os.getloadavg()[0], 1)
    return {"steps": last - first, "wall": wall, "processor": processor, "peaks": watch.peaks, "load": load}


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--of", help=argparse.SUPPRESS)
    made.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    made.add_argument("--norms", help=argparse.SUPPRESS)
    made.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    given = options().parse_known_args()[0]
    if given.of and given.norms:
        print(json.dumps(steps_of_ranks(given.of, given.batch, given.steps, given.norms)))
    elif given.of:
        print(json.dumps(first_steps(given.of, given.batch, given.steps)))
    else:
        main("imagenet_first_steps", measure, options())
