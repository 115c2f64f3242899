"""Cost of language-model training in the lab compared with a bare loop.

The bare loop is plain PyTorch: the next piece of the text, forward, backward, clipping, step, hidden states detached
and handed on. Model, batch, optimiser and arithmetic are the same; both go over the same corpus.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

from common import Row, alternating, main, one_thread, parser, ratio_row, timed
from lab_loop import lab_samples
from torch import Tensor, nn

import ticketry as tk
from ticketry.lab.process import keep_freed_memory
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.state import initial_state, make_optimizer, rebuild_model
from ticketry.tasks.language.task import Language
from ticketry.tasks.task import Course

DENSITY = 0.2
ROUNDS, QUICK_ROUNDS = 21, 2


@dataclass(frozen=True)
class Setting:
    """A task with its network, and how long to look at it."""

    task: str
    model: str
    steps: int
    """Steps of a sample."""


LANGUAGE = (Setting("ptb", "lstm", 6), Setting("ptb", "pointer-lstm", 4), Setting("wikitext-2", "gpt", 2))
DENSE_TARGET, MASKED_TARGET = 1.03, 1.05


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    keep_freed_memory()  # for both, as worker processes do: what the system takes for pages differs by a tenth
    return [row for setting in LANGUAGE for row in language(setting, arguments.data, quick=arguments.quick)]


def language(setting: Setting, data: Path | None, *, quick: bool) -> list[Row]:
    """A step of the lab, dense and masked, beside that of a bare loop."""
    task = tk.task(setting.task, model=setting.model)
    assert isinstance(task, Language)
    course, steps = task.course(data), 1 if quick else setting.steps
    mask = tk.prune(rebuild_model(task, initial_state(task, 0)), density=DENSITY, score="random")
    cases = {
        "dense": lab_samples(task, course, None, steps, Arithmetic()),
        "masked": lab_samples(task, course, mask, steps, Arithmetic()),
        "bare": Bare(task, course, steps).sample,
    }
    rounds = QUICK_ROUNDS if quick else ROUNDS
    seconds = alternating(cases, rounds)
    how = f"1 thread, batch {task.recipe.batch} x {task.time} tokens, CPU time, {rounds} x {steps} steps"

    def row(what: str, case: str, target: float) -> Row:
        details = {f"{name}_ms_a_step": 1e3 * statistics.median(found) / steps for name, found in seconds.items()}
        return ratio_row(what, seconds[case], seconds["bare"], target=target, how=how, details=details)

    name = f"{setting.model}, {setting.task}"
    return [
        row(f"our step / the same model in a bare loop: {name}", "dense", DENSE_TARGET),
        row(f"our masked step / the same model in a bare loop, dense: {name}", "masked", MASKED_TARGET),
    ]


# -- the user's loop --------------------------------------------------------------------------------------------------


class Bare:
    """Plain PyTorch on the training text, in rows or in pieces, one after the other."""

    def __init__(self, task: Language, course: Course, steps: int) -> None:
        self.model, self.recipe, self.time, self.steps = task.build().train(), task.recipe, task.time, steps
        self.optimizer = make_optimizer(task.recipe, self.model)
        tokens: Tensor = course.corpus.train.tokens.long()  # type: ignore[attr-defined]
        length = (len(tokens) - 1) // self.recipe.batch
        self.tokens, self.targets = (
            tokens[first : first + length * self.recipe.batch].view(self.recipe.batch, length) for first in (0, 1)
        )
        self.state, self.at = self.model.begin(self.recipe.batch), 0  # type: ignore[operator]

    def sample(self) -> float:
        self.train(1)
        return timed(lambda: self.train(self.steps))

    def train(self, count: int) -> None:
        for _ in range(count):
            piece = slice(self.at, self.at + self.time)
            self.at = (self.at + self.time) % (self.tokens.shape[1] - self.time)
            tokens, targets = self.tokens[:, piece], self.targets[:, piece]
            self.optimizer.zero_grad(set_to_none=True)
            costs, state = self.model(tokens, self.state, targets)
            costs.mean().backward()
            self.state = {name: value.detach() for name, value in state.items()}
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            self.optimizer.step()


if __name__ == "__main__":
    main("domains", measure, parser(__doc__ or ""))
