"""Which length of training converges: the dense network at several lengths and seeds, on both splits.

A length counts as converged if twice the steps give the dense network at most 0.3 points more. Lengths of campaigns
are taken from this table, before any ticket is trained (research/regime.md). An interrupted benchmark resumes.

    python benchmarks/regime.py resnet-20:cifar10 --option size=16 --length 4000it 8000it 16000it --store FOLDER
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from common import Row, main, network_and_task, one_thread, parser

from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Segment
from ticketry.tasks.task import Task


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    rows = []
    for asked in arguments.networks:
        task = network_and_task(asked, arguments.option)
        recipe: dict[str, Any] = {"batch": arguments.batch} if arguments.batch else {}
        if arguments.plain:
            recipe["augment"] = ()
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        # by seeds, then by lengths: a run that is stopped has whole seeds
        found: dict[str, list[dict[str, Any]]] = {length: [] for length in arguments.length}
        wanted = [(seed, length) for seed in seeds for length in arguments.length]
        if arguments.workers:
            with lab_of(arguments, arguments.workers) as lab:
                lab.train_many([segment_of(lab, task, *each, recipe) for each in wanted])
        for seed, length in wanted:
            found[length].append(trained(task, length, seed, recipe, arguments))
            print(asked, length, found[length][-1], flush=True)
        rows += rows_of(asked, found, task.metric.unit)
    return rows


def lab_of(arguments: argparse.Namespace, workers: int = 0) -> Lab:
    return Lab(
        arguments.store,
        data=arguments.data,
        device=arguments.device,
        precision=arguments.precision,
        kernels=arguments.kernels,
        workers=workers,
    )


def segment_of(lab: Lab, task: Task, seed: int, length: str, recipe: dict[str, Any]) -> Segment:
    return lab.segment(task, start=seed, order_seed=seed, recipe=task.recipe.changed(**{**recipe, "length": length}))


def trained(
    task: Task, length: str, seed: int, recipe: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The metric and the loss of one dense training, and its seconds of processor time (0 from the store)."""
    with lab_of(arguments) as lab:
        segment = segment_of(lab, task, seed, length, recipe)
        began = time.process_time()
        result = lab.train(segment)
    metrics = result.metrics
    return {
        "seed": seed,
        "steps": segment.steps,
        "seconds": round(time.process_time() - began, 1),
        "validation": metrics["validation"][task.metric.name],
        "test": metrics["test"][task.metric.name],
        "test loss": metrics["test"].get("loss"),
        "kernels": segment.arithmetic.kernels,
    }


def rows_of(asked: str, found: dict[str, list[dict[str, Any]]], unit: str) -> list[Row]:
    """Return a row for each length: mean, least and greatest over seeds, and the gain of the next length."""
    rows = []
    lengths = list(found)
    for length, longer in zip(lengths, [*lengths[1:], None], strict=True):
        values = [one["test"] for one in found[length]]
        how = f"{found[length][0]['steps']} steps, {len(values)} seeds"
        if longer:
            gains = [b["test"] - a["test"] for a, b in zip(found[length], found[longer], strict=True)]
            how += f"; {longer} gives {statistics.fmean(gains):+.2f} [{min(gains):+.2f}, {max(gains):+.2f}]"
        mean = statistics.fmean(values)
        rows.append(
            Row(f"{asked}, {length}, test", mean, unit, min(values), max(values), how=how, details=found[length])
        )
    return rows


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("networks", nargs="+", help="network:task, as resnet-20:cifar10")
    options.add_argument("--store", type=Path, required=True)
    options.add_argument("--option", nargs="*", default=[], help="of the tasks: size=16")
    options.add_argument("--batch", type=int, help="by default the task's")
    options.add_argument("--plain", action="store_true", help="examples as they are, without flips and crops")
    options.add_argument("--length", nargs="+", default=["4000it", "8000it", "16000it"])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--first-seed", type=int, default=0, help="20000 is the first of campaigns")
    options.add_argument("--kernels", default="dense")
    options.add_argument("--device", default="cpu")
    options.add_argument("--precision", default="fp32")
    options.add_argument("--workers", type=int, default=0, help="trainings side by side; 0 in this process")
    main("regime", measure, options)
