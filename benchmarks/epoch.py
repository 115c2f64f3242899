"""Cost of an epoch in the lab's loop: ours / a bare PyTorch loop, LeNet-300-100 on Fashion-MNIST, dense.

The bare loop is the fastest plain one we know, and does less than ours: the training images are in memory as float32,
normalised before (172 MB; ours keeps bytes and normalises each batch); each epoch draws ``torch.randperm`` and takes
batches by ``index_select``; the loss is not looked at; the random state is not set. Both have the same network, batch,
learning rate and optimiser, in its fused form; the last batch of an epoch is smaller in both. A second figure is
against the form of Adam that ``torch.optim.Adam(parameters, lr)`` gives, as most loops are written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from common import Row, alternating, main, one_thread, parser, ratio_row, timed
from lab_loop import start_loop
from torch import Tensor, nn

import ticketry as tk
from ticketry.lab.training.precision import choose_arithmetic
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.state import initial_state, make_optimizer, rebuild_model
from ticketry.lab.training.supervised import Supervised

TARGET = 1.05
ROUNDS, QUICK_ROUNDS = 21, 3


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    task = tk.task("fashion-mnist")
    examples = task.load(arguments.data).train
    ready = task.prepare(examples.inputs), examples.targets
    adam, sgd = task.recipe, task.recipe.changed(optimizer="sgd", lr=0.1)
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    cases = {
        "lab adam": lab_case(task, examples, adam, epochs=rounds + 1),
        "bare adam": bare_case(task, ready, adam),
        "bare default adam": bare_case(task, ready, adam, fused=False),
        "lab sgd": lab_case(task, examples, sgd, epochs=rounds + 1),
        "bare sgd": bare_case(task, ready, sgd),
    }
    seconds = alternating(cases, rounds)
    how = f"1 thread, fp32, batch {adam.batch}, CPU time, {rounds} epochs of {len(examples):,} images"
    what = "epoch of the lab / of a bare loop, lenet-300-100"
    return [
        ratio_row(f"{what}: Adam, fused", seconds["lab adam"], seconds["bare adam"], target=TARGET, how=how),
        ratio_row(f"{what}: SGD, fused", seconds["lab sgd"], seconds["bare sgd"], target=TARGET, how=how),
        ratio_row(f"{what}: against Adam not fused", seconds["lab adam"], seconds["bare default adam"], how=how),
    ]


def lab_case(task: tk.Task, examples: tk.Split, recipe: tk.Recipe, epochs: int) -> Callable[[], float]:
    """The next epoch of a segment in the lab's loop."""
    per_epoch = -(-len(examples) // recipe.batch)
    segment = Segment(
        task=task,
        recipe=recipe,
        start=Start(seed=0),
        first=0,
        last=epochs * per_epoch,
        total=epochs * per_epoch,
        per_epoch=per_epoch,
        order_seed=0,
        arithmetic=choose_arithmetic(task.build(), device="cpu"),
    )
    course = Supervised(task, tk.Splits(examples, examples, examples))
    loop = start_loop(segment, course)

    def tick() -> None:
        time.monotonic()  # as the lab does after each step, for progress and checkpoints

    return lambda: timed(lambda: loop.train_until(loop.step + per_epoch, tick))


def bare_case(
    task: tk.Task, ready: tuple[Tensor, Tensor], recipe: tk.Recipe, *, fused: bool = True
) -> Callable[[], float]:
    """The next epoch of a bare loop."""
    inputs, targets = ready
    model = rebuild_model(task, initial_state(task, 0)).train()
    optimizer = make_optimizer(recipe, model) if fused else torch.optim.Adam(model.parameters(), lr=recipe.lr)

    def epoch() -> None:
        for index in torch.split(torch.randperm(len(targets)), recipe.batch):
            outputs = model(inputs.index_select(0, index))
            loss = nn.functional.cross_entropy(outputs, targets.index_select(0, index))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return lambda: timed(epoch)


if __name__ == "__main__":
    main("epoch", measure, parser(__doc__ or ""))
