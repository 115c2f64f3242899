"""Training steps on a GPU, replayed from CUDA graphs and launched kernel by kernel: time of the one / of the other.

    python benchmarks/training_gpu.py vgg-16@0.5:cifar10 resnet-20:cifar10 --density 0.2

Both train the same steps from the same weights; that they end with the same bits is looked at too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import Row, alternating, main, network_and_task, parser, ratio_row

from ticketry.core.prune import prune
from ticketry.lab.lab import Lab
from ticketry.lab.training import replays

NEVER = 10**9


def measure(arguments: argparse.Namespace) -> list[Row]:
    rounds, steps = (1, 20) if arguments.quick else (arguments.rounds, arguments.steps)
    return [row_of(asked, arguments, rounds, steps) for asked in arguments.networks]


def row_of(asked: str, arguments: argparse.Namespace, rounds: int, steps: int) -> Row:
    task = network_and_task(asked, arguments.option)
    mask = None if arguments.density is None else prune(task.build(), arguments.density, score="random")
    ends: list[dict[str, torch.Tensor]] = []

    def trained(warm_up: int) -> float:
        """Seconds of a training in an empty store, by the store's own clock."""
        recipe = task.recipe.changed(length=f"{steps}it", batch=arguments.batch, augment=())
        with waiting_for(warm_up), lab_of(arguments) as lab:
            segment = lab.segment(task, start=0, recipe=recipe, mask=mask)
            ends.append(lab.state(lab.train(segment)))
            record = lab.store.load_valid_result(segment.trajectory, segment.last)
        assert record is not None
        return float(record["cost"]["train_seconds"])

    usual = replays.WARM_UP
    seconds = alternating({"graphs": lambda: trained(usual), "launched": lambda: trained(NEVER)}, rounds)
    if not all(torch.equal(ends[0][name], one[name]) for one in ends for name in ends[0]):
        sys.exit(f"{asked}: steps from graphs end with other bits than steps that are launched")
    each = [1000 * min(taken) / steps for taken in seconds.values()]
    what = f"{asked}, {'dense' if mask is None else f'{arguments.density:g} kept'}"
    how = f"{each[0]:.2f} and {each[1]:.2f} ms a step of {arguments.batch}, {arguments.precision}, {rounds} rounds"
    return ratio_row(what, seconds["graphs"], seconds["launched"], how=how)


@contextmanager
def waiting_for(warm_up: int) -> Iterator[None]:
    usual, replays.WARM_UP = replays.WARM_UP, warm_up
    try:
        yield
    finally:
        replays.WARM_UP = usual


@contextmanager
def lab_of(arguments: argparse.Namespace) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory() as folder:
        chosen: dict[str, Any] = {"device": arguments.device, "precision": arguments.precision}
        with Lab(Path(folder) / "store", data=arguments.data, **chosen) as lab:
            yield lab


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("networks", nargs="*", default=["resnet-20:cifar10"], help="network:task")
    options.add_argument("--option", nargs="*", default=[], help="of the tasks: size=16")
    options.add_argument("--density", type=float, help="train under a random mask that keeps so much")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="cuda")
    options.add_argument("--precision", default="auto")
    main("training_gpu", measure, options)
