"""What a step of sparse training costs: with kernels / the fastest dense step.

A step is all of it: gradients to None, forward, loss, backward, fused SGD with momentum and weight decay, on a batch of
noise that is ready in memory. Masks are random, of one density in every weight that is masked. Dense steps train the
same network without a mask in eager torch, in channels_last and, with ``--compile``, in torch.compile; the ratio is
taken to the one with the least median. One thread, float32, CPU time, in turns.

The parts of a sparse step (forward, input gradient, weight gradient, norms and the rest, by kernel) come from another
run in which each operation is timed by itself.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from common import Row, alternating, main, one_thread, parser, quartiles, timed
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from ticketry.engine.bench.masks import synthetic
from ticketry.engine.cpu.jit import title
from ticketry.engine.cpu.program import Session
from ticketry.tasks import models
from ticketry.tasks.models.language.gpt import GPT

TARGETS = {
    "resnet-18": {0.2: 0.38, 0.1: 0.24, 0.05: 0.17},
    "vgg-16": {0.2: 0.38, 0.1: 0.24, 0.05: 0.17},
    "resnet-20": {0.2: 0.45, 0.1: 0.33, 0.05: 0.28},
    "resnet-50-imagenet": {0.2: 0.45, 0.1: 0.32, 0.05: 0.25},
    "gpt": {0.2: 0.55, 0.1: 0.42, 0.05: 0.36},
    "lenet-300-100": {0.2: 0.6, 0.1: 0.5, 0.05: 0.45},
    "mlp-4096-4096": {0.2: 0.32, 0.1: 0.18, 0.05: 0.12},
}
"""Network -> density -> the ratio to reach."""

BATCHES = {"resnet-50-imagenet": 16, "gpt": 32}
"""Where it is not 128."""

CONTEXT, BYTES = 128, 256
"""Tokens of a piece, and their vocabulary."""

Step = Callable[[], None]


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    rows = []
    for name in arguments.networks:
        for density in arguments.density:
            rows += rows_of(name, density, arguments)
    return rows


def rows_of(name: str, density: float, arguments: argparse.Namespace) -> list[Row]:
    torch.manual_seed(0)
    batch = arguments.batch or BATCHES.get(name, 128)
    model, x, y = gpt(batch) if name == "gpt" else classifier(name, batch)
    steps = dense_steps(model, x, y, arguments.compile)
    fast = tk.sparse_training(model, synthetic(model, arguments.pattern, density), x)
    steps["sparse"] = step_of(fast, x, y)
    cases = {which: (lambda step=step: timed(step)) for which, step in steps.items()}
    seconds = alternating(cases, 2 if arguments.quick else arguments.rounds, warm_up=2)
    best = min((which for which in seconds if which != "sparse"), key=lambda which: statistics.median(seconds[which]))
    low, median, high = quartiles([a / b for a, b in zip(seconds["sparse"], seconds[best], strict=True)])
    told = ", ".join(f"{which} {1e3 * statistics.median(some):.1f} ms" for which, some in seconds.items())
    what = f"{name}, batch {batch}, {arguments.pattern}, {density:.0%} kept"
    target = TARGETS.get(name, {}).get(density) if arguments.pattern == "unstructured" else None
    made = Row(what, median, "", low, high, target=target, how=f"/ {best}; {told}", details=dict(seconds))
    return [made, *parts(what, steps["sparse"])]


def classifier(name: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    size = 224 if name.endswith("imagenet") else 32
    shape = (1, 28, 28) if name.startswith("lenet") else (3, size, size)
    model = models.build(name, shape=shape, classes=10).train()
    return model, torch.randn(batch, *shape), torch.randint(0, 10, (batch,))


def gpt(batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Four blocks of width 256, over bytes, without dropout. Its embeddings, tied to the last layer, are masked."""
    model = GPT(BYTES, context=CONTEXT, dropout=0.0, scale=int, width=256).train()
    x, y = torch.randint(0, BYTES, (2, batch, CONTEXT))
    return model, x, y


def step_of(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """A whole step of a user's loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()

    return step


def dense_steps(model: nn.Module, x: Tensor, y: Tensor, compiled: bool) -> dict[str, Step]:
    """Steps of the network without a mask, each engine with weights of its own."""
    steps = {"eager": step_of(copy.deepcopy(model), x, y)}
    if compiled:
        steps["compile"] = step_of(torch.compile(copy.deepcopy(model)), x, y)
    if x.dim() != 4:
        return steps
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    steps["channels_last"] = step_of(last, x.to(memory_format=torch.channels_last), y)
    if compiled:
        twin = torch.compile(copy.deepcopy(last))
        steps["compile channels_last"] = step_of(twin, x.to(memory_format=torch.channels_last), y)
    return steps


def parts(what: str, step: Step) -> list[Row]:
    """Milliseconds of each kernel of a sparse step, and of what is not in kernels."""
    spent: Counter[str] = Counter()
    run = Session.run

    def one_by_one(
        self: Session,
        first: int,
        last: int,
        external: tuple[int, ...] = (),
        images: int | None = None,
        *,
        shared: bool = False,
    ) -> None:
        for number in range(first, last):
            began = time.process_time()
            run(self, number, number + 1, external, images, shared=shared)
            spent[title(self.kernel(number))] += time.process_time() - began

    step()
    Session.run = one_by_one  # type: ignore[method-assign]
    try:
        whole = timed(step)
    finally:
        Session.run = run  # type: ignore[method-assign]
    spent["not in kernels"] = whole - sum(spent.values())
    return [Row(f"  {part}: {what}", 1e3 * seconds, "ms") for part, seconds in spent.most_common() if seconds > 1e-4]


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("networks", nargs="*", default=list(TARGETS))
    options.add_argument("--batch", type=int, help="default: 128; 16 of resnet-50-imagenet, 32 x 128 tokens of gpt")
    options.add_argument("--density", type=float, nargs="+", default=[0.2, 0.1, 0.05])
    options.add_argument("--pattern", default="unstructured", help="of the masks, as of `ticketry bench --pattern`")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes to compile")
    main("training", measure, options)
