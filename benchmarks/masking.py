"""Cost of a mask in a training step: masked / dense.

Ways to train the same network on the same data, each beside its own dense twin:

- lab: the lab's own loop (`ticketry.lab.training.loop.Loop`), with a mask and without, batches drawn and augmented as
  it does;
- hold: a bare PyTorch loop over batches that are ready in memory, inside ``with tk.hold(model, mask)`` and without;
- prune: the same bare loop with torch.nn.utils.prune (custom_from_mask), for comparison.

The bare loops use the optimiser's fused form, which makes the dense step, and so the ratio's base, as fast as it gets.
For Adam its default form is shown too: there every pruned weight costs time with any tool, because its second
moment is 0, and the square root that torch calls is several times slower at 0.

Masks are random, of density 0.2. A sample is a few steps after one that is not timed; before and after (the attaching
of hooks, the last check) nothing is counted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from common import Row, alternating, main, one_thread, parser, ratio_row, timed
from lab_loop import lab_samples
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import ticketry as tk
from ticketry.lab.training.precision import Arithmetic, choose_arithmetic
from ticketry.lab.training.state import initial_state, make_optimizer, rebuild_model
from ticketry.lab.training.supervised import Supervised

DENSITY = 0.2
ROUNDS, QUICK_ROUNDS = 31, 3


@dataclass(frozen=True)
class Setting:
    """A network with its data, and how long to look at it."""

    task: str
    precisions: tuple[str, ...]
    ready: int
    """Batches that the bare loops go round. A LeNet takes so many steps that it would soon know a few by heart."""
    steps: int
    """Steps of a sample."""
    target: float
    """The ratio to reach."""


SETTINGS = (
    Setting("cifar10", ("auto", "fp32"), ready=64, steps=3, target=1.02),
    Setting("fashion-mnist", ("auto",), ready=429, steps=100, target=1.06),
)


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    rows = []
    for setting in SETTINGS:
        task = tk.task(setting.task)
        examples = task.load(arguments.data).train
        choices = [choose_arithmetic(task.build(), device="cpu", precision=word) for word in setting.precisions]
        for arithmetic in dict.fromkeys(choices):  # once, where the processor has no bfloat16
            steps = max(1, setting.steps // 10) if arguments.quick else setting.steps
            ready = list(ready_batches(task, examples, arithmetic, setting.ready))
            rows += compare(Bench(task, examples, arithmetic, steps, ready), rounds, setting.target)
    return rows


@dataclass(frozen=True)
class Bench:
    """Setup shared by all cases of one network in one precision."""

    task: tk.Task
    examples: tk.Split
    arithmetic: Arithmetic
    steps: int
    ready: Sequence[tuple[Tensor, Tensor]]
    """Batches of the bare loops."""


def compare(bench: Bench, rounds: int, target: float) -> list[Row]:
    """The rows of one network in one arithmetic."""
    task, arithmetic = bench.task, bench.arithmetic
    mask = tk.prune(rebuild_model(task, initial_state(task, 0)), density=DENSITY, score="random")
    adam = task.recipe.optimizer == "adam"
    cases = {"lab dense": lab_case(bench, None), "lab masked": lab_case(bench, mask)}
    for fused in (True, False) if adam else (True,):
        cases[f"dense {fused}"] = Bare(bench, fused).sample
        cases[f"held {fused}"] = held_case(bench, fused, mask)
        cases[f"pruned {fused}"] = Bare(bench, fused, mask).sample
    seconds = alternating(cases, rounds)
    layout = " channels_last" if arithmetic.channels_last else ""
    precision = f"{arithmetic.precision}{layout}"
    how = f"1 thread, batch {task.recipe.batch}, CPU time, {rounds} x {bench.steps} steps"
    network = f"{getattr(task, 'model', task.name)} {precision}"

    def row(label: str, masked: str, dense: str, limit: float | None = None) -> Row:
        what = f"masked / dense step, {network}: {label}"
        details = {
            "masked_ms_a_step": 1e3 * statistics.median(seconds[masked]) / bench.steps,
            "dense_ms_a_step": 1e3 * statistics.median(seconds[dense]) / bench.steps,
            "steps_of_a_sample": bench.steps,
        }
        return ratio_row(what, seconds[masked], seconds[dense], target=limit, how=how, details=details)

    rows = [
        row("the lab's loop", "lab masked", "lab dense", target),
        row("own loop, tk.hold", "held True", "dense True", target),
        row("own loop, torch.nn.utils.prune", "pruned True", "dense True"),
    ]
    if adam:
        rows += [
            row("own loop, Adam not fused, tk.hold", "held False", "dense False"),
            row("own loop, Adam not fused, torch.nn.utils.prune", "pruned False", "dense False"),
        ]
    return rows


# -- the lab's loop ----------------------------------------------------------------------------------------------------


def lab_case(bench: Bench, mask: tk.Mask | None) -> Callable[[], float]:
    """Samples of the lab's loop."""
    course = Supervised(bench.task, tk.Splits(bench.examples, bench.examples, bench.examples))
    return lab_samples(bench.task, course, mask, bench.steps, bench.arithmetic)


# -- the user's loop --------------------------------------------------------------------------------------------------


class Bare:
    """Plain PyTorch: the next batch, forward, backward, step."""

    def __init__(self, bench: Bench, fused: bool, mask: tk.Mask | None = None) -> None:
        task, arithmetic = bench.task, bench.arithmetic
        self.model = arithmetic.place(rebuild_model(task, initial_state(task, 0))).train()
        if mask is not None:
            for name, kept in mask.items():
                module, _, local = name.rpartition(".")
                torch_prune.custom_from_mask(self.model.get_submodule(module), local, kept)  # type: ignore[no-untyped-call]
        self.optimizer: torch.optim.Optimizer
        if fused:
            self.optimizer = make_optimizer(task.recipe, self.model)
        else:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.recipe.lr)
        self._batches = cycle(bench.ready)
        self._bf16 = arithmetic.precision == "bf16"
        self._steps = bench.steps

    def train(self, steps: int) -> None:
        for _ in range(steps):
            inputs, targets = next(self._batches)
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
                outputs = self.model(inputs)
            loss = nn.functional.cross_entropy(outputs.float(), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def sample(self) -> float:
        self.train(1)
        return timed(lambda: self.train(self._steps))


def ready_batches(
    task: tk.Task, examples: tk.Split, arithmetic: Arithmetic, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches as the model takes them: float32, normalised, in the memory layout; no augmentation."""
    layout = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
    size = task.recipe.batch
    for start in range(0, count * size, size):
        rows = slice(start, start + size)
        yield task.prepare(examples.inputs[rows]).contiguous(memory_format=layout), examples.targets[rows]


def held_case(bench: Bench, fused: bool, mask: tk.Mask) -> Callable[[], float]:
    bare = Bare(bench, fused)

    def sample() -> float:
        with tk.hold(bare.model, mask):  # for this sample only: all optimisers of a process see its hooks
            return bare.sample()

    return sample


if __name__ == "__main__":
    main("masking", measure, parser(__doc__ or ""))
