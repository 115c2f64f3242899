"""A whole search with sparse kernels / the same with dense ones: time and accuracy, level by level.

Iterative magnitude pruning of ResNet-20 on CIFAR-10, rewinding to the start, both searches in one process, a level of
the one and then a level of the other, so that a busy machine is as busy for both. Time is what this process computed
(processor time) in the steps, with the compilation of kernels and the making of their tables. The first step of a
level, which has all that is done once, is reported separately. One thread, float32. It may be stopped and started
again: what is trained is in the store, and times are in a file beside it.

    python benchmarks/search_kernels.py --store FOLDER --size 16 --length 120it --figure research/FILE.svg
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import Row, main, one_thread, parser

from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.segment import Result, Segment
from ticketry.lab.training.supervised import Supervised
from ticketry.search import method
from ticketry.tasks import catalogue

TARGET = 0.5
"""Time with sparse kernels / with dense ones that is to be reached."""


class Clock:
    """Processor time, and the part of it in the steps of trainings."""

    def __init__(self) -> None:
        self.training, self.first, self.steps = 0.0, 0.0, 0

    def patched(self) -> Any:
        """While the trainings of this process are watched."""
        train = Loop.train_until

        def timed(loop: Loop, last: int, tick: Callable[[], None]) -> None:
            began, first = time.process_time(), loop.step

            def ticked() -> None:
                if loop.step == first + 1:
                    self.first += time.process_time() - began
                tick()

            train(loop, last, ticked)
            self.training += time.process_time() - began
            self.steps += loop.step - first

        return patch.object(Loop, "train_until", timed)

    def measure(self, work: Callable[[], Found]) -> tuple[Found, dict[str, Any]]:
        """Run the work; return its result and its times."""
        self.training, self.first, self.steps = 0.0, 0.0, 0
        found = work()
        return found, {"steps": self.steps, "training": self.training, "first": self.first}


class Unmeasured(Lab):
    """A lab that evaluates nothing: that takes as long in either search, and longer than a short training."""

    def train(self, segment: Segment, **more: Any) -> Result:
        return super().train(segment, **{**more, "measure": False})


def accuracy(lab: Lab, found: Found, count: int) -> float:
    """Return the accuracy on the first examples of the test split, in percent."""
    course = lab.course(found.result.segment.task)
    assert isinstance(course, Supervised)
    test = course.splits.test
    few = replace(test, inputs=test.inputs[:count], targets=test.targets[:count])
    model = lab.model(course.task, found.result).eval()
    with torch.no_grad():
        return Supervised(course.task, replace(course.splits, test=few)).evaluate(model, "test", Arithmetic())[
            "accuracy"
        ]


def searched(lab: Lab, arguments: argparse.Namespace) -> Iterator[Found]:
    """The search, a network at a time."""
    options = {} if arguments.size == 32 else {"size": str(arguments.size)}
    task = catalogue.get("cifar10", model=arguments.network, options=options)
    how = method("iterative")
    recipe = task.recipe.changed(length=arguments.length)
    return iter(how.search(lab, task, recipe, how.Settings(levels=arguments.levels, rate=0.2), Seeds()))


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    file = arguments.store / "times.jsonl"
    known = {(row["kind"], row["level"]): row for row in map(json.loads, _lines(file))}
    clock, kinds = Clock(), kinds_of(arguments)
    with clock.patched(), contextlib.ExitStack() as stack:
        searches, labs = {}, {}
        for kind in kinds:
            lab = Unmeasured(arguments.store / kind, data=arguments.data, device="cpu", precision="fp32", kernels=kind)
            labs[kind] = stack.enter_context(lab)
            searches[kind] = searched(lab, arguments)
        for level in range(arguments.levels + 1):
            for kind, search in searches.items():
                found, took = clock.measure(lambda search=search: next(search))  # type: ignore[misc]
                if (kind, level) not in known:
                    known[kind, level] = _level_record(kind, level, found, took)
                    known[kind, level]["accuracy"] = accuracy(labs[kind], found, arguments.test)
                    with file.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(known[kind, level]) + "\n")
    if arguments.figure:
        draw(known, arguments)
    return rows_of(known, arguments)


def kinds_of(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the kernels of the two searches."""
    return "dense", arguments.kernels


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _level_record(kind: str, level: int, found: Found, took: dict[str, Any]) -> dict[str, Any]:
    segment = found.result.segment
    share = segment.steps / max(took["steps"], 1)  # of a level that was begun by a process that ended
    return {
        "kind": kind,
        "level": level,
        "kept": round(0.8**level, 4),
        "kernels": segment.arithmetic.kernels,
        "loss": found.result.record["loss"][-1][1],
        "training": round(took["training"] * share, 3),
        "first": round(took["first"], 3),
    }


def rows_of(known: dict[tuple[str, int], dict[str, Any]], arguments: argparse.Namespace) -> list[Row]:
    """A row a level, and the whole."""
    how = f"{arguments.network}, {arguments.size} x {arguments.size}, {arguments.length} a level, processor time"
    kinds, rows, every = kinds_of(arguments), [], range(arguments.levels + 1)
    for level in every:
        dense, other = (known[kind, level] for kind in kinds)
        what = f"level {level}, {100 * other['kept']:.1f} % kept, {other['kernels']}: steps"
        details = {"dense": dense, arguments.kernels: other}
        rows.append(Row(what, other["training"] / dense["training"], how=how, details=details))
    whole = {kind: sum(known[kind, level]["training"] for level in every) for kind in kinds}
    steps = {kind: whole[kind] - sum(known[kind, level]["first"] for level in every) for kind in kinds}
    for what, target, spent in (
        ("the whole search", TARGET, whole),
        ("without the first step of a level", None, steps),
    ):
        rows.append(Row(what, spent[kinds[1]] / spent[kinds[0]], target=target, how=how, details=spent))
    return rows


def draw(known: dict[tuple[str, int], dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Time and accuracy against the weights that are kept."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for kind in kinds_of(arguments):
        rows = [known[kind, level] for level in range(arguments.levels + 1)]
        for axis, part in zip(axes, ("training", "accuracy"), strict=True):
            axis.plot(
                [100 * row["kept"] for row in rows], [row[part] for row in rows], marker="o", label=f"{kind} kernels"
            )
    for axis, label in zip(axes, ("seconds of training (processor time)", "test accuracy (%)"), strict=True):
        axis.set(xscale="log", xlabel="weights kept (%)", ylabel=label)
        axis.invert_xaxis()
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.suptitle(f"{arguments.network}, CIFAR-10 at {arguments.size} x {arguments.size}, {arguments.length} a level")
    figure.savefig(arguments.figure, metadata={"Date": None})


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--store", type=Path, required=True, help="folder of both stores and of the times")
    options.add_argument("--network", default="resnet-20")
    options.add_argument("--size", type=int, default=32, help="pixels of a side")
    options.add_argument("--length", default="160ep", help="of a level's training")
    options.add_argument("--test", type=int, default=2000, help="test images that accuracy is measured on")
    options.add_argument("--levels", type=int, default=14)
    options.add_argument("--kernels", choices=["sparse", "auto"], default="sparse", help="of the other search")
    options.add_argument("--figure", type=Path)
    main("search_kernels", measure, options)
