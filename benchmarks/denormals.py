"""Cost of denormal numbers in training: LeNet-300-100 with Adam, dense and in searches with gates.

    python benchmarks/denormals.py                      # 4,000 steps, three turns
    python benchmarks/denormals.py --length 16000it --rounds 1

Trainings of this library in turns, with denormal numbers as zero (as it trains) and unchanged
(without `torch.set_flush_denormal`). The rows show median processor seconds of training, and whether all weights end
as the same bits. One thread.
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
from ticketry_engine.bench.timing import machine


@contextmanager
def _as_they_are() -> Iterator[None]:
    with unittest.mock.patch.object(torch, "set_flush_denormal"):
        yield


def _trained(length: str, rounds: int) -> tuple[float, list[dict[str, torch.Tensor]]]:
    """Processor seconds, and the weights that each network of a search ends with."""
    task = tk.task("fashion-mnist", model="lenet-300-100")
    recipe = task.recipe.changed(length=length, batch=60)
    with tempfile.TemporaryDirectory() as folder, tk.Lab(folder) as lab:
        lab.train(lab.segment(task, start=0, recipe=recipe).shortened_to(5))  # reads the data
        begun = time.process_time()
        if rounds:
            settings = tk.search.continuous.Settings(rounds=rounds, init=(-0.02,), rewind="0")
            (found,) = tk.search.continuous(lab, task, settings, recipe=recipe)
            models = [one.result.model for one in found]
        else:
            models = [lab.train(lab.segment(task, start=0, recipe=recipe)).model]
        return time.process_time() - begun, [lab.store.get_tensors(model) for model in models]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", default="4000it")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine()["processor"], f"torch {torch.__version__}, one thread, {arguments.length}")
    for rounds in (0, 1, 3):
        zero, kept, same = [], [], True
        for _ in range(arguments.rounds):
            seconds, weights = _trained(arguments.length, rounds)
            zero.append(seconds)
            with _as_they_are():
                seconds, others = _trained(arguments.length, rounds)
            kept.append(seconds)
            pairs = zip(weights, others, strict=True)
            same &= all(torch.equal(one[name], other[name]) for one, other in pairs for name in one)
        ratio = statistics.median(one / other for one, other in zip(zero, kept, strict=True))
        named = f"Continuous Sparsification, rounds: {rounds}" if rounds else "dense"
        taken = f"{statistics.median(zero):.1f} s, as they are {statistics.median(kept):.1f} s"
        print(f"{named}: {taken}: {ratio:.3f}, {'the same bits' if same else 'OTHER BITS'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
