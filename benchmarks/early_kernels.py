"""A whole EarlyCroP training with sparse kernels / the dense network's, and the same in torch under the mask.

VGG-16 on CIFAR-10, pruned once, early in training, to 5 % of its weights, and trained on to the end of its schedule.
Time is what this process computed (processor time) in the steps of a training from the initialisation to the end, those
before the cut too, with the compilation of kernels and the making of their tables; detector and scores, which are the
same with any kernels, are reported beside it. Both searches run in one process, one thread, float32. An interrupted
benchmark resumes.

    python benchmarks/early_kernels.py --store FOLDER --size 16 --length 400it --batch 64
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import Row, main, one_thread, parser

from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds
from ticketry.lab.training.loop import Loop
from ticketry.search import method
from ticketry.tasks import catalogue

KINDS = ("dense", "auto")


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    return rows_of({kind: searched(kind, arguments) for kind in KINDS}, arguments)


def searched(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a search with these kernels; return seconds of each stretch of steps, results and processor time."""
    file = arguments.store / f"{kind}.json"
    if file.exists():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    options = {} if arguments.size == 32 else {"size": str(arguments.size)}
    task = catalogue.get("cifar10", model=arguments.network, options=options)
    recipe = task.recipe.changed(length=arguments.length, batch=arguments.batch)
    early = method("early")
    settings = early.Settings(
        density=(arguments.density,), every=arguments.every, spare_output=True, spare_first_conv=True
    )
    stretches: list[dict[str, Any]] = []
    began = time.process_time()
    with (
        watched(stretches),
        Lab(arguments.store / kind, data=arguments.data, device="cpu", precision="fp32", kernels=kind) as lab,
    ):
        dense, pruned = early.search(lab, task, recipe, settings, Seeds())
        found = {"stretches": stretches, "dense": summarise(dense), "pruned": summarise(pruned)}
    assert pruned.moment is not None
    found |= {"cut": pruned.moment.step, "detector": pruned.moment.seconds, "all": time.process_time() - began}
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def summarise(found: Found) -> dict[str, Any]:
    segment = found.result.segment
    return {
        "accuracy": found.result.metrics["test"]["accuracy"],
        "kernels": segment.arithmetic.kernels,
        "steps": segment.total,
    }


def watched(stretches: list[dict[str, Any]]) -> Any:
    """While it lasts, each stretch of steps that is trained is noted."""
    train = Loop.train_until

    def timed(loop: Loop, last: int, tick: Callable[[], None]) -> None:
        began, first = time.process_time(), loop.step
        train(loop, last, tick)
        masked = any(one.masked_by() for one in loop.segment.variants)
        stretches.append({"first": first, "last": last, "masked": masked, "seconds": time.process_time() - began})

    return patch.object(Loop, "train_until", timed)


def seconds(found: dict[str, Any], *, masked: bool, until: int | None = None) -> float:
    """Return the seconds of all steps with or without the mask, optionally up to a step."""
    some = [one for one in found["stretches"] if one["masked"] == masked and (until is None or one["last"] <= until)]
    return float(sum(one["seconds"] for one in some))


def rows_of(found: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> list[Row]:
    """Return rows for whole trainings, for their sparse part alone, and accuracies."""
    cut, steps = found["auto"]["cut"], found["dense"]["dense"]["steps"]
    how = f"{arguments.network}, {arguments.size} x {arguments.size}, {steps} steps of {arguments.batch}, cut at {cut}"
    dense = seconds(found["dense"], masked=False)
    rows = []
    for one in found.values():
        before, after = seconds(one, masked=False, until=one["cut"]), seconds(one, masked=True)
        what = f"EarlyCroP to {arguments.density:.0%}, {one['pruned']['kernels']}: whole training / dense in torch"
        accuracies = f"accuracy {one['pruned']['accuracy']:.2f} %, dense {one['dense']['accuracy']:.2f} %"
        spent = f"{before:.1f} s before the cut, {after:.1f} after it, of {dense:.1f}; detector {one['detector']:.1f} s"
        rows.append(Row(what, (before + after) / dense, how=f"{how}; {spent}; {accuracies}", details=one))
    after = [seconds(found[kind], masked=True) for kind in KINDS]
    rows.append(Row("steps after the cut: sparse / in torch under the mask", after[1] / after[0], how=how))
    whole = seconds(found["auto"], masked=False)
    rows.append(Row("the dense network's whole training: in kernels / in torch", whole / dense, how=how))
    return rows


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--store", type=Path, required=True, help="folder of both stores and of the times")
    options.add_argument("--network", default="vgg-16")
    options.add_argument("--size", type=int, default=32, help="pixels of a side")
    options.add_argument("--length", default="160ep", help="of the training")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--density", type=float, default=0.05)
    options.add_argument("--every", default="2.5%", help="steps between two measurements of the detector")
    main("early_kernels", measure, options)
