"""What a mask costs in a training step: masked / dense.

Four ways to train the same network on the same batches, each beside its own dense twin:

- lab: the lab's own loop (`ticketry.lab.loop.Loop`), with a mask and without, batches drawn and augmented as it does;
- hold: a bare PyTorch loop over batches that are ready in memory, inside ``with tk.hold(model, mask)`` and without;
- prune: the same bare loop with torch.nn.utils.prune (custom_from_mask), for comparison.

The bare loops use the optimiser's fused form, which makes the dense step, and so the ratio's base, as fast as it gets.
Masks are random, of density 0.2. A sample is a few steps after one that is not timed; before and after (the attaching
of hooks, the last check) nothing is counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from common import Row, alternating, main, one_thread, parser, ratio_row, timed
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import ticketry as tk
from ticketry.lab.loop import Loop, TrainingState, initial_state, rebuilt
from ticketry.lab.optimizer import make_optimizer
from ticketry.lab.precision import Arithmetic, choose_arithmetic
from ticketry.lab.segment import Segment, Start

DENSITY = 0.2
# task, precisions, batches of the bare loops, steps of a sample, ratio to reach. A LeNet's step takes a hundredth of a
# ResNet-20's, so it does many: on few batches it would soon know them by heart, and gradients that are almost 0
# (denormal numbers) would be what is measured.
SETTINGS = (
    ("cifar10", ("auto", "fp32"), 64, 3, 1.02),
    ("fashion-mnist", ("auto",), 429, 100, 1.06),
)
ROUNDS, QUICK_ROUNDS = 31, 3


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    rows = []
    for name, precisions, steps, target in SETTINGS:
        task = tk.task(name)
        examples = task.load(arguments.data).train
        tried = []
        for precision in precisions:
            arithmetic = choose_arithmetic(task.build(), device="cpu", precision=precision)
            if arithmetic in tried:  # a processor without bfloat16
                continue
            tried.append(arithmetic)
            count = max(1, steps // 10) if arguments.quick else steps
            rows += compare(task, examples, arithmetic, count, QUICK_ROUNDS if arguments.quick else ROUNDS, target)
    return rows


def compare(
    task: tk.Task, examples: tk.Split, arithmetic: Arithmetic, steps: int, rounds: int, target: float
) -> list[Row]:
    """The rows of one network in one arithmetic."""
    model = rebuilt(task, initial_state(task, 0))
    mask = tk.prune(model, density=DENSITY, score="random")
    setting = (task, examples, arithmetic, steps)
    cases = {
        "lab dense": lab_case(*setting, None),
        "lab masked": lab_case(*setting, mask),
        "bare dense": bare_case(*setting),
        "bare held": held_case(*setting, mask),
        "bare pruned": pruned_case(*setting, mask),
    }
    seconds = alternating(cases, rounds)
    layout = " channels_last" if arithmetic.channels_last else ""
    how = f"1 thread, {arithmetic.precision}{layout}, batch {task.recipe.batch}, CPU time, {rounds} x {steps} steps"
    what = f"masked / dense step, {getattr(task, 'model', '')} on {task.name}"

    def row(label: str, masked: str, dense: str, **more: Any) -> Row:
        millisecond = 1e3 / steps
        details = {
            "masked_ms_a_step": millisecond * sorted(seconds[masked])[rounds // 2],
            "dense_ms_a_step": millisecond * sorted(seconds[dense])[rounds // 2],
            "steps_of_a_sample": steps,
        }
        return ratio_row(f"{what}: {label}", seconds[masked], seconds[dense], how=how, details=details, **more)

    return [
        row("the lab's loop", "lab masked", "lab dense", target=target),
        row("own loop, tk.hold", "bare held", "bare dense", target=target),
        row("own loop, torch.nn.utils.prune", "bare pruned", "bare dense"),
    ]


# -- the lab's loop ----------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """Raised from the loop's tick: it leaves `train_until` between two steps, before the check at a segment's end."""


def lab_case(
    task: tk.Task, examples: tk.Split, arithmetic: Arithmetic, steps: int, mask: tk.Mask | None
) -> Callable[[], float]:
    segment = endless(task, arithmetic, len(examples))
    loop = Loop(examples, segment, TrainingState(0, initial_state(task, 0), {}, torch.zeros(0)), mask)
    left = 0

    def tick() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise _Enough

    def train(count: int) -> None:
        nonlocal left
        left = count
        try:
            loop.train_until(segment.last, tick)
        except _Enough:
            pass

    def sample() -> float:
        train(1)
        return timed(lambda: train(steps))

    return sample


def endless(task: tk.Task, arithmetic: Arithmetic, examples: int) -> Segment:
    """A segment of the task's own recipe that is longer than the benchmark."""
    per_epoch = -(-examples // task.recipe.batch)
    total = task.recipe.steps(per_epoch)
    return Segment(
        task=task,
        recipe=task.recipe,
        start=Start(seed=0),
        mask=None,  # the loop is given the mask itself
        first=0,
        last=10 * total,
        total=total,
        per_epoch=per_epoch,
        order_seed=0,
        arithmetic=arithmetic,
    )


# -- a loop of one's own -----------------------------------------------------------------------------------------------


class Bare:
    """Plain PyTorch: the next batch, forward, backward, step."""

    def __init__(self, task: tk.Task, examples: tk.Split, arithmetic: Arithmetic, mask: tk.Mask | None = None) -> None:
        self.model = arithmetic.place(rebuilt(task, initial_state(task, 0))).train()
        if mask is not None:
            for name, kept in mask.items():
                module, _, local = name.rpartition(".")
                torch_prune.custom_from_mask(self.model.get_submodule(module), local, kept)
        self.optimizer = make_optimizer(task.recipe, self.model)
        self.batches = cycle(list(ready_batches(task, examples, arithmetic)))
        self.bf16 = arithmetic.precision == "bf16"

    def train(self, steps: int) -> None:
        for _ in range(steps):
            inputs, targets = next(self.batches)
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
                outputs = self.model(inputs)
            nn.functional.cross_entropy(outputs.float(), targets).backward()
            self.optimizer.step()

    def sample(self, steps: int) -> float:
        self.train(1)
        return timed(lambda: self.train(steps))


def ready_batches(task: tk.Task, examples: tk.Split, arithmetic: Arithmetic) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as the model takes them: float32, normalised, in the memory layout; no augmentation."""
    layout = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
    for start in range(0, 429 * task.recipe.batch, task.recipe.batch):
        rows = slice(start, start + task.recipe.batch)
        yield task.prepare(examples.inputs[rows]).contiguous(memory_format=layout), examples.targets[rows].clone()


def bare_case(task: tk.Task, examples: tk.Split, arithmetic: Arithmetic, steps: int) -> Callable[[], float]:
    bare = Bare(task, examples, arithmetic)
    return lambda: bare.sample(steps)


def held_case(
    task: tk.Task, examples: tk.Split, arithmetic: Arithmetic, steps: int, mask: tk.Mask
) -> Callable[[], float]:
    bare = Bare(task, examples, arithmetic)

    def sample() -> float:
        with tk.hold(bare.model, mask):  # for this sample only: its hooks on optimisers are seen by all of them
            return bare.sample(steps)

    return sample


def pruned_case(
    task: tk.Task, examples: tk.Split, arithmetic: Arithmetic, steps: int, mask: tk.Mask
) -> Callable[[], float]:
    bare = Bare(task, examples, arithmetic, mask)
    return lambda: bare.sample(steps)


if __name__ == "__main__":
    main("masking", measure, parser(__doc__ or ""))
