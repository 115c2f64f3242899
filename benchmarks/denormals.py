"""What denormal numbers cost in training: LeNet-300-100 with Adam, dense and with gates, with them and without.

    python benchmarks/denormals.py                      # 4,000 steps, three turns
    python benchmarks/denormals.py --length 16000it --rounds 1

Trainings of this library in turns, with denormal numbers as zero (as it trains) and as they are
(`torch.set_flush_denormal` taken away). Told are processor seconds of training, medians, and whether all weights end as
the same bits. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import ticketry as tk
from ticketry.core.scope import scope
from ticketry.engine.bench.machine import machine
from ticketry.lab.training.segment import Segment
from ticketry.search.gating.gating import Gating


@contextmanager
def _as_they_are() -> Iterator[None]:
    with unittest.mock.patch.object(torch, "set_flush_denormal"):
        yield


def _segment(lab: tk.Lab, length: str, gated: bool) -> Segment:
    task = tk.task("fashion-mnist", model="lenet-300-100")
    recipe = task.recipe.changed(length=length, batch=60)
    variants = (Gating(scope=tuple(scope(lab.model(task)).names)),) if gated else ()
    return lab.segment(task, start=0, recipe=recipe, variants=variants)


def _trained(length: str, gated: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Processor seconds and the weights that it ends with."""
    with tempfile.TemporaryDirectory() as folder, tk.Lab(folder) as lab:
        segment = _segment(lab, length, gated)
        lab.train(segment.until(5))  # reads the data
        begun = time.process_time()
        found = lab.train(segment, measure=False)
        return time.process_time() - begun, lab.store.get_tensors(found.model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", default="4000it")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine()["processor"], f"torch {torch.__version__}, one thread, {arguments.length}")
    for gated in (False, True):
        zero, kept, same = [], [], True
        for _ in range(arguments.rounds):
            seconds, weights = _trained(arguments.length, gated)
            zero.append(seconds)
            with _as_they_are():
                seconds, others = _trained(arguments.length, gated)
            kept.append(seconds)
            same &= all(torch.equal(weights[name], others[name]) for name in weights)
        ratio = statistics.median(one / other for one, other in zip(zero, kept, strict=True))
        named, bits = "with gates" if gated else "dense", "the same bits" if same else "OTHER BITS"
        taken = f"{statistics.median(zero):.1f} s, as they are {statistics.median(kept):.1f} s"
        print(f"{named}: {taken}: {ratio:.3f}, {bits}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
