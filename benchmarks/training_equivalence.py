"""Whole trainings in sparse kernels beside dense ones: the difference in accuracy over seeds, as a paired interval.

Each seed is one initialisation, data order and mask (random, of one density over all layers): trained twice from the
same weights, in torch under the mask and in sparse kernels. The interval is Student's, of the differences; beside it
stands the spread of the seeds. An interrupted benchmark resumes from the store.

    python benchmarks/training_equivalence.py lenet-5:fashion-mnist resnet-20:cifar10 --store FOLDER --length 3ep

Language models read a whole test text for a metric, which takes longer than a short training: ``--test 10000`` takes
the perplexity of its first tokens alone.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Row, main, network_and_task, one_thread, parser
from scipy.stats import t

from ticketry.core.prune import prune
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Result
from ticketry.tasks.language.task import TextCourse
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task

KINDS = ("dense", "sparse")


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    rows = []
    for asked in arguments.networks:
        task = network_and_task(asked, arguments.option)
        values = trained(task, arguments)
        rows += rows_of(asked, values, "" if arguments.test else task.metric.unit, arguments)
    return rows


def trained(task: Task, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Train each seed with both kernels before the next seed; return the results by kernels."""
    recipe = task.recipe.changed(length=arguments.length)
    if arguments.batch:
        recipe = recipe.changed(batch=arguments.batch)
    if arguments.plain:
        recipe = recipe.changed(augment=())
    recipe = recipe.changed(lr=arguments.lr)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with ExitStack() as labs:
        both = {kind: labs.enter_context(lab_of(kind, arguments)) for kind in KINDS}
        for seed in range(arguments.seeds):
            for kind, lab in both.items():
                found[kind].append(one(lab, task, recipe, seed, arguments))
    return found


def lab_of(kind: str, arguments: argparse.Namespace) -> Lab:
    return Lab(arguments.store / kind, data=arguments.data, device="cpu", precision="fp32", kernels=kind)


def one(lab: Lab, task: Task, recipe: Recipe, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The metric on the test split, the losses on the way, and the kernels."""
    mask = prune(task.build(), arguments.density, score="random", seed=seed)
    segment = lab.segment(task, start=seed, order_seed=seed, mask=mask, recipe=recipe)
    result = lab.train(segment, measure=not arguments.test)
    if arguments.test:
        metric = perplexity(lab, task, result, arguments.test)
    else:
        metric = result.metrics["test"][task.metric.name]
    return {
        "kernels": segment.arithmetic.kernels,
        "metric": metric,
        "losses": [loss for _, loss in result.record["loss"]],
        "steps": segment.steps,
    }


def perplexity(lab: Lab, task: Task, result: Result, count: int) -> float:
    """Return the perplexity on the first `count` tokens of the test text."""
    course = lab.course(task)
    if not isinstance(course, TextCourse):
        raise SystemExit("--test is of language models")
    test = replace(course.corpus.test, tokens=course.corpus.test.tokens[:count], characters=0)
    model = lab.model(task, result).eval()
    short = TextCourse(replace(course.corpus, test=test), course.time, carries=bool(model.carries))
    with torch.no_grad():
        return short.evaluate(model, "test", result.segment.arithmetic)["perplexity"]


def rows_of(asked: str, values: dict[str, list[dict[str, Any]]], unit: str, arguments: argparse.Namespace) -> list[Row]:
    """The paired difference with its interval, and the spread of seeds."""
    dense, sparse = (values[kind] for kind in KINDS)
    differences = [one["metric"] - other["metric"] for one, other in zip(sparse, dense, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    half = t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5 if n > 1 else float("nan")
    spread = statistics.stdev(one["metric"] for one in dense) if n > 1 else float("nan")
    how = (
        f"{arguments.length} ({dense[0]['steps']} steps), {arguments.density:g} kept, {n} seeds, {sparse[0]['kernels']}"
    )
    least = statistics.fmean(one["metric"] for one in dense)
    return [
        Row(f"{asked}: sparse - dense, 95 % interval", mean, unit, mean - half, mean + half, how=how, details=values),
        Row(f"{asked}: standard deviation of seeds, dense", spread, unit, how=f"mean {least:.2f}"),
    ]


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("networks", nargs="+", help="network:task, as lenet-5:fashion-mnist")
    options.add_argument("--store", type=Path, required=True, help="folder of both stores")
    options.add_argument("--option", nargs="*", default=[], help="of the tasks: size=16")
    options.add_argument("--length", default="10ep")
    options.add_argument("--batch", type=int, default=0, help="0: the task's own")
    options.add_argument("--lr", type=float, help="peak learning rate; the task's own without it")
    options.add_argument("--plain", action="store_true", help="pictures as they are, without flips and shifts")
    options.add_argument("--density", type=float, default=0.1)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--test", type=int, default=0, metavar="TOKENS", help="of the test text; 0: all")
    main("training_equivalence", measure, options)
