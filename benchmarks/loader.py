"""Images per second: the lab's loop / a plain PyTorch loop over a DataLoader, ResNet-20 on CIFAR-10.

The plain loop is written as most are: a Dataset that holds the images as one array and turns each into a PIL image,
torchvision-style transforms an image (random crop after padding by 4, random flip, to tensor, normalise), a shuffling
DataLoader, SGD with momentum and weight decay, default memory format, fp32. torchvision has no build for a CPU alone
that could be imported everywhere, so the four transforms are written out here with the calls that torchvision makes
(PIL's expand, crop and transpose; a permuted copy of the bytes to float; a subtraction and a division in place).

Two comparisons, each with the network, batch, recipe and number of steps the same on both sides:

- one core: our loop with one thread / the plain one with one thread, loading in the same process. CPU time.
- the whole machine: as many segments of ours side by side as there are cores, one thread each (what the lab's default
  runner does) / plain loops one after the other, each with all threads and as many loader workers as there are cores
  (what a user gets who trains one network after the other). Wall time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, alternating, main, one_thread, parser, quartiles, timed
from lab_loop import start_loop
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import ticketry as tk
from ticketry.lab.training.precision import choose_arithmetic
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.state import initial_state, rebuild_model
from ticketry.lab.training.supervised import course_of

STEPS, QUICK_STEPS = 6, 2
ROUNDS, QUICK_ROUNDS = 5, 1
MEAN, STD = (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)


class Pictures(Dataset[tuple[Tensor, int]]):
    """CIFAR-10 as torchvision has it: an image is made, changed and turned into a tensor when it is asked for."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self._images = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        self._targets = targets.tolist()
        self._mean, self._std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self._images[index]), border=4)
        left, top = random.randint(0, 8), random.randint(0, 8)
        image = image.crop((left, top, left + 32, top + 32))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()
        return tensor.to(torch.get_default_dtype()).div(255).sub_(self._mean).div_(self._std), self._targets[index]


def plain_loop(data: Path | None, steps: int, workers: int) -> Callable[[], None]:
    """The next `steps` steps of a plain loop."""
    task = tk.task("cifar10")
    examples, recipe = task.load(data).train, task.recipe
    model = rebuild_model(task, initial_state(task, 0)).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    loader = DataLoader(
        Pictures(examples.inputs, examples.targets),
        recipe.batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    batches = iter(loader)

    def run() -> None:
        for _ in range(steps):
            inputs, targets = next(batches)
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()

    return run


def our_loop(data: Path | None, steps: int, precision: str, rounds: int) -> Callable[[], None]:
    """The next `steps` steps of a segment in the lab's loop."""
    task = tk.task("cifar10")
    examples, recipe = task.load(data).train, task.recipe
    total = steps * (rounds + 2)
    segment = Segment(
        task=task,
        recipe=recipe,
        start=Start(seed=0),
        first=0,
        last=total,
        total=total,
        per_epoch=-(-len(examples) // recipe.batch),
        order_seed=0,
        arithmetic=choose_arithmetic(task.build(), device="cpu", precision=precision),
    )
    loop = start_loop(segment, course_of(task, data))
    return lambda: loop.train_until(loop.step + steps, lambda: None)


def measure(arguments: argparse.Namespace) -> list[Row]:
    steps = QUICK_STEPS if arguments.quick else STEPS
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    return [*one_core(arguments.data, steps, rounds), *whole_machine(arguments.data, steps, rounds)]


def one_core(data: Path | None, steps: int, rounds: int) -> list[Row]:
    one_thread()
    loops = {
        "plain": plain_loop(data, steps, 0),
        "fp32": our_loop(data, steps, "fp32", rounds),
        "auto": our_loop(data, steps, "auto", rounds),
    }
    cases = {name: (lambda run=run: timed(run)) for name, run in loops.items()}
    seconds = alternating(cases, rounds)
    how = f"1 thread, loader in the process, CPU time, {rounds} rounds of {steps} steps of 128"
    return rows(seconds, {"plain": 1, "fp32": 1, "auto": 1}, "one core", how)


def whole_machine(data: Path | None, steps: int, rounds: int) -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    plain = plain_loop(data, steps, cores)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(cores, mp_context=context) as pool:

        def ours(precision: str) -> float:
            began = time.perf_counter()
            parts = [pool.submit(_in_worker, data, steps, precision, rounds) for _ in range(cores)]
            for part in parts:
                part.result()
            return time.perf_counter() - began

        cases: dict[str, Callable[[], float]] = {
            "plain": lambda: timed(plain, time.perf_counter),
            "fp32": lambda: ours("fp32"),
            "auto": lambda: ours("auto"),
        }
        seconds = alternating(cases, rounds, warm_up=2)
    how = f"{cores} segments of 1 thread / {cores} threads and {cores} loader workers, wall time, {rounds} rounds"
    return rows(seconds, {"plain": 1, "fp32": cores, "auto": cores}, f"{cores} cores", how)


_LOOPS: dict[str, Any] = {}


def _in_worker(data: Path | None, steps: int, precision: str, rounds: int) -> None:
    """The next steps in a worker, which keeps its loop."""
    one_thread()
    if precision not in _LOOPS:
        _LOOPS[precision] = our_loop(data, steps, precision, 10 * rounds)
    _LOOPS[precision]()


def rows(seconds: dict[str, list[float]], networks: dict[str, int], where: str, how: str) -> list[Row]:
    """Images a second of ours over the plain loop's, by precision."""
    made = []
    for name, label, target in (("fp32", "fp32 both", 1.3), ("auto", "our default precision", 2.0)):
        ratios = [networks[name] * plain / own for own, plain in zip(seconds[name], seconds["plain"], strict=True)]
        low, median, high = quartiles(ratios)
        what = f"images/s of the lab's loop / of a plain loop, resnet-20, {label}, {where}"
        details = {"all_seconds": seconds[name], "all_base_seconds": seconds["plain"]}
        made.append(Row(what, median, "x", low, high, at_least=target, how=how, details=details))
    return made


if __name__ == "__main__":
    main("loader", measure, parser(__doc__ or ""))
